# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The transformer in tile order: what a mask over the grid's own order gives, and a layer of Wan's size."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rushes.attention import TilePattern, TopK, attention, last_backend
from rushes.attention.extension import load_extension
from rushes.model import transformer as rooms
from rushes.model.config import TransformerConfig
from rushes.model.rope import rope_table
from rushes.model.transformer import Block, Context, Control, Layout, Transformer

BATCH, GRID = 2, (3, 5, 7)  # no multiple of the tiles below
TOKENS = GRID[0] * GRID[1] * GRID[2]
TILE = (2, 2, 4)
TIMES = {"clip": (BATCH,), "latent frame": (BATCH, GRID[0]), "token": (BATCH, TOKENS)}


def _build(**options: Any) -> Transformer:
    config = TransformerConfig(
        dim=48, heads=3, layers=3, ffn_dim=56, in_channels=4, out_channels=4, freq_dim=32, text_dim=24, text_len=6,
        **options,
    )  # fmt: skip
    model = Transformer(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim in (1, 3):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _run(model: Transformer, timestep: Tensor, control: list[Control], latents: Tensor, **options: Any) -> Tensor:
    text = torch.randn(BATCH, 6, 24, generator=torch.Generator().manual_seed(1))
    return model(latents, timestep, model.context(text), control, **options)


def _mask(pattern: TilePattern) -> Tensor:
    """bool [L, L] in the grid's order, token by token: the tile of a key is in the window of the query's tile."""
    where = torch.cartesian_prod(*(torch.arange(n) // step for n, step in zip(pattern.grid, pattern.tile, strict=True)))
    seen = torch.ones(len(where), len(where), dtype=torch.bool)
    for axis, (tiles, width) in enumerate(zip(pattern.tiles, pattern.window, strict=True)):
        width = min(width, tiles)
        first = (where[:, axis] - (width - 1) // 2).clamp(0, tiles - width)[:, None]
        seen &= (where[None, :, axis] >= first) & (where[None, :, axis] < first + width)
    return seen


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("control", [False, True], ids=["plain", "control"])
def test_tiles_are_a_mask(monkeypatch: pytest.MonkeyPatch, control: bool, times: str) -> None:
    """Tokens, rotations and times go into tile order and come back, in all blocks, the control's too."""
    model = _build(**({"vace_in_channels": 5, "vace_layers": (0, 2)} if control else {}))
    latents, timestep = torch.randn(BATCH, 4, *_size()), 1000 * torch.rand(TIMES[times])
    controls = [Control(torch.randn(BATCH, 5, *_size()), 0.8)] if control else []
    grids = []

    def pattern(grid: tuple[int, int, int]) -> TilePattern:
        grids.append(grid)
        return TilePattern(grid, TILE, window=(1, 2, 1))

    made = _run(model, timestep, controls, latents, pattern=pattern)
    assert grids == [GRID]
    mask = _mask(TilePattern(GRID, TILE, window=(1, 2, 1)))
    assert 0.1 < mask.float().mean() < 0.6

    def masked(q: Tensor, k: Tensor, v: Tensor, pattern: object = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask if k.shape[2] == TOKENS else None)

    dense = _run(model, timestep, controls, latents)
    monkeypatch.setattr(rooms, "attention", masked)
    torch.testing.assert_close(made, _run(model, timestep, controls, latents), rtol=1e-4, atol=1e-5)
    assert (made - dense).norm() > 0.01 * dense.norm()


def _size() -> tuple[int, int, int]:
    return GRID[0], 2 * GRID[1], 2 * GRID[2]


@pytest.mark.parametrize("times", TIMES)
def test_tiles_that_keep_all_change_nothing(times: str) -> None:
    """A pattern of density 1 is dense attention in another order."""
    model, latents, timestep = _build(), torch.randn(BATCH, 4, *_size()), 1000 * torch.rand(TIMES[times])
    made = _run(model, timestep, [], latents, pattern=lambda grid: TopK(grid, TILE, density=1.0))
    torch.testing.assert_close(made, _run(model, timestep, [], latents), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_layer_of_wan_at_480p_runs_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grid 21x30x52, 12 heads of 128, about a tenth kept: some rows against double precision over the kept keys."""
    if load_extension().module is None:
        pytest.skip(load_extension().reason)
    pattern = TilePattern((21, 30, 52), (4, 4, 4), window=(3, 3, 7))
    assert 0.08 < pattern.density() < 0.12
    config = TransformerConfig(dim=1536, heads=12, layers=1, ffn_dim=512)
    block = Block(config).eval().requires_grad_(False).bfloat16()
    heard: list[tuple[Tensor, ...]] = []

    def listen(q: Tensor, k: Tensor, v: Tensor, pattern: TilePattern | None = None) -> Tensor:
        out = attention(q, k, v, pattern=pattern)
        if pattern is not None:
            heard.append((q[0], k[0], v[0], out[0]))  # [heads, L, head_dim]
            assert str(last_backend()).startswith("rushes ")
        return out

    monkeypatch.setattr(rooms, "attention", listen)
    order = torch.from_numpy(pattern.order())
    cosines, sines = rope_table(pattern.grid, config.rope_dims)
    x = torch.randn(1, pattern.length, 1536, dtype=torch.bfloat16)
    context = Context(torch.randn(1, 8, 1536, dtype=torch.bfloat16))
    started = time.perf_counter()
    out = block(x, torch.randn(1, 1, 6, 1536), Layout((cosines[order], sines[order]), pattern), context)
    print(f"\na layer of Wan at 480p, {pattern.density():.1%} kept: {time.perf_counter() - started:.1f} s")
    assert out.isfinite().all() and out.shape == x.shape
    ((q, k, v, made),) = heard
    lists, starts = pattern.lists(), pattern.starts()
    for tile in torch.randint(len(starts) - 1, (4,)).tolist():
        kept = lists.tiles[lists.offsets[tile] : lists.offsets[tile + 1]]
        keys = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in kept])
        row = int(starts[tile])
        scores = torch.einsum("hd,hkd->hk", q[:, row].double(), k[:, keys].double()) * 128**-0.5
        right = torch.einsum("hk,hkd->hd", scores.softmax(-1), v[:, keys].double())
        assert (made[:, row].double() - right).norm() < 0.01 * right.norm()
