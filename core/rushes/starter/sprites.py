# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The subjects: shapes by signed distance in a frame of their own, shaded with a few soft tones.

Each painter gets `Spot`: x across (0 in the middle) and y up (0 at the foot, 1 at the top), both in heights
of the subject, and returns cover [n, h, w] and colours [n, 3, h, w]. Edges are soft over one pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rushes.starter.palette import LIGHTS, Color, subject_color
from rushes.starter.view import soft_step


@dataclass(frozen=True)
class Spot:
    """Where and how n pictures of one kind are painted; all tensors [n, h, w] or broadcast to it."""

    x: Tensor
    y: Tensor
    pixels: Tensor
    """Pixels per height of the subject."""
    base: Tensor
    """Its colour, [n, 3, 1, 1]."""
    side: Tensor
    """+1 where the light comes from the right, -1 from the left."""
    stride: Tensor
    """Swing of the legs, -1 to 1."""
    facing: str
    tint: Callable[[Color], Tensor]
    """A colour under the light of each picture, [n, 3, 1, 1]."""

    def cover(self, distance: Tensor) -> Tensor:
        """Cover by a signed distance in heights (inside is negative)."""
        return (0.5 - distance * self.pixels).clamp(0.0, 1.0)


def _box(x: Tensor, y: Tensor, half_width: float | Tensor, half_height: float, round_by: float = 0.0) -> Tensor:
    dx, dy = x.abs() - (half_width - round_by), y.abs() - (half_height - round_by)
    outside = torch.sqrt(dx.clamp_min(0.0) ** 2 + dy.clamp_min(0.0) ** 2)
    return outside + torch.maximum(dx, dy).clamp_max(0.0) - round_by


def _disc(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.sqrt(x * x + y * y) - radius


def _ellipse(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    """Distance to an ellipse to first order, exact enough at its edge."""
    k = torch.sqrt((x / a) ** 2 + (y / b) ** 2)
    slope = torch.sqrt((x / (a * a)) ** 2 + (y / (b * b)) ** 2)
    return k * (k - 1.0) / slope.clamp_min(1e-4)


def _wedge(x: Tensor, y: Tensor, low: float, high: float, foot: float, top: float) -> Tensor:
    """Distance to an upright trapezoid between heights low and high with half widths foot and top."""
    lean = (foot - top) / (high - low)
    half = foot - lean * (y - low)
    return torch.maximum((x.abs() - half) / (1.0 + lean * lean) ** 0.5, torch.maximum(low - y, y - high))


def _lit(base: Tensor, tone: Tensor, shine: Tensor | None = None) -> Tensor:
    """A colour times a tone, with a white highlight mixed in."""
    rgb = base * tone.unsqueeze(1)
    return rgb if shine is None else torch.lerp(rgb, torch.ones_like(rgb), shine.unsqueeze(1))


def _over(rgb: Tensor, color: Tensor, cover: Tensor) -> Tensor:
    return torch.lerp(rgb, color.expand_as(rgb), cover.unsqueeze(1))


def paint_ball(spot: Spot) -> tuple[Tensor, Tensor]:
    """A shaded sphere."""
    x, y = spot.x, spot.y - 0.5
    distance = _disc(x, y, 0.5)
    lit_x, lit_y = x - 0.16 * spot.side, y - 0.18
    off = lit_x * lit_x + lit_y * lit_y
    tone = 1.08 - 0.62 * soft_step(torch.sqrt(off) / 0.78)
    return spot.cover(distance), _lit(spot.base, tone, 0.55 * torch.exp(-off / 0.012))


def paint_cube(spot: Spot) -> tuple[Tensor, Tensor]:
    """A box seen a little from above and from the side: front, roof and the side away from the light."""
    x, y = spot.x * -spot.side, spot.y
    front, lean, roof = 0.38, 0.18, 0.24
    # Front from x = -0.47 to 0.29, side face on the right, sheared upwards.
    fx = x + 0.47 - front
    step = ((x - (2.0 * front - 0.47)) / lean).clamp(0.0, 1.0)
    top = 1.0 - roof
    slant = ((y - top) / roof).clamp(0.0, 1.0)
    in_front = torch.maximum(fx.abs() - front, (y - 0.5 * top).abs() - 0.5 * top)
    edge_left, edge_right = -0.47 + lean * slant - x, x - (2.0 * front - 0.47 + lean * slant)
    in_roof = torch.maximum(torch.maximum(edge_left, edge_right) * 0.8, (y - top - 0.5 * roof).abs() - 0.5 * roof)
    low, high = roof * step - y, y - top - roof * step
    in_side = torch.maximum(torch.maximum(low, high) * 0.75, (x - (2 * front - 0.47) - 0.5 * lean).abs() - 0.5 * lean)
    whole = torch.minimum(torch.minimum(in_front, in_roof), in_side)
    tone = torch.full_like(x, 0.86)
    tone = torch.lerp(tone, torch.full_like(x, 1.12), spot.cover(in_roof))
    tone = torch.lerp(tone, torch.full_like(x, 0.52), spot.cover(in_side))
    rgb = _lit(spot.base, tone, 0.22 * spot.cover(in_roof))
    return spot.cover(whole), rgb


def paint_cone(spot: Spot) -> tuple[Tensor, Tensor]:
    """A cone with a round foot, bright towards the light."""
    x, y = spot.x, spot.y
    sides = _wedge(x, y, 0.10, 1.0, 0.47, 0.0)
    foot = _ellipse(x, y - 0.10, 0.47, 0.10)
    half = (0.47 * (1.0 - y) / 0.9).clamp_min(0.06)
    across = (x / half).clamp(-1.0, 1.0) * spot.side
    tone = 0.52 + 0.58 * soft_step(0.62 + 0.62 * across)
    return spot.cover(torch.minimum(sides, foot)), _lit(spot.base, tone)


def paint_cylinder(spot: Spot) -> tuple[Tensor, Tensor]:
    """A drum with a light lid."""
    x, y = spot.x, spot.y
    body = torch.maximum(x.abs() - 0.36, (y - 0.5).abs() - 0.39)
    foot, lid = _ellipse(x, y - 0.11, 0.36, 0.11), _ellipse(x, y - 0.88, 0.36, 0.12)
    across = (x / 0.36).clamp(-1.0, 1.0) * spot.side
    tone = 0.50 + 0.50 * soft_step(0.60 + 0.55 * across)
    top = spot.cover(lid)
    tone = torch.lerp(tone, torch.full_like(tone, 1.12), top)
    return spot.cover(torch.minimum(torch.minimum(body, foot), lid)), _lit(spot.base, tone, 0.30 * top)


GLASS: Color = (0.55, 0.75, 0.86)
RUBBER: Color = (0.06, 0.06, 0.07)
HUB: Color = (0.72, 0.72, 0.74)
SKIN: Color = (0.93, 0.72, 0.56)
BARK: Color = (0.42, 0.26, 0.14)


def paint_car(spot: Spot) -> tuple[Tensor, Tensor]:
    """A car from the side, from the front or from behind."""
    if spot.facing in ("front", "back"):
        return _car_end(spot)
    x = spot.x * (-1.0 if spot.facing == "left" else 1.0)  # its nose is at positive x
    y = spot.y
    body = _box(x, y - 0.42, 1.0, 0.22, 0.14)
    cabin = _wedge(x + 0.14, y, 0.55, 1.0, 0.68, 0.44)
    wheels = torch.minimum(_disc(x - 0.60, y - 0.21, 0.21), _disc(x + 0.60, y - 0.21, 0.21))
    hubs = torch.minimum(_disc(x - 0.60, y - 0.21, 0.09), _disc(x + 0.60, y - 0.21, 0.09))
    glass = torch.maximum(_wedge(x + 0.14, y, 0.62, 0.91, 0.55, 0.40), 0.055 - (x + 0.12).abs())
    tone = 0.72 + 0.36 * soft_step((y - 0.2) / 0.6)
    rgb = _lit(spot.base, tone)
    rgb = _over(rgb, spot.tint(GLASS), spot.cover(glass))
    rgb = _over(rgb, spot.tint((1.0, 0.95, 0.70)), spot.cover(_box(x - 0.93, y - 0.48, 0.08, 0.07, 0.03)))
    rgb = _over(rgb, spot.tint(RUBBER), spot.cover(wheels))
    rgb = _over(rgb, spot.tint(HUB), spot.cover(hubs))
    return spot.cover(torch.minimum(torch.minimum(body, cabin), wheels)), rgb


def _car_end(spot: Spot) -> tuple[Tensor, Tensor]:
    x, y = spot.x, spot.y
    body = _box(x, y - 0.40, 0.62, 0.24, 0.12)
    cabin = _wedge(x, y, 0.55, 1.0, 0.52, 0.38)
    wheels = _box(x.abs() - 0.45, y - 0.14, 0.13, 0.14, 0.05)
    glass = _wedge(x, y, 0.64, 0.91, 0.42, 0.34)
    front = spot.facing == "front"
    lamps = _disc(x.abs() - 0.42, y - 0.44, 0.10) if front else _box(x.abs() - 0.44, y - 0.46, 0.12, 0.07, 0.03)
    tone = 0.72 + 0.36 * soft_step((y - 0.2) / 0.6)
    rgb = _lit(spot.base, tone)
    rgb = _over(rgb, spot.tint(GLASS if front else (0.25, 0.34, 0.42)), spot.cover(glass))
    rgb = _over(rgb, spot.tint((1.0, 0.96, 0.75) if front else (0.80, 0.05, 0.05)), spot.cover(lamps))
    under = spot.cover(wheels) * (1.0 - spot.cover(body))
    rgb = _over(rgb, spot.tint(RUBBER), under)
    return spot.cover(torch.minimum(torch.minimum(body, cabin), wheels)), rgb


def paint_person(spot: Spot) -> tuple[Tensor, Tensor]:
    """A figure of head, coat, arms and two legs that swing."""
    x, y = spot.x, spot.y
    head = _disc(x, y - 0.87, 0.125)
    coat = _wedge(x, y, 0.40, 0.74, 0.15, 0.12)
    shoulders = _box(x, y - 0.68, 0.16, 0.08, 0.075)
    swing = spot.stride * 0.11
    reach = (0.44 - y).clamp_min(0.0) / 0.44
    legs = torch.minimum((x - 0.07 - swing * reach).abs(), (x + 0.07 + swing * reach).abs()) - 0.062
    legs = torch.maximum(legs, torch.maximum(-y, y - 0.46))
    drop = (0.74 - y).clamp_min(0.0)
    out, sway = 0.14 + 0.28 * drop, 0.5 * swing * drop
    arms = torch.minimum((x - out - sway).abs(), (x + out - sway).abs())
    arms = torch.maximum(arms - 0.045, torch.maximum(0.42 - y, y - 0.74))
    body = torch.minimum(torch.minimum(coat, shoulders), arms)
    tone = 0.84 + 0.22 * soft_step(0.5 + 3.0 * x * spot.side)
    tone = torch.where(y < 0.41, 0.66 * tone, tone)
    rgb = _over(_lit(spot.base, tone), spot.tint(SKIN), spot.cover(head))
    return spot.cover(torch.minimum(torch.minimum(head, body), legs)), rgb


def paint_tree(spot: Spot) -> tuple[Tensor, Tensor]:
    """A round tree: a brown trunk and a crown of three lobes in the tree's colour."""
    x, y = spot.x, spot.y
    trunk = _wedge(x, y, 0.0, 0.5, 0.085, 0.06)
    crown = torch.minimum(
        _disc(x, y - 0.72, 0.28),
        torch.minimum(_disc(x - 0.20, y - 0.56, 0.22), _disc(x + 0.20, y - 0.56, 0.22)),
    )
    off = torch.sqrt((x - 0.12 * spot.side) ** 2 + (y - 0.78) ** 2)
    tone = 1.10 - 0.55 * soft_step(off / 0.55)
    leaves = spot.cover(crown)
    rgb = _over(spot.tint(BARK).expand(-1, -1, x.shape[1], x.shape[2]), _lit(spot.base, tone), leaves)
    return spot.cover(torch.minimum(trunk, crown)), rgb


PAINTERS: dict[str, Callable[[Spot], tuple[Tensor, Tensor]]] = {
    "ball": paint_ball, "cube": paint_cube, "cone": paint_cone, "cylinder": paint_cylinder,
    "car": paint_car, "person": paint_person, "tree": paint_tree,
}  # fmt: skip


def tinter(times: list[str], device: torch.device) -> Callable[[Color], Tensor]:
    """What gives a colour under the light of each of n pictures."""

    def tint(color: Color) -> Tensor:
        values = [subject_color(color, LIGHTS[time]) for time in times]
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 3, 1, 1)  # [n, 3, 1, 1]

    return tint
