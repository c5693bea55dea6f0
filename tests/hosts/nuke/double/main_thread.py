# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Nuke's main thread: calls wait in a queue until it is idle, and nobody else may touch a node.

In the original a call from another thread crashes now and then, and waiting for the main thread on the main thread
hangs forever. Here both raise at once and are written down, so that code which swallows the exception is found as well.

`nuke -t` gives the main thread to the script. That nothing posted runs before the script ends is an assumption: code
that needs no pump is right whatever the original does.
"""

from __future__ import annotations

import collections
import functools
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class ThreadViolation(RuntimeError):
    """Nuke was used where it may crash or freeze."""


class MainThread:
    """The queue and the guard. Made on the thread that is the main thread from then on."""

    def __init__(self, gui: bool) -> None:
        self.gui = gui
        self.main = threading.get_ident()
        self.violations: list[str] = []
        self.errors: list[BaseException] = []
        self.is_pumping = False
        self._waiting: collections.deque[Callable[[], None]] = collections.deque()
        self._arrived = threading.Condition()

    def violate(self, what: str) -> ThreadViolation:
        """The exception to raise for it, which is in violations from now on."""
        sentence = f"{what} (thread {threading.current_thread().name})"
        self.violations.append(sentence)
        return ThreadViolation(sentence)

    def check(self, what: str) -> None:
        if threading.get_ident() != self.main:
            raise self.violate(f"{what} off the main thread")

    def check_modal(self, what: str) -> None:
        """A dialogue inside a posted call freezes the original."""
        self.check(what)
        if self.is_pumping:
            raise self.violate(f"{what} opens a dialogue inside executeInMainThread")

    def post(self, call: Callable[[], None]) -> None:
        with self._arrived:
            self._waiting.append(call)
            self._arrived.notify_all()

    def pump(self, limit: int | None = None) -> int:
        """Run what is queued now (at most limit of it), not what those calls post; the number of calls."""
        self.check("pump")
        if not self.gui:
            raise RuntimeError("nuke -t has no idle main thread that would run what was posted")
        count = len(self._waiting) if limit is None else min(limit, len(self._waiting))
        self.is_pumping = True
        try:
            for _ in range(count):
                call = self._waiting.popleft()
                try:
                    call()
                except Exception as error:
                    traceback.print_exc()
                    self.errors.append(error)
        finally:
            self.is_pumping = False
        return count

    def pump_until(self, is_true: Callable[[], Any], seconds: float = 60) -> None:
        """Pump as calls arrive, until it is true; AssertionError after that many seconds."""
        end = time.monotonic() + seconds
        while not is_true():
            if time.monotonic() > end:
                raise AssertionError(f"not true after {seconds} s of pumping; errors so far: {self.errors}")
            with self._arrived:
                if not self._waiting:
                    self._arrived.wait(0.02)  # what is waited for need not come through the queue
            self.pump()

    @property
    def waiting(self) -> int:
        return len(self._waiting)


def guarded(function: Function) -> Function:
    """A function or method of Nuke that only the main thread may call."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        from .session import current

        current().threads.check(function.__qualname__)
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


def _bound(call: Any, args: Any, kwargs: Any) -> Callable[[], Any]:
    if not callable(call):
        raise TypeError(f"call: {call!r}; a callable is allowed")
    arguments = args if isinstance(args, tuple) else (args,)  # as Foundry's own wrapper does
    return functools.partial(call, *arguments, **kwargs)


def executeInMainThread(call: Any, args: Any = (), kwargs: Any = {}) -> None:
    """Queue it and return at once, also on the main thread."""
    from .session import current

    current().threads.post(_bound(call, args, kwargs))


def executeInMainThreadWithResult(call: Any, args: Any = (), kwargs: Any = {}) -> Any:
    """Queue it and wait; None when it raised, which is printed."""
    from .session import current

    threads, bound = current().threads, _bound(call, args, kwargs)
    if threading.get_ident() == threads.main:
        raise threads.violate("executeInMainThreadWithResult on the main thread, which hangs Nuke")
    if not threads.gui:
        raise threads.violate("executeInMainThreadWithResult in nuke -t, which waits forever")
    done, result = threading.Event(), []

    def run() -> None:
        try:
            result.append(bound())
        finally:
            done.set()

    threads.post(run)
    done.wait()
    return result[0] if result else None
