# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A host's plates: what it may ask for, checked before any work, and what a finished file says of itself."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rushes._version import __version__
from rushes.engine import Model
from rushes.media import check_outputs, next_version, read_record, seal_footage, shot_in
from rushes.media.paths import MAX_START_FRAME, Target
from rushes.media.sequences import is_slate
from rushes.shot import Shot, ShotError

# In a job's `plate`: next_version, and what OutputFormat says of the others
PLATE = {
    "start_frame": int, "next_version": bool, "compression": str, "depth": str, "alpha": str, "handles": int,
    "inverse_view": str, "cap": float,
}  # fmt: skip
_INVERSE = re.compile(r"inverse of (?P<view>.+) on (?P<display>.+), soft cap (?P<cap>[0-9.e+]+)")


def check_delivery(
    outputs: Sequence[str], shot: Shot, colorspace: str | None, overwrite: bool, plate: Mapping[str, Any]
) -> None:
    """Raise ShotError for outputs of a resolved shot that could not be written.

    plate: any of PLATE. next_version: the output takes the next free version when it is written, "plate.%04d.exr" as
    "plate_v001.%04d.exr"; one output is allowed with it, since several would each count for themselves.
    """
    for name, value in plate.items():
        kind = PLATE.get(name)
        if kind is None:
            raise ShotError(f"plate: got {name!r}; {', '.join(PLATE)} are allowed")
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise ShotError(f"plate: {name} is {value!r}; {kind.__name__} is allowed")
    start = plate.get("start_frame", 0)
    if not 0 <= start <= MAX_START_FRAME:
        raise ShotError(f"plate: start_frame is {start}; a whole number from 0 to {MAX_START_FRAME} is allowed")
    if not outputs:
        if plate:
            raise ShotError("plate: it is given and no output is; a name such as plate.%04d.exr is needed with it")
        return
    names = list(outputs)
    if plate.get("next_version"):
        if len(names) != 1 or overwrite:
            raise ShotError(f"plate: next_version with {len(names)} outputs; one, without overwrite, is allowed")
        names = [next_version(names[0])]
    form = {name: value for name, value in plate.items() if name != "next_version"}
    check_outputs(names, shot.frames, overwrite, colorspace, shot.size, **form)


def about_file(path: str) -> dict[str, Any]:
    """The shot in one of our files, JSON-ready, and why making it again here may give other bits.

    path: of the sequence that `path` is one frame of, in its %04d form, or as given; shot, record: as they stand in the
    file; colorspace: of a plate, else None; plate: more of how it was written, as PLATE has it; first, last: the
    sequence's frame numbers without a slate, None for other files; missing: numbers between them without a file; notes:
    one sentence for each thing that is not as it was. Raises ShotError for a file that is not ours.
    """
    shot, record = shot_in(read_record(path), path)
    sequence = _sequence(path)
    files = sequence.existing() if sequence is not None else []
    if len(files) > 1 and is_slate(files[0][1]):
        del files[0]
    numbers = [number for number, _ in files]
    colorspace, transform = (_attribute(path, name) for name in ("rushes/colorspace", "rushes/transform"))
    inverse = _INVERSE.fullmatch(transform or "")
    missing = sorted(set(range(numbers[0], numbers[-1])) - set(numbers)) if numbers else []
    return {
        "path": path if sequence is None else str(sequence.folder / sequence.name),
        "shot": shot.to_dict(), "record": dict(record), "colorspace": colorspace,
        "plate": {"inverse_view": f"{inverse['display']}/{inverse['view']}", "cap": float(inverse["cap"])} if inverse
        else {},
        "first": numbers[0] if numbers else None, "last": numbers[-1] if numbers else None, "missing": missing,
        "notes": _differences(shot, record),
    }  # fmt: skip


def _sequence(path: str) -> Target | None:
    target = Target.parse(path)
    if target.padding is not None and not os.path.isfile(path):
        return target
    stem, suffix = os.path.splitext(path)
    digits = len(stem) - len(stem.rstrip("0123456789"))
    if target.kind not in ("exr", "png") or not digits or stem[-digits - 1 : -digits] not in (".", "_"):
        return None
    return Target.parse(f"{stem[:-digits]}%0{digits}d{suffix}")


def _attribute(path: str, name: str) -> str | None:
    """A text in a plate's header; None for other files."""
    if not path.lower().endswith(".exr"):
        return None
    from rushes.media import plates

    file = Path(path) if os.path.isfile(path) else Target.parse(path).existing()[0][1]
    return plates.read_attribute(file, name, "an EXR")


def _differences(shot: Shot, record: Mapping[str, Any]) -> list[str]:
    notes = []
    if record["rushes"] != __version__:
        notes.append(f"it was made by Rushes {record['rushes']}, this is {__version__}: the bits may differ")
    try:
        model = Model.open(shot.model)
        before = record.get("model") or {}
        now = model.record(shot)["model"]
        if before.get("sha256") != now["sha256"]:
            then = str(before.get("sha256") or "unknown")[:8]
            notes.append(
                f"it was made with other weights of {now['name']} (SHA-256 {then}, now {now['sha256'][:8]}): "
                "the bits may differ"
            )
        model.loras(shot)
    except ShotError as error:
        notes.append(str(error))
    for keyframe in shot.keyframes:
        try:
            keyframe.sealed()
        except ShotError as error:
            notes.append(str(error))
    try:
        seal_footage(shot)
    except ShotError as error:
        notes.append(str(error))
    return notes
