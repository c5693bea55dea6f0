# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A layout without a window: accepts what Blender's own description of layouts accepts, and keeps the words."""

from __future__ import annotations

from typing import Any

import bpy
from host import Host

_FUNCTIONS = bpy.types.UILayout.bl_rna.functions
_LAYOUTS = ("row", "column", "box")
_ICONS = {item.identifier for item in _FUNCTIONS["label"].parameters["icon"].enum_items}


class Layout:
    def __init__(self, words: list[str]) -> None:
        self._words = words
        self.enabled, self.scale_y = True, 1.0

    def __getattr__(self, name: str) -> Any:
        allowed = {parameter.identifier for parameter in _FUNCTIONS[name].parameters}

        def call(*positional: Any, **named: Any) -> Any:
            unknown = named.keys() - allowed
            assert not unknown, f"UILayout.{name} has no {unknown}"
            assert named.get("icon", "NONE") in _ICONS, named["icon"]
            if name in ("prop", "prop_search"):
                data, attribute = positional[:2]
                getattr(data, attribute)
                assert attribute in data.bl_rna.properties, attribute
                if not self.enabled:
                    self._words.append(f"{attribute} is grey")
            if name in ("operator", "operator_menu_enum"):
                module, _, operator = positional[0].partition(".")
                self._words.append(getattr(getattr(bpy.ops, module), operator).get_rna_type().name)
                return _Options()
            if named.get("text"):
                self._words.append(str(named["text"]))
            return Layout(self._words) if name in _LAYOUTS else None

        return call


class _Options:
    """What `layout.operator` returns: the operator's properties."""


def draw_all(host: Host, is_whole: bool = False) -> Any:
    """Every panel drawn on a layout that checks what it is asked for; the labels, or all of them as one text."""
    labels: list[str] = []
    for cls in host.module("panels").CLASSES:
        panel = type("Drawn", (cls.__mro__[1],), {})()
        panel.layout = Layout(labels)
        panel.draw(bpy.context)
    preferences = host.module("preferences")
    preferences.RushesPreferences.draw(_Preferences(preferences.get(), Layout(labels)), bpy.context)
    return " ".join(labels) if is_whole else labels


class _Preferences:
    """The preferences with a layout of ours."""

    def __init__(self, real: Any, layout: Layout) -> None:
        self._real, self.layout = real, layout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
