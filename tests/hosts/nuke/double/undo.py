# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Undo as a list of what was done and how to take it back: entries of one change each, or of a group of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .main_thread import guarded

Change = Callable[[], None]


@dataclasses.dataclass
class Entry:
    name: str = ""
    changes: list[tuple[Change, Change]] = dataclasses.field(default_factory=list)  # (take back, do again)


class UndoStack:
    """Done and undone entries, and the group that is open."""

    def __init__(self) -> None:
        self.done: list[Entry] = []
        self.undone: list[Entry] = []
        self.open: Entry | None = None
        self.depth = 0
        self.disabled = 0
        self._replaying = False

    def record(self, back: Change, again: Change) -> None:
        """To be called after a change was made."""
        if self._replaying or self.disabled:
            return
        if self.open is not None:
            self.open.changes.append((back, again))
        else:
            self._push(Entry(changes=[(back, again)]))

    def _push(self, entry: Entry) -> None:
        if entry.changes:
            self.done.append(entry)
            self.undone.clear()

    def begin(self, name: str | None) -> None:
        if self.open is None:
            self.open = Entry(name or "")
        self.depth += 1

    def end(self) -> None:
        if self.open is None:
            raise RuntimeError("Undo.end without Undo.begin")
        self.depth -= 1
        if not self.depth:
            entry, self.open = self.open, None
            self._push(entry)

    def cancel(self) -> None:
        """Take back what the open group has done, and forget the group."""
        if self.open is None:
            raise RuntimeError("Undo.cancel without Undo.begin")
        entry, self.open, self.depth = self.open, None, 0
        self._replay([back for back, _ in reversed(entry.changes)])

    def _replay(self, changes: list[Change]) -> None:
        self._replaying = True
        try:
            for change in changes:
                change()
        finally:
            self._replaying = False

    def back(self) -> None:
        if self.done:
            entry = self.done.pop()
            self._replay([back for back, _ in reversed(entry.changes)])
            self.undone.append(entry)

    def again(self) -> None:
        if self.undone:
            entry = self.undone.pop()
            self._replay([again for _, again in entry.changes])
            self.done.append(entry)

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]


def _stack() -> UndoStack:
    from .session import current

    return current().undo


class _Undo:
    """nuke.Undo: all methods work on the class as on an instance, there is one stack."""

    @staticmethod
    @guarded
    def name(name: str) -> None:
        if (entry := _stack().open) is None:
            raise RuntimeError("Undo.name without Undo.begin")
        entry.name = name

    @staticmethod
    @guarded
    def end() -> None:
        _stack().end()

    @staticmethod
    @guarded
    def cancel() -> None:
        _stack().cancel()

    @staticmethod
    @guarded
    def disable() -> None:
        _stack().disabled += 1

    @staticmethod
    @guarded
    def enable() -> None:
        stack = _stack()
        stack.disabled = max(0, stack.disabled - 1)

    @staticmethod
    def disabled() -> bool:
        return _stack().disabled > 0

    @staticmethod
    @guarded
    def undo() -> None:
        _stack().back()

    @staticmethod
    @guarded
    def redo() -> None:
        _stack().again()

    @staticmethod
    def undoSize() -> int:
        return len(_stack().done)

    @staticmethod
    def redoSize() -> int:
        return len(_stack().undone)

    @staticmethod
    def undoDescribe(n: int = 0) -> str:
        return _stack().done[-1 - n].name

    @staticmethod
    def redoDescribe(n: int = 0) -> str:
        return _stack().undone[-1 - n].name

    def __enter__(self) -> Any:
        type(self).begin()  # type: ignore[attr-defined]
        return self

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        _stack().end()


class UndoBefore17(_Undo):
    @staticmethod
    @guarded
    def begin() -> None:
        _stack().begin(None)


class UndoSince17(_Undo):
    @staticmethod
    @guarded
    def begin(name: str | None = None) -> None:
        _stack().begin(name)
