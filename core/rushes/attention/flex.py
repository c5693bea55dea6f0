# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Tile lists by torch's FlexAttention (arXiv:2412.05496): the named fall back where the kernel cannot serve.

torch.compile makes a kernel of its own at the first call of each shape, which takes seconds, on the CPU with a C++
compiler. It keeps blocks of 128 tokens and masks what a block has too much.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rushes.attention.patterns import TileLists


def obstacle() -> str | None:
    """Why FlexAttention cannot serve, as a sentence; None when it can."""
    try:
        from torch.nn.attention.flex_attention import flex_attention  # noqa: F401
    except ImportError:
        return f"backend: got 'flex' with torch {torch.__version__}; it is allowed from torch 2.5 on"
    return None


def flex_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, lists: TileLists) -> Tensor:
    """Attention over the lists' tiles; q, k, v [batch, heads, length, head_dim] in tile order."""
    mask = _block_mask(lists, q.shape[0], q.shape[1], str(q.device))
    out: Tensor = _compiled()(q, k, v, block_mask=mask, scale=scale)
    return out


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # static shapes: one clip has one size from its first step to its last
    return torch.compile(flex_attention, dynamic=False)


@functools.lru_cache(maxsize=4)
def _block_mask(lists: TileLists, batch: int, heads: int, device: str) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    starts = (lists.query_start, lists.key_start)
    tile_of_query, tile_of_key = (torch.from_numpy(_tile_of(start)).to(device) for start in starts)
    kept = torch.from_numpy(_kept(lists)).to(device)  # [sets, query tiles, key tiles]
    sets = lists.sets

    def keeps(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return kept[(b * heads + h) % sets, tile_of_query[query], tile_of_key[key]]

    many = (batch if sets > heads else None, heads if sets > 1 else None)
    return create_block_mask(keeps, *many, int(starts[0][-1]), int(starts[1][-1]), device=device)


def _tile_of(start: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(start) - 1), np.diff(start))  # int64 [length]


def _kept(lists: TileLists) -> np.ndarray:
    rows = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))
    kept = np.zeros((len(lists.offsets) - 1, len(lists.key_start) - 1), dtype=bool)
    kept[rows, lists.tiles] = True
    return kept.reshape(lists.sets, len(lists.query_start) - 1, -1)
