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
    from rushes.media.frames import FrameFolder
    from rushes.media.images import load_image
    from rushes.media.latents import read_history, read_latents, write_latents
    from rushes.media.outputs import Outputs, open_outputs
    from rushes.media.paths import check_outputs
    from rushes.media.reader import FrameReader, read_frames
    from rushes.media.record import read_record, shot_in
    from rushes.media.sink import WriteError
    from rushes.media.versions import next_version

__all__ = [
    "FrameFolder",
    "FrameReader",
    "Outputs",
    "WriteError",
    "check_outputs",
    "load_image",
    "next_version",
    "open_outputs",
    "read_frames",
    "read_history",
    "read_latents",
    "read_record",
    "shot_in",
    "write_latents",
]

_HOME = {
    "FrameFolder": "frames",
    "FrameReader": "reader",
    "Outputs": "outputs",
    "WriteError": "sink",
    "check_outputs": "paths",
    "load_image": "images",
    "next_version": "versions",
    "open_outputs": "outputs",
    "read_frames": "reader",
    "read_history": "latents",
    "read_latents": "latents",
    "read_record": "record",
    "shot_in": "record",
    "write_latents": "latents",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
