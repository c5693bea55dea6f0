# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The attention kernel beside torch's, as ratios measured in turn in one process.

Every row is A B A B ... over the same tensors; a ratio is the median over the rounds of that round's ratio, so that
what slows the machine for a while slows both. With one thread the clock is the thread's processor time, which other
processes do not lengthen; with more it is the wall. GFLOP/s count 4 * heads * length^2 * head_dim * density. "of peak"
is the share of what torch's products (MKL, oneDNN) of matrices that stay in the cache reach here, in that dtype.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from measuring import describe_machine

from rushes.attention import TilePattern, attention, last_backend, supports
from rushes.attention.extension import load_extension

Task = Callable[[], Any]
WAN = TilePattern(grid=(21, 30, 52), tile=(4, 4, 4))


class Bench:
    """Rounds, threads and the clock that goes with them."""

    def __init__(self, threads: int, rounds: int) -> None:
        torch.set_num_threads(threads)
        self.threads, self.rounds = threads, rounds
        self.clock = time.thread_time if threads == 1 else time.perf_counter

    def in_turn(self, *tasks: Task) -> list[list[float]]:
        """Seconds of each task, by round; one round before is not counted."""
        seconds: list[list[float]] = [[] for _ in tasks]
        for turn in range(self.rounds + 1):
            for task, found in zip(tasks, seconds, strict=True):
                started = self.clock()
                task()
                if turn:
                    found.append(self.clock() - started)
        return seconds

    def peak(self, dtype: torch.dtype) -> float:
        """FLOP/s of a product of matrices that stay in the second-level cache; the best round."""
        n = 512
        a, b = torch.randn(2, self.threads, n, n).to(dtype)
        (seconds,) = self.in_turn(lambda: [torch.bmm(a, b) for _ in range(8)])
        return 8 * self.threads * 2 * n**3 / min(seconds)


def _row(name: str, ours: list[float], theirs: list[float], flops: float, peak: float, goal: str, by: str) -> None:
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    spread = f"{ratios[0]:.2f} ... {ratios[-1]:.2f}"
    rate = flops / median(ours)
    print(
        f"{name:<50} {median(ratios):>5.2f}  {spread:<15} {goal:<12} {median(ours) * 1e3:>8.2f} ms {rate / 1e9:>6.0f} "
        f"{rate / peak:>5.0%}  {by}",
        flush=True,
    )


def _tensors(heads: int, length_q: int, length_k: int, head_dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    lengths = (length_q, length_k, length_k)
    return [torch.randn(1, n, heads, head_dim).transpose(1, 2).to(dtype) for n in lengths]


def _by_chunks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What a model without a kernel would write: product, softmax, product, over 512 queries at a time."""
    scale = q.shape[-1] ** -0.5
    parts = [torch.softmax(some @ k.transpose(-1, -2) * scale, -1) @ v for some in q.split(512, 2)]
    return torch.cat(parts, 2)


def dense(bench: Bench, heads: int, lengths: list[int], peaks: dict[torch.dtype, float]) -> None:
    """Dense against torch, both dtypes and head widths; bfloat16 also against chunks."""
    goals = {(torch.float32, 128): "1.25", (torch.bfloat16, 128): "2.45", (torch.float32, 64): "1.3"}
    for head_dim in (128, 64):
        for length in lengths:
            for dtype in (torch.float32, torch.bfloat16):
                q, k, v = _tensors(heads, length, length, head_dim, dtype)
                flops = 4 * heads * length * length * head_dim
                name = f"dense {str(dtype)[6:]} D{head_dim} L{length} / torch"
                ours, theirs = bench.in_turn(
                    lambda: attention(q, k, v, backend="rushes"),  # noqa: B023 - called within the turn
                    lambda: F.scaled_dot_product_attention(q, k, v),  # noqa: B023
                )
                goal = goals.get((dtype, head_dim), "2.5")
                _row(name, ours, theirs, flops, peaks[dtype], goal, str(last_backend()))
                if dtype == torch.bfloat16 and head_dim == 128:
                    ours, theirs = bench.in_turn(
                        lambda: attention(q, k, v, backend="rushes"),  # noqa: B023
                        lambda: _by_chunks(q, k, v),  # noqa: B023
                    )
                    name = f"dense bfloat16 D128 L{length} / chunks"
                    _row(name, ours, theirs, flops, peaks[dtype], "1.35", str(last_backend()))


def precision(bench: Bench, heads: int, length: int, peaks: dict[torch.dtype, float]) -> None:
    """float32 inputs multiplied in less, and the error of it against double precision."""
    q, k, v = _tensors(heads, length, length, 128, torch.float32)
    exact = F.scaled_dot_product_attention(q[:, :1].double(), k[:, :1].double(), v[:, :1].double())
    for kind, goal in (("bf16", ""), ("int8", "3.2")):
        if not supports(q, k, v, precision=kind):
            print(f"{kind} of float32: {supports(q, k, v, precision=kind).reasons[0]}")
            continue
        ours, theirs = bench.in_turn(
            lambda: attention(q, k, v, precision=kind),  # noqa: B023 - called within the turn
            lambda: F.scaled_dot_product_attention(q, k, v),
        )
        error = (attention(q, k, v, precision=kind)[:, :1] - exact).norm() / exact.norm()
        by = f"{last_backend()}, relative error {error:.1e}"
        flops, name = 4 * heads * length**2 * 128, f"{kind} of float32 D128 L{length} / torch float32"
        _row(name, ours, theirs, flops, peaks[torch.bfloat16], goal, by)


def small(bench: Bench, peaks: dict[torch.dtype, float]) -> None:
    """The starter model's lengths: self-attention, and attention to 40 words."""
    for length_k in (200, 40):
        q, k, v = _tensors(4, 200, length_k, 64, torch.float32)
        ours, theirs = bench.in_turn(
            lambda: [attention(q, k, v, backend="rushes") for _ in range(50)],  # noqa: B023
            lambda: [F.scaled_dot_product_attention(q, k, v) for _ in range(50)],  # noqa: B023
        )
        flops = 50 * 4 * 4 * 200 * length_k * 64
        name = f"dense float32 H4 D64 200 x {length_k} / torch (50 calls)"
        _row(name, ours, theirs, flops, peaks[torch.float32], "", str(last_backend()))


def sparse(bench: Bench, heads: int, peaks: dict[torch.dtype, float]) -> None:
    """Speed-up over our own dense code times the density: 1 would be a perfect use of the skipped tiles."""
    aligned = (20, 32, 52)
    for grid, name in ((aligned, "20x32x52"), (WAN.grid, "21x30x52 ragged")):
        for dtype in (torch.float32, torch.bfloat16):
            length = grid[0] * grid[1] * grid[2]
            q, k, v = _tensors(heads, length, length, 128, dtype)
            for window in ((5, 5, 5), (3, 4, 5), (3, 3, 3)):
                pattern = TilePattern(grid=grid, tile=(4, 4, 4), window=window)
                kept = pattern.density()
                ours, theirs = bench.in_turn(
                    lambda: attention(q, k, v, pattern=pattern),  # noqa: B023
                    lambda: attention(q, k, v, backend="rushes"),  # noqa: B023
                )
                whole = f"sparse {str(dtype)[6:]} {name} {kept:.1%} kept: efficiency"
                scaled = [seconds * kept for seconds in theirs]
                goal = ".98/.96/.93"
                _row(whole, ours, scaled, 4 * heads * length**2 * 128 * kept, peaks[dtype], goal, str(last_backend()))


def flexible(bench: Bench, heads: int, peaks: dict[torch.dtype, float]) -> None:
    """The same pattern by torch's FlexAttention, compiled, whose blocks of 128 tokens are all full or empty."""
    pattern = TilePattern(grid=(16, 32, 32), tile=(8, 4, 4), window=(1, 3, 3))
    for dtype, goal in ((torch.float32, "2"), (torch.bfloat16, "5")):
        q, k, v = _tensors(heads, pattern.length, pattern.length, 128, dtype)
        ours, theirs = bench.in_turn(
            lambda: attention(q, k, v, pattern=pattern, backend="rushes"),  # noqa: B023
            lambda: attention(q, k, v, pattern=pattern, backend="flex"),  # noqa: B023
        )
        kept = pattern.density()
        name = f"sparse {str(dtype)[6:]} 16x32x32 {kept:.1%} kept / flex_attention"
        _row(name, ours, theirs, 4 * heads * pattern.length**2 * 128 * kept, peaks[dtype], goal, "rushes against flex")


def scaling(heads: int, length: int, rounds: int) -> None:
    """Wall time with one thread over wall time with two."""
    bench = Bench(1, rounds)
    bench.clock = time.perf_counter
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = _tensors(heads, length, length, 128, dtype)
        two, one = bench.in_turn(
            lambda: attention(q, k, v, backend="rushes", threads=2),  # noqa: B023
            lambda: attention(q, k, v, backend="rushes", threads=1),  # noqa: B023
        )
        ratios = sorted(b / a for a, b in zip(two, one, strict=True))
        spread = f"{ratios[0]:.2f} ... {ratios[-1]:.2f}"
        print(f"from 1 to 2 threads, {str(dtype)[6:]} L{length}: x {median(ratios):.2f} ({spread})")


def main() -> int:
    """Print the machine and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--sparse-heads", type=int, default=2, help="of the 33,000-token grids")
    parser.add_argument("--only", choices=["dense", "precision", "small", "sparse", "flex", "scaling"], nargs="+")
    options = parser.parse_args()
    extension = load_extension()
    if extension.module is None:
        print(extension.reason, file=sys.stderr)
        return 1
    print("\n".join(describe_machine()))
    library = Path(str(extension.module.__file__))
    code = """import importlib.util, sys, time
start = time.perf_counter()
spec = importlib.util.spec_from_file_location("_kernel", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(time.perf_counter() - start)"""
    loading = min(float(subprocess.check_output([sys.executable, "-c", code, str(library)])) for _ in range(5))
    size = library.stat().st_size / 1e6
    print(f"library   {size:.2f} MB (goal: under 5), loaded in {loading * 1e3:.1f} ms (goal: under 100)")
    print(f"software  python {platform.python_version()}, torch {torch.__version__}, {extension.module.build_info()}")
    bench = Bench(options.threads, options.rounds)
    clock = "processor time" if options.threads == 1 else "wall time"
    print(f"protocol  {options.threads} threads, {options.rounds} rounds in turn, {clock}, {options.heads} heads")
    peaks = {dtype: bench.peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    print("peak      " + ", ".join(f"{str(d)[6:]} {rate / 1e9:.0f} GFLOP/s" for d, rate in peaks.items()))
    print(f"\n{'quantity':<50} {'ratio':>5}  {'spread':<15} {'goal':<12} {'ours':>11} GFLOP/s of peak  backend")
    parts: dict[str, Task] = {
        "small": lambda: small(bench, peaks),
        "dense": lambda: dense(bench, options.heads, options.lengths, peaks),
        "precision": lambda: precision(bench, options.heads, options.lengths[0], peaks),
        "sparse": lambda: sparse(bench, options.sparse_heads, peaks),
        "flex": lambda: flexible(bench, options.sparse_heads, peaks),
        "scaling": lambda: scaling(options.heads, options.lengths[0], options.rounds),
    }
    for name, part in parts.items():
        if options.only is None or name in options.only:
            part()
    return 0


if __name__ == "__main__":
    sys.exit(main())
