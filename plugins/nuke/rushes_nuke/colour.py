# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A colour space of the worker's, found in the menus of this script, set, and read back. Never assumed.

The worker's list gives every name that a space goes by. A menu of Nuke's holds ids, ids with a label behind a tab, or
roles such as `scene_linear (ACES - ACEScg)`. The id decides, then the label, then an alias, then a role's own space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import nuke

from .refusal import Refusal

WORKING = "working space"
SRGB = "srgb_rec709_scene"
Space = Mapping[str, Any]
_ROLE = re.compile(r"[a-z0-9_]+ \((.+)\)")
# Nuke's own colour management has a menu of its own: its `linear` has the primaries of Rec.709
_OF_NUKE = {"lin_rec709_scene": ("linear",), SRGB: ("sRGB",)}


def find(spaces: Sequence[Space], name: str) -> Space | None:
    """The worker's space of a name, alias or interop id."""
    return next((space for space in spaces if name in _names(space)), None)


def _names(space: Space) -> list[str]:
    own = _OF_NUKE.get(space["interop_id"], ())
    return [space["name"], *space["aliases"], *([space["interop_id"]] if space["interop_id"] else []), *own]


def _item(item: str) -> tuple[str, list[str], list[str]]:
    """(id, what it is called, the space behind a role) of a menu's item."""
    name, _, label = item.partition("\t")
    called = [label, label.rpartition("/")[2]] if label else []
    roles = [match[1] for text in (name, label) if (match := _ROLE.fullmatch(text))]
    return name, called, roles


def match(menu: Sequence[str], space: Space) -> str | None:
    """The id of the item that is this space; None where there is none."""
    items = [_item(item) for item in menu]
    name, others = space["name"], _names(space)[1:]
    for is_it in (
        lambda each: each[0] == name,
        lambda each: name in each[1],
        lambda each: each[0] in others,
        lambda each: any(called in others for called in each[1]),
        lambda each: any(inner == name or inner in others for inner in each[2]),
    ):
        for each in items:
            if is_it(each):
                return each[0]
    return None


def check(knob: Any, space: Space) -> str:
    """The id of a space in a knob's menu. Raises Refusal where the script's configuration does not have it."""
    found = match(knob.values(), space)
    if found is None:
        raise Refusal(
            f"colorspace: this script's menu has no {space['name']!r} under any of its names; "
            "another colour space, or another OCIO configuration in the project settings, is allowed"
        )
    return found


def put(knob: Any, space: Space) -> None:
    """Set a colorspace knob, and see that it took it. Raises Refusal."""
    wanted = check(knob, space)
    if _id(knob.value()) != wanted:
        knob.setValue(wanted)
    got = _id(knob.value())
    if got != wanted:
        raise Refusal(f"colorspace: {wanted!r} was set and the node says {got!r}; set it by hand")


def _id(value: Any) -> str:
    return str(value).partition("\t")[0]


def chosen(name: str, spaces: Sequence[Space]) -> Space:
    """The space that plates are written in. name: of the worker's, or WORKING for the script's own. Raises Refusal."""
    if name != WORKING:
        space = find(spaces, name)
        if space is None:
            raise Refusal(f"colorspace: the worker has no {name!r}; {_linear(spaces)} are allowed")
        return space
    for candidate in _working_names():
        space = find(spaces, candidate)
        if space is not None:
            return space
    raise Refusal(
        f"colorspace: the worker does not know the script's working space "
        f"{nuke.root()['workingSpaceLUT'].value()!r}; {_linear(spaces)} are allowed"
    )


def _linear(spaces: Sequence[Space]) -> str:
    return ", ".join(space["name"] for space in spaces if space["is_linear"])


def _working_names() -> Iterator[str]:
    knob: Any = nuke.root()["workingSpaceLUT"]
    value = str(knob.value())
    for item in (value, *(item for item in knob.values() if _id(item) == _id(value))):
        name, called, roles = _item(item)
        yield from (name, *called, *roles)
