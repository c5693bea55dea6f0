# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Frames to draw as tensors: cameras, lights and random tables of M frames of any number of clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rushes.starter.palette import LIGHTS, Color, Light
from rushes.starter.scene import Camera, Scene, camera_at

TABLE = 64


@dataclass(frozen=True)
class View:
    """M frames of clips: `scenes[i]`, `cameras[i]` and `times[i]` in seconds are those of frame i."""

    scenes: list[Scene]
    cameras: list[Camera]
    times: list[float]
    width: int
    height: int
    device: torch.device
    values: Tensor
    """[M, 8]: camera x, y, z, sin yaw, cos yaw, focal, horizon, time."""
    u: Tensor
    v: Tensor

    def column(self, name: str) -> Tensor:
        """One camera value of each frame."""
        return self.values[:, COLUMNS.index(name)].view(-1, 1, 1)  # [M, 1, 1]

    def lights(self) -> list[Light]:
        """The light of each frame."""
        return [LIGHTS[scene.time] for scene in self.scenes]

    def numbers(self, values: Sequence[float]) -> Tensor:
        """One number for each frame."""
        return torch.tensor(values, dtype=torch.float32, device=self.device).view(-1, 1, 1)  # [M, 1, 1]

    def colors(self, values: Sequence[Color]) -> Tensor:
        """One colour for each frame."""
        return torch.tensor(values, dtype=torch.float32, device=self.device).view(-1, 3, 1, 1)  # [M, 3, 1, 1]

    def tables(self) -> Tensor:
        """The random numbers in [0, 1) of each frame's clip, from its layer seed alone."""
        known: dict[int, Tensor] = {}
        for scene in self.scenes:
            if scene.layer_seed not in known:
                generator = torch.Generator().manual_seed(scene.layer_seed)
                known[scene.layer_seed] = torch.rand(TABLE, generator=generator)
        rows = torch.stack([known[scene.layer_seed] for scene in self.scenes])
        return rows.to(self.device)  # [M, TABLE]


COLUMNS = ("x", "y", "z", "sin", "cos", "focal", "horizon", "time")


def make_view(scenes: list[Scene], frames: Sequence[float], width: int, height: int, device: torch.device) -> View:
    """Frame `frames[i]` of `scenes[i]`, for each i."""

    cameras = [camera_at(scene, frame) for scene, frame in zip(scenes, frames, strict=True)]
    times = [frame / scene.fps for scene, frame in zip(scenes, frames, strict=True)]
    rows = [
        (c.x, c.y, c.z, math.sin(c.yaw), math.cos(c.yaw), c.focal, c.horizon, t)
        for c, t in zip(cameras, times, strict=True)
    ]
    values = torch.tensor(rows, dtype=torch.float32, device=device)  # [M, 8]
    u = (torch.arange(width, dtype=torch.float32, device=device) + 0.5 - width / 2) / height
    v = (torch.arange(height, dtype=torch.float32, device=device) + 0.5 - height / 2) / height
    return View(scenes, cameras, times, width, height, device, values, u.view(1, 1, width), v.view(1, height, 1))


def soft_step(x: Tensor) -> Tensor:
    """The smooth step from 0 to 1 over [0, 1]."""
    x = x.clamp(0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)
