# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The module nukescripts: panels of widgets, and the versions that Alt+Up and Alt+Down walk through."""

from __future__ import annotations

import re
import types
from typing import Any

from . import menus
from .main_thread import guarded
from .session import current

_VERSION = re.compile(r"(?<=[/_.])v(\d+)")


def registerWidgetAsPanel(widget: str, name: str, id: str, create: bool = False) -> Any:
    """The widget is the text of an expression, which __main__ evaluates when the panel is opened."""
    session = current()
    session.threads.check("registerWidgetAsPanel")
    for what, text in (("widget", widget), ("name", name), ("id", id)):
        if not isinstance(text, str):
            raise TypeError(f"registerWidgetAsPanel: {what} must be a string, got {text!r}")
    if not session.gui:
        raise RuntimeError("registerWidgetAsPanel: there are no panels in nuke -t")
    session.panels[id] = widget, name
    menus.menu("Pane").addCommand(name, lambda: open_panel(id))
    return open_panel(id) if create else None


def open_panel(id: str) -> Any:
    """Make the widget of a registered panel, as the Pane menu does."""
    expression, _ = current().panels[id]
    return eval(f"{expression}()", current().main_namespace)


def _step(by: int) -> None:
    """Every `v` with a number after a slash, a dot or an underscore; the text changes, nothing looks at the disk."""
    for node in current().context.selectedNodes():
        knob = node.knob("file")
        if knob is not None and _VERSION.search(knob.getText()):

            def stepped(match: re.Match[str]) -> str:
                return f"v{max(1, int(match[1]) + by):0{len(match[1])}d}"

            knob.setValue(_VERSION.sub(stepped, knob.getText()))


@guarded
def version_up() -> None:
    """Alt+Up on the selected nodes."""
    _step(1)


@guarded
def version_down() -> None:
    """Alt+Down."""
    _step(-1)


def modules() -> dict[str, types.ModuleType]:
    """nukescripts and nukescripts.panels."""
    scripts, panels = types.ModuleType("nukescripts"), types.ModuleType("nukescripts.panels")
    scripts.__path__ = []
    vars(panels)["registerWidgetAsPanel"] = registerWidgetAsPanel
    vars(scripts).update(
        registerWidgetAsPanel=registerWidgetAsPanel, panels=panels, version_up=version_up, version_down=version_down
    )
    return {"nukescripts": scripts, "nukescripts.panels": panels}
