# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Colour spaces as Nuke's menus show them, and conversions between them, by OpenColorIO."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import PyOpenColorIO as OCIO


@functools.cache
def config(name: str) -> Any:
    """An OCIO configuration from a path or an ocio:// name."""
    return OCIO.Config.CreateFromFile(name)


def menu(session: Any) -> list[str]:
    """The items of a colour space knob.

    Before Nuke 16 an item is what is seen, and a role reads `scene_linear (ACES - ACEScg)`. Since then it is the id, a
    tab, and what is seen.
    """
    known = config(session.config)
    items = []
    for role, space in known.getRoles():
        shown = f"{role} ({space})"
        items.append(shown if session.major < 16 else f"{role}\t{shown}")
    for space in known.getColorSpaceNames():
        family = known.getColorSpace(space).getFamily()
        items.append(space if session.major < 16 or not family else f"{space}\t{family}/{space}")
    return items


def space_of(session: Any, item: str) -> str:
    """The colour space behind an item's id: a role's, or itself."""
    known = config(session.config)
    name = item.split(" (")[0] if item.split(" (")[0] in dict(known.getRoles()) else item
    found = known.getColorSpace(name)
    if found is None:
        raise RuntimeError(f"{item}: no colour space of {session.config}")
    return str(found.getName())


def convert(session: Any, pixels: Any, source: str, target: str) -> Any:
    """float32 [height, width, 4] from one space to the other."""
    if space_of(session, source) == space_of(session, target):
        return pixels
    processor = config(session.config).getProcessor(space_of(session, source), space_of(session, target))
    converted = np.ascontiguousarray(pixels, dtype=np.float32).copy()
    processor.getDefaultCPUProcessor().applyRGBA(converted)
    return converted
