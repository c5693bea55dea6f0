# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Colours of the starter's world, display sRGB in [0, 1]; no drawing here."""

from __future__ import annotations

from dataclasses import dataclass

Color = tuple[float, float, float]

SUBJECTS: dict[str, Color] = {
    "red": (0.88, 0.07, 0.09),
    "orange": (1.0, 0.46, 0.02),
    "yellow": (1.0, 0.86, 0.08),
    "green": (0.05, 0.66, 0.16),
    "cyan": (0.05, 0.83, 0.88),
    "blue": (0.07, 0.20, 0.92),
    "purple": (0.48, 0.10, 0.78),
    "pink": (1.0, 0.40, 0.68),
    "white": (0.97, 0.97, 0.97),
    "black": (0.07, 0.07, 0.08),
}


@dataclass(frozen=True)
class Light:
    """A time of day: three stops of sky, the disc, the haze, and what the light does to colours."""

    zenith: Color
    middle: Color
    horizon: Color
    disc: Color
    disc_radius: float
    glow: float
    cloud: Color
    cloud_amount: float
    haze: Color
    haze_amount: float
    gain: Color
    """Colours of the world are multiplied by this ..."""
    mist: Color
    mist_amount: float
    """... and then mixed with the mist."""
    white: Color
    """What snow looks like: it keeps its lightness at any time."""
    subject_gain: Color
    subject_mist: float
    windows: Color
    window_amount: float


LIGHTS: dict[str, Light] = {
    "day": Light(
        zenith=(0.16, 0.44, 0.86), middle=(0.42, 0.68, 0.95), horizon=(0.80, 0.91, 0.98),
        disc=(1.0, 0.98, 0.82), disc_radius=0.055, glow=0.35, cloud=(1.0, 1.0, 1.0), cloud_amount=0.9,
        haze=(0.78, 0.88, 0.96), haze_amount=0.5, gain=(1.0, 1.0, 1.0), mist=(0.8, 0.9, 1.0), mist_amount=0.0,
        subject_gain=(1.0, 1.0, 1.0), subject_mist=0.0, white=(1.0, 1.0, 1.0),
        windows=(0.62, 0.80, 0.92), window_amount=0.75,
    ),
    "sunset": Light(
        zenith=(0.36, 0.10, 0.42), middle=(0.86, 0.24, 0.34), horizon=(1.0, 0.62, 0.18),
        disc=(1.0, 0.90, 0.45), disc_radius=0.085, glow=0.75, cloud=(0.98, 0.36, 0.40), cloud_amount=0.75,
        haze=(0.98, 0.52, 0.22), haze_amount=0.62, gain=(0.95, 0.64, 0.48), mist=(0.52, 0.12, 0.26),
        mist_amount=0.17, subject_gain=(1.0, 0.94, 0.88), subject_mist=0.0, white=(1.0, 0.80, 0.84),
        windows=(1.0, 0.74, 0.30),
        window_amount=0.6,
    ),
    "dawn": Light(
        zenith=(0.66, 0.70, 0.88), middle=(0.78, 0.79, 0.92), horizon=(0.93, 0.90, 0.95),
        disc=(1.0, 0.99, 0.96), disc_radius=0.05, glow=0.30, cloud=(0.90, 0.88, 0.95), cloud_amount=0.55,
        haze=(0.88, 0.87, 0.94), haze_amount=0.95, gain=(0.88, 0.92, 1.0), mist=(0.80, 0.80, 0.92),
        mist_amount=0.46, subject_gain=(0.94, 0.95, 1.0), subject_mist=0.12, white=(0.93, 0.94, 1.0),
        windows=(0.86, 0.88, 0.96),
        window_amount=0.6,
    ),
    "night": Light(
        zenith=(0.02, 0.03, 0.12), middle=(0.05, 0.08, 0.24), horizon=(0.13, 0.18, 0.40),
        disc=(0.96, 0.96, 0.88), disc_radius=0.085, glow=0.30, cloud=(0.12, 0.15, 0.34), cloud_amount=0.6,
        haze=(0.12, 0.16, 0.36), haze_amount=0.5, gain=(0.42, 0.53, 0.72), mist=(0.10, 0.14, 0.38),
        mist_amount=0.25, subject_gain=(0.84, 0.86, 0.96), subject_mist=0.0, white=(0.46, 0.56, 0.86),
        windows=(1.0, 0.84, 0.36),
        window_amount=1.0,
    ),
}  # fmt: skip

GROUNDS: dict[str, tuple[Color, Color]] = {
    "desert": ((0.87, 0.66, 0.36), (0.96, 0.80, 0.51)),
    "snow": ((0.95, 0.97, 1.0), (0.80, 0.88, 0.97)),
    "grass": ((0.30, 0.62, 0.16), (0.47, 0.76, 0.25)),
    "sea": ((0.05, 0.32, 0.60), (0.16, 0.53, 0.76)),
    "city": ((0.35, 0.35, 0.38), (0.41, 0.41, 0.44)),
    "hills": ((0.38, 0.58, 0.18), (0.50, 0.68, 0.26)),
    "mountains": ((0.52, 0.50, 0.46), (0.62, 0.60, 0.54)),
    "forest": ((0.22, 0.38, 0.15), (0.31, 0.46, 0.19)),
}
"""Two tones of ground in plain daylight."""


def mix_colors(a: Color, b: Color, part: float) -> Color:
    """`part` of b in a."""
    return (a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part, a[2] + (b[2] - a[2]) * part)


def grade(color: Color, light: Light, haze: float = 0.0) -> Color:
    """A daylight colour of the world under a light, seen through some haze (0 to 1)."""
    amount = haze * light.haze_amount
    pale = min(max((min(color) - 0.65) / 0.2, 0.0), 1.0) * 0.75
    shown = []
    channels = zip(color, light.gain, light.mist, light.haze, light.white, strict=True)
    for value, gain, mist, far, white in channels:
        lit = value * gain * (1.0 - light.mist_amount) + mist * light.mist_amount
        lit = lit * (1.0 - pale) + value * white * pale
        shown.append(lit * (1.0 - amount) + far * amount)
    return (shown[0], shown[1], shown[2])


def subject_color(color: Color, light: Light) -> Color:
    """A daylight colour of a subject under a light: kept stronger than the world around it."""
    amount = light.subject_mist
    shown = [
        value * gain * (1.0 - amount) + mist * amount
        for value, gain, mist in zip(color, light.subject_gain, light.mist, strict=True)
    ]
    return (shown[0], shown[1], shown[2])
