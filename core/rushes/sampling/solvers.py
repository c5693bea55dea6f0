# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Solvers: from noise to latents along a schedule. All have one signature and keep no state between calls.

    solver(velocity, x, schedule, *, callback=None, start=0, history=()) -> x

velocity(x, sigma, timestep, step) -> v: the model's prediction of noise - x0 at x, any dtype; step from 0.
x: [B, C, T, h, w] (or any shape), float32 or float64; it is not written to.
callback(step, steps, x, x0): after each step, step from 0; x is at sigmas[step + 1], x0 is the picture as the
model saw it at this step (for previews). Raise in it to stop. The tensors are the solver's own: do not write.
start, history: to go on after an interruption. start is the step to do next; x and history are what the
callback got: the x of step start - 1, and the x0 of the last two steps (of one, after one), oldest first. The
result has the bits of an unbroken run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from rushes.sampling.schedules import Schedule

Velocity = Callable[[Tensor, float, float, int], Tensor]
StepCallback = Callable[[int, int, Tensor, Tensor], None]


def euler(
    velocity: Velocity,
    x: Tensor,
    schedule: Schedule,
    *,
    callback: StepCallback | None = None,
    start: int = 0,
    history: Sequence[Tensor] = (),
) -> Tensor:
    """Euler's method on dx/dsigma = v. Order 1; needs no history."""
    _check_start(schedule, start, history, needed=0)
    for step in range(start, schedule.steps):
        sigma, following = schedule.sigmas[step : step + 2]
        v = velocity(x, sigma, schedule.timesteps[step], step).to(x.dtype)  # bf16 would round the products
        x0 = x - sigma * v
        x = x + (following - sigma) * v
        if callback is not None:
            callback(step, schedule.steps, x, x0)
    return x


def unipc(
    velocity: Velocity,
    x: Tensor,
    schedule: Schedule,
    *,
    callback: StepCallback | None = None,
    start: int = 0,
    history: Sequence[Tensor] = (),
) -> Tensor:
    """UniPC-2 with B2(h), predicting x0 (Zhao et al. 2023, "UniPC"): one evaluation a step, order 2.

    The corrector works from the second step on; the first and last predictor are of order 1, as in Wan and
    diffusers. Sigma may start at 1: the limits of the formulas are taken.
    """
    _check_start(schedule, start, history, needed=min(2, start))
    past = list(history)  # x0 of the steps before, newest last
    for step in range(start, schedule.steps):
        sigma = schedule.sigmas[step]
        v = velocity(x, sigma, schedule.timesteps[step], step).to(x.dtype)  # bf16 would round the products
        x0 = x - sigma * v
        if step > 0:
            x = x + _correction(x0, past, schedule.sigmas, step)
        past = [*past, x0][-2:]
        x = _prediction(x, past, schedule.sigmas, step)
        if callback is not None:
            callback(step, schedule.steps, x, x0)
    return x


def _prediction(x: Tensor, past: Sequence[Tensor], sigmas: Sequence[float], step: int) -> Tensor:
    """UniP: x at sigmas[step + 1], from x at sigmas[step] and the x0 of this step and the one before.

    The exact solution in half log-SNR, lambda = log(1 - sigma) - log sigma, is
    x_t = (sigma_t / sigma_s) x_s + sigma_t integral of e^lambda x0(lambda).
    With x0 held constant the integral's weight is alpha_t (1 - e^-h), and for alpha = 1 - sigma that is just
    1 - sigma_t / sigma_s: neither logarithms nor cancellation at sigma = 1 or 0.
    """
    ratio = sigmas[step + 1] / sigmas[step]
    x0 = past[-1]
    if 0 < step < len(sigmas) - 2:  # order 2: let x0 go on as it went
        x0 = x0 + 0.5 * _slope(past, sigmas, step)
    return ratio * x + (1.0 - ratio) * x0


def _correction(x0: Tensor, past: Sequence[Tensor], sigmas: Sequence[float], step: int) -> Tensor:
    """UniC: what the predicted x at sigmas[step] lacks, now that its own x0 is known. past: x0 to step - 1.

    Written as a difference from the prediction, so that x before the prediction need not be kept.
    """
    weight = 1.0 - sigmas[step] / sigmas[step - 1]
    change = x0 - past[-1]
    if step == 1:
        return (0.5 * weight) * change
    h = _half_log_snr(sigmas[step]) - _half_log_snr(sigmas[step - 1])
    r = _ratio_of_steps(sigmas, step - 1)
    # The paper's order conditions for B(h) = e^-h - 1:  rho_1 + rho_2 = b_1  and  r rho_1 + rho_2 = b_2
    growth = math.expm1(-h)
    b_1 = (growth / -h - 1.0) / growth
    b_2 = ((growth / -h - 1.0) / -h - 0.5) * 2.0 / growth
    rho_1 = (b_1 - b_2) / (1.0 - r)
    return weight * ((rho_1 - 0.5) * _slope(past, sigmas, step - 1) + (b_1 - rho_1) * change)


def _slope(past: Sequence[Tensor], sigmas: Sequence[float], step: int) -> Tensor:
    """Change of x0 over the interval from `step` to `step` + 1, extrapolated from the interval before."""
    return (past[-2] - past[-1]) / _ratio_of_steps(sigmas, step)


def _ratio_of_steps(sigmas: Sequence[float], step: int) -> float:
    """r: where the previous step lies, in lambda and in lengths of this interval; -inf after sigma = 1."""
    here = _half_log_snr(sigmas[step])
    return (_half_log_snr(sigmas[step - 1]) - here) / (_half_log_snr(sigmas[step + 1]) - here)


def _half_log_snr(sigma: float) -> float:
    if sigma >= 1.0:
        return -math.inf  # the limit is exact where it is used; diffusers clips sigma to 1 - 1e-6 instead
    return math.log1p(-sigma) - math.log(sigma) if sigma > 0.0 else math.inf


def _check_start(schedule: Schedule, start: int, history: Sequence[Tensor], needed: int) -> None:
    if not 0 <= start <= schedule.steps:
        raise ValueError(f"start: got {start}; 0 to {schedule.steps} is allowed with this schedule")
    if len(history) < needed:
        raise ValueError(f"history: got {len(history)} x0; going on at step {start} needs {needed}")
