# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The first noise is the one that other programs draw."""

from __future__ import annotations

import pytest
import torch

from rushes.sampling.noise import initial_noise, noised


@pytest.mark.parametrize(("shape", "seed"), [((16, 5, 10, 16), 0), ((3, 1, 1, 1), 7), ((48, 3, 5, 7), 2**63 - 1)])
def test_noise_is_the_draw_that_the_contract_names(shape: tuple[int, int, int, int], seed: int) -> None:
    """Bit for bit, float32, on the CPU."""
    generator = torch.Generator("cpu").manual_seed(seed)
    expected = torch.randn([1, *shape], generator=generator, dtype=torch.float32)
    drawn = initial_noise(*shape, seed)
    assert drawn.dtype == torch.float32 and drawn.device.type == "cpu" and torch.equal(drawn, expected)


def test_seed_zero_starts_with_the_numbers_everyone_knows() -> None:
    """A golden draw: torch's CPU generator, seed 0."""
    first = initial_noise(16, 5, 10, 16, seed=0).flatten()[:4]
    torch.testing.assert_close(first, torch.tensor([-1.1258, -1.1524, -0.2506, -0.4339]), atol=5e-5, rtol=0)


def test_drawing_leaves_the_global_generator_alone() -> None:
    """A host's own random numbers do not change because a shot was made."""
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    initial_noise(4, 2, 3, 3, seed=9)
    assert torch.equal(torch.rand(5), expected)


def test_noise_does_not_follow_the_default_dtype() -> None:
    """A program that set float64 gets the same shot."""
    expected = initial_noise(4, 2, 3, 5, seed=1)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(initial_noise(4, 2, 3, 5, seed=1), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_noised_latents_lie_on_the_line_between_picture_and_noise() -> None:
    """The ends are exact; a quarter of the way is a quarter."""
    latents, noise = torch.randn(2, 1, 4, 3, 5, 7)
    assert torch.equal(noised(latents, noise, 0.0), latents)
    assert torch.equal(noised(latents, noise, 1.0), noise)
    torch.testing.assert_close(noised(latents, noise, 0.25), latents + 0.25 * (noise - latents))
