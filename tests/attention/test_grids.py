# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Tile patterns on the token grids of Wan's models, full length: sampled queries against a loop in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rushes.attention import TileLists, TilePattern, TopK, attention, kernel
from rushes.attention.extension import load_extension

if load_extension().module is None:
    pytest.skip(load_extension().reason, allow_module_level=True)

TILE = (4, 4, 4)
GRIDS = [
    (9, 20, 36),  # 320 x 576, 33 frames: ragged in time
    (21, 30, 52),  # 480p, 81 frames: ragged in time and height
    (31, 22, 40),  # 5B, 704 x 1280, 121 frames: ragged in time and height
    (21, 45, 80),  # 720p, 81 frames: ragged in time and height
]


def _kept_keys(lists: TileLists, tile: int, head: int) -> np.ndarray:
    """The keys of a query tile, in rising order."""
    row = head % lists.sets * (len(lists.query_start) - 1) + tile
    chosen = lists.tiles[lists.offsets[row] : lists.offsets[row + 1]]
    return np.concatenate([np.arange(lists.key_start[j], lists.key_start[j + 1]) for j in chosen])


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> np.ndarray:
    """One query at a time, in double precision; q [queries, head_dim]."""
    out = np.empty(q.shape)
    wide_k, wide_v = k.double().numpy(), v.double().numpy()
    for i, one in enumerate(q.double().numpy()):
        scores = wide_k @ one * scale  # [keys]
        weights = np.exp(scores - scores.max())
        out[i] = weights @ wide_v / weights.sum()
    return out


def _assert_close(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    lists: TileLists,
    dtype: torch.dtype,
) -> None:
    """Of the first and the last query tile and some between, up to 64 queries of each, against torch in `dtype`.

    Root mean square error at most twice that of torch, the largest, which is luck on both sides, at most eight times.
    """
    last = len(lists.query_start) - 2
    ours, theirs, exact = [], [], []
    for head in range(q.shape[1]):
        for tile in [0, last, *np.random.default_rng().integers(0, last + 1, 6)]:
            start, end = int(lists.query_start[tile]), int(lists.query_start[tile + 1])
            rows, keys = slice(start, min(end, start + 64)), _kept_keys(lists, tile, head)
            some = q[0, head, rows], k[0, head, keys], v[0, head, keys]
            expected = _reference(*some, scale)
            peer = F.scaled_dot_product_attention(*(x.to(dtype)[None, None] for x in some), scale=scale)[0, 0]
            ours.append(np.abs(out[0, head, rows].double().numpy() - expected))
            theirs.append(np.abs(peer.double().numpy() - expected))
            exact.append(expected)
    eps = torch.finfo(dtype).eps
    wrong, peers, right = (np.concatenate(x) for x in (ours, theirs, exact))

    def rms(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x))))

    assert rms(wrong) <= 2 * rms(peers) + eps * rms(right)
    assert wrong.max() <= 8 * peers.max() + 2 * eps * np.abs(right).max()


def _tokens(length: int, heads: int = 1, head_dim: int = 64, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(1, length, heads, head_dim).transpose(1, 2).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("text", [0, 1, 257, 512])
def test_text_at_the_end(isa: str, precision: str, text: int) -> None:
    """None, one word, one more than a block, Wan's 512: every engine, on the smallest of the grids."""
    lists = TilePattern(GRIDS[0], TILE, text, window=(1, 3, 3)).lists()
    q, k, v = _tokens(int(lists.query_start[-1]), head_dim=40)
    out = kernel.compute(q, k, v, scale=0.2, lists=lists, precision=precision, isa=isa)
    _assert_close(out, q, k, v, 0.2, lists, torch.bfloat16 if precision == "bf16" else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grids_of_wan(grid: tuple[int, int, int], dtype: torch.dtype) -> None:
    """By the engine that serves here, with 257 words behind, peaky scores among them."""
    lists = TilePattern(grid, TILE, 257, window=(3, 3, 3)).lists()
    q, k, v = _tokens(int(lists.query_start[-1]), dtype=dtype)
    q[:, :, ::7] *= 6
    out = attention(q, k, v, pattern=lists, scale=0.125, backend="rushes")
    work = dtype if kernel.backend_name(64, str(dtype)[6:], None) in ("avx512_bf16", "amx_bf16") else torch.float32
    _assert_close(out, q, k, v, 0.125, lists, work if dtype != torch.float16 else dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_routed_tiles_of_each_head(dtype: torch.dtype) -> None:
    """Neighbouring query tiles whose lists differ as content will have it."""
    pattern = TopK(GRIDS[0], TILE, 5, density=0.1)
    q, k, v = _tokens(pattern.length, heads=3, head_dim=72, dtype=dtype)
    lists = pattern.lists(q, k, 0.1)
    out = attention(q, k, v, pattern=lists, scale=0.1, backend="rushes")
    served = kernel.backend_name(72, str(dtype)[6:], None)
    _assert_close(out, q, k, v, 0.1, lists, dtype if served in ("avx512_bf16", "amx_bf16") else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bits_on_a_grid_depend_on_nothing_but_the_input(dtype: torch.dtype) -> None:
    """Not on repeats, threads or the batch."""
    pattern = TilePattern((9, 18, 22), TILE, 33, window=(1, 3, 3), global_first_frame=True)
    q, k, v = (torch.randn(2, 3, pattern.length, 64).to(dtype) for _ in range(3))
    first = attention(q, k, v, pattern=pattern, threads=1, backend="rushes")
    for threads in (1, 2, 4):
        assert torch.equal(attention(q, k, v, pattern=pattern, threads=threads, backend="rushes"), first)
    for i in range(2):
        one = [x[i : i + 1] for x in (q, k, v)]
        assert torch.equal(attention(*one, pattern=pattern, backend="rushes"), first[i : i + 1])


def test_a_tile_alone_gets_the_bits_it_gets_among_others(isa: str, precision: str) -> None:
    """Kernels may compute neighbouring query tiles together, for the keys they share; no tile's answer shows it."""
    pattern = TopK((6, 16, 20), TILE, 3, density=0.2)
    q, k, v = _tokens(pattern.length, head_dim=64)
    q = q * 4  # maxima move while the keys pass by
    lists = pattern.lists(q, k, 0.125)
    whole = kernel.compute(q, k, v, scale=0.125, lists=lists, precision=precision, isa=isa)
    for tile in np.random.default_rng().integers(0, len(lists.query_start) - 1, 6):
        rows = slice(int(lists.query_start[tile]), int(lists.query_start[tile + 1]))
        chosen = lists.tiles[lists.offsets[tile] : lists.offsets[tile + 1]]
        alone = TileLists(np.array([0, rows.stop - rows.start]), lists.key_start, np.array([0, len(chosen)]), chosen)
        out = kernel.compute(q[:, :, rows], k, v, scale=0.125, lists=alone, precision=precision, isa=isa)
        assert torch.equal(out, whole[:, :, rows])
