# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The kernel on torch's own threads: awake after torch's last operator, where threads of another pool sleep.

Waking a sleeping thread takes as long as attention over a hundred tokens, and more on a virtual machine.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from types import ModuleType

_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_max_threads", "omp_in_parallel")


def share_torch_threads(module: ModuleType) -> None:
    """Hand the compiled module torch's OpenMP runtime, once torch is loaded. Cheap to call again."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):  # it has them when all of it is loaded
        _share(module, torch)


@functools.cache
def _share(module: ModuleType, torch: ModuleType) -> None:
    if (addresses := _addresses(torch)) is not None:
        module.share_threads(*addresses)


def _addresses(torch: ModuleType) -> tuple[int, ...] | None:
    """Of GNU's entry points of the runtime that torch is linked to; None where it is linked to none that has them.

    The system's loader is asked for names in what torch depends on, and to load nothing: another library's runtime in
    this process is not mistaken for torch's, and no second one appears.
    """
    if sys.platform != "linux" or torch.__file__ is None:
        return None
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        found = [ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in _FUNCTIONS]
    except (OSError, AttributeError):  # built into torch otherwise, or for another runtime
        return None
    return tuple(address for address in found if address) if all(found) else None
