# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The named schedules give the published numbers; wrong requests get a sentence."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from types import ModuleType

import pytest
import torch

from rushes.sampling import schedules
from rushes.sampling.schedules import Schedule, listed, partial, schedule
from rushes.shot import ShotError

SHIFT_5 = {
    # timesteps of 4 steps at shift 5, as measured in the programs that the names stand for
    "simple": (1000.0, 937.5, 833.3333, 625.0),
    "linear": (1000.0, 937.5, 833.3333, 625.0),
    "wan_unipc": (999.0, 937.0, 833.0, 624.0),
    "diffusers_unipc": (999.0, 937.0, 833.0, 625.0),
    "diffusers_euler": (1000.0, 909.7, 717.3, 24.4),
    "lightx2v": (1000.0, 937.5, 833.3333, 625.0),
}


def comfy_simple(steps: int, shift: float) -> list[float]:
    """Naive float32 reference: a table of 1000 shifted entries, picked from its end."""
    time = torch.arange(1, 1001, 1) / 1000
    table = shift * time / (1 + (shift - 1) * time)
    return [float(table[-(1 + int(step * (1000 / steps)))]) for step in range(steps)] + [0.0]


@pytest.mark.parametrize("name", schedules.NAMES)
def test_four_steps_at_shift_five_are_the_published_timesteps(name: str) -> None:
    """Each name gives the numbers of the program it is named after."""
    assert schedule(name, 4, 5.0).timesteps == pytest.approx(SHIFT_5[name], abs=0.05)


def test_every_name_was_checked() -> None:
    """A new schedule needs a published row too."""
    assert set(SHIFT_5) == set(schedules.NAMES)


def test_lightx2v_visits_the_sigmas_it_was_trained_on() -> None:
    """1000, 750, 500, 250 index the shift-5 table: the same as four simple steps."""
    assert schedule("lightx2v", 4, 5.0).sigmas == pytest.approx((1, 0.9375, 5 / 6, 0.625, 0), abs=1e-7)
    assert schedule("lightx2v", 4, 5.0) == schedule("simple", 4, 5.0) == listed((1000, 750, 500, 250), 5.0)


@pytest.mark.parametrize("steps", [1, 3, 7, 30, 333, 999, 1000])  # strides that do and do not divide the table
@pytest.mark.parametrize("shift", [1.0, 3, 8.0, 12.5])
def test_simple_is_comfyuis_table(steps: int, shift: float) -> None:
    """Entry for entry, to the rounding of its float32 table."""
    assert schedule("simple", steps, shift).sigmas == pytest.approx(comfy_simple(steps, shift), abs=2e-7)


@pytest.mark.parametrize("name", [name for name in schedules.NAMES if name != "lightx2v"])
@pytest.mark.parametrize("steps", [1, 2, 13, 50, 1000])
@pytest.mark.parametrize("shift", [schedules.MIN_SHIFT, 1, 5.0, schedules.MAX_SHIFT])
def test_any_allowed_request_falls_from_noise_to_zero(name: str, steps: int, shift: float) -> None:
    """n + 1 falling float32 sigmas ending in 0, n timesteps in 0 ... 1000, at the ends of the ranges too."""
    made = schedule(name, steps, shift)
    assert made.steps == steps == len(made.timesteps) == len(made.sigmas) - 1
    assert all(high > low for high, low in pairwise(made.sigmas))
    assert made.sigmas[-1] == 0.0 and 0.8 < made.sigmas[0] <= 1.0
    assert all(0 <= timestep <= 1000 for timestep in made.timesteps)
    assert torch.tensor(made.sigmas, dtype=torch.float32).tolist() == list(made.sigmas)


@pytest.mark.parametrize("name", ["simple", "linear", "diffusers_euler"])
def test_untruncated_timesteps_are_a_thousand_sigmas(name: str) -> None:
    """No whole numbers where the program does not make them."""
    made = schedule(name, 7, 3.7)
    assert made.timesteps == pytest.approx([1000 * sigma for sigma in made.sigmas[:-1]], rel=1e-6)
    assert any(timestep % 1 for timestep in made.timesteps)


@pytest.mark.parametrize("name", ["wan_unipc", "diffusers_unipc"])
def test_truncated_timesteps_are_the_whole_part(name: str) -> None:
    """The model is told a whole number; the solver keeps the fraction."""
    made = schedule(name, 11, 5.0)
    assert made.timesteps == tuple(math.floor(1000 * sigma) for sigma in made.sigmas[:-1])
    assert any(1000 * sigma % 1 for sigma in made.sigmas)


def test_a_schedule_cannot_be_changed() -> None:
    """It is a value: frozen, comparable, hashable."""
    made = schedule("simple", 5, 5.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.sigmas = (1.0, 0.0)  # type: ignore[misc]
    assert hash(made) == hash(schedule("simple", 5, 5.0))


@pytest.mark.parametrize(
    ("sigmas", "timesteps"),
    [
        ((1.0, 0.5, 0.0), (1000.0,)),  # too few timesteps
        ((0.0,), ()),  # no step
        ((1.0, 1.0, 0.0), (1000.0, 1000.0)),  # a step of length 0
        ((0.5, 0.7, 0.0), (500.0, 700.0)),  # rises
        ((1.5, 0.0), (1500.0,)),  # more than noise
        ((1.0, -0.1), (1000.0,)),  # less than clean
        ((math.nan, 0.0), (1000.0,)),  # not a number
    ],
)
def test_impossible_schedules_are_refused(sigmas: tuple[float, ...], timesteps: tuple[float, ...]) -> None:
    """What no solver could follow is not built."""
    with pytest.raises(ValueError, match=r"^schedule: got .* allowed"):
        Schedule(sigmas, timesteps)


def test_an_unknown_name_is_answered_with_all_names() -> None:
    """The sentence lists what is allowed."""
    with pytest.raises(ShotError, match=r"^schedule: got 'karras'; allowed are ") as caught:
        schedule("karras", 4, 5.0)
    assert all(name in str(caught.value) for name in schedules.NAMES)


@pytest.mark.parametrize("name", schedules.NAMES)
@pytest.mark.parametrize("steps", [0, -1, 1001, 4.0, True, None, "4"])
def test_wrong_steps_are_named_with_their_range(name: str, steps: object) -> None:
    """Every schedule refuses them with the same sentence."""
    with pytest.raises(ShotError, match=r"^steps: got .*a whole number from 1 to 1000 is allowed$"):
        schedule(name, steps, 5.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", schedules.NAMES)
@pytest.mark.parametrize("shift", [0, -3.0, 100.1, math.nan, math.inf, True, None, "5"])
def test_wrong_shifts_are_named_with_their_range(name: str, shift: object) -> None:
    """Every schedule refuses them with the same sentence."""
    with pytest.raises(ShotError, match=r"^shift: got .*a number from 0\.01 to 100 is allowed$"):
        schedule(name, 4, shift)  # type: ignore[arg-type]


def test_lightx2v_refuses_other_step_counts() -> None:
    """A distilled list cannot be stretched."""
    with pytest.raises(ShotError, match=r"^steps: got 8; the schedule lightx2v has exactly 4$"):
        schedule("lightx2v", 8, 5.0)


@pytest.mark.parametrize("entries", [(1000, 1000), (250, 500), (1001, 500), (500, 0)])
def test_impossible_lists_are_refused(entries: tuple[int, ...]) -> None:
    """A distilled model's list must fall inside the table."""
    with pytest.raises(ShotError, match=r"^steps: got .* falling whole numbers from 1000 to 1 are allowed$"):
        listed(entries, 5.0)


@pytest.mark.parametrize(
    ("steps", "strength", "kept"),
    [
        (10, 0.7, 7),
        (10, 0.79, 7),
        (10, 1, 10),
        (3, 0.34, 1),
        (50, 0.58, 28),
    ],  # the last: int(28.999...), as others
)
def test_partial_keeps_the_end_of_the_schedule(steps: int, strength: float, kept: int) -> None:
    """int(n strength) steps are left, with the sigmas and timesteps they had."""
    whole = schedule("wan_unipc", steps, 5.0)
    part = partial(whole, strength)
    assert part.steps == kept
    assert part.sigmas == whole.sigmas[steps - kept :] and part.timesteps == whole.timesteps[steps - kept :]


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, math.nan, True, None, "half"])
def test_wrong_strengths_are_named_with_their_range(strength: object) -> None:
    """Nothing to do, or more than everything, is refused."""
    with pytest.raises(ShotError, match=r"^strength: got .*a number above 0 up to 1 is allowed$"):
        partial(schedule("simple", 10, 5.0), strength)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [3, 4, 7, 30])
def test_a_strength_that_leaves_no_step_says_what_would(steps: int) -> None:
    """The least strength in the sentence is one that works."""
    whole = schedule("simple", steps, 5.0)
    with pytest.raises(ShotError, match=rf"^strength: 0.01 of {steps} steps leaves none; ") as caught:
        partial(whole, 0.01)
    least = float(str(caught.value).split("none; ")[1].split(" to 1")[0])
    assert partial(whole, least).steps == 1


@pytest.mark.parity
@pytest.mark.parametrize("steps", [1, 4, 10, 40, 53])
@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
def test_schedules_are_those_of_diffusers(diffusers: ModuleType, steps: int, shift: float) -> None:
    """UniPC: the same bits. FlowMatchEuler: to 1e-6."""
    unipc = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    unipc.set_timesteps(steps)
    ours = schedule("diffusers_unipc", steps, shift)
    assert list(ours.sigmas) == unipc.sigmas.tolist() and list(ours.timesteps) == unipc.timesteps.tolist()

    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    euler.set_timesteps(steps)
    ours = schedule("diffusers_euler", steps, shift)
    assert ours.sigmas == pytest.approx(euler.sigmas.tolist(), abs=1e-6)
    assert ours.timesteps == pytest.approx(euler.timesteps.tolist(), rel=1e-6)
