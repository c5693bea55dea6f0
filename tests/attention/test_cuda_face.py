# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The Python face of the CUDA kernel where there is no card: lists are checked, what is missing is said."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from rushes.attention import TileLists, TilePattern, cuda

CPU = torch.device("cpu")


def _lists(**changes: object) -> TileLists:
    sound = {"query_start": [0, 2, 5], "key_start": [0, 3, 4, 9], "offsets": [0, 2, 3], "tiles": [0, 2, 1], **changes}
    return TileLists(**{name: np.array(x, np.int32 if name == "tiles" else np.int64) for name, x in sound.items()})


def test_lists_are_moved_once() -> None:
    """With their counts and the tokens of the largest query tile; they live as long as their lists."""
    lists = TilePattern((3, 5, 9), (2, 4, 4), text=40).lists()
    moved = cuda.device_lists(lists, CPU)
    tiles = len(lists.query_start) - 1
    assert moved.counts == (tiles, tiles, 1, 40)
    for ours, theirs in zip(moved.arrays, lists.arrays, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)
    assert cuda.device_lists(lists, CPU) is moved


@pytest.mark.parametrize(
    "changes",
    [
        {"query_start": [0, 2, 2, 5], "offsets": [0, 1, 2, 3]},  # an empty tile
        {"key_start": [1, 3, 4, 9]},  # begins late
        {"offsets": [0, 0, 3]},  # an empty list
        {"offsets": [0, 2, 4]},  # beyond the tiles
        {"tiles": [2, 0, 1]},  # falls
        {"tiles": [1, 1, 0]},  # twice
        {"tiles": [0, 3, 1]},  # no such tile
        {"tiles": [-1, 2, 1]},
    ],
    ids=str,
)
def test_unsound_lists_are_refused(changes: dict[str, object]) -> None:
    """On the card nobody would notice."""
    with pytest.raises(ValueError, match="pattern"):
        cuda.device_lists(_lists(**changes), CPU)
    cuda.device_lists(_lists(), CPU)


def test_layouts_that_the_kernel_cannot_read_are_copied() -> None:
    """Rows at multiples of 16 bytes stay where they are; odd strides, odd addresses and expanded heads do not."""
    x = torch.zeros(2, 3, 10, 64, dtype=torch.bfloat16)
    for fits in (x, x.transpose(1, 2), x[:, :, 3:], x[..., 8:40], x[:1].as_strided((1, 3, 10, 64), (5, 640, 64, 1))):
        assert cuda._native(fits) is fits
    flat = torch.zeros(3 * 10 * 64 + 1, dtype=torch.bfloat16)
    for odd in (x[..., 1:9], x[..., ::2], x[:, :1].expand(2, 3, 10, 64), flat[1:].view(1, 3, 10, 64)):
        copy = cuda._native(odd)
        assert copy.is_contiguous() and copy.data_ptr() % 16 == 0 and copy.shape == odd.shape


def test_a_missing_module_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """How to build it."""
    cuda.load_cuda.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    q = torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16)
    try:
        assert "RUSHES_CUDA=ON" in next(cuda.obstacles(q, q, q, None))
    finally:
        cuda.load_cuda.cache_clear()
