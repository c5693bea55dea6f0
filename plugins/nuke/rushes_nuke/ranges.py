# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The frame-count rule: how a model's 4n+1 frames lie on the frames of the script. No nuke.

A range with its handles is covered from its first frame on. What the model makes beyond its end lies on disk behind the
range and is not shown; a range that is longer than the model's longest clip is not filled, which is said. One frame of
the clip is one frame of the script ("frame for frame"), or frames are repeated or left out so that the model's own
speed stays ("keep the speed"). Nothing is stretched or blended.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from .refusal import Refusal
from .vendor.plan import Plan, describe_rate

MAX_FRAME = 10_000_000


class Range(NamedTuple):
    """Frames of the script, handles included."""

    first: int
    last: int
    handles: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def asked_range(first: int, last: int, handles: int) -> Range:
    """Raises Refusal for a range that no plate can have."""
    if last < first:
        raise Refusal(f"range: got {first}-{last}; a last frame from {first} on is allowed")
    if handles < 0:
        raise Refusal(f"handles: got {handles}; 0 or more is allowed")
    if first - handles < 0 or last + handles > MAX_FRAME:
        raise Refusal(
            f"range: {first}-{last} with handles of {handles} is {first - handles}-{last + handles}; "
            f"plates have frames from 0 to {MAX_FRAME}"
        )
    return Range(first - handles, last + handles, handles)


def frame_expression(start: int, file_start: int, clip_fps: Fraction, script_fps: Fraction) -> str:
    """For a Read's `frame`: the number in the file's name at a frame of the script; "" where both are the same."""
    ratio = clip_fps / script_fps
    if ratio == 1:
        return "" if start == file_start else f"frame+{file_start - start}"
    return f"{file_start}+floor((frame-{start})*{ratio.numerator}/{ratio.denominator})"


def shown_range(start: int, length: int, frames: int, clip_fps: Fraction, script_fps: Fraction) -> tuple[int, int]:
    """First and last number of the files that `length` frames of the script show, of a plate from `start` on."""
    last = (length - 1) * clip_fps // script_fps if length else frames - 1
    return start, start + min(frames - 1, int(last))


def describe(
    start: int, made: Plan, wish: Mapping[str, Any], limits: Mapping[str, Any], script_fps: Fraction
) -> list[str]:
    """The rule applied, in sentences for the artist, before anything is made."""
    frames, clip_fps = made.shot["frames"], Fraction(made.shot["fps"])
    step, length = limits["frames_step"], wish["length"]
    said = [f"{frames} frames ({step}n+1) at {made.shot['size'][0]}x{made.shot['size'][1]}, numbered from {start}"]
    if length["mode"] == "RANGE":
        _, last = shown_range(start, made.length, frames, clip_fps, Fraction(wish["scene_fps"]))
        covered, extra = start + made.length - 1, start + frames - 1 - last
        said.append(f"they fill {start}-{covered}" + (f"; {extra} more lie behind it on disk" if extra > 0 else ""))
        if made.length < length["scene_frames"]:
            said.append(f"the range goes on to {start + length['scene_frames'] - 1}, where the last frame is held")
    if Fraction(wish["scene_fps"]) == script_fps and clip_fps != script_fps:
        said.append(describe_rate(clip_fps, script_fps))
    elif (times := script_fps / Fraction(limits["fps"])) != 1:
        said.append(
            f"frame for frame: the model moves things at {limits['fps']} fps, so at the script's rate they are "
            f"{float(times):.3g} times as fast"
        )
    return said + made.notes
