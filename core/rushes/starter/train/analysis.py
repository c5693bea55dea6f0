# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What can be measured in a clip without a network: PSNR, the colour of pixels, the path of a colour, a seam.

Frames are float [T, H, W, 3], display sRGB in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from rushes.starter.palette import LIGHTS, SUBJECTS, subject_color
from rushes.starter.scene import COLORS

SHADES = (0.45, 1.2)  # how much darker or brighter than its colour a subject's surface may be
NEAR = 0.16  # farthest a pixel may be from a colour, as a distance in RGB
LEAST = 12  # pixels of a subject that count as seen
STEP = 0.05  # frame heights: shorter ways are no motion


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in [0, 1]; 100 for equal ones."""
    return float(-10 * (a.float() - b.float()).square().mean().clamp_min(1e-10).log10())


def nearest_colors(pixels: Tensor, time: str) -> tuple[Tensor, Tensor]:
    """The subject colour each pixel [..., 3] is nearest to under a light, and how far it is: int64 and float [...].

    Shading is allowed for: the distance is to the best of the colour's shades.
    """
    colors = torch.tensor([subject_color(SUBJECTS[c], LIGHTS[time]) for c in COLORS], device=pixels.device)  # [10, 3]
    shade = (pixels @ colors.T / colors.square().sum(1)).clamp(*SHADES)  # [..., 10]
    distance = (pixels[..., None, :] - shade[..., None] * colors).norm(dim=-1)
    least = distance.min(-1)
    return least.indices, least.values


def color_inside(frames: Tensor, mask: Tensor, time: str) -> str | None:
    """The colour that most pixels inside a mask [T, H, W] have; None when too few have any."""
    which, distance = nearest_colors(frames[mask], time)
    votes = torch.bincount(which[distance < NEAR], minlength=len(COLORS))
    return COLORS[int(votes.argmax())] if votes.max() >= LEAST else None


def color_path(frames: Tensor, color: str, time: str) -> Tensor:
    """Where pixels of a colour are that come and go, [T, 3]: x and y of their median in frame heights, and how many.

    What has the colour in most frames is scenery, or the part of a slow subject that covers the same pixels all along;
    both say nothing about motion. The camera must not move.
    """
    which, distance = nearest_colors(frames, time)
    hit = (which == COLORS.index(color)) & (distance < NEAR)  # [T, H, W]
    hit &= hit.float().mean(0) <= 0.5
    rows = []
    for frame in hit:
        y, x = frame.nonzero(as_tuple=True)
        middle = (float(x.median()), float(y.median())) if len(x) else (0.0, 0.0)
        rows.append([middle[0] / frames.shape[1], middle[1] / frames.shape[1], float(len(x))])
    return torch.tensor(rows)


def direction(frames: Tensor, color: str, time: str) -> str | None:
    """left, right, rise or fall: the way that a subject of this colour goes under a still camera; None when unsure."""
    path = color_path(frames, color, time)
    third = max(1, len(path) // 3)
    ends = []
    for part in (path[:third], path[-third:]):
        seen = part[part[:, 2] >= LEAST]
        if not len(seen):
            return None
        ends.append(seen[:, :2].mean(0))
    x, y = (ends[1] - ends[0]).tolist()
    if max(abs(x), abs(y)) < STEP:
        return None
    if abs(x) >= abs(y):
        return "right" if x > 0 else "left"
    return "fall" if y > 0 else "rise"


def seam(frames: Tensor, at: int) -> tuple[float, float]:
    """Mean change from frame to frame: where frame `at` joins the ones before it, and among those before it."""
    change = frames[1:].float().sub(frames[:-1]).abs().mean((1, 2, 3))  # [T - 1]
    return float(change[at - 1]), float(change[: at - 1].mean())
