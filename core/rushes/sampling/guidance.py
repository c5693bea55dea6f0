# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Guidance: how strongly the prompt pulls, and which of two experts is asked. Functions making velocities."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from rushes.sampling.known_frames import FrameVelocity, timesteps_for

Context = TypeVar("Context")
# (x [B, C, T, h, w], timesteps [B, T], context) -> v [B, C, T, h, w]
Predict = Callable[[Tensor, Tensor, Context], Tensor]


def classifier_free(
    predict: Predict[Context],
    cond: Context,
    uncond: Context | None,
    guidance: float,
    *,
    join: Callable[[Context, Context], Context] | None = None,
) -> FrameVelocity:
    """Classifier-free guidance (Ho and Salimans 2022) as a velocity: uncond + guidance (cond - uncond).

    At guidance 1 or less it is off: one pass with `cond` alone, half the work, and `uncond` may be None.
    Distilled models (lightx2v and other 4-step ones) have the guidance trained in and must run so.
    Above 1 the model is asked twice a step, or, where `join(cond, uncond)` makes one context of both batches
    (called once, here), once with x and timesteps doubled in the same order: faster for small clips, in the
    memory of two.
    The velocity accepts one timestep, or [B, T] from `known_frames.hold`. It answers in x's dtype: with bf16
    predictions a guidance of 5 would multiply the rounding of their difference.
    Raises ValueError when guidance is on and `uncond` is None.
    """
    if guidance > 1 and uncond is None:
        raise ValueError(f"guidance: got {guidance} without an uncond context; 1 or less is allowed then")
    both = join(cond, uncond) if guidance > 1 and uncond is not None and join is not None else None

    def velocity(x: Tensor, sigma: float, timestep: float | Tensor, step: int) -> Tensor:
        timesteps = (
            timestep
            if isinstance(timestep, Tensor)
            else timesteps_for(timestep, None, x.shape[2], x.shape[0], device=x.device)
        )  # [B, T]
        if guidance <= 1 or uncond is None:
            return predict(x, timesteps, cond).to(x.dtype)
        if both is not None:
            v_both = predict(_twice(x), _twice(timesteps), both).to(x.dtype)  # [2B, C, T, h, w]
            v_cond, v_uncond = v_both.chunk(2)
        else:
            v_cond = predict(x, timesteps, cond).to(x.dtype)
            v_uncond = predict(x, timesteps, uncond).to(x.dtype)
        return v_uncond + guidance * (v_cond - v_uncond)

    return velocity


def experts(high: FrameVelocity, low: FrameVelocity, boundary: float) -> FrameVelocity:
    """Two models for one shot (Wan 2.2 A14B): `high` from timestep 1000 boundary upwards, `low` below.

    boundary: a sigma; Wan 2.2 has 0.875 for text-to-video, 0.9 for image-to-video. Each expert brings its own
    guidance.
    """

    def velocity(x: Tensor, sigma: float, timestep: float | Tensor, step: int) -> Tensor:
        # known frames have timestep 0 and must not decide
        noisiest = float(timestep.max()) if isinstance(timestep, Tensor) else timestep
        expert = high if noisiest >= boundary * 1000 else low
        return expert(x, sigma, timestep, step)

    return velocity


def _twice(batch: Tensor) -> Tensor:
    return batch.repeat(2, *[1] * (batch.ndim - 1))  # [2B, ...]
