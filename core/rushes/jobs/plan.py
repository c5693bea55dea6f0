# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""From what an artist has set in a host to a shot that a model takes, and from clip frames to the host's frames.

Standard library only, Python 3.9 to 3.14: hosts vendor this file. A *wish* is plain JSON: what the artist has set, with
what the scene says (its size, rate and range). It is kept in the scene, so that a panel can be set again from there.
`plan` turns it into a shot, once the model's limits are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

Wish = dict[str, Any]


class Plan(NamedTuple):
    """shot: what the worker gets. length: scene frames that it takes. notes: what was changed, and why."""

    shot: dict[str, Any]
    length: int
    notes: list[str]


def plan(wish: Wish, limits: Mapping[str, Any]) -> Plan:
    """The shot nearest to the wish that the model takes."""
    clip_fps, scene_fps = clip_rate(wish, limits), Fraction(wish["scene_fps"])
    notes: list[str] = []
    size = _size(wish["size"], limits, notes)
    frames, length = _frames(wish["length"], limits, clip_fps, scene_fps, notes)
    is_range = wish["length"]["mode"] != "FRAMES"
    # the last picture belongs at the range's last frame, and not behind it, where what is made is cut off
    seen = frame_at(length - 1, clip_fps, scene_fps) if is_range else -1
    shot = {
        "prompt": wish["prompt"], "negative": wish["negative"], "model": wish["model"], "seed": wish["seed"],
        "size": list(size), "frames": frames, "fps": str(clip_fps),
        "steps": wish["steps"] or limits["steps"],
        "guidance": limits["guidance"] if wish["guidance"] is None else wish["guidance"],
        "loras": wish.get("loras", []), "control": wish.get("control", []),
        "reuse": wish.get("reuse", 0.0), "guided": wish.get("guided", 1.0),
        "keyframes": [
            {"frame": seen if key["frame"] == -1 else key["frame"], "image": key["image"]} for key in wish["keyframes"]
        ],
    }  # fmt: skip
    return Plan(shot, length, notes)


def speed(wish: Wish) -> dict[str, Any]:
    """What the worker gets beside the shot, in `submit` and `estimate`; empty where nothing of it is asked for.

    In the wish, attention: the share of self-attention that is computed, None or 1 for all of it. fp8_products: a bool.
    """
    share = wish.get("attention")
    found: dict[str, Any] = {} if share is None or share == 1 else {"attention": {"density": share}}
    return {**found, "fp8_products": True} if wish.get("fp8_products") else found


def clip_rate(wish: Wish, limits: Mapping[str, Any]) -> Fraction:
    """The clip's own frame rate: asked for, or the model's."""
    return Fraction(wish["fps"] or limits["fps"])


def _size(size: Mapping[str, Any], limits: Mapping[str, Any], notes: list[str]) -> tuple[int, int]:
    own, step = limits["size"], limits["size_step"]
    if size["mode"] == "MODEL":
        return own[0], own[1]
    if size["mode"] == "CUSTOM":
        wanted, most = size["custom"], limits["max_pixels"]
    else:  # the scene's shape, no larger than what the model was trained on: most scenes are larger than any model's
        wanted, most = size["scene"], own[0] * own[1]
    scale = min(1.0, math.sqrt(most / (wanted[0] * wanted[1])))
    width, height = (max(step, round(side * scale / step) * step) for side in wanted)
    while width * height > limits["max_pixels"] and max(width, height) > step:
        width, height = (width - step, height) if width >= height else (width, height - step)
    if [width, height] != list(wanted):
        notes.append(f"size: {wanted[0]}x{wanted[1]} becomes {width}x{height}, in steps of {step} pixels")
    return width, height


def _frames(
    length: Mapping[str, Any], limits: Mapping[str, Any], clip_fps: Fraction, scene_fps: Fraction, notes: list[str]
) -> tuple[int, int]:
    """(clip frames, scene frames): a range is covered and the rest cut off; a number is taken as clip frames."""
    step, most = limits["frames_step"], limits["max_frames"]
    is_range = length["mode"] != "FRAMES"
    asked = math.ceil(length["scene_frames"] * clip_fps / scene_fps) if is_range else length["frames"]
    asked = max(1, asked or limits["frames"])
    frames = min(-(-(asked - 1) // step) * step + 1, (most - 1) // step * step + 1)
    whole = element_count(frames, clip_fps, scene_fps)
    if frames < asked:
        notes.append(f"length: {limits['name']} makes up to {frames} frames, which are {whole} scene frames")
    elif frames != asked:
        notes.append(f"length: {asked} frames become {frames}" + (", the rest is cut off" if is_range else ""))
    return frames, min(length["scene_frames"], whole) if is_range else whole


# --- clip frames and scene frames ---------------------------------------------------------------------------------


def element_count(frames: int, clip_fps: Fraction, scene_fps: Fraction) -> int:
    """Scene frames that `frames` clip frames last; a part of one counts as one."""
    return math.ceil(frames * scene_fps / clip_fps)


def frame_at(element: int, clip_fps: Fraction, scene_fps: Fraction) -> int:
    """The clip frame, from 0, that is seen at a scene frame, from 0."""
    return math.floor(element * clip_fps / scene_fps)


def frame_name(number: int) -> str:
    """File name of a clip frame, from 1."""
    return f"{number:04d}.png"


def describe_rate(clip_fps: Fraction, scene_fps: Fraction) -> str:
    """How the clip's frames are laid on the scene's, in words."""
    head = f"{_rate(clip_fps)} fps in a scene of {_rate(scene_fps)}: "
    if clip_fps == scene_fps:
        return head + "frame for frame"
    times = scene_fps / clip_fps
    if times < 1:
        return head + f"{_rate(1 / times)} frames of the clip to one of the scene; the others are left out"
    low, high = math.floor(times), math.ceil(times)
    return head + (f"each frame is shown {low} times" if low == high else f"each is shown {low} or {high} times")


def _rate(rate: Fraction) -> str:
    return str(rate.numerator) if rate.denominator == 1 else f"{float(rate):.3f}".rstrip("0").rstrip(".")


# --- words ----------------------------------------------------------------------------------------------------------


def describe_error(error: Exception) -> str:
    """A sentence; what the system says about a file names the file."""
    if isinstance(error, OSError) and error.filename:
        return f"file: {error.filename} cannot be used ({error.strerror})"
    return str(error)


def describe_time(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def describe_bytes(count: float) -> str:
    """830 MB, 2.1 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
