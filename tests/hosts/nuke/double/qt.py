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


def bindings(major: int) -> dict[str, types.ModuleType]:
    """The modules that this version has and this process lacks. ImportError where there is no PySide6."""
    real = {name: importlib.import_module(f"PySide6.{name}") for name in _MODULES}
    if major >= 16:
        return {}
    package = types.ModuleType("PySide2")
    package.__path__ = []
    found = {"PySide2": package}
    for name, module in real.items():
        made = types.ModuleType(f"PySide2.{name}")
        vars(made)["__getattr__"] = _looking_in(name, module, real["QtGui"])
        found[f"PySide2.{name}"] = made
        setattr(package, name, made)
    return found


def importing(major: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """`__import__` that refuses the binding which this version of Nuke lacks.

    PySide6 stays in sys.modules, where its own C++ looks for it; an import statement is known by its fromlist, which is
    None or a tuple, as no import from C has it.
    """
    missing = "PySide6" if major < 16 else "PySide2"

    def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        is_statement = not level and (fromlist is None or isinstance(fromlist, tuple))
        asked_by = (globals or {}).get("__name__", "").split(".")[0]
        if is_statement and name.split(".")[0] == missing and asked_by not in ("PySide6", "shiboken6"):
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return original(name, globals, locals, fromlist, level)

    return import_
