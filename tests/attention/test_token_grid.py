# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Where the video stands among a host's tokens, and their way to tile order and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rushes.attention.patterns import TilePattern
from rushes.attention.token_grid import Layout, Shelf, find_layout, reorder, tile_means

WAN = (1, 2, 2)

FOUND: list[tuple[tuple[int, ...], Any, int, dict[str, Any], Layout]] = [
    ((9, 40, 72), WAN, 6480, {}, Layout((9, 20, 36))),  # a Wan shot
    ((9, 39, 71), WAN, 6480, {}, Layout((9, 20, 36))),  # padded to whole patches
    ((5, 40, 72), (2, 2, 2), 3 * 720, {}, Layout((3, 20, 36))),  # patches of two frames
    ((9, 40, 72), WAN, 6480 + 256, {"place": "after"}, Layout((9, 20, 36), 256)),  # Hunyuan's text
    ((9, 40, 72), WAN, 6480 + 256, {"place": "before"}, Layout((9, 20, 36), 256, True)),
    ((9, 40, 72), WAN, 6480 + 256, {"place": "before", "text": 256}, Layout((9, 20, 36), 256, True)),
    ((9, 40, 72), WAN, 6480 + 1440, {"place": "frames"}, Layout((11, 20, 36))),  # two reference frames
    ((9, 40, 72), WAN, 6480 + 99, {"place": "frames"}, Layout((9, 20, 36), 99)),  # not frames: motion tokens behind it
    ((64, 96), (1, 2, 2), 32 * 48 + 512, {"place": "before", "text": 512}, Layout((1, 32, 48), 512, True)),  # a still
    ((64, 96), None, 64 * 96, {}, Layout((1, 64, 96))),  # a convolutional network, scale by scale
    ((64, 96), None, 16 * 24, {}, Layout((1, 16, 24))),
    ((3, 30, 52), None, 3 * 15 * 26, {}, Layout((3, 15, 26))),  # a patch that the model does not say
]


@pytest.mark.parametrize(("sizes", "patch", "tokens", "options", "layout"), FOUND)
def test_the_grid_is_found(
    sizes: tuple[int, ...], patch: Any, tokens: int, options: dict[str, Any], layout: Layout
) -> None:
    """By the latent's shape and the number of tokens, and nothing of the tokens themselves."""
    assert find_layout(sizes, patch, tokens, **options) == layout
    assert layout.tokens == tokens


UNKNOWN: list[tuple[tuple[int, ...], Any, int, dict[str, Any], str]] = [
    ((4096,), None, 4096, {}, "the latent has 1 sizes after batch and channels"),  # sound
    ((9, 40, 72), WAN, 300, {}, "300 tokens are fewer than the 6480 of the grid 9x20x36"),
    ((9, 40, 72), WAN, 6500, {}, "where the 20 tokens beyond the grid 9x20x36 stand is not known"),
    (
        (64, 96),
        WAN,
        1536 + 1600,
        {"place": "before", "text": 64},
        "1600 tokens stand beyond the grid 1x32x48 and the text",
    ),
    ((9, 40, 72), None, 6500, {}, "no patch of a latent 9x40x72 makes 6500 tokens"),
]


@pytest.mark.parametrize(("sizes", "patch", "tokens", "options", "reason"), UNKNOWN)
def test_a_grid_that_is_not_sure_is_not_taken(
    sizes: tuple[int, ...], patch: Any, tokens: int, options: dict[str, Any], reason: str
) -> None:
    found = find_layout(sizes, patch, tokens, **options)
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize("first", [False, True])
def test_the_order_puts_tiles_together_and_the_others_behind_them(first: bool) -> None:
    """Token by token, from the definition."""
    layout = Layout((3, 5, 7), 4, others_first=first)
    pattern = TilePattern(layout.grid, (2, 2, 4), text=4)
    places = [(t // 2, h // 2, w // 4, t, h, w) for t, h, w in np.ndindex(3, 5, 7)]
    video = [4 * first + i for i in sorted(range(105), key=places.__getitem__)]
    others = list(range(4)) if first else list(range(105, 109))
    assert layout.order(pattern).tolist() == video + others


@pytest.mark.parametrize("by_tokens", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reorder_is_an_index(by_tokens: bool, dtype: torch.dtype) -> None:
    """Of either memory layout, which it keeps; in buffers that are used again."""
    x = torch.randn(2, 3, 50, 8).to(dtype)
    if by_tokens:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    index, shelf = torch.randperm(50), Shelf()
    for _ in range(2):
        out = reorder(x, index, shelf, "x")
        assert torch.equal(out, x[:, :, index])
        assert out.stride() == x.stride()
    assert reorder(x, index, shelf, "x").data_ptr() == out.data_ptr()
    assert reorder(x, index, shelf, "y").data_ptr() != out.data_ptr()
    assert reorder(x, index).data_ptr() != out.data_ptr()


def test_the_shelf_keeps_no_more_than_its_limit() -> None:
    """A long shot's buffers are given back each time."""
    shelf = Shelf(limit=3 * 400)
    assert shelf.take("a", torch.empty(100)) is shelf.take("a", torch.empty(100))
    assert shelf.take("b", torch.empty(101)) is not shelf.take("b", torch.empty(101))
    assert shelf.take("a", torch.empty(10)).shape == (10,)
    assert shelf.take("a", torch.empty(10, dtype=torch.float16)).dtype == torch.float16


@pytest.mark.parametrize("by_tokens", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_are_float32_means_of_the_tiles(by_tokens: bool, dtype: torch.dtype) -> None:
    """Ragged tiles, and tokens behind them that are in none."""
    pattern = TilePattern((3, 5, 7), (2, 2, 4), text=9)
    x = torch.randn(2, 3, pattern.length, 8).to(dtype)
    if by_tokens:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    starts = pattern.starts()[:-1]
    means = tile_means(x, starts)
    assert means.dtype == np.float32
    wide = x.double().flatten(0, 1)
    pairs = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    expected = torch.stack([wide[:, a:b].mean(1) for a, b in pairs], 1)
    np.testing.assert_allclose(means, expected.numpy(), rtol=0, atol=1e-6)
