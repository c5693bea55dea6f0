# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Schedules: the noise levels a solver visits and the timesteps the model is told.

Flow matching: x_sigma = (1 - sigma) x0 + sigma noise, from sigma 1 (noise) to 0; timestep = 1000 sigma.
The shift bends a schedule towards noise (larger shift: more steps spent on composition):
shifted = shift sigma / (1 + (shift - 1) sigma)   (Esser et al. 2024, "Scaling Rectified Flow Transformers").

The named schedules are not the same thing; a model gets the one it was made with:

    simple           ComfyUI's "simple"; timesteps are not truncated
    linear           evenly spaced sigmas, shifted; the starter's
    wan_unipc        Wan's own code; timesteps truncated to whole numbers
    diffusers_unipc  diffusers' UniPCMultistepScheduler with flow sigmas; timesteps truncated to whole numbers
    diffusers_euler  diffusers' FlowMatchEulerDiscreteScheduler; for comparison only, WRONG for Wan
    lightx2v         the 4 steps the lightx2v distillations were trained on
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rushes.shot import ShotError

NAMES = ("simple", "linear", "wan_unipc", "diffusers_unipc", "diffusers_euler", "lightx2v")
TABLE = 1000  # noise levels in training; a timestep is 1000 sigma
MAX_STEPS = TABLE  # more steps than table entries would visit a noise level twice
# Well beyond these, neighbouring sigmas of a 1000-step schedule meet in float32
MIN_SHIFT, MAX_SHIFT = 0.01, 100.0

Levels = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Schedule:
    """Noise levels and timesteps of a denoising run.

    sigmas: n + 1 strictly falling values in [0, 1], the last 0 for a finished picture. Computed in float64,
    rounded to float32 as other programs keep them, held as Python floats.
    timesteps: the n values handed to the model, in [0, 1000].
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sigmas) != len(self.timesteps) + 1 or not self.timesteps:
            got = f"{len(self.sigmas)} sigmas and {len(self.timesteps)} timesteps"
            raise ValueError(f"schedule: got {got}; n + 1 and n are allowed")
        falls = all(high > low for high, low in pairwise(self.sigmas))
        if not falls or self.sigmas[0] > 1 or self.sigmas[-1] < 0:
            raise ValueError(f"schedule: got sigmas {self.sigmas}; values falling within 1 ... 0 are allowed")

    @property
    def steps(self) -> int:
        """How often the model is evaluated."""
        return len(self.timesteps)


def schedule(name: str, steps: int, shift: float) -> Schedule:
    """The schedule called `name`. steps: 1 ... 1000 (lightx2v: 4); shift: 0.01 ... 100. Raises ShotError."""
    match name:
        case "simple":
            return simple(steps, shift)
        case "linear":
            return linear(steps, shift)
        case "wan_unipc":
            return wan_unipc(steps, shift)
        case "diffusers_unipc":
            return diffusers_unipc(steps, shift)
        case "diffusers_euler":
            return diffusers_euler(steps, shift)
        case "lightx2v":
            return lightx2v(steps, shift)
    raise ShotError(f"schedule: got {name!r}; allowed are {', '.join(NAMES)}")


def simple(steps: int, shift: float) -> Schedule:
    """ComfyUI's "simple": every (1000 / steps)-th entry of the shifted table. Raises ShotError."""
    _check(steps, shift)
    stride = TABLE / steps
    return listed([TABLE - int(step * stride) for step in range(steps)], shift)


def linear(steps: int, shift: float) -> Schedule:
    """Evenly spaced sigmas from 1 to 0, shifted; timesteps are 1000 sigma exactly. Raises ShotError."""
    _check(steps, shift)
    return _schedule(_shifted(np.linspace(1.0, 0.0, steps + 1)[:-1], shift))


def wan_unipc(steps: int, shift: float) -> Schedule:
    """Wan's FlowUniPCMultistepScheduler: from 0.999 before the shift, whole timesteps. Raises ShotError."""
    _check(steps, shift)
    start = float(np.float32(1.0 - 1.0 / TABLE))  # Wan keeps its training table in float32
    return _schedule(_shifted(np.linspace(start, 0.0, steps + 1)[:-1], shift), whole=True)


def diffusers_unipc(steps: int, shift: float) -> Schedule:
    """diffusers' UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=shift). Raises ShotError.

    Its first sigma is 1 - 1e-6, because diffusers' UniPC takes log(1 - sigma); ours would not need that.
    """
    _check(steps, shift)
    sigmas = _shifted(np.linspace(1.0, 1.0 / TABLE, steps + 1)[:-1], shift)
    sigmas[0] -= 1e-6
    return _schedule(sigmas, whole=True)


def diffusers_euler(steps: int, shift: float) -> Schedule:
    """diffusers' FlowMatchEulerDiscreteScheduler(shift=shift); for parity tests only. Raises ShotError.

    Wrong for Wan: the shift is applied to the end of the range and then again to all of it, so the last step
    starts far below where Wan was meant to be (4 steps, shift 5: timestep 24 instead of 625).
    """
    _check(steps, shift)
    lowest = float(_shifted(np.array([1.0 / TABLE]), shift)[0])
    return _schedule(_shifted(np.linspace(1.0, lowest, steps), shift))


def lightx2v(steps: int, shift: float) -> Schedule:
    """The 4-step list of the lightx2v distillations; they were trained with shift 5. Raises ShotError."""
    _check(steps, shift)
    if steps != 4:
        raise ShotError(f"steps: got {steps}; the schedule lightx2v has exactly 4")
    return listed((1000, 750, 500, 250), shift)


def listed(entries: Sequence[int], shift: float) -> Schedule:
    """A distilled model's own list: entries (1 ... 1000, falling) of the shifted table. Raises ShotError."""
    _check(len(entries), shift)
    falls = all(high > low for high, low in pairwise(entries))
    if not falls or entries[0] > TABLE or entries[-1] < 1:
        raise ShotError(f"steps: got {list(entries)}; falling whole numbers from {TABLE} to 1 are allowed")
    return _schedule(_shifted(np.array(entries, dtype=np.float64) / TABLE, shift))


def partial(whole: Schedule, strength: float) -> Schedule:
    """The last int(n strength) steps of a schedule, for video-to-video (SDEdit, Meng et al. 2021).

    strength: above 0 up to 1 (1: the source is forgotten). Start from noise.noised(source, noise, sigmas[0]).
    Raises ShotError, also when so few steps are asked for that none would be left.
    """
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength <= 1:
        raise ShotError(f"strength: got {strength!r}; a number above 0 up to 1 is allowed")
    kept = int(whole.steps * strength)
    if kept == 0:
        least = math.ceil(1000 / whole.steps) / 1000
        raise ShotError(
            f"strength: {strength} of {whole.steps} steps leaves none; {least:g} to 1 is allowed with so many"
        )
    return Schedule(whole.sigmas[whole.steps - kept :], whole.timesteps[whole.steps - kept :])


def _check(steps: int, shift: float) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise ShotError(f"steps: got {steps!r}; a whole number from 1 to {MAX_STEPS} is allowed")
    if isinstance(shift, bool) or not isinstance(shift, (int, float)) or not MIN_SHIFT <= shift <= MAX_SHIFT:
        raise ShotError(f"shift: got {shift!r}; a number from {MIN_SHIFT:g} to {MAX_SHIFT:g} is allowed")


def _shifted(sigmas: Levels, shift: float) -> Levels:
    return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)


def _schedule(sigmas: Levels, *, whole: bool = False) -> Schedule:
    timesteps = TABLE * sigmas  # before the rounding to float32, which could lift 624.99999 to 625
    if whole:
        timesteps = np.trunc(timesteps)
    return Schedule(
        (*sigmas.astype(np.float32).tolist(), 0.0),
        tuple(timesteps.astype(np.float32).tolist()),
    )
