# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Menus, commands behind them, dialogues and plug-in folders."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .main_thread import guarded
from .session import current

BARS = ("Nuke", "Nodes", "Pane", "Viewer", "Node Graph", "Properties", "Animation", "Axis")


class MenuItem:
    def __init__(self, name: str, command: Any = None) -> None:
        self._name, self._command, self._is_enabled, self._icon, self._shortcut = name, command, True, "", ""

    def name(self) -> str:
        return self._name

    def script(self) -> Any:
        return self._command

    def icon(self) -> str:
        return self._icon

    def shortcut(self) -> str:
        return self._shortcut

    @guarded
    def setEnabled(self, enabled: bool, recursive: bool = False) -> None:
        self._is_enabled = enabled

    @guarded
    def invoke(self) -> None:
        """What a click does. Text runs in the namespace of __main__, where menu.py runs too."""
        if not self._is_enabled:
            return
        if callable(self._command):
            self._command()
        elif self._command:
            exec(compile(self._command, f"<menu {self._name}>", "exec"), current().main_namespace)


class Menu(MenuItem):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._items: list[MenuItem] = []

    def items(self) -> list[MenuItem]:
        return list(self._items)

    @guarded
    def findItem(self, name: str) -> Any:
        place: Any = self
        for part in name.split("/"):
            place = next((item for item in getattr(place, "_items", ()) if item._name == part), None)
        return place

    @guarded
    def menu(self, name: str) -> Any:
        found = self.findItem(name)
        return found if isinstance(found, Menu) else None

    def _descend(self, name: str) -> tuple[Menu, str]:
        *folders, last = name.split("/")
        place: Menu = self
        for folder in folders:
            place = place.addMenu(folder)
        return place, last

    @guarded
    def addMenu(self, name: str, icon: str = "", tooltip: str = "", index: int = -1) -> Any:
        if not isinstance(name, str):
            raise TypeError(f"addMenu: {name!r}; a string is allowed")
        place, last = self._descend(name)
        found = next((item for item in place._items if item._name == last and isinstance(item, Menu)), None)
        if found is None:
            found = Menu(last)
            place._items.insert(index if index >= 0 else len(place._items), found)
        found._icon = icon or found._icon
        return found

    @guarded
    def addCommand(self, name: str, command: Any = None, shortcut: str = "", icon: str = "", tooltip: str = "",
                   index: int = -1, readonly: bool = False, node: Any = None, shortcutContext: int = 0,
                   tags: str = "") -> Any:  # fmt: skip
        if command is not None and not isinstance(command, str) and not callable(command):
            raise TypeError(f"addCommand: {command!r}; a callable or a string is allowed")
        place, last = self._descend(name)
        place._items = [item for item in place._items if item._name != last]
        made = MenuItem(last, command)
        made._shortcut, made._icon = shortcut, icon
        place._items.insert(index if index >= 0 else len(place._items), made)
        return made

    @guarded
    def addSeparator(self, index: int = -1) -> Any:
        made = MenuItem("")
        self._items.append(made)
        return made

    @guarded
    def removeItem(self, name: str) -> None:
        self._items = [item for item in self._items if item._name != name]

    @guarded
    def clearMenu(self) -> None:
        self._items.clear()


@guarded
def menu(name: str) -> Menu:
    session = current()
    if not session.gui:
        raise RuntimeError(f"menu: {name!r}; there are no menus in nuke -t")
    if name not in BARS:
        raise RuntimeError(f"menu: {name!r} is no menu; there are {', '.join(BARS)}")
    return session.menus.setdefault(name, Menu(name))


@guarded
def toolbar(name: str, create: bool = True) -> Menu:
    return menu(name)


# --- dialogues


def _show(kind: str, text: Any) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{kind}: {text!r}; a string is allowed")
    session = current()
    session.threads.check_modal(kind)
    session.messages.append(text)


def message(prompt: str) -> None:
    """Waits for the artist's OK, so it may not be opened inside a posted call."""
    _show("message", prompt)


def alert(prompt: str) -> None:
    _show("alert", prompt)


def critical(message: str) -> None:
    _show("critical", message)


def error(message: str) -> None:
    """In the error console: not a dialogue."""
    current().threads.check("error")
    current().messages.append(message)


def warning(message: str) -> None:
    current().threads.check("warning")
    current().messages.append(message)


def debug(message: str) -> None:
    current().threads.check("debug")


def tprint(*args: Any, sep: str = " ", end: str = "\n", file: Any = None) -> None:
    print(*args, sep=sep, end=end, file=file or sys.stdout)


def _answer(kind: str, prompt: str) -> Any:
    _show(kind, prompt)
    session = current()
    if not session.gui:
        raise RuntimeError(f"{kind}: nobody is there to answer in nuke -t")
    if not session.answers:
        raise AssertionError(f"{kind}({prompt!r}): the test has given no answer")
    return session.answers.popleft()


def ask(prompt: str) -> bool:
    return bool(_answer("ask", prompt))


def askWithCancel(prompt: str) -> bool:
    answer = _answer("askWithCancel", prompt)
    if answer is None:
        raise RuntimeError("Cancelled")
    return bool(answer)


def getInput(prompt: str, default: str = "") -> Any:
    return _answer("getInput", prompt)


def getFilename(message: str, pattern: str = "", default: str = "", favorites: str = "", type: str = "",
                multiple: bool = False) -> Any:  # fmt: skip
    return _answer("getFilename", message)


def getClipname(prompt: str, pattern: str = "", default: str = "", multiple: bool = False) -> Any:
    return _answer("getClipname", prompt)


def choice(title: str, prompt: str, options: Any, default: int = 0) -> Any:
    return _answer("choice", prompt)


# --- plug-in folders


def _run_file(path: Path) -> None:
    if path.is_file():
        namespace = current().main_namespace
        namespace["__file__"] = str(path)
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)


@guarded
def pluginAddPath(args: Any, addToSysPath: bool = True) -> None:
    """A folder, or several: first in the search, on sys.path, and its init.py is run."""
    _add(args, addToSysPath, lambda path: current().plugin_path.insert(0, path))


@guarded
def pluginAppendPath(args: Any, addToSysPath: bool = True) -> None:
    _add(args, addToSysPath, lambda path: current().plugin_path.append(path))


def _add(args: Any, addToSysPath: bool, put: Callable[[str], None]) -> None:
    for path in [args] if isinstance(args, str) else args:
        if not Path(path).is_dir():
            raise RuntimeError(f"pluginAddPath: {path}: no such folder")
        if path in current().plugin_path:
            continue
        put(path)
        if addToSysPath and path not in sys.path:
            sys.path.insert(0, path)
        _run_file(Path(path) / "init.py")


@guarded
def pluginPath() -> list[str]:
    return list(current().plugin_path)


def run_menus() -> None:
    """What Nuke does when its window is up: every folder's menu.py. Not in nuke -t."""
    if current().gui:
        for path in reversed(current().plugin_path):
            _run_file(Path(path) / "menu.py")
