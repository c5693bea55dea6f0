# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rotary embedding against a naive rotation of complex numbers in float64."""

from __future__ import annotations

import cmath
import itertools
import math

import pytest
import torch
from torch import Tensor

from rushes.model.config import TransformerConfig
from rushes.model.rope import rope_table, rotate

CASES = [
    (2, (2, 3, 2)),  # nothing left for height and width
    (8, (3, 2, 2)),  # one pair each, two for time
    (24, (1, 1, 1)),  # one token
    (24, (2, 3, 5)),  # three equal parts
    (40, (1, 5, 1)),  # a single axis
    (64, (3, 1, 4)),  # an axis of one in the middle
    (128, (2, 2, 3)),  # Wan's head: 44, 42, 42
]


def rope_dims(head_dim: int) -> tuple[int, int, int]:
    return TransformerConfig(dim=head_dim, heads=1, layers=1, ffn_dim=1).rope_dims


def naive_rotation(x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Each pair of x [B, L, heads, head_dim] as a complex number times exp(i position rate), one by one."""
    out = x.double().clone()
    side = 2 * (x.shape[-1] // 6)
    dims = (x.shape[-1] - 2 * side, side, side)
    for token, positions in enumerate(itertools.product(*(range(length) for length in grid))):
        channel = 0
        for position, dim in zip(positions, dims, strict=True):
            for pair in range(dim // 2):
                turn = cmath.exp(1j * position * 10_000.0 ** (-2 * pair / dim))
                for b, h in itertools.product(range(x.shape[0]), range(x.shape[2])):
                    turned = complex(*x[b, token, h, channel : channel + 2].tolist()) * turn
                    out[b, token, h, channel : channel + 2] = torch.tensor([turned.real, turned.imag])
                channel += 2
    return out


@pytest.mark.parametrize(("head_dim", "grid"), CASES)
def test_rotation_is_that_of_complex_numbers(head_dim: int, grid: tuple[int, int, int]) -> None:
    """Pairs, axes and the order of tokens are those of a loop over complex numbers."""
    x = torch.randn(2, math.prod(grid), 2, head_dim)
    rotated = rotate(x, rope_table(grid, rope_dims(head_dim)))
    assert rotated.shape == x.shape
    error = (rotated.double() - naive_rotation(x, grid)).abs()
    # Three roundings (cosine, product, sum) of a pair's length: 3 x 2^-24, and as much again as a margin.
    assert (error <= 6 * 2**-24 * x.unflatten(-1, (-1, 2)).norm(dim=-1).max()).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_far_positions_keep_float64_angles(axis: int) -> None:
    """At position 1000 cosine and sine are those of float64, rounded once; float32 angles would miss by 1e-5."""
    grid = [1, 1, 1]
    grid[axis] = 1001
    dims = rope_dims(128)
    cos, sin = rope_table((grid[0], grid[1], grid[2]), dims)
    assert cos.shape == sin.shape == (1001, 64)
    assert cos.dtype == sin.dtype == torch.float32
    start = sum(dims[:axis]) // 2
    for pair in range(dims[axis] // 2):
        angle = 1000 * 10_000.0 ** (-2 * pair / dims[axis])
        assert abs(cos[1000, start + pair].item() - math.cos(angle)) < 1e-7
        assert abs(sin[1000, start + pair].item() - math.sin(angle)) < 1e-7


def test_scores_depend_on_the_distance_only() -> None:
    """The product of a rotated query and a rotated key is the same wherever the pair stands."""
    grid = (4, 5, 6)
    query, key = torch.randn(2, 1, 1, 1, 40).expand(2, 1, 120, 1, 40)
    table = rope_table(grid, rope_dims(40))
    rotated_query, rotated_key = rotate(query, table).view(*grid, 40), rotate(key, table).view(*grid, 40)
    scores = (rotated_query[1:, 2:, 3:] * rotated_key[:-1, :-2, :-3]).sum(-1)  # distance (1, 2, 3) everywhere
    torch.testing.assert_close(scores, scores[:1, :1, :1].expand_as(scores), rtol=0, atol=2e-5)
    assert (rotated_query[0, 0, 0] * rotated_key).sum(-1).std() > 0.1  # but on the distance they do depend


def test_bfloat16_is_rounded_once() -> None:
    """Half-precision input is rotated in float32, and only the result is rounded."""
    grid = (3, 4, 5)
    x = torch.randn(1, 60, 2, 64).bfloat16()
    table = rope_table(grid, rope_dims(64))
    rotated = rotate(x, table)
    assert rotated.dtype == torch.bfloat16
    assert torch.equal(rotated, rotate(x.float(), table).bfloat16())
