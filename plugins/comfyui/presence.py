# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Whether the package `rushes` that these nodes need is installed where ComfyUI runs."""

from __future__ import annotations

import importlib.util
import re
import sys

REQUIRED = "0.1.0"
NEEDED = ("rushes.model.files", "rushes.media.reader", "rushes.media.versions")  # what an unfinished 0.1.0 lacks


def why_absent() -> str | None:
    """None when all is well, else one sentence that says what to do. Loads no torch."""
    install = f"`{sys.executable} -m pip install --upgrade rushes`"
    try:
        import rushes
    except ModuleNotFoundError as error:
        if error.name == "rushes":
            return f"the package rushes is not installed where ComfyUI runs; {install} does it."
        return f"the package rushes cannot be loaded ({error}); {install} repairs it."
    except ImportError as error:
        return f"the package rushes cannot be loaded ({error}); {install} repairs it."
    version = str(getattr(rushes, "__version__", "0"))
    if _numbers(version) < _numbers(REQUIRED) or not all(map(_is_there, NEEDED)):
        return f"the installed rushes {version} is too old for these nodes; {install} brings a newer one."
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
