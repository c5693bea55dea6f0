# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""How far a publish has come, told to whoever started it, and whether they want it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TOLD = "rushesProgress"  # key of a context's data: a function that takes done and total of the step that runs


@dataclass(frozen=True)
class Step:
    """phase: a plug-in's label; step, steps: done and in all, frames or 1; the rest as reporters of commands ask."""

    phase: str
    step: int
    steps: int
    seconds_per_step: float = 0.0
    remaining: float = 0.0


class Cancelled(Exception):
    """Somebody wants it stopped. No failure of a plug-in."""


def teller(context: Any) -> Callable[[int, int], object]:
    """What a plug-in calls after each frame; does nothing where nobody asked."""
    told: Callable[[int, int], object] = context.data.get(TOLD) or (lambda done, total: None)
    return told
