# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rotary position embedding over a token grid (arXiv:2104.09864), one part of the head per axis."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0


def rope_table(
    grid: tuple[int, int, int], dims: tuple[int, int, int], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T H W, head_dim / 2] of every token of a (T, H, W) grid, rows in the order t, h, w.

    dims: channels that rotate with each axis (even). Each axis has its own dim in the exponent. All is computed in
    float64, per axis, and rounded once: float32 angles of far positions are off by more than the attention forgives.
    """
    cosines: list[Tensor] = []
    sines: list[Tensor] = []
    for axis, (length, dim) in enumerate(zip(grid, dims, strict=True)):
        rates = THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), rates)  # [length, dim / 2]
        shape = [1, 1, 1, dim // 2]
        shape[axis] = length
        for part, parts in ((angles.cos(), cosines), (angles.sin(), sines)):
            parts.append(part.float().to(device).view(shape).expand(*grid, dim // 2))
    return torch.cat(cosines, dim=-1).flatten(0, 2), torch.cat(sines, dim=-1).flatten(0, 2)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn interleaved pairs (x[2i], x[2i+1]) of x [B, L, heads, head_dim] by the table's angles, in float32."""
    turn = torch.complex(*table)[None, :, None]  # [1, L, 1, head_dim / 2]
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
