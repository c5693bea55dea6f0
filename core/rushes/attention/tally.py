# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What became of a host's attention calls: by whom served, at which density, in which time, and why not."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rushes.attention.patterns import TileLists

Mark = Any  # seconds, or an event on a card's stream


def mark(device: torch.device) -> Mark:
    """Now, as the device counts: on a card the calls only ask for work, so that it has to be asked for its time too."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: Mark, end: Mark) -> float:
    """Of two marks of one device; waits for the second."""
    if isinstance(end, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@dataclass
class Density:
    """Kept scores and all scores, and the share of the densest and the sparsest head of any call."""

    kept: float = 0.0
    scores: float = 0.0
    least: float = 1.0
    most: float = 0.0

    def add(self, lists: TileLists, heads: int) -> None:
        """One call of `heads` (batch * heads) heads."""
        shares = lists.density()  # [sets]
        scores = float(lists.query_start[-1]) * float(lists.key_start[-1]) * heads
        self.kept += float(np.mean(shares)) * scores
        self.scores += scores
        self.least, self.most = min(self.least, float(shares.min())), max(self.most, float(shares.max()))

    def add_all(self, scores: float) -> None:
        """A dense call of so many scores, all heads together."""
        self.kept += scores
        self.scores += scores

    @property
    def mean(self) -> float:
        """Share of the scores that was computed; 0 before any call."""
        return self.kept / self.scores if self.scores else 0.0


@dataclass
class Row:
    """Calls that were served alike. moving: the part of the seconds that put tokens in order and back."""

    calls: int = 0
    seconds: float = 0.0
    moving: float = 0.0
    pending: list[tuple[Mark, Mark, Mark, Mark]] = field(default_factory=list)

    def add(self, marks: tuple[Mark, Mark, Mark, Mark]) -> None:
        """marks: start, tokens in order, attention done, tokens back."""
        self.calls += 1
        if isinstance(marks[0], float):
            self._count(marks)
        else:
            self.pending.append(marks)

    def settle(self) -> None:
        """Ask the card for the times of what it was asked to do."""
        while self.pending:
            self._count(self.pending.pop())

    def _count(self, marks: tuple[Mark, Mark, Mark, Mark]) -> None:
        before, ordered, done, back = marks
        self.seconds += seconds_between(before, back)
        self.moving += seconds_between(before, ordered) + seconds_between(done, back)


@dataclass
class Tally:
    """One sampling. sparse, dense: by (backend, why dense). handed_on: calls by the reason why another served them."""

    sparse: dict[tuple[str, str], Row] = field(default_factory=dict)
    dense: dict[tuple[str, str], Row] = field(default_factory=dict)
    handed_on: Counter[str] = field(default_factory=Counter)
    density: Density = field(default_factory=Density)
    grids: set[str] = field(default_factory=set)
    passes: int = 0

    @property
    def served(self) -> int:
        return sum(row.calls for row in self._rows())

    @property
    def seconds(self) -> float:
        """Inside of our attention."""
        rows = self._rows()
        for row in rows:
            row.settle()
        return sum(row.seconds for row in rows)

    def _rows(self) -> list[Row]:
        return [*self.sparse.values(), *self.dense.values()]

    def text(self) -> str:
        """For an artist: lines of plain text."""
        calls = f"{self.served + self.handed_on.total()} calls in {self.passes} passes"
        lines = [f"{calls}, {self.seconds:.2f} s inside"]
        if self.grids:
            lines.append("grid: " + ", ".join(sorted(self.grids)))
        for (backend, _), row in self.sparse.items():
            share = row.moving / row.seconds if row.seconds else 0.0
            lines.append(
                f"sparse by {backend}: {row.calls} calls, {row.seconds:.2f} s, {share:.0%} of it ordering tokens"
            )
        if self.sparse:
            found = self.density
            lines.append(f"density delivered: {found.mean:.2%} (heads: {found.least:.2%} to {found.most:.2%})")
        for (backend, why), row in self.dense.items():
            lines.append(f"dense by {backend}{f' ({why})' if why else ''}: {row.calls} calls, {row.seconds:.2f} s")
        for reason, count in self.handed_on.items():
            lines.append(f"handed on: {count} calls: {reason}")
        return "\n".join(lines)
