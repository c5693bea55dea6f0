# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Open weights, measured: `python tests/benchmarks/wan.py [--frames N] [--rounds N] [--quick]`. See README.md here.

A Wan of 287 million random parameters (1.3B at half its width, 24 of its 30 layers), written in bfloat16 as published
files are, at 832x480 on the CPU. Seconds a step and peak memory beside diffusers' WanPipeline and, where
RUSHES_HOST_ENVS names a folder with one, ComfyUI's own sampler. Every figure comes from a process of one library; these
take turns. Exit 1 when the outputs are not equal: then no ratio means anything. A goal that is missed is no error.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from measuring import MEGABYTE, describe_machine

HERE = Path(__file__).resolve().parent
CHILD = HERE / "wan_child.py"
HOST = HERE.parent / "hosts" / "comfyui" / "support"
MODEL = {
    "dim": 768, "heads": 6, "layers": 24, "ffn_dim": 4480, "in_channels": 16, "out_channels": 16, "text_dim": 4096,
    "text_len": 512,
}  # fmt: skip
SIZE = (832, 480)
SPARSE = 0.2
FASTER, FASTER_SPARSE, SMALLER = 1.5, 3.0, 0.7  # the goals
EQUAL = 1e-4  # of latents in float32, relative; different sums of the same numbers


@dataclass(frozen=True)
class Run:
    """One kind of process. density: of self-attention."""

    library: str
    dtype: str
    density: float = 1.0
    solver: str = "unipc"

    @property
    def name(self) -> str:
        return f"{self.library}-{self.dtype}-{self.density:g}-{self.solver}"


@dataclass
class Figures:
    """What the processes of one kind reported, all rounds together."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    privates: list[int] = field(default_factory=list)
    kept: float = 1.0

    def add(self, report: dict[str, Any]) -> None:
        self.seconds += report["seconds"]
        self.processor += report["processor"]
        self.peaks.append(report["peak"])
        self.privates += [] if report["private"] is None else [report["private"]]
        self.kept = report.get("kept", 1.0)

    def cells(self) -> tuple[str, ...]:
        spread = f"{min(self.processor):.1f} ... {max(self.processor):.1f}"
        times = f"{median(self.seconds):.1f} s", f"{median(self.processor):.1f} s", spread
        return *times, f"{median(self.peaks) / MEGABYTE:.0f} MB", self.private()

    def private(self) -> str:
        return f"{median(self.privates) / MEGABYTE:.0f} MB" if self.privates else "-"


class Bench:
    """Starts the processes, in one folder, with one task."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        self._task = {"frames": options.frames, "steps": options.steps, "size": options.size, "model": options.model}
        self.comfyui = _comfyui()

    def call(self, job: str, run: Run | None = None, **more: Any) -> dict[str, Any]:
        """The last line of a process as JSON. RuntimeError with its words when it fails."""
        task = {**self._task, "job": job, "dtype": "float32", "density": 1, "solver": "unipc", **more}
        if run is not None:
            task |= {"name": run.name, "dtype": run.dtype, "density": run.density, "solver": run.solver}
        python, folder, path = [sys.executable], HERE, [os.environ.get("PYTHONPATH", "")]
        if job == "comfyui" and self.comfyui is not None:
            python, folder = [str(self.comfyui.python), str(HOST / "boot.py")], self.comfyui.folder
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(part).resolve()) for part in path if part)}
        command = [*python, str(CHILD), str(self._folder), json.dumps(task)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{job}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
        lines = done.stdout.strip().splitlines()
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found


def _comfyui() -> Any:
    """The ComfyUI that the tests of its nodes use, where it is installed already; None elsewhere."""
    envs = os.environ.get("RUSHES_HOST_ENVS")
    if not envs:
        return None
    sys.path.insert(0, str(HOST))
    import environment

    place = Path(envs).resolve() / f"comfyui-{environment.VERSION}"
    return environment.make(Path(envs).resolve()) if (place / "complete").exists() else None


def measure(bench: Bench, rounds: int) -> dict[Run, Figures]:
    """Every kind of process once a round, in turn."""
    runs = [Run("rushes", "float32"), Run("diffusers", "float32")]
    if bench.comfyui is not None:  # on a processor it works in float32, whatever the weights are kept in
        runs.append(Run("comfyui", "float32", solver="euler"))
    runs += [Run("rushes", "float32", SPARSE), Run("rushes", "bfloat16"), Run("diffusers", "bfloat16")]
    runs.append(Run("rushes", "bfloat16", SPARSE))
    figures = {run: Figures() for run in runs}
    for _ in range(rounds):
        for run in runs:
            figures[run].add(bench.call(run.library, run))
    return figures


def errors(bench: Bench, runs: list[Run]) -> tuple[dict[Run, list[float]], bool]:
    """How far each one's latents lie from diffusers' in float32 (ComfyUI's, which have another schedule, from ours by
    that one), relative, in the L2 norm and in the maximum; and whether the dense ones in float32 agree."""
    twin = Run("rushes", "float32", solver="euler")
    if any(run.library == "comfyui" for run in runs):
        bench.call("rushes", twin)
    exact = Run("diffusers", "float32")
    reference = {run: twin if run.library == "comfyui" else exact for run in runs}
    found = bench.call("compare", pairs=[(run.name, reference[run].name) for run in runs])
    by_run = {run: found[f"{run.name}/{reference[run].name}"] for run in runs}
    dense = [run for run in runs if run.dtype == "float32" and run.density == 1]
    return by_run, all(max(by_run[run]) <= EQUAL for run in dense)


def report(figures: dict[Run, Figures], apart: dict[Run, list[float]]) -> None:
    """The table of figures and that of ratios with their goals."""
    head = ("run", "wall", "processor", "spread", "memory", "private", "kept", "error L2", "error max")
    lines = [head]
    for run, found in figures.items():
        name = f"{run.library} {run.dtype}" + ("" if run.density == 1 else f" density {run.density:g}")
        wide, most = apart[run]
        lines.append((name, *found.cells(), f"{found.kept:.1%}", f"{wide:.1e}", f"{most:.1e}"))
    print()
    _print(lines)
    lines = [("ratio", "of wall", "of processor", "goal", "", "of memory", "goal", "", "of private")]
    for run, found in figures.items():
        for peer, theirs in figures.items():
            if run.library != "rushes" or peer.library == "rushes" or peer.dtype != run.dtype:
                continue
            wall, processor = (
                median(a) / median(b) for a, b in ((theirs.seconds, found.seconds), (theirs.processor, found.processor))
            )
            memory = median(found.peaks) / median(theirs.peaks)
            goal = FASTER if run.density == 1 else FASTER_SPARSE
            name = f"{run.dtype} {'dense' if run.density == 1 else f'density {run.density:g}'} / {peer.library}"
            met = "met" if processor >= goal else "MISSED", "met" if memory <= SMALLER else "MISSED"
            lines.append(
                (
                    name,
                    f"{wall:.2f}",
                    f"{processor:.2f}",
                    f">= {goal:g}",
                    met[0],
                    f"{memory:.2f}",
                    f"<= {SMALLER:g}",
                    met[1],
                    f"{median(found.privates) / median(theirs.privates):.2f}" if found.privates else "-",
                )
            )
    print()
    _print(lines)


def _print(lines: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def read_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure open weights; see README.md beside this file.")
    parser.add_argument("--frames", type=int, default=9, help="of the clip, 4n + 1 (default 9)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="of each process; the first is not counted (default 3)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and picture, once: tries the script only")
    options = parser.parse_args(argv)
    options.model, options.size = MODEL, SIZE
    if options.quick:
        options.rounds, options.steps = 1, 2
        options.model, options.size = {**MODEL, "dim": 256, "heads": 2, "layers": 2, "ffn_dim": 256}, (64, 64)
    return options


def main(argv: list[str] | None = None) -> int:
    options = read_options(argv)
    if missing := [name for name in ("rushes", "diffusers") if importlib.util.find_spec(name) is None]:
        print(f'wan: {missing[0]} is missing; pip install ".[parity]" brings it', file=sys.stderr)
        return 2
    print("\n".join(describe_machine()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        written = bench.call("write")
        bench.call("inputs")
        T, (width, height) = (options.frames + 3) // 4, options.size
        tokens = T * (height // 16) * (width // 16)
        print(f"model     {written['parameters'] / 1e6:.0f} M parameters, random, in bfloat16")
        print(f"shot      {width}x{height}, {options.frames} frames, {tokens} tokens, one pass a step (no guidance)")
        print(
            f"protocol  {options.rounds} processes of each kind in turn, {options.steps} steps each, first not counted"
        )
        if options.quick:
            print("quick     once each, tiny: this tries the script and says nothing about speed")
        figures = measure(bench, options.rounds)
        apart, is_equal = errors(bench, list(figures))
    report(figures, apart)
    print(f"\nfloat32, dense: the outputs {'agree' if is_equal else 'DO NOT AGREE'} (up to {EQUAL:g} is allowed)")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
