# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A worker steps behind its host: while both want the processors, the artist's window comes first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

NICE = 10  # a tenth of a processor's time against one task of ordinary priority, all of it against none
BELOW_NORMAL_PRIORITY_CLASS = 0x4000  # winbase.h

_AUTOGROUP = Path("/proc/self/autogroup")


def step_behind() -> None:
    """Lower this process's priority. Where the system does not let it, all stays as it was."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        kernel.SetPriorityClass(kernel.GetCurrentProcess(), BELOW_NORMAL_PRIORITY_CLASS)
        return
    os.nice(max(0, NICE - os.nice(0)))
    if _AUTOGROUP.exists() and os.getsid(0) == os.getpid():
        # Desktop Linux shares time between sessions first, and a host gives its worker one of its own: there the nice
        # value counts for nothing, and only the session's does.
        try:
            _AUTOGROUP.write_text(str(NICE))
        except OSError as error:
            print(f"worker: its session keeps its priority ({error})", file=sys.stderr)
