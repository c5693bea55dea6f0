# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What steers a shot of a VACE model: the node's input over the clip's frames, rendered by a Write; files; pictures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import nuke

from . import colour, host, keyframes, places
from .refusal import Refusal
from .vendor.plan import Plan, Wish

TAKING = "control"  # the kind of a model that takes it, in its limits
NONE, DISTANCE, NEAR = "none", "depth: distance", "depth: near is white"
KINDS = (NONE, DISTANCE, NEAR, "normal", "grey", "pose", "edges", "flow", "source")
INPUT, SLOT = "control", 2  # the input of the node
_MEASURES = (DISTANCE, "normal")  # numbers, to the last bit; all else is between 0 and 1
_RAW = (*_MEASURES, NEAR)  # no colours
_LINE = re.compile(r"(?P<kind>[a-z]+)(?::(?P<strength>[^@=]*))?(?:@(?P<start>[^=]*))?=(?P<files>.+)")
_WITHIN = " within "


# --- what is typed --------------------------------------------------------------------------------------------------


def typed(lines: Sequence[str], references: Sequence[str]) -> list[dict[str, Any]]:
    """Control of lines such as depth:0.8@24=/z.%04d.exr within /mask.%04d.png, and of pictures. Raises Refusal."""
    found = [_typed(line) for line in lines]
    return [*found, {"kind": "reference", "references": list(references)}] if references else found


def _typed(line: str) -> dict[str, Any]:
    match = _LINE.fullmatch(line)
    try:
        if match is None:
            raise ValueError
        path, _, mask = match["files"].partition(_WITHIN)
        strength, start = float(match["strength"] or 1), int(match["start"] or 0)
    except ValueError:
        raise Refusal(
            f"control files: got {line!r}; KIND:STRENGTH@FRAME=FILE such as depth:1@0=/passes/z.%04d.exr is allowed"
        ) from None
    return {"kind": match["kind"], "strength": strength, "start": start, "path": path.strip(), "mask": mask.strip()}


def lines_of(control: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """What `typed` reads for a shot's control: lines, and references."""
    lines = [
        f"{one['kind']}:{one['strength']!r}@{one['start']}={one['path']}"
        + (f"{_WITHIN}{one['mask']}" if one["mask"] else "")
        for one in control
        if one["path"]
    ]
    return lines, [path for one in control for path in one["references"]]


# --- the input ------------------------------------------------------------------------------------------------------


def check(node: Any, wish: Wish, limits: Mapping[str, Any]) -> None:
    """Raise Refusal where the model takes no control, or a kind is chosen without an input."""
    kind = str(node[INPUT].value())
    if (kind != NONE or wish["control"]) and limits["kind"] != TAKING:
        raise Refusal(f"control: {limits['name']} takes no control; none, or a VACE model with it, is allowed")
    if kind != NONE and node.input(SLOT) is None:
        raise Refusal(
            f"control: got {kind!r} with nothing at the input 'control'; an input with it, or none, is allowed"
        )


def render(node: Any, key: str, wish: Wish, made: Plan, start: int, spaces: Sequence[colour.Space]) -> list[Any]:
    """The input as control, a file for each frame of the clip; none where no kind is chosen. Raises Refusal.

    start: frame of the script at the clip's first. Where the clip has another rate than the script, the script's frame
    that is nearest in time. After a refusal nothing is left on disk.
    """
    kind = str(node[INPUT].value())
    if kind == NONE:
        return []
    pace = Fraction(wish["scene_fps"]) / Fraction(made.shot["fps"])
    frames = [start + int(number * pace + Fraction(1, 2)) for number in range(made.shot["frames"])]
    pattern = places.control(key) / f"{kind.partition(':')[0]}.%04d.{'exr' if kind in _MEASURES else 'png'}"
    try:
        _render(node, kind, pattern, frames, spaces)
    except BaseException:
        shutil.rmtree(pattern.parent, ignore_errors=True)
        raise
    strength = float(node["control_strength"].value())
    return [{"kind": kind.partition(":")[0], "strength": strength, "path": pattern.as_posix()}]


def _render(node: Any, kind: str, pattern: Path, frames: Sequence[int], spaces: Sequence[colour.Space]) -> None:
    task = nuke.ProgressTask("Rushes: control") if host.is_gui() else None
    with keyframes.writing(node, INPUT, pattern, None if kind in _RAW else keyframes.srgb(spaces)) as write:
        for number, frame in enumerate(frames, 1):
            if task is not None:
                if task.isCancelled():
                    raise Refusal("control: cancelled; no clip has been asked for")
                task.setProgress(100 * number // len(frames))
            keyframes.execute(write, INPUT, Path(str(pattern) % number), frame)
