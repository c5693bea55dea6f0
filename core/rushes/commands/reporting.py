# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a running command tells: a bar on a terminal, lines of JSON for programs, nothing into a log file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import click

from rushes.shot import Shot
from rushes.speed import describe_attention, describe_reuse

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_PHASES = {
    "text": "reading",
    "keyframes": "keyframes",
    "denoise": "denoising",
    "decode": "decoding",
    "verify": "reading",
}


class ProgressLike(Protocol):
    """The engine's Progress, told by its fields: this module must not import torch."""

    @property
    def phase(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def seconds_per_step(self) -> float: ...
    @property
    def remaining(self) -> float: ...


class Reporter:
    """Warnings on stderr, a summary on stdout, no progress: right for a log file and a pipe."""

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def warning(self, message: str, **fields: Any) -> None:
        """One line on stderr. fields: the same in machine-readable form, for the JSON reporter."""
        click.echo(f"rushes: warning: {message}", err=True)

    def progress(self, progress: ProgressLike) -> None:
        """A step of the engine is done."""

    def attention(self, report: Mapping[str, Any]) -> None:
        """What self-attention delivered, see `SparseLayers.report`: a line on stderr, all of it for a program."""
        click.echo(f"rushes: {describe_attention(report)}", err=True)

    def reuse(self, report: Mapping[str, Any]) -> None:
        """What steps took from earlier ones, see `Reuse.report`: a line on stderr, all of it for a program."""
        click.echo(f"rushes: {describe_reuse(report)}", err=True)

    def done(
        self,
        outputs: Sequence[str],
        files: Sequence[str],
        shot: Shot,
        record: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """Every output is complete on disk. outputs: as asked for; files: as written; seconds: wall time."""
        for output in outputs:
            click.echo(f"{output}: {describe(shot)}")


class JsonReporter(Reporter):
    """One JSON object per line on stdout, flushed at once: a host reads it through a pipe."""

    def warning(self, message: str, **fields: Any) -> None:
        super().warning(message)
        self._emit("warning", message=message, **fields)

    def progress(self, progress: ProgressLike) -> None:
        self._emit(
            "progress",
            phase=progress.phase,
            step=progress.step,
            steps=progress.steps,
            seconds_per_step=round(progress.seconds_per_step, 4),
            remaining=round(progress.remaining, 2),
        )

    def attention(self, report: Mapping[str, Any]) -> None:
        self._emit("attention", **report)

    def reuse(self, report: Mapping[str, Any]) -> None:
        self._emit("reuse", **report)

    def done(
        self,
        outputs: Sequence[str],
        files: Sequence[str],
        shot: Shot,
        record: Mapping[str, Any],
        seconds: float,
    ) -> None:
        self._emit("done", outputs=list(outputs), files=list(files), record=record, seconds=round(seconds, 3))

    def _emit(self, event: str, **fields: Any) -> None:
        click.echo(json.dumps({"event": event, **fields}))  # ASCII; click.echo flushes


class SilentReporter(Reporter):
    """For processes that help another one, which tells."""

    def warning(self, message: str, **fields: Any) -> None:
        """The leading process has the same to say."""

    def done(self, *_: Any, **__: Any) -> None:
        """Nothing was written here."""


class TerminalReporter(Reporter):
    """A bar on stderr that goes away when the command ends."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._phase = ""

    def __enter__(self) -> TerminalReporter:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=32),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[pace]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def warning(self, message: str, **fields: Any) -> None:
        if self._bar is None:
            super().warning(message)
        else:  # above the bar, not through it
            self._bar.console.print(f"rushes: warning: {message}", markup=False, highlight=False, soft_wrap=True)

    def progress(self, progress: ProgressLike) -> None:
        if self._bar is None:
            return
        if self._task is None or progress.phase != self._phase:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._phase = progress.phase
            description = _PHASES.get(progress.phase, progress.phase)
            self._task = self._bar.add_task(description, total=progress.steps, pace="")
        pace = ""
        if progress.seconds_per_step > 0:
            pace = f"{progress.seconds_per_step:.2f} s/step, {format_seconds(progress.remaining)} left"
        self._bar.update(self._task, completed=progress.step, total=progress.steps, pace=pace)
        if progress.step >= progress.steps:
            self._bar.refresh()  # a phase shorter than the bar's own beat is shown too


def make_reporter(as_json: bool, silent: bool = False) -> Reporter:
    """The reporter for this process: JSON if asked for, a bar if stderr is a terminal, else the quiet one."""
    if silent:
        return SilentReporter()
    if as_json:
        return JsonReporter()
    return TerminalReporter() if sys.stderr.isatty() else Reporter()


def describe(shot: Shot) -> str:
    """A resolved shot in a few words: "33 frames, 128x80 at 24 fps, seed 7"."""
    frames = "1 frame" if shot.frames == 1 else f"{shot.frames} frames"
    size = "" if shot.size is None else f", {shot.size[0]}x{shot.size[1]}"
    fps = "" if shot.fps is None else f" at {format_fps(shot.fps)} fps"
    return f"{frames}{size}{fps}, seed {shot.seed}"


def format_fps(fps: Fraction) -> str:
    """24000/1001 as "23.976"; the record keeps the exact ratio."""
    return f"{float(fps):.3f}".rstrip("0").rstrip(".")


def format_seconds(seconds: float) -> str:
    """ "42 s", "3:07" or "1:02:09"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
