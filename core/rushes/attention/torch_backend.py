# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Torch's side: its own attention as the named fall back, and the kernel as an operator that torch.compile sees.

Importing this module registers the operator rushes::attention.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_flop

from rushes.attention import flex, kernel
from rushes.attention.arrays import empty_like_queries
from rushes.attention.latest import note_backend
from rushes.attention.patterns import TileLists, TilePattern, TopK

SHORT = 512 * 512  # scores up to which they are kept for their gradients
_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, float scale, int[] pattern, float density, str? precision, str? backend) -> Tensor"
)


def torch_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, lists: TileLists | None, by_flex: bool = False
) -> Tensor:
    """By torch alone, with gradients, on any device. Lists are served one query tile after another, or by_flex."""
    if lists is None and _learns_short(q, k, v):
        out, name = _by_matrices(q, k, v, scale), "torch"
    elif lists is None:
        out, name = F.scaled_dot_product_attention(q, k, v, scale=scale), "torch"  # [batch, heads, length_q, head_dim]
    elif by_flex:
        out, name = flex.flex_attention(q, k, v, scale, lists), "flex"
    else:
        tiles = range(len(lists.query_start) - 1)
        out, name = torch.cat([_one_tile(q, k, v, scale, lists, tile) for tile in tiles], 2), "torch by tiles"
    if not torch.compiler.is_compiling():
        note_backend(name)
    return out


def _learns_short(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.device.type == "cpu" and q.shape[2] * k.shape[2] <= SHORT and kernel.needs_gradients(q, k, v)


def _by_matrices(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The formula as it is written. Its gradients are matrix products; those of torch's flash attention on the CPU
    take more than twice as long: 23 against 10 ms for bfloat16 [12, 4, 200, 64] on one thread, 46 against 25 at 360."""
    with torch.autocast("cpu", enabled=False):
        return torch.softmax((q * scale) @ k.transpose(-1, -2), -1) @ v  # [batch, heads, length_q, head_dim]


def _one_tile(q: Tensor, k: Tensor, v: Tensor, scale: float, lists: TileLists, tile: int) -> Tensor:
    rows = q[:, :, int(lists.query_start[tile]) : int(lists.query_start[tile + 1])]
    keys = [_keys(lists, tile, s).to(q.device) for s in range(lists.sets)]
    if lists.sets == 1:
        return F.scaled_dot_product_attention(rows, k[:, :, keys[0]], v[:, :, keys[0]], scale=scale)
    batch, heads = q.shape[:2]
    parts = [
        F.scaled_dot_product_attention(
            rows[b, h][None], k[b, h, chosen][None], v[b, h, chosen][None], scale=scale
        )  # [1, rows, head_dim]
        for b in range(batch)
        for h in range(heads)
        for chosen in [keys[(b * heads + h) % lists.sets]]
    ]
    return torch.cat(parts).unflatten(0, (batch, heads))


def _keys(lists: TileLists, tile: int, which: int) -> Tensor:
    """int64: the keys that a query tile attends to, in rising order."""
    row = which * (len(lists.query_start) - 1) + tile
    tiles = lists.tiles[lists.offsets[row] : lists.offsets[row + 1]]
    return torch.from_numpy(np.concatenate([np.arange(lists.key_start[i], lists.key_start[i + 1]) for i in tiles]))


def is_traced(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether somebody follows the calls into torch (torch.compile, a dispatch mode) and must not miss this one.

    False for what only torch can serve: those calls are seen as they are.
    """
    if kernel.needs_gradients(q, k, v) or q.device.type != "cpu":
        return False
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    pattern: TilePattern | TopK | TileLists | None,
    precision: str | None,
    backend: str | None,
) -> Tensor:
    """rushes::attention, dense or by tiles. Which code serves is decided when it runs, not when it is traced."""
    numbers, density = _encode(pattern)
    out: Tensor = torch.ops.rushes.attention(q, k, v, scale, numbers, density, precision, backend)
    return out


@torch.library.custom_op("rushes::attention", mutates_args=(), device_types="cpu", schema=_SCHEMA)
def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    pattern: list[int],
    density: float,
    precision: Literal["fp32", "bf16"] | None,
    backend: Literal["torch", "flex", "rushes"] | None,
) -> Tensor:
    from rushes.attention.dispatch import serve

    out: Tensor = serve(q, k, v, scale, _decode(tuple(pattern), density), precision, backend)
    promised = empty_like_queries(q)
    # torch's own attention may leave its answer in another layout than the one that was promised to the tracer
    return out if out.stride() == promised.stride() else promised.copy_(out)


@_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> Tensor:
    out: Tensor = empty_like_queries(q)
    return out


@register_flop_formula(torch.ops.rushes.attention)
def _flops(
    q_shape: Any,
    k_shape: Any,
    v_shape: Any,
    scale: float,
    pattern: list[int],
    density: float,
    *args: Any,
    **kwargs: Any,
) -> int:
    """As torch counts its own; of a pattern, the part that it keeps."""
    decoded = _decode(tuple(pattern), density)
    kept = decoded.density if isinstance(decoded, TopK) else decoded.density() if decoded else 1.0
    return round(sdpa_flop(q_shape, k_shape, v_shape) * kept)


def _encode(pattern: TilePattern | TopK | TileLists | None) -> tuple[list[int], float]:
    """As an operator's arguments, which are numbers."""
    if pattern is None:
        return [], 0.0
    if isinstance(pattern, TopK):
        return [*pattern.grid, *pattern.tile, pattern.text], pattern.density
    if isinstance(pattern, TilePattern):
        flags = [int(pattern.wrap), int(pattern.global_first_frame)]
        return [*pattern.grid, *pattern.tile, pattern.text, *pattern.window, *flags], 0.0
    raise ValueError(
        "pattern: it is a TileLists under torch.compile or a dispatch mode; TilePattern or TopK is allowed"
    )


@functools.lru_cache(maxsize=16)
def _decode(numbers: tuple[int, ...], density: float) -> TilePattern | TopK | None:
    if not numbers:
        return None
    grid, tile, text = numbers[:3], numbers[3:6], numbers[6]
    if len(numbers) == 7:
        return TopK(grid, tile, text, density)  # type: ignore[arg-type]
    window, wrap, first = numbers[7:10], bool(numbers[10]), bool(numbers[11])
    return TilePattern(grid, tile, text, window, wrap, first)  # type: ignore[arg-type]
