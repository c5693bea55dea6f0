# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Solvers converge at their order, go on where they stopped, and agree with diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rushes.sampling.schedules import Schedule, partial, schedule
from rushes.sampling.solvers import euler, unipc

MEAN, SPREAD = 0.7, 0.35  # the "pictures": a Gaussian, whose flow has a closed form
SOLVERS = [euler, unipc]
Solver = Callable[..., Tensor]


def gaussian_velocity(x: Tensor, sigma: float, timestep: float, step: int) -> Tensor:
    """The perfect model of pictures N(MEAN, SPREAD^2): E[noise - x0 | x]."""
    alpha = 1 - sigma
    variance = (alpha * SPREAD) ** 2 + sigma**2
    x0 = MEAN + alpha * SPREAD**2 / variance * (x - alpha * MEAN)
    return (x - x0) / sigma


def gaussian_flow(x: Tensor, start: float, end: float) -> Tensor:
    """Where x at noise level `start` has to be at `end`: the quantiles of the two Gaussians correspond."""

    def deviation(sigma: float) -> float:
        return math.hypot((1 - sigma) * SPREAD, sigma)

    return (1 - end) * MEAN + deviation(end) / deviation(start) * (x - (1 - start) * MEAN)


def even_in_log_snr(steps: int) -> Schedule:
    """Sigmas 0.88 to 0.047, evenly spaced in lambda, in float64: no end effects."""
    sigmas = tuple(1 / (1 + math.exp(-2 + 5 * step / steps)) for step in range(steps + 1))
    return Schedule(sigmas, tuple(1000 * sigma for sigma in sigmas[:-1]))


def errors(solver: Solver, make: Callable[[int], Schedule], counts: list[int], before_last: bool) -> list[float]:
    """Largest error per step count, after the last step or the one before it."""
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    found = []
    for count in counts:
        visited: list[Tensor] = []
        made = make(count)
        solver(gaussian_velocity, x, made, callback=lambda *got, visited=visited: visited.append(got[2]))
        at = -2 if before_last else -1
        found.append(float((visited[at] - gaussian_flow(x, made.sigmas[0], made.sigmas[at])).abs().max()))
    return found


def orders(found: list[float]) -> list[float]:
    """Exponents by which the error falls when the step count doubles."""
    return [math.log2(coarse / fine) for coarse, fine in pairwise(found)]


def crooked(x: Tensor, timestep: float, weights: Tensor) -> Tensor:
    """A velocity that is nothing like a straight flow, so that a wrong coefficient shows."""
    mixed = torch.einsum("ij,bj...->bi...", weights.to(x.dtype), x)
    return 1.5 * torch.tanh(mixed) + 0.3 * math.sin(timestep / 100) + 0.2 * x


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Fresh noise of odd sizes and mixing weights."""
    return torch.randn(1, 3, 5, 7, 9).to(dtype), torch.randn(3, 3)


def test_euler_is_of_first_order() -> None:
    """Twice the steps, half the error."""
    assert orders(errors(euler, even_in_log_snr, [80, 160, 320], False)) == pytest.approx([1, 1], abs=0.03)


def test_unipc_is_of_second_order_to_the_end() -> None:
    """Twice the steps, a quarter of the error, from noise to picture; the last step sets the order."""
    assert min(orders(errors(unipc, lambda n: schedule("linear", n, 1.0), [100, 200, 400], False))) > 1.95


def test_unipc_is_of_third_order_before_its_last_step() -> None:
    """The corrector adds one: without it, or with its weights wrong, this falls to 2."""
    assert orders(errors(unipc, even_in_log_snr, [40, 80, 160, 320], True)) == pytest.approx([3] * 3, abs=0.05)


@pytest.mark.parametrize("name", ["simple", "linear", "wan_unipc", "diffusers_unipc"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_schedule_for_wan_arrives_at_the_picture(solver: Solver, name: str) -> None:
    """From sigma 1 itself too, where log(1 - sigma) is not finite."""
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    made = schedule(name, 500, 5.0)
    arrived = solver(gaussian_velocity, x, made)
    torch.testing.assert_close(arrived, gaussian_flow(x, made.sigmas[0], 0.0), atol=0.02, rtol=0)


def test_unipc_takes_the_limit_at_sigma_one() -> None:
    """By hand: sigma = 1 is infinitely far off in lambda, so the interval after it lends no slope."""
    x, weights = inputs(torch.float64)
    made = schedule("simple", 4, 5.0)
    s0, s1, s2, s3, _ = made.sigmas
    assert s0 == 1.0

    def picture(x: Tensor, step: int) -> Tensor:
        return x - made.sigmas[step] * crooked(x, made.timesteps[step], weights)

    def weight_of_a_slope(h: float) -> float:
        """Integral of e^(u - h) u / h over that of e^(u - h), u from 0 to h, by the midpoint rule."""
        points = (torch.arange(20_000, dtype=torch.float64) + 0.5) * h / 20_000
        return float(((points - h).exp() * points / h).sum() / (points - h).exp().sum())

    lambdas = [math.log(1 - sigma) - math.log(sigma) for sigma in (s1, s2, s3)]
    h_12, h_23 = lambdas[1] - lambdas[0], lambdas[2] - lambdas[1]
    m0 = picture(x, 0)
    x1 = s1 / s0 * x + (1 - s1 / s0) * m0
    m1 = picture(x1, 1)
    x1 = x1 + (1 - s1 / s0) * 0.5 * (m1 - m0)
    x2 = s2 / s1 * x1 + (1 - s2 / s1) * m1
    m2 = picture(x2, 2)
    x2 = x2 + (1 - s2 / s1) * weight_of_a_slope(h_12) * (m2 - m1)
    x3 = s3 / s2 * x2 + (1 - s3 / s2) * (m2 + 0.5 * (m2 - m1) * h_23 / h_12)
    expected = picture(x3, 3)
    result = unipc(lambda x, s, t, k: crooked(x, t, weights), x, made)
    torch.testing.assert_close(result, expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 15, 100])
def test_unipc_is_finite_from_sigma_one(steps: int) -> None:
    """No step count lets an infinity through."""
    x, weights = inputs()
    assert unipc(lambda x, s, t, k: crooked(x, t, weights), x, schedule("simple", steps, 5.0)).isfinite().all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_is_the_models_picture(solver: Solver) -> None:
    """x0 = x - sigma v."""
    x, weights = inputs()
    made = schedule("diffusers_unipc", 1, 5.0)
    expected = x - made.sigmas[0] * crooked(x, 999.0, weights)
    torch.testing.assert_close(solver(lambda x, s, t, k: crooked(x, t, weights), x, made), expected)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_model_is_asked_once_a_step_with_the_schedules_numbers(solver: Solver) -> None:
    """Sigma, timestep and step arrive as they stand in the schedule; the last x0 is the result."""
    asked: list[tuple[float, float, int]] = []
    told: list[tuple[int, int]] = []
    pictures: list[Tensor] = []

    def velocity(x: Tensor, sigma: float, timestep: float, step: int) -> Tensor:
        asked.append((sigma, timestep, step))
        return torch.zeros_like(x)

    def callback(step: int, steps: int, x: Tensor, x0: Tensor) -> None:
        told.append((step, steps))
        pictures.append(x0)

    made = schedule("wan_unipc", 5, 3.0)
    result = solver(velocity, inputs()[0], made, callback=callback)
    assert asked == [(made.sigmas[step], made.timesteps[step], step) for step in range(5)]
    assert told == [(step, 5) for step in range(5)]
    torch.testing.assert_close(result, pictures[-1], atol=0, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_noise_gives_the_same_bits_and_is_not_written_to(solver: Solver) -> None:
    """Two runs, one result; the argument is left alone."""
    x, weights = inputs()
    before = x.clone()
    first, second = (solver(lambda x, s, t, k: crooked(x, t, weights), x, schedule("simple", 6, 5.0)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(x, before)


@pytest.mark.parametrize("start", range(7))
@pytest.mark.parametrize("solver", SOLVERS)
def test_an_interrupted_run_goes_on_with_the_same_bits(solver: Solver, start: int) -> None:
    """From what the callback was given, at any step, also when nothing is left to do."""
    x, weights = inputs()
    made = schedule("simple", 6, 5.0)
    states: list[Tensor] = [x]
    pictures: list[Tensor] = []

    def velocity(x: Tensor, sigma: float, timestep: float, step: int) -> Tensor:
        return crooked(x, timestep, weights)

    def keep(step: int, steps: int, x: Tensor, x0: Tensor) -> None:
        states.append(x)
        pictures.append(x0)

    unbroken = solver(velocity, x, made, callback=keep)
    history = pictures[max(0, start - 2) : start]
    assert torch.equal(solver(velocity, states[start], made, start=start, history=history), unbroken)


@pytest.mark.parametrize("start", [-1, 5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_start_outside_the_schedule_is_refused(solver: Solver, start: int) -> None:
    """There is no such step."""
    x, _ = inputs()
    with pytest.raises(ValueError, match=rf"^start: got {start}; 0 to 4 is allowed"):
        solver(gaussian_velocity, x, schedule("simple", 4, 5.0), start=start, history=[x, x])


@pytest.mark.parametrize(("start", "given"), [(1, 0), (2, 1), (4, 0)])
def test_unipc_refuses_to_go_on_without_history(start: int, given: int) -> None:
    """A multistep method that forgot its past would silently give another clip."""
    x, _ = inputs()
    with pytest.raises(ValueError, match=rf"^history: got {given} x0; going on at step {start} needs "):
        unipc(gaussian_velocity, x, schedule("simple", 6, 5.0), start=start, history=[x] * given)


@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_velocities_are_not_multiplied_in_half_precision(solver: Solver) -> None:
    """A bf16 model costs the rounding of its v and nothing more."""
    x, weights = inputs()
    made = schedule("simple", 4, 5.0)
    rounded = solver(lambda x, s, t, k: crooked(x, t, weights).bfloat16(), x, made)
    same = solver(lambda x, s, t, k: crooked(x, t, weights).bfloat16().float(), x, made)
    assert rounded.dtype == torch.float32 and torch.equal(rounded, same)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_exception_in_the_callback_stops_the_run(solver: Solver) -> None:
    """How a run is cancelled."""
    asked: list[int] = []

    def velocity(x: Tensor, sigma: float, timestep: float, step: int) -> Tensor:
        asked.append(step)
        return x

    def callback(step: int, steps: int, x: Tensor, x0: Tensor) -> None:
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solver(velocity, inputs()[0], schedule("simple", 6, 5.0), callback=callback)
    assert asked == [0, 1]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_partial_schedule_is_solved_as_one_of_its_own(solver: Solver) -> None:
    """Video-to-video starts in the middle without history and still arrives."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    made = partial(schedule("simple", 400, 5.0), 0.5)
    expected = gaussian_flow(x, made.sigmas[0], 0.0)
    torch.testing.assert_close(solver(gaussian_velocity, x, made), expected, atol=0.02, rtol=0)


def run_diffusers(scheduler: Any, steps: int, x: Tensor, weights: Tensor) -> Tensor:
    """The foreign loop; in float64 its float32 sigmas are widened, so that only the formulas are compared."""
    scheduler.set_timesteps(steps)
    if x.dtype == torch.float64:
        scheduler.sigmas = scheduler.sigmas.double()
    for timestep in scheduler.timesteps:
        v = crooked(x, float(timestep), weights)
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    return x


@pytest.mark.parity
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 40])
@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
# float64 compares the formulas; in float32 diffusers' own rounding moves the last bits as far
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_unipc_is_diffusers_unipc(
    diffusers: ModuleType, steps: int, shift: float, dtype: torch.dtype, tolerance: float
) -> None:
    """To 1e-6 of the largest value in float32, and to 1e-12 where rounding does not hide anything."""
    x, weights = inputs(dtype)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    theirs = run_diffusers(scheduler, steps, x, weights)
    ours = unipc(lambda x, s, t, k: crooked(x, t, weights), x, schedule("diffusers_unipc", steps, shift))
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= tolerance


@pytest.mark.parity
@pytest.mark.parametrize("steps", [1, 4, 10, 40])
@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
def test_euler_is_diffusers_flow_match_euler(diffusers: ModuleType, steps: int, shift: float) -> None:
    """To 1e-6 of the largest value."""
    x, weights = inputs()
    theirs = run_diffusers(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), steps, x, weights)
    ours = euler(lambda x, s, t, k: crooked(x, t, weights), x, schedule("diffusers_euler", steps, shift))
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-6
