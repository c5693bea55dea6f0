# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Tile patterns: against masks built token by token, and the density that they report."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rushes.attention import TileLists, TilePattern, TopK, attention, kernel, last_backend, supports
from rushes.attention.extension import load_extension

if load_extension().module is None:
    pytest.skip(load_extension().reason, allow_module_level=True)

PATTERNS = [
    TilePattern(grid=(4, 4, 4), tile=(2, 2, 2), window=(1, 1, 1)),  # each tile alone
    TilePattern(grid=(8, 8, 8), tile=(4, 4, 4), window=(3, 3, 3)),  # a window wider than the grid: dense
    TilePattern(grid=(5, 7, 13), tile=(2, 3, 4), window=(1, 3, 3)),  # ragged along each axis
    TilePattern(grid=(3, 6, 11), tile=(4, 4, 4), window=(3, 1, 1), text=1),  # one tile in time, one word
    TilePattern(grid=(6, 8, 13), tile=(4, 4, 4), window=(1, 2, 2), text=257),  # even windows, more text than video tile
    TilePattern(grid=(7, 5, 9), tile=(2, 2, 2), window=(3, 3, 3), wrap=True),  # across the edges
    TilePattern(grid=(7, 5, 9), tile=(2, 2, 3), window=(1, 2, 1), wrap=True, text=5, global_first_frame=True),
    TilePattern(grid=(1, 9, 10), tile=(1, 8, 8), window=(1, 1, 1), text=2),  # a still: edges of one row, two columns
]


def _mask(pattern: TilePattern) -> np.ndarray:
    """bool [length, length] in the grid's order, one pair of tokens at a time along each axis, from the definition."""
    T, H, W = pattern.grid
    near = np.ones((T, H, W, T, H, W), dtype=bool)
    for axis, (n, step, width) in enumerate(zip(pattern.grid, pattern.tile, pattern.window, strict=True)):
        tiles = -(-n // step)
        sees = np.zeros((n, n), dtype=bool)
        for i in range(n):
            first = i // step - (min(width, tiles) - 1) // 2
            if not pattern.wrap:
                first = min(max(first, 0), tiles - min(width, tiles))
            window = [(first + j) % tiles for j in range(min(width, tiles))]
            for j in range(n):
                sees[i, j] = j // step in window
        shape = [1] * 6
        shape[axis] = shape[axis + 3] = n
        near &= sees.reshape(shape)
    if pattern.global_first_frame:
        near[: pattern.tile[0]] = True
        near[:, :, :, : pattern.tile[0]] = True
    mask = np.ones((pattern.length, pattern.length), dtype=bool)
    mask[: T * H * W, : T * H * W] = near.reshape(T * H * W, T * H * W)
    return mask


def _reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float) -> np.ndarray:
    """Row by row in double precision, over the keys that the mask [heads, queries, keys] keeps."""
    out = np.empty(q.shape)
    for h in range(q.shape[1]):
        for i in range(q.shape[2]):
            keep = mask[h % len(mask), i]
            scores = k[0, h, keep] @ q[0, h, i] * scale
            weights = np.exp(scores - scores.max())
            out[0, h, i] = weights @ v[0, h, keep] / weights.sum()
    return out


def _tokens(length: int, heads: int = 2, head_dim: int = 40) -> list[torch.Tensor]:
    return [torch.randn(1, heads, length, head_dim) for _ in range(3)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"{p.grid}-{p.text}")
def test_it_is_the_masked_formula(isa: str, precision: str, pattern: TilePattern) -> None:
    """In tile order through the kernel and back: what a mask over the grid's own order gives."""
    tokens = _tokens(pattern.length)
    order, inverse = (torch.from_numpy(x) for x in (pattern.order(), pattern.inverse()))
    tiled = [x[:, :, order] for x in tokens]
    out = kernel.compute(*tiled, scale=0.2, lists=pattern.lists(), precision=precision, isa=isa)[:, :, inverse]
    mask = _mask(pattern)
    expected = _reference(*(x.double().numpy() for x in tokens), mask[None], 0.2)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    work = [x.to(dtype) for x in tokens]
    peer = F.scaled_dot_product_attention(*work, attn_mask=torch.from_numpy(mask), scale=0.2).double().numpy()
    allowed = 4 * np.abs(peer - expected).max() + 2 * torch.finfo(dtype).eps * np.abs(expected).max()
    assert np.abs(out.double().numpy() - expected).max() <= allowed


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"{p.grid}-{p.text}")
def test_the_density_is_that_of_the_mask(pattern: TilePattern) -> None:
    """Exactly: kept scores over all scores."""
    assert pattern.density() == pytest.approx(_mask(pattern).mean(), abs=1e-12)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"{p.grid}-{p.text}")
def test_order_and_inverse_undo_each_other(pattern: TilePattern) -> None:
    """Every token once; each tile's tokens lie together; the text stays last."""
    order, starts = pattern.order(), pattern.starts()
    assert np.array_equal(order[pattern.inverse()], np.arange(pattern.length))
    _, H, W = pattern.grid
    for i in range(len(starts) - 1 - bool(pattern.text)):
        tokens = order[starts[i] : starts[i + 1]]
        places = np.stack([tokens // (H * W), tokens // W % H, tokens % W])
        tiles = places // np.array(pattern.tile)[:, None]
        assert (tiles == tiles[:, :1]).all() and (np.diff(tokens) > 0).all()
    video = pattern.length - pattern.text
    assert np.array_equal(order[video:], np.arange(video, pattern.length))


@pytest.mark.parametrize("text", [0, 3])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.37, 1.0])
def test_top_k_delivers_the_density_within_a_tile(density: float, text: int) -> None:
    """Each row of a video tile keeps what was asked for or more, by less than its largest tile; reported by head."""
    pattern = TopK(grid=(5, 7, 13), tile=(2, 3, 4), text=text, density=density)
    q, k, _ = _tokens(pattern.length, heads=3)
    lists = pattern.lists(q, k)
    sizes = np.diff(lists.key_start)
    rows = np.add.reduceat(sizes[lists.tiles], lists.offsets[:-1]).reshape(3, -1)  # keys that each tile's rows keep
    video = rows[:, :-1] if text else rows
    assert (video >= density * pattern.length).all()
    assert (video < density * pattern.length + 2 * 3 * 4 + text).all()
    assert not text or (rows[:, -1] == pattern.length).all()
    kept = (rows * np.diff(lists.query_start)).sum(1) / pattern.length**2
    assert np.array_equal(lists.density(), kept) and lists.density().shape == (3,)


def test_top_k_keeps_the_tiles_that_matter() -> None:
    """The kept tiles have the best mean scores, each head its own, and the answer is the formula over them."""
    pattern = TopK(grid=(4, 6, 6), tile=(2, 2, 3), density=0.3, text=4)
    q, k, v = _tokens(pattern.length, heads=3)
    lists = pattern.lists(q, k)
    starts, n = lists.query_start, len(lists.query_start) - 1
    mask = np.zeros((3, pattern.length, pattern.length), dtype=bool)
    for h in range(3):
        means = [[x[0, h, starts[i] : starts[i + 1]].mean(0) for i in range(n - 1)] for x in (q, k)]
        for i in range(n):
            tiles = list(lists.tiles[lists.offsets[h * n + i] : lists.offsets[h * n + i + 1]])
            for j in tiles:
                mask[h, starts[i] : starts[i + 1], starts[j] : starts[j + 1]] = True
            if i < n - 1:
                scores = [float(means[0][i] @ means[1][j]) for j in range(n - 1)]
                worst_kept = min(scores[j] for j in tiles if j < n - 1)
                assert all(scores[j] <= worst_kept + 1e-5 for j in range(n - 1) if j not in tiles)
    out = attention(q, k, v, pattern=pattern, scale=0.3)
    expected = _reference(*(x.double().numpy() for x in (q, k, v)), mask, 0.3)
    peer = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.from_numpy(mask)[None], scale=0.3).double().numpy()
    allowed = 4 * np.abs(peer - expected).max() + 2 * torch.finfo(torch.float32).eps * np.abs(expected).max()
    assert np.abs(out.double().numpy() - expected).max() <= allowed


def test_torch_by_tiles_is_the_named_fall_back() -> None:
    """The same numbers, with gradients, where the kernel has none."""
    pattern = TilePattern(grid=(3, 6, 5), tile=(2, 2, 2), window=(1, 3, 1), text=3)
    tokens = [x.requires_grad_() for x in _tokens(pattern.length)]
    out = attention(*tokens, pattern=pattern)
    assert last_backend() == "torch by tiles"
    out.square().sum().backward()
    mask = torch.from_numpy(_mask(pattern)[pattern.order()][:, pattern.order()])
    again = [x.detach().clone().requires_grad_() for x in tokens]
    F.scaled_dot_product_attention(*again, attn_mask=mask).square().sum().backward()
    for ours, theirs in zip(tokens, again, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(attention(*tokens, pattern=pattern), out, rtol=1e-5, atol=1e-6)
    assert last_backend().startswith("rushes ")


def test_top_k_by_torch_follows_each_head() -> None:
    """Lists of a batch and head stay with it."""
    pattern = TopK(grid=(3, 6, 5), tile=(2, 2, 2), density=0.3)
    q, k, v = (torch.randn(2, 3, pattern.length, 16) for _ in range(3))
    ours = attention(q, k, v, pattern=pattern, backend="rushes")
    torch.testing.assert_close(attention(q, k, v, pattern=pattern, backend="torch"), ours, rtol=1e-4, atol=1e-5)


def test_sparse_bits_depend_on_nothing_but_the_input() -> None:
    """Not on repeats, threads, or the batch."""
    pattern = TilePattern(grid=(9, 10, 13), tile=(4, 4, 4), window=(1, 3, 3), text=17)
    q, k, v = (torch.randn(2, 4, pattern.length, 64) for _ in range(3))
    first = attention(q, k, v, pattern=pattern, threads=1)
    for threads in (1, 2, 4):
        assert torch.equal(attention(q, k, v, pattern=pattern, threads=threads), first)
    assert torch.equal(attention(q[1:], k[1:], v[1:], pattern=pattern), first[1:])


def test_a_video_of_wan_size_keeps_what_it_says() -> None:
    """480p, 81 frames: 21 x 30 x 52 tokens, ragged in time and height; against the tokens picked out of one head."""
    pattern = TilePattern(grid=(21, 30, 52), tile=(4, 4, 4), window=(3, 3, 5))
    lists = pattern.lists()
    q, k, v = (torch.randn(1, 1, 32_760, 64) for _ in range(3))
    out = attention(q, k, v, pattern=pattern, precision="fp32")
    n = len(lists.query_start) - 1
    assert n == 6 * 8 * 13 and pattern.density() == pytest.approx(0.0769, abs=5e-3)
    for tile in (0, 200, n - 1):
        rows = slice(lists.query_start[tile], lists.query_start[tile + 1])
        chosen = lists.tiles[lists.offsets[tile] : lists.offsets[tile + 1]]
        keys = np.concatenate([np.arange(lists.key_start[j], lists.key_start[j + 1]) for j in chosen])
        parts = [x.double()[:, :, y] for x, y in ((q, rows), (k, keys), (v, keys))]
        assert (out[:, :, rows] - F.scaled_dot_product_attention(*parts)).abs().max() < 1e-5


GRID: dict[str, Any] = {"grid": (4, 4, 4), "tile": (2, 2, 2)}
REFUSED = [
    (lambda: TilePattern(grid=(4, 0, 4), tile=(2, 2, 2)), "grid: got (4, 0, 4)"),
    (lambda: TilePattern(grid=(4, 4), tile=(2, 2, 2)), "grid: got (4, 4)"),  # type: ignore[arg-type]
    (lambda: TilePattern(grid=(4, 4, 4), tile=(2, 2.5, 2)), "tile: got (2, 2.5, 2)"),  # type: ignore[arg-type]
    (lambda: TilePattern(**GRID, window=(1, -1, 1)), "window: got (1, -1, 1)"),
    (lambda: TilePattern(**GRID, text=-1), "text: got -1"),
    (lambda: TopK(**GRID, density=0.0), "density: got 0.0"),
    (lambda: TopK(**GRID, density=1.5), "density: got 1.5"),
    (lambda: attention(*_tokens(65), pattern=TilePattern(**GRID)), "pattern: it covers 64 queries and 64 keys"),
    (lambda: supports(*_tokens(65), TopK(**GRID)), "pattern: it covers 64 queries and 64 keys"),
    (lambda: attention(*_tokens(64), pattern=_of_sets(3)), "pattern: it has 3 sets of lists"),
]


def _of_sets(sets: int) -> TileLists:
    one = TilePattern(**GRID).lists()
    return TileLists(one.query_start, one.key_start, np.arange(8 * sets + 1), np.zeros(8 * sets, np.int32))


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_what_does_not_fit_is_refused(call: Any, words: str) -> None:
    """With the argument, what was got and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(words) + ".*allowed"):
        call()


BROKEN = [
    ([0, 32, 64], [0, 1, 2], [0, 2], "each list must name"),  # a tile that is not there
    ([0, 32, 64], [0, 1, 1], [0], "each list must name"),  # an empty list
    ([0, 32, 64], [0, 2, 3], [1, 0, 0], "each list must name"),  # falling
    ([0, 32, 64], [0, 2, 3], [0, 0, 0], "each list must name"),  # twice
    ([0, 32, 63], [0, 1, 2], [0, 1], "the same numbers"),  # one token short
    ([0, 0, 64], [0, 1, 2], [0, 1], "must cover the tokens"),  # an empty tile
    ([0, 32, 64], [0, 1, 9], [0, 1], "offsets must point into tiles"),  # beyond the list's end
]


@pytest.mark.parametrize(("starts", "offsets", "tiles", "words"), BROKEN)
def test_lists_that_would_read_elsewhere_are_refused(
    starts: list[int], offsets: list[int], tiles: list[int], words: str
) -> None:
    """Lists made by hand are checked before any of them is followed into memory."""
    lists = TileLists(np.array(starts), np.array(starts), np.array(offsets), np.array(tiles, np.int32))
    with pytest.raises(ValueError, match=words):
        attention(*_tokens(64), pattern=lists)
