# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Loads the compiled module `_kernel`, once, and keeps the reason when it cannot be loaded."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import platform
from dataclasses import dataclass
from types import ModuleType

from rushes._version import __version__

_NAME = "rushes.attention._kernel"


@dataclass(frozen=True)
class Extension:
    """The compiled module, or None and the sentence that says why it is missing and what to do."""

    module: ModuleType | None
    reason: str = ""


@functools.cache
def load_extension() -> Extension:
    """The compiled module. The first answer is kept, a failure too: it is told in one way only."""
    if importlib.util.find_spec(_NAME) is None:
        return Extension(
            None,
            "it was not built, as the install found no C++ compiler, CMake or Python headers; with them, "
            "`pip install --force-reinstall --no-cache-dir` builds it",
        )
    try:
        module = importlib.import_module(_NAME)
    except (ImportError, OSError) as error:
        return Extension(
            None,
            f"it was built but does not load on {platform.system()} {platform.machine()} "
            f"with Python {platform.python_version()}: {error}; install Rushes again for this Python",
        )
    built_for = module.build_info()["version"]
    if built_for != __version__:  # left over from another install: it may take other arguments than it is given
        return Extension(None, f"it is of version {built_for} and Rushes is {__version__}; install Rushes again")
    return Extension(module)
