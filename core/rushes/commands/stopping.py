# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Ctrl-C and termination: a request to stop between two blocks of work, so that nothing is cut in half."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """The user, or the farm, ended the command."""

    def __init__(self, number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"stopped by {name}; no unfinished output is left")
        self.signal = number


class Stop:
    """What was asked for so far: `event` goes to the engine as its cancel token."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal: int = signal.SIGINT

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.event.is_set():
            raise Stopped(self.signal)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Inside, the first Ctrl-C or SIGTERM sets the event instead of raising wherever Python happens to be.

    A second one raises KeyboardInterrupt at once. It does nothing off the main thread, where Python allows no
    handlers.
    """
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.event.is_set():
            raise KeyboardInterrupt
        stop.signal = number
        stop.event.set()

    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # nohup and shell jobs ignore SIGINT on purpose; that stays so
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
