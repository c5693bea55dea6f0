# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Where the user's own settings, data and caches lie, by the habits of the system. Standard library only."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

_XDG = {
    "config": ("XDG_CONFIG_HOME", ".config"),
    "data": ("XDG_DATA_HOME", ".local/share"),
    "cache": ("XDG_CACHE_HOME", ".cache"),
}
_MAC = {"config": "Application Support", "data": "Application Support", "cache": "Caches"}


def user_folder(kind: Literal["config", "data", "cache"]) -> Path:
    """The folder `rushes` of that kind; it need not exist yet."""
    if sys.platform == "win32":
        roaming = kind == "config"
        variable, usual = ("APPDATA", "Roaming") if roaming else ("LOCALAPPDATA", "Local")
        base = Path(os.environ.get(variable) or Path.home() / "AppData" / usual)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / _MAC[kind]
    else:
        variable, usual = _XDG[kind]
        base = Path(os.environ.get(variable) or Path.home() / usual)
    return base / "rushes"
