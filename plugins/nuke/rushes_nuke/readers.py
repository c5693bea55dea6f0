# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The plain Read inside the node: a placeholder, then the frames that are there, then the plate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from . import colour, host
from .ranges import frame_expression, shown_range
from .takes import Take

PLATE = "plate"


def of(node: Any) -> Any:
    """The Read inside a node of ours."""
    return node.node(PLATE)


def show_placeholder(node: Any, picture: Path, take: Take, spaces: Sequence[colour.Space]) -> None:
    """At once, before there is a frame."""
    read = of(node)
    _choose_file(read, picture.as_posix(), 1, 1)
    _settle(node, "", "nearest frame", colour.find(spaces, colour.SRGB))


def show_frames(node: Any, take: Take, folder: Path, frames: int, spaces: Sequence[colour.Space]) -> None:
    """The first `frames` frames as the worker shows them, 8 bit; later ones hold the last.

    Each new frame moves the Read's `last`, by which Nuke knows that there is more; nothing is reloaded.
    """
    read = of(node)
    pattern = (folder / "frames" / "%04d.png").as_posix()
    clip_fps, scene_fps = rates(take)
    if read["file"].value() != pattern:
        _choose_file(read, pattern, 1, frames)
        expression = frame_expression(take["start"], 1, clip_fps, scene_fps)
        _settle(node, expression, "nearest frame", colour.find(spaces, colour.SRGB))
    for name in ("last", "origlast"):
        host.set_if_other(read[name], frames)


def show_plate(node: Any, take: Take, spaces: Sequence[colour.Space]) -> None:
    """The finished plate: file, range, colour read back, one reload. Raises Refusal for a colour that is not there."""
    read, (clip_fps, scene_fps) = of(node), rates(take)
    first, last = shown_range(take["start"], take["length"], take["frames"], clip_fps, scene_fps)
    _choose_file(read, take["pattern"], first, last)
    expression = frame_expression(take["start"], take["start"], clip_fps, scene_fps)
    try:
        _settle(node, expression, "error", colour.chosen(take["space"], spaces))
    finally:
        read["reload"].execute()


def show_file(node: Any, found: Mapping[str, Any], spaces: Sequence[colour.Space]) -> None:
    """A plate that lies on disk already, as Restore has found it."""
    read = of(node)
    _choose_file(read, found["path"].replace("\\", "/"), found["first"], found["last"])
    _settle(node, "", "error", colour.chosen(found["colorspace"], spaces) if found["colorspace"] else None)
    read["reload"].execute()


def rates(take: Take) -> tuple[Fraction, Fraction]:
    """(the clip's frame rate, that of the frames it is laid on)."""
    fps = (take["shot"] or {}).get("fps") or take["wish"]["fps"] or take["wish"]["scene_fps"]
    return Fraction(fps), Fraction(take["wish"]["scene_fps"])


def _choose_file(read: Any, pattern: str, first: int, last: int) -> None:
    read["file"].fromUserText(f"{pattern} {first}-{last}")
    for name, value in (("first", first), ("last", last), ("origfirst", first), ("origlast", last)):
        host.set_if_other(read[name], value)


def _settle(node: Any, expression: str, on_error: str, space: colour.Space | None) -> None:
    read = of(node)
    host.set_if_other(read["frame_mode"], "expression")
    host.set_if_other(read["frame"], expression)
    host.set_if_other(read["on_error"], on_error)
    host.set_if_other(read["auto_alpha"], bool(node["solid_alpha"].value()))
    if space is not None:
        colour.put(read["colorspace"], space)
