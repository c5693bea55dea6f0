# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Wan 2.2 A14B's two experts. Both have the same shapes, those of Wan 2.1 14B: only their names tell them apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rushes.model.config import Shapes
from rushes.model.forms import Form
from rushes.shot import ShotError

if TYPE_CHECKING:
    from rushes.model.files import ModelFiles

Level = Literal["high", "low"]

_NOISE = re.compile(r"(high|low)[-_. ]?noise", re.IGNORECASE)
_NEAR = re.compile(r"(?:a14b|2[._]2).*(?<![a-z])(high|low)(?![a-z])", re.IGNORECASE)
_FAMILY = re.compile(r"a14b", re.IGNORECASE)
_OTHER = {"high": "low", "low": "high", "High": "Low", "Low": "High", "HIGH": "LOW", "LOW": "HIGH"}


def level(path: Path) -> Level | None:
    """Which expert a file is by its name, or by its folder's as Wan and diffusers have them; None if neither tells."""
    if found := _NOISE.search(path.stem) or _NEAR.search(path.stem) or _NOISE.search(path.parent.name):
        return "high" if found[1].lower() == "high" else "low"
    return "low" if path.parent.name == "transformer_2" else None


def other_name(path: Path) -> str:
    """What the other expert's file is called, by the name of one."""
    found = _NOISE.search(path.name) or _NEAR.search(path.name)
    if found is None:
        return "the other expert's file"
    word = found[1]
    return path.name[: found.start(1)] + _OTHER.get(word, _OTHER[word.lower()]) + path.name[found.end(1) :]


def check_experts(files: ModelFiles, form: Form, shapes: Mapping[str, Shapes]) -> None:
    """Raise ShotError for one expert without the other, for two that are not one model's, and for the two swapped."""
    high, low = files.transformer, files.transformer_low
    if low is None:
        _check_alone(high, form)
        return
    if form.boundary is None:
        raise ShotError(
            f"transformer_low: got {low.name}, and {high.name} ({form.name}) is one transformer; leave it out"
        )
    if level(high) == "low" or level(low) == "high":
        raise ShotError(
            f"transformer: got {high.name} with {low.name} as its low-noise expert, which by their names are the other "
            "way round; the two swapped are expected"
        )
    if high == low:
        raise ShotError(f"transformer_low: got {low.name} as both experts; {other_name(high)} is expected")
    if shapes["transformer"] != shapes["transformer_low"]:
        raise ShotError(
            f"transformer_low: got {low.name}, which has other tensors than {high.name}; "
            f"the low-noise expert of the same model is expected"
        )


def _check_alone(path: Path, form: Form) -> None:
    found = level(path)
    if found == "low":
        raise ShotError(
            f"transformer: got {path.name} alone, the low-noise expert of two by its name; {other_name(path)} in its "
            "place, and this one as the low-noise expert, are expected"
        )
    if found == "high" or form.boundary is not None or _FAMILY.search(path.stem):
        raise ShotError(
            f"transformer: got {path.name} alone, one of two experts; {other_name(path)} as its low-noise expert is "
            "expected with it"
        )
