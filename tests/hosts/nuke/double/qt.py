# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Qt under the name that a version of Nuke has it: PySide2 up to 15, PySide6 from 16 on, and never the other one.

PySide2 installs on none of the Pythons that are tested here. What is called so is PySide6 with the classes back where
they were.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from typing import Any

_MOVED_TO_GUI = ("QAction", "QActionGroup", "QShortcut", "QUndoCommand", "QUndoGroup", "QUndoStack")
_MODULES = ("QtCore", "QtGui", "QtWidgets")


def _looking_in(name: str, module: types.ModuleType, gui: types.ModuleType) -> Callable[[str], Any]:
    """The module's own lookup: PySide6 makes its classes when they are first asked for."""

    def look(key: str) -> Any:
        if key in _MOVED_TO_GUI and name != "QtCore":
            if name == "QtGui":
                raise AttributeError(f"PySide2.QtGui has no {key}")
            return getattr(gui, key)
        return getattr(module, key)

    return look


def bindings(major: int) -> dict[str, types.ModuleType | None]:
    """What sys.modules has in this version; None makes an import fail. ImportError where there is no PySide6."""
    real = {name: importlib.import_module(f"PySide6.{name}") for name in _MODULES}
    if major >= 16:
        return {"PySide2": None, **{f"PySide2.{name}": None for name in _MODULES}}
    found: dict[str, types.ModuleType | None] = {"PySide6": None, **{f"PySide6.{name}": None for name in _MODULES}}
    package = types.ModuleType("PySide2")
    package.__path__ = []
    for name, module in real.items():
        made = types.ModuleType(f"PySide2.{name}")
        vars(made)["__getattr__"] = _looking_in(name, module, real["QtGui"])
        found[f"PySide2.{name}"] = made
        setattr(package, name, made)
    found["PySide2"] = package
    return found
