# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The world that the starter model learns: balanced random scenes, and the combinations kept for testing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import torch

from rushes.starter.raster import Rendered, render
from rushes.starter.scene import (
    CAMERAS,
    COLORS,
    FOCAL,
    KINDS,
    MOTIONS,
    SETTINGS,
    TIMES,
    WIDTHS,
    Scene,
    Second,
    camera_at,
    subject_at,
)  # fmt: skip

__all__ = ["HeldOut", "Rendered", "Scene", "Second", "held_out", "is_held_out", "render", "sample_scenes"]

STATIC_SHARE = 0.35
SECOND_SHARE = 0.2
HEIGHTS = {
    "ball": (0.27, 0.37), "cube": (0.27, 0.36), "cone": (0.30, 0.40), "cylinder": (0.30, 0.40),
    "car": (0.20, 0.26), "person": (0.33, 0.41), "tree": (0.34, 0.43),
}  # fmt: skip
"""Heights of the kinds in fractions of the frame's; a car is twice as wide as high."""
SUNS = {"sunset": (0.05, 0.13), "dawn": (0.12, 0.24), "night": (0.20, 0.29), "day": (0.22, 0.32)}
"""Elevations of the sun or moon in radians."""
TRIES = 40


@dataclass(frozen=True)
class HeldOut:
    """Combinations that training never sees."""

    color_kind: frozenset[tuple[str, str]]
    setting_time: frozenset[tuple[str, str]]


@cache
def held_out() -> HeldOut:
    """The combinations in held_out.json."""
    values = json.loads(files("rushes.starter").joinpath("held_out.json").read_text())
    color_kind, setting_time = (frozenset((a, b) for a, b in values[k]) for k in ("color_kind", "setting_time"))
    return HeldOut(color_kind, setting_time)


def is_held_out(scene: Scene) -> bool:
    """Whether a scene shows any combination that training never sees (the second subject counts)."""
    kept = held_out()
    things = [(scene.color, scene.kind)]
    if scene.second is not None:
        things.append((scene.second.color, scene.second.kind))
    return not kept.color_kind.isdisjoint(things) or (scene.setting, scene.time) in kept.setting_time


class Dice:
    """Random numbers in order from one torch generator."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def numbers(self, count: int) -> list[float]:
        """Uniform numbers in [0, 1)."""
        return torch.rand(count, generator=self._generator, dtype=torch.float64).tolist()

    def seeds(self, count: int) -> list[int]:
        """Whole numbers for other generators."""
        return torch.randint(0, 2**31 - 1, (count,), generator=self._generator).tolist()

    def deal(self, classes: Sequence, shares: Sequence[float], count: int) -> list:
        """`count` classes in random order, each as often as its share says to within one."""
        total, (start,) = sum(shares), self.numbers(1)
        ends, sofar = [], 0.0
        for share in shares:
            sofar += share / total
            ends.append(sofar)
        ends[-1] = 1.0
        dealt, k = [], 0
        for n in range(count):
            while (n + start) / count >= ends[k]:
                k += 1
            dealt.append(classes[k])
        order = torch.randperm(count, generator=self._generator).tolist()
        return [dealt[n] for n in order]


def _pairs(
    first: Sequence[str], second: Sequence[str], banned: frozenset[tuple[str, str]]
) -> tuple[list[tuple[str, str]], list[float]]:
    """Allowed pairs, and shares for them with which every class of either side is equally frequent.

    Sinkhorn & Knopp 1967: rows and columns of the table of shares are scaled in turn.
    """
    allowed = [[0.0 if (a, b) in banned else 1.0 for b in second] for a in first]
    table = torch.tensor(allowed, dtype=torch.float64)
    for _ in range(50):
        table /= table.sum(1, keepdim=True)
        table *= len(first) / len(second) / table.sum(0, keepdim=True)
    pairs = [(a, b) for a in first for b in second if (a, b) not in banned]
    return pairs, [float(table[first.index(a), second.index(b)]) for a, b in pairs]


def sample_scenes(
    n: int, seed: int, frames: int = 33, split: Literal["train", "held_out", "all"] = "train"
) -> list[Scene]:
    """`n` random scenes of a split; the same seed gives the same scenes.

    Every class of every attribute has its share of them (static cameras 35 %, 20 % with a second subject),
    whatever the other attributes are. `held_out` scenes show a kept-back pair of colour and kind, of setting
    and time, or both, in equal parts; `train` never shows one; `all` mixes without regard.
    """
    if split not in ("train", "held_out", "all"):
        raise ValueError(f"split is {split!r}; allowed: train, held_out, all")
    if n < 0:
        raise ValueError(f"n is {n}; allowed: 0 or more")
    dice, kept = Dice(seed), held_out()
    none: frozenset[tuple[str, str]] = frozenset()
    free = _pairs(COLORS, KINDS, none if split == "all" else kept.color_kind)
    open_air = _pairs(SETTINGS, TIMES, none if split == "all" else kept.setting_time)
    color_kind, setting_time = dice.deal(*free, n), dice.deal(*open_air, n)
    if split == "held_out":
        which = dice.deal((0, 1, 2), (1, 1, 1), n)
        rare = sorted(kept.color_kind), sorted(kept.setting_time)
        things, places = (dice.deal(k, [1.0] * len(k), n) for k in rare)
        color_kind = [b if k != 1 else a for k, a, b in zip(which, color_kind, things, strict=True)]
        setting_time = [b if k != 0 else a for k, a, b in zip(which, setting_time, places, strict=True)]
    motions = dice.deal(MOTIONS, [1.0] * len(MOTIONS), n)
    shares = [STATIC_SHARE] + [(1.0 - STATIC_SHARE) / (len(CAMERAS) - 1)] * (len(CAMERAS) - 1)
    cameras = dice.deal(CAMERAS, shares, n)
    beside = dice.deal((True, False), (SECOND_SHARE, 1.0 - SECOND_SHARE), n)
    others, seeds = dice.deal(*free, n), dice.seeds(n)
    scenes = []
    for k in range(n):
        (color, kind), (setting, time) = color_kind[k], setting_time[k]
        plain = Scene(time, setting, kind, color, motions[k], cameras[k], frames=frames)
        scenes.append(_stage(plain, others[k] if beside[k] else None, Dice(seeds[k])))
    return scenes


def _between(low: float, high: float, part: float) -> float:
    return round(low + (high - low) * part, 4)


def _stage(plain: Scene, other: tuple[str, str] | None, dice: Dice) -> Scene:
    """Give a scene its numbers: the first of some tries whose subject stays in the frame, or the best."""
    best, least = plain, math.inf
    for attempt in range(TRIES):
        scene = _place(plain, dice.numbers(20), 0.97**attempt)
        outside = _outside(scene)
        if outside < least:
            best, least = scene, outside
        if least == 0.0:
            break
    return best if other is None else best.replace(second=_beside(best, other, dice.numbers(4)))


def _place(plain: Scene, r: list[float], calm: float) -> Scene:
    """One random choice of all numbers; `calm` slows camera and subject."""
    duration, kind, motion = 33 / plain.fps, plain.kind, plain.motion
    away = {"approach": (6.0, 7.6), "recede": (4.6, 6.2)}.get(motion, (4.8, 7.0))
    z = _between(*away, r[0])
    low, high = HEIGHTS[kind]
    tall = {"approach": (low, low + 0.7 * (high - low)), "recede": (low + 0.3 * (high - low), high * 1.05)}
    size = _between(*tall.get(motion, (low, high)), r[1]) * z / FOCAL
    rate, zoom, turn, tilt = _camera_rates(plain, r[2], duration, calm)
    # An orbit goes around the middle of the frame: its subject is near it.
    x = (2.0 * r[3] - 1.0) * (0.15 if plain.camera == "orbit" else 0.42) * 1.6 * z / FOCAL
    speed = {
        "left": (1.25, 2.1), "right": (1.25, 2.1), "rise": (0.55, 0.85), "approach": (0.95, 1.35),
        "recede": (1.1, 1.7),
    }.get(motion, (0.0, 0.0))  # fmt: skip
    room = z / 6.0  # what is farther away moves farther to look alike
    lift = {"rise": (0.0, 0.9), "fall": (1.3, 2.3), "bounce": (0.75, 1.25)}.get(motion, (0.0, 0.0))
    period = {"fall": (1.9, 2.7), "bounce": (0.75, 1.05)}.get(motion, (1.0, 1.0))
    if motion in ("left", "right"):
        facing = motion
    elif motion in ("approach", "recede"):
        facing = "front" if motion == "approach" else "back"
    else:
        facing = ("left", "right", "front", "back")[int(4 * r[4])]
    sun = SUNS[plain.time]
    return plain.replace(
        camera_height=_between(1.25, 1.6, r[5]),
        tilt=round(tilt + _between(-0.05, 0.05, r[6]), 4), turn=round(turn, 4), camera_rate=round(rate, 4),
        zoom_rate=round(zoom, 4), pivot=z, x=round(x, 4), z=z, size=round(size, 4),
        speed=round(_between(*speed, r[7]) * calm * room, 4), lift=round(_between(*lift, r[8]) * room, 4),
        period=_between(*period, r[9]), phase=round(r[10], 4), facing=facing,
        sun_azimuth=_between(-0.5, 0.5, r[11]), sun_elevation=_between(*sun, r[12]),
        layer_seed=int(r[13] * 2**31),
    )  # fmt: skip


def _camera_rates(plain: Scene, part: float, duration: float, calm: float) -> tuple[float, float, float, float]:
    """Rate, zoom rate, turn and tilt at frame 0; the middle of a move is the straight view ahead."""
    camera = plain.camera
    if camera in ("pan_left", "pan_right"):
        rate = _between(0.17, 0.25, part) * calm * (1.0 if camera == "pan_right" else -1.0)
        return rate, 0.0, -0.5 * rate * duration, 0.0
    if camera in ("tilt_up", "tilt_down"):
        rate = _between(0.075, 0.11, part) * calm * (1.0 if camera == "tilt_up" else -1.0)
        return rate, 0.0, 0.0, -0.5 * rate * duration
    if camera in ("push_in", "pull_out"):
        sign = 1.0 if camera == "push_in" else -1.0
        return _between(0.55, 0.85, part) * calm * sign, _between(0.06, 0.1, part) * calm * sign, 0.0, 0.0
    if camera == "orbit":
        rate = _between(0.2, 0.27, abs(2.0 * part - 1.0)) * calm * (1.0 if part >= 0.5 else -1.0)
        return rate, 0.0, -0.5 * rate * duration, 0.0
    return 0.0, 0.0, 0.0, 0.0


def _outside(scene: Scene, aspect: float = 1.6) -> float:
    """How far the subject leaves the frame during the clip, in frame heights; 0 when it stays well inside."""
    worst, last = 0.0, scene.frames - 1
    for frame in (0, last // 4, last // 2, 3 * last // 4, last):
        camera = camera_at(scene, frame)
        x, y, z = subject_at(scene, frame)
        if scene.motion == "bounce":
            y = scene.lift
        u, foot, away = camera.project((x, y, z))
        tall = camera.focal * scene.size / away
        half = 0.5 * WIDTHS[scene.kind] * tall
        ground = foot if scene.motion != "bounce" else camera.project((x, 0.0, z))[1]
        edge = abs(u) + 0.9 * half - 0.5 * aspect
        worst = max(worst, edge, ground - 0.5 + 0.02, -0.5 - (foot - tall) - 0.03, tall - 0.68, 0.13 - tall)
    return max(worst, 0.0)


def _beside(scene: Scene, other: tuple[str, str], r: list[float]) -> Second:
    """A second subject that stands to one side of the first, a little farther away."""
    color, kind = other
    z = scene.z * _between(1.08, 1.3, r[0])
    size = 0.85 * _between(*HEIGHTS[kind], r[1]) * scene.z / FOCAL
    width = 0.5 * (scene.size * WIDTHS[scene.kind] + size * WIDTHS[kind])
    # On the side with more room.
    side = -1.0 if scene.x > 0 else 1.0
    x = scene.x + side * (width + _between(0.25, 1.0, r[2]))
    facing = ("left", "right", "front", "back")[int(4 * r[3])]
    return Second(kind, color, round(x, 4), round(z, 4), round(size, 4), facing)
