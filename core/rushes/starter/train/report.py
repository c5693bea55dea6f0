# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What an evaluation says: scores as means over classes, a table in plain text, and a sheet of strips of frames."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MARGIN, LINE = 4, 16  # pixels of a sheet


@dataclass
class Tally:
    """Answers to one question. A prompt's clips share much, so the spread counts prompts, not clips."""

    hits: dict[str, dict[int, list[bool]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def add(self, truth: str, hit: bool, prompt: int) -> None:
        self.hits[truth][prompt].append(hit)

    @property
    def n(self) -> int:
        return sum(len(clips) for prompts in self.hits.values() for clips in prompts.values())

    def per_class(self) -> dict[str, float]:
        """Percent right of each class."""
        return {truth: 100 * _mean([h for clips in p.values() for h in clips]) for truth, p in self.hits.items()}

    def macro(self) -> float:
        """The mean over classes, in percent: a model that always says the commonest class gains nothing."""
        return _mean(list(self.per_class().values()))

    def spread(self) -> float:
        """Half of the 95 % interval of the mean over classes, in percent.

        Each class gets one right and one wrong prompt more (Agresti & Coull 1998): three hits of three prove little.
        """
        total = 0.0
        for prompts in self.hits.values():
            means = [1.0, 0.0, *(_mean(clips) for clips in prompts.values())]
            middle, k = _mean(means), len(means)
            total += sum((m - middle) ** 2 for m in means) / (k - 1) / k
        return 100 * 1.96 * math.sqrt(total) / max(1, len(self.hits))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Row:
    """One line of the table. must: what closes the issue, the least allowed or, with `low_is_good`, the most."""

    name: str
    score: float
    unit: str
    n: int
    spread: float | None = None
    ceiling: float | None = None
    chance: float | None = None
    must: float | None = None
    low_is_good: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the score is good enough; None when nothing is asked."""
        if self.must is None:
            return None
        return self.score <= self.must if self.low_is_good else self.score >= self.must


@dataclass(frozen=True)
class Report:
    """head: what was evaluated and how, as (name, value). notes: whole lines below the table."""

    head: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every score that something is asked of is good enough."""
        return all(row.holds is not False for row in self.rows)

    def to_text(self) -> str:
        """The report in plain text, 100 columns at most in the table."""
        width = max((len(name) for name, _ in self.head), default=0) + 2
        lines = [f"{name:<{width}}{value}" for name, value in self.head]
        title = ("attribute", "score", "+-", "ceiling", "chance", "n", "must")
        cells = [title, *(_cells(row) for row in self.rows)]
        widths = [max(len(row[k]) for row in cells) for k in range(len(title))]
        lines.append("")
        for cell in cells:
            columns = [cell[0].ljust(widths[0]), *(cell[k].rjust(widths[k]) for k in range(1, len(title)))]
            lines.append("  ".join(columns).rstrip())
        return "\n".join([*lines, "", *self.notes]).rstrip() + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}" if row.unit in ("", "s") else f"{value:.1f}"

    must = "-"
    if row.must is not None:
        must = f"{'<=' if row.low_is_good else '>='} {row.must:g} {'ok' if row.holds else 'MISSED'}"
    score = f"{number(row.score)} {row.unit}".rstrip()
    return row.name, score, number(row.spread), number(row.ceiling), number(row.chance), str(row.n), must


def classes_line(name: str, tally: Tally, order: Sequence[str]) -> str:
    """Percent right of each class on one line, in the given order."""
    per_class = tally.per_class()
    return f"{name}: " + ", ".join(f"{c} {per_class[c]:.0f}" for c in order if c in per_class)


def contact_sheet(path: Path, strips: Sequence[tuple[str, Tensor]]) -> None:
    """Write strips of frames below each other, each under its line of text.

    strips: text and frames uint8 [n, H, W, 3]. Raises RuntimeError when the picture cannot be made.
    """
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it

    rows = [np.concatenate(list(torch.nn.functional.pad(f, (0, 0, 0, 2)).numpy()), axis=1) for _, f in strips]
    width = max(row.shape[1] for row in rows) + 2 * MARGIN
    height = sum(LINE + row.shape[0] + MARGIN for row in rows) + MARGIN
    sheet = np.full((height, width, 3), 32, np.uint8)
    top, places = MARGIN, []
    for row in rows:
        places.append(top + LINE - 4)
        top += LINE
        sheet[top : top + row.shape[0], MARGIN : MARGIN + row.shape[1]] = row
        top += row.shape[0] + MARGIN
    picture = oiio.ImageBuf(sheet)
    for (text, _), place in zip(strips, places, strict=True):
        if not oiio.ImageBufAlgo.render_text(picture, MARGIN, place, text, 12, "", (0.9, 0.9, 0.9)):
            raise RuntimeError(f"{path}: the text cannot be drawn: {picture.geterror()}")
    if not picture.write(str(path)):
        raise RuntimeError(f"{path}: the sheet cannot be written: {picture.geterror()}")
