# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Progress bars. They are the one thing that any thread may touch: Foundry's own example of a thread does."""

from __future__ import annotations

import weakref

from .session import current


class Task:
    """On the screen for as long as somebody holds it; cancel() is the artist's finger."""

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"ProgressTask: {name!r}; a string is allowed")
        self.title, self.message, self.progress, self.maximum = name, "", 0, 100
        self._is_cancelled = False
        current().tasks.append(weakref.ref(self))

    def cancel(self) -> None:
        """Not in Nuke: what the button on the bar does."""
        self._is_cancelled = True

    def isCancelled(self) -> bool:
        return self._is_cancelled

    def setMessage(self, s: str) -> None:
        if not isinstance(s, str):
            raise TypeError(f"setMessage: {s!r}; a string is allowed")
        self.message = s

    def setProgress(self, i: int) -> None:
        if not isinstance(i, int) or isinstance(i, bool):
            raise TypeError(f"setProgress: {i!r}; an integer is allowed")
        self.progress = max(0, min(i, self.maximum))


class TaskBefore17(Task):
    pass


class TaskSince17(Task):
    def __init__(self, name: str, maximum: int = 100, flags: int = 0) -> None:
        super().__init__(name)
        self.maximum, self.flags = maximum, flags
