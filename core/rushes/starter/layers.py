# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What stands at the horizon: ridges, peaks, houses and trees on upright cylinders around the world's middle.

A layer's outline depends on the direction alone, so each is computed once per column of the picture. The
camera's rays are cut with the cylinder exactly: pans, dollies and orbits give true parallax between layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rushes.starter.palette import Color, grade
from rushes.starter.view import TABLE, View, soft_step


@dataclass(frozen=True)
class Layer:
    """One outline: distance, mean height and swing in metres, and the length of its features."""

    shape: str
    radius: float
    height: float
    swing: float
    length: float
    color: Color
    haze: float
    offset: int = 0
    """Where in the clip's random table this layer reads."""


LAYERS: dict[str, tuple[Layer, ...]] = {
    "desert": (
        Layer("dunes", 44.0, 5.0, 4.2, 24.0, (0.80, 0.52, 0.28), 0.45, 3),
        Layer("dunes", 20.0, 1.5, 1.7, 12.0, (0.93, 0.70, 0.38), 0.12, 17),
    ),
    "snow": (
        Layer("ridge", 46.0, 5.0, 2.6, 9.0, (0.74, 0.83, 0.95), 0.35, 5),
        Layer("ridge", 21.0, 1.7, 0.9, 5.0, (0.90, 0.95, 1.0), 0.10, 19),
    ),
    "grass": (Layer("ridge", 40.0, 2.6, 0.6, 8.0, (0.24, 0.50, 0.22), 0.45, 7),),
    "sea": (Layer("islands", 70.0, 0.0, 7.0, 26.0, (0.30, 0.42, 0.40), 0.55, 9),),
    "city": (
        Layer("blocks", 34.0, 8.0, 5.0, 5.0, (0.48, 0.52, 0.60), 0.50, 2),
        Layer("houses", 19.0, 4.6, 3.4, 4.4, (0.72, 0.50, 0.42), 0.0, 21),
    ),
    "hills": (
        Layer("ridge", 50.0, 9.5, 3.4, 9.5, (0.42, 0.62, 0.34), 0.50, 4),
        Layer("ridge", 30.0, 4.4, 2.4, 6.2, (0.36, 0.60, 0.22), 0.22, 11),
        Layer("ridge", 18.0, 1.7, 1.0, 4.2, (0.46, 0.68, 0.22), 0.05, 23),
    ),
    "mountains": (
        Layer("peaks", 60.0, 8.5, 11.5, 12.0, (0.46, 0.48, 0.56), 0.25, 6),
        Layer("peaks", 24.0, 1.6, 1.8, 6.0, (0.38, 0.38, 0.40), 0.05, 25),
    ),
    "forest": (
        Layer("firs", 34.0, 8.5, 3.0, 3.6, (0.10, 0.34, 0.22), 0.34, 8),
        Layer("firs", 22.0, 5.2, 2.0, 3.2, (0.06, 0.30, 0.15), 0.16, 16),
        Layer("firs", 14.5, 3.0, 1.4, 3.4, (0.05, 0.24, 0.10), 0.0, 27),
    ),
}
SNOW_CAP: Color = (0.96, 0.97, 1.0)
SAMPLES = {"blocks": 3, "houses": 3, "firs": 2}
"""Columns per pixel where outlines have steps or steep sides."""

PLANES = ("blocks", "houses")
"""Streets are straight: these stand on a plane across the world and not on a cylinder."""


def _cell(table: Tensor, number: Tensor, offset: int) -> Tensor:
    """Random numbers of the cells of a row."""
    return table.gather(1, torch.remainder(number.long() + offset, TABLE))  # [M, columns]


def _outline(layer: Layer, table: Tensor, s: Tensor) -> Tensor:
    """Height in metres at the length s along the cylinder."""
    place = s / layer.length
    number = torch.floor(place)
    part = place - number
    start = 6.2832 * table[:, layer.offset : layer.offset + 1]
    if layer.shape == "ridge":
        fine = 0.35 * torch.sin(2.17 * place + 2.0 * start)
        return layer.height + layer.swing * (0.65 * torch.sin(place + start) + fine)
    if layer.shape == "dunes":
        wave = torch.sin(1.57 * place + start)
        crest = 1.0 - torch.sqrt(wave * wave + 0.02)
        return layer.height + layer.swing * (crest - 0.4 + 0.2 * torch.sin(0.6 * place + 2.0 * start))
    if layer.shape == "islands":
        return layer.swing * torch.sin(1.4 * place + start) * torch.sin(0.53 * place + 1.7 * start) - 1.0
    if layer.shape == "peaks":
        knots = [
            torch.where(torch.remainder(k, 2.0) > 0.5, 0.6 + 0.4 * r, 0.3 * r)
            for k in (number, number + 1.0)
            for r in (_cell(table, k, layer.offset),)
        ]
        return layer.height * 0.4 + layer.swing * torch.lerp(knots[0], knots[1], part)
    random = _cell(table, number, layer.offset)
    if layer.shape == "firs":
        middle = 0.5 + 0.16 * (_cell(table, number + 7, layer.offset) - 0.5)
        side = 1.0 - (part - middle).abs() / 0.42
        return (layer.height + layer.swing * (2.0 * random - 1.0)) * side.clamp_min(0.0)
    # Houses and blocks: one flat roof per cell.
    return layer.height + layer.swing * (random - 0.3)


def _cut(view: View, layer: Layer, u: Tensor) -> tuple[Tensor, Tensor]:
    """Length along the cylinder and depth where the ray of each column meets it."""
    focal, sine, cosine = (view.column(k).squeeze(1) for k in ("focal", "sin", "cos"))
    x, z = view.column("x").squeeze(1), view.column("z").squeeze(1)
    side = u / focal  # [M, columns]
    dx, dz = sine + side * cosine, cosine - side * sine
    a, b, c = dx * dx + dz * dz, x * dx + z * dz, x * x + z * z - layer.radius**2
    if layer.shape in PLANES:
        depth = (layer.radius - z) / dz.clamp_min(0.1)
        return x + depth * dx, depth
    depth = (torch.sqrt((b * b - a * c).clamp_min(0.0)) - b) / a
    return layer.radius * torch.atan2(x + depth * dx, z + depth * dz), depth


def layer_rows(view: View, layer: Layer) -> int:
    """How many rows from the top a layer can touch."""
    lowest = max(k.horizon + k.focal * k.y / max(0.8 * layer.radius - abs(k.z), 5.0) for k in view.cameras)
    return max(0, min(view.height, int((lowest + 0.5) * view.height) + 2))


def draw_layer(image: Tensor, distance: Tensor | None, view: View, layer: Layer) -> None:
    """One layer over what is behind it; `distance` [M, H, W] gets its depth."""
    rows = layer_rows(view, layer)
    if rows == 0:
        return
    table, u, samples = view.tables(), view.u.view(1, -1), SAMPLES.get(layer.shape, 1)
    s, depth = _cut(view, layer, u)  # [M, W]
    scale = view.column("focal") / depth.unsqueeze(1)  # [M, 1, W]
    v = view.v[:, :rows]
    horizon, eye = view.column("horizon"), view.column("y")
    cover = torch.zeros((), device=view.device)
    for sample in range(samples):
        step = (sample + 0.5) / samples - 0.5
        at, far = _cut(view, layer, u + step / view.height) if samples > 1 else (s, depth)
        rise = _outline(layer, table, at).unsqueeze(1) - eye
        top = horizon - rise * view.column("focal") / far.unsqueeze(1)
        pace: Tensor | float = view.height
        if samples == 1:
            lean = torch.diff(top, dim=2, append=top[:, :, -1:]) * view.height
            pace = view.height / torch.sqrt(1.0 + lean.clamp(-4.0, 4.0) ** 2)
        cover = cover + ((v - top) * pace + 0.5).clamp(0.0, 1.0) / samples
    foot = horizon + eye * scale
    cover = cover * ((foot - v) * view.height + 0.5).clamp(0.0, 1.0)  # [M, rows, W]
    part = image[:, :, :rows]
    color = _paint(view, layer, table, s, (horizon - v) / scale + eye)
    image[:, :, :rows] = torch.lerp(part, color, cover.unsqueeze(1))
    if distance is not None:
        near = depth.unsqueeze(1).expand_as(cover)
        distance[:, :rows] = torch.where(cover > 0.5, near, distance[:, :rows])


def _paint(view: View, layer: Layer, table: Tensor, s: Tensor, height: Tensor) -> Tensor:
    """Colours of a layer; height is that of the point behind each pixel in metres."""
    lights = view.lights()
    base = view.colors([grade(layer.color, k, layer.haze) for k in lights])  # [M, 3, 1, 1]
    if layer.shape == "houses":
        return _houses(view, layer, table, s, height)
    side = view.numbers([1.0 if k.sun_azimuth >= 0 else -1.0 for k in view.scenes]).squeeze(1)
    if layer.shape == "blocks":
        tone = 0.86 + 0.28 * _cell(table, torch.floor(s / layer.length), layer.offset + 5)
    elif layer.shape == "firs":
        place = s / layer.length
        part = place - torch.floor(place)
        tone = 0.88 + 0.30 * soft_step(0.5 + 2.5 * side * (part - 0.5))
    else:
        step = 0.02 * layer.length
        rise = (_outline(layer, table, s + step) - _outline(layer, table, s - step)) / (2.0 * step)
        tone = 0.84 + 0.28 * soft_step(0.5 - 1.2 * side * rise)
    lit = base * tone.unsqueeze(1).unsqueeze(1)  # [M, 3, 1, W]
    if layer.shape != "peaks" or layer.swing < 5.0:
        return lit
    teeth = (torch.remainder(s / 3.2, 1.0) - 0.5).abs() * 3.2
    line = layer.height * 0.4 + layer.swing * 0.52 + teeth  # [M, W]
    cap = view.colors([grade(SNOW_CAP, k, layer.haze * 0.5) for k in lights]) * tone.unsqueeze(1).unsqueeze(1)
    cover = ((height - line.unsqueeze(1)) / 0.6 + 0.5).clamp(0.0, 1.0)
    return torch.lerp(lit, cap, cover.unsqueeze(1))  # [M, 3, rows, W]


FACADES: tuple[Color, ...] = ((0.74, 0.47, 0.38), (0.80, 0.70, 0.54), (0.52, 0.57, 0.66), (0.66, 0.60, 0.60))


def _houses(view: View, layer: Layer, table: Tensor, s: Tensor, height: Tensor) -> Tensor:
    """Facades, each with two wide windows per floor; at night most of them are lit."""
    lights = view.lights()
    place = s / layer.length
    number = torch.floor(place)
    which = (_cell(table, number, layer.offset + 9) * len(FACADES)).long().clamp_max(len(FACADES) - 1)
    tones = torch.stack([view.colors([grade(k, light) for light in lights]) for k in FACADES], 1)
    tones = tones.view(-1, len(FACADES), 3).transpose(1, 2)  # [M, 3, facades]
    wall = tones.gather(2, which.unsqueeze(1).expand(-1, 3, -1)).unsqueeze(2)  # [M, 3, 1, W]
    half = 2.0 * (place - number)
    column = torch.floor(half)
    across = (half - column - 0.5).abs() * (0.5 * layer.length)  # metres from the middle of a window
    floors = height / 2.3 - 0.3
    floor = torch.floor(floors)
    down = (floors - floor - 0.5).abs() * 2.3  # [M, rows, W]
    pixel = layer.radius / (view.column("focal") * view.height)  # metres
    wide = ((0.62 - across.unsqueeze(1)) / pixel + 0.5).clamp(0.0, 1.0)
    tall = ((0.68 - down) / pixel + 0.5).clamp(0.0, 1.0)
    key = (number * 2 + column).unsqueeze(1) * 5 + floor * 11
    random = table.gather(1, torch.remainder(key.long(), TABLE).flatten(1)).view_as(key)
    amount = view.numbers([k.window_amount for k in lights])
    # By night a third of the windows is dark; by day all mirror the sky a little differently.
    night = view.numbers([1.0 if k.time == "night" else 0.0 for k in view.scenes])
    shown = wide * tall * amount * torch.where(random < 0.35, 1.0 - 0.85 * night, torch.ones_like(random))
    shown = shown * (floor >= 0).float()
    return torch.lerp(wall, view.colors([k.windows for k in lights]), shown.unsqueeze(1))
