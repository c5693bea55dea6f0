# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Sky and ground of the starter's world, drawn in display sRGB into [M, 3, H, W]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rushes.starter.palette import GROUNDS, grade, mix_colors
from rushes.starter.view import View, soft_step

FAR = 200.0
"""Depth of the sky in metres."""
EDGE = 45.0
"""Ground farther away than this is drawn as if it were there: the haze has swallowed it."""


@dataclass(frozen=True)
class Wave:
    """One sine of a ground's pattern: wave numbers per metre, share, and speed in radians per second."""

    across: float
    along: float
    share: float
    speed: float = 0.0


WAVES: dict[str, tuple[Wave, ...]] = {
    "desert": (Wave(0.7, 2.3, 0.6), Wave(-0.5, 1.2, 0.7), Wave(1.6, 0.5, 0.4)),
    "snow": (Wave(0.5, 0.9, 0.7), Wave(-1.1, 0.6, 0.5), Wave(0.9, 2.0, 0.4)),
    "grass": (Wave(1.8, 0.9, 0.6), Wave(-1.2, 1.7, 0.6), Wave(0.6, -0.7, 0.5)),
    "sea": (Wave(0.35, 2.6, 0.7, 1.6), Wave(-0.9, 1.9, 0.6, 1.1), Wave(1.5, 1.1, 0.45, -1.3)),
    "hills": (Wave(1.0, 0.6, 0.6), Wave(-0.8, 1.3, 0.6), Wave(0.3, -0.8, 0.5)),
    "mountains": (Wave(2.1, 1.2, 0.5), Wave(-1.5, 1.9, 0.6), Wave(1.1, -0.7, 0.6)),
    "forest": (Wave(1.5, 1.4, 0.6), Wave(-1.7, 0.8, 0.5), Wave(0.7, -1.2, 0.6)),
    "city": (),
}
CONTRAST = {
    "desert": 0.9, "snow": 0.7, "grass": 0.9, "sea": 1.1, "hills": 0.8, "mountains": 0.9, "forest": 0.9,
}  # fmt: skip


def draw_sky(image: Tensor, view: View, rows: int) -> None:
    """Gradient, clouds and the sun or moon into the first rows of the image."""
    lights = view.lights()
    focal, horizon = view.column("focal"), view.column("horizon")
    v = view.v[:, :rows]
    up = (horizon - v) / focal  # [M, rows, 1]
    low, high = soft_step(up / 0.17).unsqueeze(1), soft_step((up - 0.10) / 0.34).unsqueeze(1)
    sky = torch.lerp(view.colors([k.horizon for k in lights]), view.colors([k.middle for k in lights]), low)
    sky = torch.lerp(sky, view.colors([k.zenith for k in lights]), high)  # [M, 3, rows, 1]
    cover = _clouds(view, up)  # [M, rows, W]
    picture = torch.lerp(sky, view.colors([k.cloud for k in lights]), cover.unsqueeze(1))
    du, dv, radius = _disc(view, rows)
    halo = torch.exp(-((dv / 0.20) ** 2)) * torch.exp(-((du / 0.24) ** 2))
    glow = view.numbers([k.glow for k in lights]) * halo
    solid = (radius - torch.sqrt(du * du + dv * dv)) * view.height + 0.5
    disc = torch.maximum(glow, solid.clamp(0.0, 1.0))
    image[:, :, :rows] = torch.lerp(picture, view.colors([k.disc for k in lights]), disc.unsqueeze(1))


def _disc(view: View, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Distances to the middle of the sun or moon, across and down, and its radius."""
    places = []
    for scene, camera, light in zip(view.scenes, view.cameras, view.lights(), strict=True):
        turn = scene.sun_azimuth - camera.yaw
        places.append(
            (
                camera.focal * math.tan(turn),
                camera.horizon - camera.focal * scene.sun_elevation,
                light.disc_radius,
            )
        )
    at = torch.tensor(places, dtype=torch.float32, device=view.device).view(-1, 3, 1, 1)
    return view.u - at[:, 0], view.v[:, :rows] - at[:, 1], at[:, 2]


def _clouds(view: View, up: Tensor) -> Tensor:
    """Cover of soft flat clouds that hang at fixed directions, so that they move when the camera turns."""
    tables, total = view.tables(), torch.zeros((), device=view.device)
    yaw = torch.atan2(view.column("sin"), view.column("cos"))
    azimuth = yaw + torch.atan(view.u / view.column("focal"))  # [M, 1, W]
    for cloud in range(5):
        random = tables[:, 40 + 4 * cloud : 44 + 4 * cloud].unsqueeze(2)  # [M, 4, 1]
        middle = -1.0 + 0.5 * cloud + 0.3 * (random[:, 0:1] - 0.5)
        wide = 0.13 + 0.12 * random[:, 1:2]
        height, thick = 0.17 + 0.22 * random[:, 2:3], 0.022 + 0.022 * random[:, 3:4]
        across = torch.exp(-(((azimuth - middle) / wide) ** 2))  # [M, 1, W]
        # Flat below, billowing above.
        off = up - height
        down = torch.exp(-((off / torch.where(off > 0, 1.5 * thick, 0.7 * thick)) ** 2))  # [M, rows, 1]
        total = total + across * down
    amount = view.numbers([k.cloud_amount for k in view.lights()])
    return soft_step((total - 0.12) / 0.5) * amount  # [M, rows, W]


def ground_depth(view: View, first: int) -> Tensor:
    """Depth of the ground in each row from `first` on, at most EDGE."""
    down = (view.v[:, first:] - view.column("horizon")).clamp_min(1e-3)
    return (view.column("y") * view.column("focal") / down).clamp_max(EDGE)  # [M, rows, 1]


def draw_ground(image: Tensor, view: View, first: int) -> None:
    """The ground of one setting into the rows from `first` on, blended over the sky at the horizon."""
    setting = view.scenes[0].setting
    lights = view.lights()
    depth = ground_depth(view, first)
    dark, light = GROUNDS[setting]
    haze = (1.0 - torch.exp(-((depth / 24.0) ** 1.5))) * view.numbers([k.haze_amount for k in lights])
    far = view.colors([k.haze for k in lights])
    low = torch.lerp(view.colors([grade(dark, k) for k in lights]), far, haze.unsqueeze(1))  # [M, 3, rows, 1]
    lit = [grade(light, k) for k in lights]
    if setting == "sea":
        # Water mirrors the sky at the horizon.
        lit = [mix_colors(c, k.horizon, 0.3) for c, k in zip(lit, lights, strict=True)]
    high = torch.lerp(view.colors(lit), far, haze.unsqueeze(1))
    # Where the camera is and what one step to the right is, on the ground, for each row.
    sine, cosine, focal = view.column("sin"), view.column("cos"), view.column("focal")
    x0, z0 = view.column("x") + depth * sine, view.column("z") + depth * cosine
    dx, dz = depth / focal * cosine, -depth / focal * sine
    place = (x0, z0, dx, dz)
    mix = _street(view, *place) if setting == "city" else _pattern(view, setting, depth, place)
    ground = torch.addcmul(low, high - low, mix.unsqueeze(1))  # [M, 3, rows, W]
    edge = (view.v[:, first:] - view.column("horizon")) * view.height + 0.5
    cover = edge.clamp(0.0, 1.0).unsqueeze(1)  # [M, 1, rows, 1]
    image[:, :, first:] = torch.lerp(image[:, :, first:], ground, cover)


def _pattern(view: View, setting: str, depth: Tensor, place: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Soft patches: a few sines on the ground, each faded out where it would be finer than some pixels."""
    x0, z0, dx, dz = place
    tables = view.tables()
    total = torch.full((1, 1, 1), 0.5, device=view.device)
    pixels = view.height * view.column("focal")
    for number, wave in enumerate(WAVES[setting]):
        start = 2.0 * math.pi * tables[:, 30 + number].view(-1, 1, 1) + wave.speed * view.column("time")
        base = wave.across * x0 + wave.along * z0 + start  # [M, rows, 1]
        slope = wave.across * dx + wave.along * dz
        # Radians per pixel, down and across; a wave shorter than 5 pixels is gone, one of 11 is whole.
        fall = abs(wave.along) * depth * depth / (view.column("y") * pixels)
        rate = torch.sqrt(fall**2 + (abs(wave.across) * depth / pixels) ** 2)
        fade = ((2.0 * math.pi / rate - 5.0) / 6.0).clamp(0.0, 1.0) * (wave.share * CONTRAST[setting])
        total = torch.addcmul(total, fade, torch.sin(torch.addcmul(base, slope, view.u)))  # [M, rows, W]
    return soft_step(total)


def _street(view: View, x0: Tensor, z0: Tensor, dx: Tensor, dz: Tensor) -> Tensor:
    """A road that runs across in front of the houses: broad white dashes, and pavement behind it."""
    x, z = torch.addcmul(x0, dx, view.u), torch.addcmul(z0, dz, view.u)  # [M, rows, W]
    along = view.height * view.column("focal") * view.column("y") / z.clamp_min(0.5) ** 2  # pixels per metre
    side = view.height * view.column("focal") / z.clamp_min(0.5)
    line = ((0.34 - (z - 4.1).abs()) * along + 0.5).clamp(0.0, 1.0)
    place = torch.remainder(x, 3.6) - 1.8
    dash = ((0.95 - place.abs()) * side + 0.5).clamp(0.0, 1.0)
    pavement = ((z - 9.6) * along + 0.5).clamp(0.0, 1.0)
    return torch.maximum(6.5 * line * dash, 3.2 * pavement)
