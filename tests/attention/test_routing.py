# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""TopK's lists as a card makes them, by torch: those that NumPy makes, without asking the device for anything back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rushes.attention import TopK, cuda
from rushes.attention.routing import device_top_k, host_lists

PATTERNS = [
    TopK((5, 7, 13), (2, 3, 4), density=0.1),  # ragged along each axis
    TopK((5, 7, 13), (2, 3, 4), text=3, density=0.02),
    TopK((4, 6, 8), (2, 2, 2), text=257, density=0.37),  # even tiles; more words than any tile has tokens
    TopK((1, 1, 1), (4, 4, 4), text=1, density=0.5),  # one tile
    TopK((3, 5, 9), (3, 1, 2), density=1.0),
    TopK((9, 6, 10), (4, 4, 4), density=1e-6),  # one tile a row
]


def _tokens(pattern: TopK, dtype: torch.dtype, sets: tuple[int, int] = (2, 3)) -> list[torch.Tensor]:
    """Small whole numbers, and so are their means: sums are exact in whatever order, and many scores are equal."""
    return [_with_whole_means(pattern.starts().tolist(), sets).to(dtype) for _ in range(2)]


def _with_whole_means(starts: list[int], sets: tuple[int, int]) -> torch.Tensor:
    tiles = []
    for start, end in pairwise(starts):
        mean, away = torch.randint(-3, 4, (*sets, 1, 16)), torch.randint(-2, 3, (*sets, end - start, 16))
        tiles.append(mean + away - away.roll(1, dims=2))
    return torch.cat(tiles, dim=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"{p.grid}-{p.text}-{p.density}")
def test_the_card_would_choose_the_same_tiles(pattern: TopK, dtype: torch.dtype) -> None:
    """Equal scores too: the lower tile first."""
    q, k = _tokens(pattern, dtype)
    expected, found = pattern.lists(q, k, 0.3), device_top_k(pattern, q, k, 0.3)
    for ours, theirs in zip(host_lists(found).arrays, expected.arrays, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    tiles = len(expected.query_start) - 1
    assert found.counts == (tiles, tiles, 6, int(np.diff(expected.query_start).max()))


def test_strides_and_scale_are_followed() -> None:
    """Models hand over [batch, length, heads, head_dim] swapped; a negative scale turns the order round."""
    pattern = PATTERNS[1]
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in _tokens(pattern, torch.float32))
    for scale in (0.1, -0.1):
        found, expected = host_lists(device_top_k(pattern, q, k, scale)), pattern.lists(q, k, scale)
        np.testing.assert_array_equal(found.tiles, expected.tiles)


class _NoAnswers(TorchDispatchMode):
    """Refuses what a host would have to wait for: numbers, and shapes that depend on them."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_to_copy.default", "index.Tensor_mask")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert not any(str(function).startswith(f"aten.{name}") for name in self.WAITS), function
        masks = (
            [x for x in args[1] if x is not None and x.dtype == torch.bool] if "aten.index." in str(function) else []
        )
        assert not masks, "an index by a mask has a size that only the device knows"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("pattern", PATTERNS[:3], ids=["ragged", "text", "even"])
def test_nothing_is_asked_back(pattern: TopK) -> None:
    """After the first use, which takes the pattern's own tables there."""
    q, k = _tokens(pattern, torch.bfloat16)
    first = device_top_k(pattern, q, k, 0.3)
    with _NoAnswers():
        again = device_top_k(pattern, q, k, 0.3)
    assert torch.equal(again.arrays[2], first.arrays[2])
    with pytest.raises(AssertionError), _NoAnswers():  # the refusal refuses
        int(first.arrays[2][-1])


def test_there_is_room_for_the_longest_lists() -> None:
    """Queries that all want the smallest tiles take more of them than others would."""
    pattern = TopK((9, 8, 12), (4, 4, 4), text=2, density=0.2)  # the third layer's tiles hold 16 tokens, the others 64
    small = torch.from_numpy(np.repeat(np.diff(pattern.starts()) == 16, np.diff(pattern.starts())))
    k = torch.where(small[:, None], 5.0, -5.0).expand(1, 2, -1, 8)
    found = device_top_k(pattern, torch.ones(1, 2, pattern.length, 8), k, 1.0)
    lists = host_lists(found)
    assert len(lists.tiles) == lists.offsets[-1] <= len(found.arrays[3])
    np.testing.assert_array_equal(lists.tiles, pattern.lists(np.ones(k.shape, np.float32), k.numpy(), 1.0).tiles)


def test_the_kernels_arguments_take_them_as_they_are() -> None:
    """The addresses that the module gets are those of the lists that the card has made."""
    pattern = PATTERNS[1]
    q, k = _tokens(pattern, torch.bfloat16)
    lists = device_top_k(pattern, q, k, 0.3)
    assert isinstance(lists, cuda.DeviceLists)
    counts, addresses = cuda.list_arguments(lists, q.device, None)
    assert counts == lists.counts and addresses == tuple(array.data_ptr() for array in lists.arrays)
