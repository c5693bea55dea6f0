# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The record of what ComfyUI writes: the shot that made the frames, or that no shot did, and the workflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from comfy.cli_args import args

from rushes._version import __version__
from rushes.media.record import MADE_FROM, NO_SHOT
from rushes.shot import Shot

DEFAULT_RATE = Fraction(24)
HOST = "comfyui"  # key of the workflow in a record
_STAND_IN = "frames of a ComfyUI graph, not made by Rushes"


def without_shot(size: tuple[int, int], frames: int | None, fps: Fraction | None) -> dict[str, Any]:
    """A record for frames that no shot has made: a stand-in for the shot holds size, length and rate."""
    shot = Shot(_STAND_IN, size=size, frames=frames, fps=fps or DEFAULT_RATE)
    return {
        "rushes": __version__,
        "shot": shot.to_dict(),
        "model": {"name": "none", "sha256": ""},
        "unknown_words": [],
        NO_SHOT: True,
    }


def fitting(
    record: Mapping[str, Any] | None, size: tuple[int, int], frames: int | None, fps: Fraction | None
) -> dict[str, Any]:
    """The record for frames as they are. Of changed ones, by size or number, it says only what they were made from."""
    if record is None:
        return without_shot(size, frames, fps)
    shot = Shot.from_dict(record["shot"])
    if (shot.size, shot.frames) == (size, frames):
        return {**record, "shot": shot.replace(fps=fps or shot.fps or DEFAULT_RATE).to_dict()}
    return {**without_shot(size, frames, fps or shot.fps), MADE_FROM: dict(record)}


def with_workflow(record: Mapping[str, Any], prompt: Any, extra: Any) -> dict[str, Any]:
    """The record with ComfyUI's prompt and workflow, unless its user has turned metadata off."""
    found = {key: value for key, value in {"prompt": prompt, **(extra or {})}.items() if value}
    if args.disable_metadata or not found:
        return dict(record)
    # a graph may hold NaN, which is no JSON
    return {**record, HOST: json.loads(json.dumps(found, default=str), parse_constant=lambda _: None)}
