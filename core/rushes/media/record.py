# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The record that every output carries: the whole request, so that any of our files can be made again.

It is stored as one line of ASCII JSON: no file format, host or old tool can spoil that by its idea of text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rushes.media.paths import KINDS, Target
from rushes.shot import TRAINED_MEDIA, Shot, ShotError

NO_SHOT = "without_shot"  # key of a record whose frames no shot has made: those of somebody else's graph
SOURCE_TYPE = "digital_source_type"  # key of the IPTC's word for how the pictures came to be
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
MADE_FROM = "made_from"  # key of the record that frames had before somebody changed them


def to_text(record: Mapping[str, Any]) -> str:
    """The record as one line of ASCII JSON with sorted keys: equal records give equal bytes."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_text(text: str | None, path: Path) -> dict[str, Any]:
    """Read `to_text`'s form back. path: the file it came from, for the message. Raises ShotError."""
    try:
        record = json.loads(text or "null")
    except ValueError:
        record = None
    return checked(record, path)


def checked(record: Any, path: Path) -> dict[str, Any]:
    """The record, when it is one of ours. Raises ShotError naming the file otherwise."""
    is_ours = isinstance(record, dict) and isinstance(record.get("rushes"), str)
    if not is_ours or not isinstance(record.get("shot"), dict):
        raise ShotError(f"{path}: it holds no record of a shot; a file that Rushes has written is allowed")
    return record


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record in any output of ours: a plate or its pattern, a movie, a still, a timeline, latents.

    Raises ShotError for a file that is missing, damaged or not ours. The shot inside is not checked here:
    `Shot.from_dict(record["shot"])` does that.
    """
    kind = os.path.splitext(os.fspath(path))[1][1:].lower()
    if kind not in KINDS:
        allowed = ", ".join("." + one for one in KINDS)
        raise ShotError(f"{os.fspath(path)}: the suffix is '.{kind}'; files that Rushes writes are allowed ({allowed})")
    file = _existing_file(path)
    return from_text(_stored_text(kind, file), file)


def shot_in(record: Mapping[str, Any], name: str | os.PathLike[str]) -> tuple[Shot, Mapping[str, Any]]:
    """The shot that made a file, and the record that it stands in; of changed frames, what they were made from.

    name: of the file, for the message. Raises ShotError where no shot has made it, and for a shot that is damaged.
    """
    if not record.get(NO_SHOT):
        return Shot.from_dict(record["shot"]), record
    before = record.get(MADE_FROM)
    if before is None:
        raise ShotError(f"{os.fspath(name)}: no shot of Rushes made its frames; a file made from a shot is allowed")
    return shot_in(checked(before, Path(name)), name)


def source_type(record: Mapping[str, Any], name: str | os.PathLike[str]) -> str:
    """The IPTC digital source type of a file's pictures: what its record says, or what its model tells.

    Of frames that were changed after a model had made them it is the composite with them. name: of the file, for the
    message. Raises ShotError where neither a model nor a source is named.
    """
    if record.get(NO_SHOT):
        shot_in(record, name)
        return COMPOSITE
    said, model = record.get(SOURCE_TYPE), record.get("model")
    if isinstance(said, str) and said:
        return said
    if not isinstance(model, dict) or not model.get("sha256"):
        raise ShotError(f"{os.fspath(name)}: its record names no model; a file with its provenance is allowed")
    return TRAINED_MEDIA


def _existing_file(path: str | os.PathLike[str]) -> Path:
    if os.path.isfile(path):  # before patterns: a file may really be called take#2.png
        return Path(path)
    there = [file for _, file in Target.parse(path).existing() if file.is_file()]
    if not there:
        raise ShotError(f"{os.fspath(path)}: there is no such file; a file that Rushes has written is allowed")
    return there[0]


def _stored_text(kind: str, file: Path) -> str | None:
    if kind == "exr":
        from rushes.media import plates

        return plates.read_text(file)
    if kind == "png":
        from rushes.media import stills

        return stills.read_text(file)
    if kind == "safetensors":
        from rushes.media import latents

        return latents.read_text(file)
    if kind == "otio":
        from rushes.media import timeline

        return timeline.read_text(file)
    from rushes.media import movies

    return movies.read_text(file)


def unreadable(path: Path, what: str, reason: object) -> ShotError:
    """The refusal of a damaged file; of a library's message only the first line is kept."""
    lines = str(reason).strip().splitlines() or ["no reason given"]
    return ShotError(f"{path}: it cannot be read as {what} ({lines[0].rstrip('.')}); a complete file is allowed")
