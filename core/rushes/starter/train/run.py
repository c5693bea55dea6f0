# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What every training run shares: clock, state file, log, averaged weights, and work in several processes."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from rushes.replacing import replacing

Model = TypeVar("Model", bound=nn.Module)
STALL = 10.0  # a step this many times longer than usual was a pause (SIGSTOP, sleep), not work


@dataclass(frozen=True)
class Options:
    """What a run is asked for. minutes: working time in all, over every resumption; schedules fit themselves to it."""

    folder: Path
    minutes: float
    processes: int = 1
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    batch: int = 8


@dataclass
class Clock:
    """Working time. Pauses do not count, so a stopped run keeps its schedule.

    now: what counts. Of a training on the processor, its thread's own time (`time.thread_time`), so that a machine
    shared with other work makes a run longer and not worse; else the time of day.
    """

    budget: float  # seconds
    elapsed: float = 0.0
    usual: float = 0.0
    now: Callable[[], float] = time.monotonic
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.now()

    def tick(self) -> None:
        """Call once a step."""
        now = self.now()
        step, self._last = now - self._last, now
        if self.usual and step > STALL * self.usual:
            step = self.usual
        else:
            self.usual = step if not self.usual else 0.95 * self.usual + 0.05 * step
        self.elapsed += step

    def skip(self) -> None:
        """Forget the time since the last tick (evaluation, saving)."""
        self._last = self.now()

    @property
    def progress(self) -> float:
        return self.elapsed / self.budget


class Team:
    """The processes of one run. Gradients are averaged over gloo; process 0 leads."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()

    def lead(self, value: float) -> float:
        """Process 0's value, in every process."""
        if self.size == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(box, 0)
        return float(box)


def launch(options: Options, work: Callable[[Options, Team], None]) -> None:
    """Run `work` in options.processes processes, with options.threads threads each."""
    if options.processes == 1:
        _enter(0, options, work, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store").as_uri()
        spawn(_enter, (options, work, store), nprocs=options.processes)


def _enter(rank: int, options: Options, work: Callable[[Options, Team], None], store: str | None) -> None:
    torch.set_num_threads(options.threads)
    if store is not None:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=options.processes)
    try:
        work(options, Team(rank, options.processes))
    finally:
        if store is not None:
            dist.destroy_process_group()


class Average(Generic[Model]):
    """Exponential moving average of a model's weights, over about `horizon` steps once it has run that long."""

    def __init__(self, model: Model, horizon: float = 1000.0) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.horizon, self.steps = horizon, 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        self.steps += 1
        keep = 1 - 1 / min(self.horizon, 1 + self.steps / 10)
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - keep)


class Optimizers:
    """Muon (Jordan et al. 2024) for the weights of two or more dimensions in `matrices`, AdamW for all others.

    Convolutions take part as matrices of [out, in x kernel]: views that share the weights' memory.
    """

    def __init__(self, model: nn.Module, matrices: Iterable[Tensor], muon: float, adam: float) -> None:
        self._weights = [p for p in matrices if p.ndim >= 2]
        self._views = [nn.Parameter(p.data.view(p.shape[0], -1)) for p in self._weights]
        taken = {id(p) for p in self._weights}
        others = [p for p in model.parameters() if id(p) not in taken]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(self._views, lr=muon, weight_decay=0.01),
            torch.optim.AdamW(others, lr=adam, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self._rates, self._model = (muon, adam), model

    def step(self, factor: float) -> None:
        """One step at `factor` of the learning rates, from the gradients there are; they are cleared."""
        for view, weight in zip(self._views, self._weights, strict=True):
            view.grad = None if weight.grad is None else weight.grad.view_as(view)
        for part, base in zip(self._parts, self._rates, strict=True):
            part.param_groups[0]["lr"] = base * factor
            part.step()
        self._model.zero_grad()

    def state(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self._parts]

    def load(self, state: list[dict[str, Any]]) -> None:
        for part, values in zip(self._parts, state, strict=True):
            part.load_state_dict(values)


def rate(progress: float, warmup: float = 0.01, decay: float = 0.4) -> float:
    """Learning-rate factor: linear up, constant, then linear to zero over the last `decay` of the budget."""
    return max(0.0, min(1.0, (progress + 1e-4) / warmup, (1.0 - progress) / decay))


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state file whole or not at all. Tensors and plain values only: `weights_only` must load it."""
    with replacing(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path, device: str) -> dict[str, Any] | None:
    """The last state file, or None at the start of a run."""
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None


class Log:
    """Lines to a text file and the terminal, from process 0; every line starts with the working minutes."""

    def __init__(self, path: Path, team: Team, clock: Clock) -> None:
        self._path, self._team, self._clock = path, team, clock

    def __call__(self, **values: float | int | str) -> None:
        if not self._team.leads:
            return
        words = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
        ]
        line = f"{self._clock.elapsed / 60:8.2f} min  " + "  ".join(words)
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Means:
    """Running means between two lines of the log."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, **values: Tensor | float) -> None:
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def take(self) -> dict[str, float]:
        means = {name: total / max(1, self._count) for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means
