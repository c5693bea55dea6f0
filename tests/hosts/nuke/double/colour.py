# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Colour spaces as Nuke's menus show them, and conversions between them: by OpenColorIO, or Nuke's own curves."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import PyOpenColorIO as OCIO


@functools.cache
def config(name: str) -> Any:
    """An OCIO configuration from a path or an ocio:// name."""
    return OCIO.Config.CreateFromFile(name)


NUKE = "nuke"  # in place of a configuration: colorManagement is Nuke's own, curves over the primaries of Rec.709
_LUTS = ("linear", "sRGB", "rec709", "Cineon", "Gamma1.8", "Gamma2.2", "Gamma2.4", "AlexaV3LogC")


def menu(session: Any) -> list[str]:
    """The items of a colour space knob.

    Before Nuke 16 an item is what is seen, and a role reads `scene_linear (ACES - ACEScg)`. Since then it is the id, a
    tab, and what is seen.
    """
    if session.config == NUKE:
        return list(_LUTS)
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


def default(session: Any, is_linear: bool) -> str:
    """What a file is taken for where the knob says "default"."""
    if session.config == NUKE:
        return "linear" if is_linear else "sRGB"
    return "scene_linear" if is_linear else "matte_paint"


def _to_linear(colours: Any, name: str) -> Any:
    if name == "sRGB":
        return np.where(colours <= 0.04045, colours / 12.92, ((np.maximum(colours, 0) + 0.055) / 1.055) ** 2.4)
    if name == "rec709":
        return np.where(colours < 0.081, colours / 4.5, ((np.maximum(colours, 0) + 0.099) / 1.099) ** (1 / 0.45))
    raise RuntimeError(f"{name}: the double has no such curve")


def _from_linear(colours: Any, name: str) -> Any:
    if name == "sRGB":
        return np.where(colours <= 0.0031308, colours * 12.92, 1.055 * np.maximum(colours, 0) ** (1 / 2.4) - 0.055)
    if name == "rec709":
        return np.where(colours < 0.018, colours * 4.5, 1.099 * np.maximum(colours, 0) ** 0.45 - 0.099)
    raise RuntimeError(f"{name}: the double has no such curve")


def _by_curves(pixels: Any, source: str, target: str) -> Any:
    colours = pixels[..., :3].astype(np.float64)
    colours = colours if source == "linear" else _to_linear(colours, source)
    colours = colours if target == "linear" else _from_linear(colours, target)
    return np.concatenate([colours.astype(np.float32), pixels[..., 3:]], axis=-1)


def convert(session: Any, pixels: Any, source: str, target: str) -> Any:
    """float32 [height, width, 4] from one space to the other."""
    if session.config == NUKE:
        return pixels if source == target else _by_curves(pixels, source, target)
    if space_of(session, source) == space_of(session, target):
        return pixels
    processor = config(session.config).getProcessor(space_of(session, source), space_of(session, target))
    converted = np.ascontiguousarray(pixels, dtype=np.float32).copy()
    processor.getDefaultCPUProcessor().applyRGBA(converted)
    return converted
