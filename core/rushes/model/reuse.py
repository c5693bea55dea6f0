# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Steps that reuse what most blocks added in an earlier step, while the first block's answer has hardly changed.

The first block is always computed. Where what it adds differs by less than the threshold from what it added when all
blocks were last computed (mean of the differences over the mean of the values), the rest is taken from there. This is
an approximation; `report` says how often it was made and how far off the first block then was. Every ANCHOR-th step is
computed in full and forgets what was before, so that a denoising taken up at such a step has the bits of an unbroken
one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rushes.model.parallel import Team

ANCHOR = 4  # steps


class Reuse:
    """What one sampling keeps of its latest full step. threshold: a share, above 0. team: decides as one."""

    def __init__(self, threshold: float, team: Team | None = None) -> None:
        self._threshold, self._team = threshold, team
        self._first: Tensor | None = None  # what the first block added, [B, L, dim]
        self._rest: Tensor | None = None  # what the others added to that
        self._step = -1
        self._asked: list[tuple[int, float]] = []  # steps that reused, and the first block's change in them
        self._full: set[int] = set()

    def begin_step(self, step: int) -> None:
        """Before the passes of a step, counted from 0 in the whole schedule."""
        self._step = step
        if step % ANCHOR == 0:
            self.forget()

    def forget(self) -> None:
        """The next pass is computed in full."""
        self._first = self._rest = None

    def ask(self, first: Tensor) -> Tensor | None:
        """What the blocks behind the first one add [B, L, dim], where it is reused; else None, and `keep` follows."""
        before = self._first
        if before is None or self._rest is None or before.shape != first.shape:
            self._first = first.clone()
            return None
        change = float((first - before).float().abs().mean() / before.float().abs().mean().clamp_min(1e-12))
        differs = change >= self._threshold
        if self._team is not None:
            differs = self._team.any(differs)
        if differs:
            self._first = first.clone()
            return None
        self._asked.append((self._step, change))
        return self._rest

    def keep(self, rest: Tensor) -> None:
        """What the blocks behind the first one added in a pass that was computed in full."""
        self._rest = rest
        self._full.add(self._step)

    def report(self) -> dict[str, Any]:
        """JSON-ready. change: the largest of the first block's in a step that reused the others, 0 without any."""
        steps = sorted({step for step, _ in self._asked})
        return {
            "threshold": self._threshold, "reused_steps": steps, "full_steps": sorted(self._full - set(steps)),
            "change": round(max((change for _, change in self._asked), default=0.0), 5),
        }  # fmt: skip


def saved_state(step: int) -> bool:
    """Whether a denoising that reuses may be taken up after so many steps with the bits of an unbroken one."""
    return step % ANCHOR == 0


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Root of the mean square of the difference, over that of the exact values."""
    difference = torch.linalg.vector_norm((found - exact).float())
    return float(difference / torch.linalg.vector_norm(exact.float()))
