# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What computed this thread's latest attention."""

from __future__ import annotations

import threading

# Per thread: two engines in one process must not read each other's answer.
_last = threading.local()


def backend() -> str | None:
    """The name, or None before any attention of this thread."""
    name: str | None = getattr(_last, "backend", None)
    return name


def note_backend(name: str) -> None:
    """Keep the name."""
    _last.backend = name
