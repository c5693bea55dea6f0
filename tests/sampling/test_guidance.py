# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Guidance pulls by the formula, costs what it says, and the right expert is asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rushes.sampling.guidance import classifier_free, experts
from rushes.sampling.schedules import schedule
from rushes.sampling.solvers import euler

Calls = list[tuple[Tensor, Tensor, Tensor]]


def recording(calls: Calls) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A model whose v depends on all that it is given, and that remembers what it was."""

    def predict(x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        calls.append((x, timesteps, context))
        assert timesteps.shape == (x.shape[0], x.shape[2])  # [B, T]
        return x * context.view(-1, 1, 1, 1, 1) + timesteps[:, None, :, None, None] / 1000

    return predict


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, C, T, h, w] and two contexts [B]."""
    return torch.randn(batch, 3, 5, 2, 7), torch.randn(batch), torch.randn(batch)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 1])
def test_guidance_of_one_or_less_asks_the_model_once(guidance: float) -> None:
    """The prompt alone, and no unconditional context is needed."""
    x, cond, _ = inputs(1)
    calls: Calls = []
    v = classifier_free(recording(calls), cond, None, guidance)(x, 0.7, 700.0, 0)
    assert len(calls) == 1 and torch.equal(calls[0][2], cond)
    assert torch.equal(v, x * cond.view(-1, 1, 1, 1, 1) + torch.tensor(700.0) / 1000)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("guidance", [1.5, 5.0, 12])
def test_guidance_goes_past_the_prompt(guidance: float, batch: int) -> None:
    """uncond + g (cond - uncond), element by element."""
    x, cond, uncond = inputs(batch)
    v = classifier_free(recording([]), cond, uncond, guidance)(x, 0.5, 500.0, 0)
    for index in range(batch):
        expected = uncond[index] + guidance * (cond[index] - uncond[index])
        torch.testing.assert_close(v[index], expected * x[index] + 0.5, atol=1e-5, rtol=1e-5)


def test_two_calls_become_one_batch_when_contexts_can_be_joined() -> None:
    """The same velocity from one evaluation; known frames' timesteps are doubled with x."""
    x, cond, uncond = inputs(2)
    timesteps = torch.tensor([[0.0, 600, 600, 600, 0]]).expand(2, 5)
    one: Calls = []
    two: Calls = []
    together = classifier_free(recording(one), cond, uncond, 4.0, join=lambda a, b: torch.cat([a, b]))
    apart = classifier_free(recording(two), cond, uncond, 4.0)
    expected = apart(x, 0.6, timesteps, 0)
    torch.testing.assert_close(together(x, 0.6, timesteps, 0), expected)
    assert len(one) == 1 and len(two) == 2
    assert torch.equal(one[0][1], torch.cat([timesteps, timesteps]))


def test_contexts_are_joined_once_for_all_steps() -> None:
    """Joining may be dear (cached keys and values), so it is not done at every step."""
    x, cond, uncond = inputs(1)
    joined: list[Tensor] = []

    def join(first: Tensor, second: Tensor) -> Tensor:
        joined.append(torch.cat([first, second]))
        return joined[-1]

    calls: Calls = []
    euler(classifier_free(recording(calls), cond, uncond, 4.0, join=join), x, schedule("simple", 3, 5.0))
    assert len(joined) == 1 and [call[2] is joined[0] for call in calls] == [True] * 3


def test_joining_is_not_used_when_guidance_is_off() -> None:
    """One pass of one batch, not of two."""
    x, cond, uncond = inputs(1)
    calls: Calls = []
    classifier_free(recording(calls), cond, uncond, 1.0, join=lambda a, b: torch.cat([a, b]))(x, 0.6, 600.0, 0)
    assert [call[0].shape[0] for call in calls] == [1]


def test_every_latent_frame_is_told_the_timestep() -> None:
    """One number becomes [B, T], float32."""
    x, cond, _ = inputs(2)
    calls: Calls = []
    classifier_free(recording(calls), cond, None, 1.0)(x, 0.9375, 937.5, 0)
    assert calls[0][1].dtype == torch.float32 and torch.equal(calls[0][1], torch.full((2, 5), 937.5))


def test_half_precision_predictions_are_combined_in_the_latents_precision() -> None:
    """Guidance multiplies a small difference: the arithmetic on bf16 outputs is done in float32."""
    x = torch.randn(1, 3, 5, 2, 7)
    outputs = {"prompt": torch.randn_like(x).bfloat16(), "nothing": torch.randn_like(x).bfloat16()}
    v = classifier_free(lambda x, timesteps, context: outputs[context], "prompt", "nothing", 5.0)(x, 0.5, 500.0, 0)
    expected = outputs["nothing"].float() + 5.0 * (outputs["prompt"].float() - outputs["nothing"].float())
    assert v.dtype == torch.float32 and torch.equal(v, expected)


def test_guidance_without_an_unconditional_context_is_refused() -> None:
    """Before any work is done."""
    with pytest.raises(ValueError, match=r"^guidance: got 5.0 without an uncond context; 1 or less is allowed"):
        classifier_free(recording([]), torch.ones(1), None, 5.0)


def test_experts_change_at_the_boundary() -> None:
    """High noise from 1000 boundary upwards, both with their own guidance, over a whole run."""
    asked: list[tuple[str, float]] = []

    def expert(name: str) -> Callable[[Tensor, float, float | Tensor, int], Tensor]:
        def velocity(x: Tensor, sigma: float, timestep: float | Tensor, step: int) -> Tensor:
            asked.append((name, float(torch.as_tensor(timestep).max())))
            return x

        return velocity

    made = schedule("wan_unipc", 6, 12.0)
    euler(experts(expert("high"), expert("low"), 0.875), torch.randn(1, 2, 3, 4, 5), made)
    assert asked == [("high" if timestep >= 875 else "low", timestep) for timestep in made.timesteps]
    assert {name for name, _ in asked} == {"high", "low"}


@pytest.mark.parametrize(("timestep", "expected"), [(875.0, 1.0), (874.0, 0.0)])
def test_known_frames_do_not_decide_which_expert_is_asked(timestep: float, expected: float) -> None:
    """Their timestep is 0 at every step; the frames being made count. The boundary itself is high."""
    velocity = experts(lambda x, *_: torch.ones_like(x), lambda x, *_: torch.zeros_like(x), 0.875)
    x = torch.randn(1, 2, 3, 4, 5)
    for given in (timestep, torch.tensor([[0.0, timestep, timestep]])):
        assert (velocity(x, timestep / 1000, given, 0) == expected).all()
