# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The velocity's guess from variances: the best linear one, by regression on samples, and what it leaves."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rushes.model.config import TransformerConfig
from rushes.model.transformer import Transformer, precondition

VARIANCES = torch.tensor([4.0, 1.0, 0.05, 1e-3])
CONFIG = TransformerConfig(
    dim=48, heads=2, layers=1, ffn_dim=64, in_channels=4, out_channels=4, text_dim=8, text_len=4, preconditioned=True
)


def samples(level: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents [1, 4, 5, 64, 64] and their velocity, of Gaussian data with these variances."""
    draw = torch.Generator().manual_seed(round(level * 1000))
    clean = torch.randn(1, 4, 5, 64, 64, generator=draw) * VARIANCES.sqrt()[:, None, None, None]
    noise = torch.randn(clean.shape, generator=draw)
    return (1 - level) * clean + level * noise, noise - clean


@pytest.mark.parametrize("level", [0.02, 0.3, 0.8, 1.0])
def test_the_guess_is_the_best_linear_one_and_the_rest_has_unit_variance(level: float) -> None:
    noisy, velocity = samples(level)
    time = torch.tensor([1000 * level])
    zero = torch.zeros_like(noisy)
    guess, both = (
        precondition(zero, noisy, time, VARIANCES),
        precondition(torch.ones_like(noisy), noisy, time, VARIANCES),
    )
    for channel in range(4):
        x, v = noisy[0, channel].flatten().double(), velocity[0, channel].flatten().double()
        slope = (x @ v) / (x @ x)
        got = (guess[0, channel].flatten().double() @ x) / (x @ x)
        assert abs(got - slope) <= 0.05 * max(1.0, abs(slope))
        scale = float((both - guess)[0, channel].mean())
        rest = (v - guess[0, channel].flatten().double()) / scale
        assert rest.square().mean() == pytest.approx(1.0, rel=0.05)


def test_each_frame_has_its_own_level_and_clean_frames_stay_finite() -> None:
    noisy, _ = samples(0.5)
    x = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))
    levels = torch.tensor([[0.0, 100.0, 400.0, 900.0, 1000.0]])
    together = precondition(x, noisy, levels, VARIANCES)
    assert together.isfinite().all()
    for frame in range(5):
        alone = precondition(x[:, :, frame : frame + 1], noisy[:, :, frame : frame + 1], levels[:, frame], VARIANCES)
        assert torch.equal(together[:, :, frame : frame + 1], alone)


def test_the_transformer_adds_the_guess_to_what_its_head_says() -> None:
    torch.manual_seed(3)
    model = Transformer(CONFIG).eval()
    plain = Transformer(dataclasses.replace(CONFIG, preconditioned=False)).eval()
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if name != "variances"})
    model.variances.copy_(VARIANCES)
    latents, time = torch.randn(2, 4, 3, 4, 6), torch.tensor([300.0, 800.0])
    text = torch.randn(2, 4, 8)
    with torch.inference_mode():
        got = model(latents, time, model.context(text))
        head = plain(latents, time, plain.context(text))
    assert torch.equal(got, precondition(head, latents, time, VARIANCES))
    assert (got - head).abs().max() > 0.1
