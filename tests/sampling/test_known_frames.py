# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Known latent frames: clean for the model at every step, and bit-equal in the result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rushes.sampling.known_frames import KnownFrames, hold, put_back, timesteps_for
from rushes.sampling.schedules import schedule
from rushes.sampling.solvers import euler, unipc

SOLVERS = [euler, unipc]
MASKS = [
    [True, False, False, False, False],  # image-to-video
    [True, False, False, False, True],  # connect
    [True, True, False, False, False],  # extend
    [False, False, True, False, False],  # a keyframe in the middle
    [False] * 5,  # nothing known
    [True] * 5,  # everything known
]


def inputs(mask: list[bool]) -> tuple[Tensor, KnownFrames, Tensor]:
    """x [1, C, T, h, w], known frames, and the mask ready to index the frames of x."""
    is_known = torch.tensor(mask)
    return torch.randn(1, 4, 5, 3, 7), KnownFrames(torch.randn(1, 4, 5, 3, 7), is_known), is_known


def mixing(x: Tensor, sigma: float, timestep: float | Tensor, step: int) -> Tensor:
    """A model in which every frame looks at all the others."""
    assert isinstance(timestep, Tensor)
    mixed = x - 0.5 * x.mean(dim=2, keepdim=True)
    return torch.tanh(mixed) + timestep[:, None, :, None, None] / 1000


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_known_frames_come_out_as_they_went_in(solver: Callable[..., Tensor], mask: list[bool]) -> None:
    """Bit for bit, whatever the model answered for them; the others were made."""
    x, known, is_known = inputs(mask)
    latents = put_back(solver(hold(mixing, known), x, schedule("simple", 6, 5.0)), known)
    assert torch.equal(latents[:, :, is_known], known.latents[:, :, is_known])
    assert latents.isfinite().all()
    assert (latents[:, :, ~is_known] != known.latents[:, :, ~is_known]).all()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_model_sees_known_frames_clean_at_every_step(solver: Callable[..., Tensor], mask: list[bool]) -> None:
    """Clean latents with timestep 0 where known, the solver's x with the schedule's timestep elsewhere."""
    x, known, is_known = inputs(mask)
    made = schedule("simple", 5, 5.0)
    before = [x]
    seen: list[tuple[Tensor, Tensor]] = []

    def velocity(x: Tensor, sigma: float, timestep: float | Tensor, step: int) -> Tensor:
        assert isinstance(timestep, Tensor) and sigma == made.sigmas[step]
        seen.append((x, timestep))
        return mixing(x, sigma, timestep, step)

    solver(hold(velocity, known), x, made, callback=lambda step, steps, x, x0: before.append(x))
    assert len(seen) == 5
    for step, (given, timesteps) in enumerate(seen):
        assert torch.equal(given[:, :, is_known], known.latents[:, :, is_known])
        assert torch.equal(given[:, :, ~is_known], before[step][:, :, ~is_known])
        assert timesteps.tolist() == [[0.0 if frame else pytest.approx(made.timesteps[step]) for frame in mask]]


@pytest.mark.parametrize("solver", SOLVERS)
def test_previews_show_the_known_frames(solver: Callable[..., Tensor]) -> None:
    """x0 at each step is the known frame, to rounding, although the model said something else there."""
    x, known, is_known = inputs(MASKS[1])
    previews: list[Tensor] = []
    made = schedule("diffusers_unipc", 8, 5.0)
    solver(hold(mixing, known), x, made, callback=lambda step, steps, x, x0: previews.append(x0))
    for x0 in previews:
        torch.testing.assert_close(x0[:, :, is_known], known.latents[:, :, is_known], atol=2e-5, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_stands_in_unknown_frames_does_not_matter(solver: Callable[..., Tensor]) -> None:
    """Nor does the noise that was drawn for the known ones."""
    x, known, is_known = inputs(MASKS[2])
    other = KnownFrames(known.latents.clone(), is_known)
    other.latents[:, :, ~is_known] = torch.nan
    noise = x.clone()
    noise[:, :, is_known] = torch.randn_like(noise[:, :, is_known])
    made = schedule("simple", 4, 5.0)
    results = [
        put_back(solver(hold(mixing, frames), start, made), frames) for frames, start in ((known, x), (other, noise))
    ]
    assert torch.equal(*results)


def test_euler_with_known_frames_is_the_naive_loop_of_wan() -> None:
    """Replace before each step, step every frame with the model's v, replace at the end: the same frames."""
    x, known, is_known = inputs(MASKS[1])
    made = schedule("wan_unipc", 6, 5.0)
    naive = x.clone()
    for step, timestep in enumerate(made.timesteps):
        naive[:, :, is_known] = known.latents[:, :, is_known]
        timesteps = torch.tensor([[0.0 if frame else timestep for frame in MASKS[1]]])
        v = mixing(naive, made.sigmas[step], timesteps, step)
        naive = naive + (made.sigmas[step + 1] - made.sigmas[step]) * v
    naive[:, :, is_known] = known.latents[:, :, is_known]
    torch.testing.assert_close(put_back(euler(hold(mixing, known), x, made), known), naive)


def test_a_batch_shares_the_known_frames() -> None:
    """Two seeds, one keyframe."""
    x, known, is_known = inputs(MASKS[0])
    both = put_back(euler(hold(mixing, known), torch.cat([x, torch.randn_like(x)]), schedule("simple", 3, 5.0)), known)
    assert torch.equal(both[:, :, is_known], known.latents[:, :, is_known].expand(2, -1, -1, -1, -1))
    torch.testing.assert_close(both[:1], put_back(euler(hold(mixing, known), x, schedule("simple", 3, 5.0)), known))


@pytest.mark.parametrize("batch", [1, 3])
def test_timesteps_are_zero_where_known(batch: int) -> None:
    """[B, T], float32; without known frames all are the same."""
    _, known, _ = inputs(MASKS[1])
    timesteps = timesteps_for(937.5, known, 5, batch)
    assert timesteps.dtype == torch.float32
    assert timesteps.tolist() == [[0.0, 937.5, 937.5, 937.5, 0.0]] * batch
    assert timesteps_for(937.5, None, 5, batch).tolist() == [[937.5] * 5] * batch


@pytest.mark.parametrize(
    ("latents", "mask"),
    [
        (torch.zeros(4, 5, 3, 7), torch.zeros(5, dtype=torch.bool)),  # no batch
        (torch.zeros(2, 4, 5, 3, 7), torch.zeros(5, dtype=torch.bool)),  # two clips
        (torch.zeros(1, 4, 5, 3, 7), torch.zeros(4, dtype=torch.bool)),  # a frame short
        (torch.zeros(1, 4, 5, 3, 7), torch.zeros(1, 5, dtype=torch.bool)),  # a mask with a batch
        (torch.zeros(1, 4, 5, 3, 7), torch.zeros(5)),  # not bool
    ],
)
def test_misshapen_known_frames_are_refused(latents: Tensor, mask: Tensor) -> None:
    """The sentence has the shape that was got and the one that is allowed."""
    with pytest.raises(ValueError, match=r"^known frames: got .* is allowed$"):
        KnownFrames(latents, mask)


def test_known_frames_of_another_size_are_refused() -> None:
    """Broadcasting a 1-pixel latent over the clip would go unnoticed."""
    known = KnownFrames(torch.zeros(1, 4, 5, 1, 1), torch.tensor(MASKS[0]))
    x = torch.randn(1, 4, 5, 3, 7)
    with pytest.raises(ValueError, match=r"^known frames: got latents \[1, 4, 5, 1, 1\]; \[1, 4, 5, 3, 7\] is"):
        put_back(x, known)
    with pytest.raises(ValueError, match=r"^known frames: got latents"):
        hold(mixing, known)(x, 0.5, 500.0, 0)
    with pytest.raises(ValueError, match=r"^known frames: got a mask of 5; 6 is allowed with this clip$"):
        timesteps_for(500.0, known, 6, 1)
