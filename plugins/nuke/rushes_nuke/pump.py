# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A thread that wakes the main thread while there is something to expect, and holds the progress bars.

Nuke has no timer of its own, and its nodes are touched on the main thread only. What is posted there is one small call,
and never a second one while the first waits. Progress bars are what Foundry's own threads hold; they go when released.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import nuke

LOOK = 0.05  # seconds between looks at what has come
TICK = 0.5  # seconds between ticks without news: a worker that is stuck or gone sends none


class Bar(NamedTuple):
    """One job on the screen. percent: 0 ... 100."""

    key: str
    title: str
    percent: int
    message: str


class Pump:
    """tick: runs on the main thread. has_news: asked on the pump's own. cancel(key): runs on the main thread."""

    def __init__(self, tick: Callable[[], None], has_news: Callable[[], bool], cancel: Callable[[str], None]) -> None:
        self.bars: tuple[Bar, ...] = ()  # set by the main thread, whole
        self.is_needed = False
        self._tick, self._has_news, self._cancel = tick, has_news, cancel
        self._woken, self._ended = threading.Event(), threading.Event()
        self._is_posted = False
        self._cancelled: set[str] = set()  # keys whose bar says so, told once
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is something to expect. On the main thread."""
        self.is_needed = True
        self._woken.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rushes pump", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """On the main thread; the thread is gone afterwards."""
        self._ended.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        tasks: dict[str, Any] = {}  # by key of job; only this thread holds them
        quiet = 0.0
        while not self._ended.is_set():
            if not self.is_needed:
                tasks.clear()
                self._woken.wait()
            self._woken.clear()
            self._show(tasks)
            quiet += LOOK
            if not self._is_posted and (self._has_news() or quiet >= TICK):
                quiet, self._is_posted = 0.0, True
                nuke.executeInMainThread(self._on_main)
            self._ended.wait(LOOK)

    def _show(self, tasks: dict[str, Any]) -> None:
        bars = self.bars
        for key in set(tasks) - {bar.key for bar in bars}:
            del tasks[key]
            self._cancelled.discard(key)
        for bar in bars:
            task = tasks.get(bar.key)
            if task is None:
                task = tasks[bar.key] = nuke.ProgressTask(bar.title)
            task.setMessage(bar.message)
            task.setProgress(bar.percent)
            if task.isCancelled() and bar.key not in self._cancelled:
                self._cancelled.add(bar.key)
                nuke.executeInMainThread(self._cancel, (bar.key,))

    def _on_main(self) -> None:
        self._is_posted = False
        self._tick()
