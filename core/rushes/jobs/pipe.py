# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The worker's two ends of the pipe to its host.

File descriptor 1 itself is pointed at standard error, and that at a log, because libraries print.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rushes.jobs.wire import Message, WireError, encode, read

LOG_BYTES = 4 * 2**20  # a larger log begins anew; the last one is kept beside it


class Pipe:
    """Where answers go. Threads share it; a host that is gone is no error."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self.is_open = True

    def send(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            if not self.is_open:
                return
            try:
                self._stream.write(encode({"jsonrpc": "2.0", **message}))
                self._stream.flush()
            except (OSError, ValueError):
                self.is_open = False


def receive(stream: BinaryIO, inbox: queue.Queue[Message | WireError | None]) -> None:
    """Put what comes into the inbox, and None when the host is gone; what is no message arrives as its error."""
    while True:
        try:
            message = read(stream)
        except WireError as error:
            inbox.put(error)
            continue
        inbox.put(message)
        if message is None:
            return


def private_output(log: Path) -> BinaryIO:
    """A copy of standard output for messages; whatever prints afterwards goes to the log."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    sys.stdout.flush()
    private = os.fdopen(os.dup(1), "wb")
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 2)
    os.dup2(2, 1)
    os.close(target)
    return private
