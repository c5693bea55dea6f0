# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Pictures in and out: plates, movies, stills, timelines, latents, and the record that each of them carries.

The names below are the room's whole promise. They are loaded on first use, so that importing this package
brings in neither OpenImageIO, OpenColorIO nor PyAV.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rushes.media.checks import check_outputs
    from rushes.media.format import OutputFormat
    from rushes.media.frames import FrameFolder
    from rushes.media.images import load_image
    from rushes.media.latents import read_history, read_latents, write_latents
    from rushes.media.manifest import Manifest, manifest_path, read_manifest
    from rushes.media.outputs import Outputs, open_outputs
    from rushes.media.reader import FrameReader, read_frames
    from rushes.media.record import read_record, shot_in
    from rushes.media.sink import WriteError
    from rushes.media.verification import Finding, Verification, verify
    from rushes.media.versions import next_version

__all__ = [
    "Finding",
    "FrameFolder",
    "FrameReader",
    "Manifest",
    "OutputFormat",
    "Outputs",
    "Verification",
    "WriteError",
    "check_outputs",
    "footage_digest",
    "is_still",
    "load_image",
    "manifest_path",
    "next_version",
    "open_outputs",
    "read_frames",
    "read_history",
    "read_latents",
    "read_manifest",
    "read_pass",
    "read_record",
    "read_reference",
    "seal_footage",
    "shot_in",
    "verify",
    "write_latents",
]

_HOME = {
    "Finding": "verification",
    "FrameFolder": "frames",
    "FrameReader": "reader",
    "Manifest": "manifest",
    "OutputFormat": "format",
    "Outputs": "outputs",
    "Verification": "verification",
    "WriteError": "sink",
    "check_outputs": "checks",
    "footage_digest": "passes",
    "is_still": "passes",
    "load_image": "images",
    "manifest_path": "manifest",
    "next_version": "versions",
    "open_outputs": "outputs",
    "read_frames": "reader",
    "read_history": "latents",
    "read_latents": "latents",
    "read_manifest": "manifest",
    "read_pass": "passes",
    "read_record": "record",
    "read_reference": "passes",
    "seal_footage": "passes",
    "shot_in": "record",
    "verify": "verification",
    "write_latents": "latents",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
