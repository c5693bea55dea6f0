# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Measuring: child processes with their time and peak memory, functions in turn, work in counts. Linux and macOS.

Standard library at import. A child's peak memory starts at what its parent held when it was started, on Linux, so
children are measured before the parent loads torch.
"""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

MEGABYTE = 1e6


@dataclass(frozen=True)
class Child:
    """What one process took. seconds: wall time from start to end; peak: most resident memory, in bytes."""

    seconds: float
    peak: int


@dataclass
class Work:
    """What one clip asks of a library, in counts that do not depend on the machine.

    passes: calls of the transformer; chunks: calls of the decoder; linears: calls of linear layers; operations: calls
    into torch's kernels, views left out; flops: of products and convolutions.
    """

    passes: int = 0
    chunks: int = 0
    linears: int = 0
    operations: int = 0
    flops: int = 0


@dataclass
class Samples:
    """Seconds by name, one per round; processor: of all threads of this process, where they were taken."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float, processor: float = 0.0) -> None:
        self.seconds.setdefault(name, []).append(seconds)
        self.processor.setdefault(name, []).append(processor)

    def processor_median(self, name: str) -> float:
        return median(self.processor[name])

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def spread(self, name: str) -> str:
        """Fastest and slowest round, which tell whether the machine was quiet."""
        found = self.seconds[name]
        return f"{min(found):.2f} ... {max(found):.2f} s in {len(found)}"


def run_child(arguments: Sequence[str], folder: Path) -> Child:
    """Run this Python with `arguments` in `folder` as a fresh process. RuntimeError with its words when it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(arguments)}: exit {process.returncode}: {said.read().strip()}")
    return Child(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _environment() -> dict[str, str]:
    """A PYTHONPATH of a source tree holds in another folder too; a bar on a terminal would cost time."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    if path := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(part) for part in path.split(os.pathsep))
    return environment


def in_turn(tasks: Mapping[str, Callable[[], object]], rounds: int) -> Samples:
    """Time each task once a round, A B A B ..., so that what disturbs the machine disturbs all of them."""
    samples = Samples()
    for _ in range(rounds):
        for name, task in tasks.items():
            gc.collect()  # what one task left behind is not the other's to clear
            started, worked = time.perf_counter(), time.process_time()
            task()
            samples.add(name, time.perf_counter() - started, time.process_time() - worked)
    return samples


@contextmanager
def counted(transformer: type, decoder: type) -> Iterator[Work]:
    """Counts the work of this thread. transformer, decoder: the classes whose calls are passes and chunks."""
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    work = Work()

    def look(module: torch.nn.Module, inputs: tuple[object, ...]) -> None:
        if isinstance(module, torch.nn.Linear):
            work.linears += 1
        elif isinstance(module, decoder):
            work.chunks += 1
        elif isinstance(module, transformer):
            work.passes += 1

    def attention(q, k, v, *_, out_shape=None, **__):  # type: ignore[no-untyped-def]
        return sdpa_flop_count(q, k, v)

    # torch counts the attention of its GPU libraries, but not that of its CPU one
    formulas = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    hook = register_module_forward_pre_hook(look)
    try:
        with FlopCounterMode(display=False, custom_mapping=formulas) as flops, _operations(work):
            yield work
    finally:
        hook.remove()
    work.flops = flops.get_total_flops()


@contextmanager
def _operations(work: Work) -> Iterator[None]:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            # In inference mode torch hands over whole compounds, elsewhere their parts: count the parts in both
            with self:
                found = function.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
            work.operations += not function.is_view
            return function(*args, **(kwargs or {}))

    with Counter():
        yield


def describe_machine() -> list[str]:
    """Lines on the processor, memory, and the load before the measurement."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    busy = "" if load < 0.5 else "; BUSY: the times below say nothing"
    return [
        f"machine   {_processor()}, {usable} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}",
        f"load      {load:.2f} in the minute before{busy}",
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
