# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes: text-to-video inside the tools that artists already use.

The names in `__all__` are promised; all others may move.

    engine = rushes.Engine.load("starter")
    clip = engine.generate(rushes.Shot(prompt="a red ball rolls to the right", seed=7))
    clip.write("ball.mp4")

Every name is loaded at its first use (PEP 562): a host that only imports `rushes` starts in milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rushes._version import __version__ as __version__

if TYPE_CHECKING:
    from rushes.engine import Clip, Engine, generate
    from rushes.shot import Control, Keyframe, Shot

__all__ = ["Clip", "Control", "Engine", "Keyframe", "Shot", "generate"]

_HOMES = {
    "Clip": "rushes.engine",
    "Control": "rushes.shot",
    "Engine": "rushes.engine",
    "Keyframe": "rushes.shot",
    "Shot": "rushes.shot",
    "generate": "rushes.engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rushes' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
