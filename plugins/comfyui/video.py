# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The VIDEO of a clip whose frames are decoded when somebody saves it: until then it is as small as its latents."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from comfy_api.latest import InputImpl, Types

from rushes.engine import Engine
from rushes.progress import OnProgress
from rushes.shot import Shot

from .host import Interrupt, spoken_plainly
from .model import RushesModel


def decoded(engine: Engine, latents: torch.Tensor, shot: Shot, on_progress: OnProgress | None = None) -> torch.Tensor:
    """All frames as IMAGE: float32 [frames, height, width, 3]."""
    assert shot.size is not None and shot.frames is not None
    frames = np.empty((shot.frames, shot.size[1], shot.size[0], 3), np.float32)  # filled, not joined: half the memory
    at = 0
    for chunk in engine.decode(latents, on_progress, Interrupt()):
        frames[at : at + len(chunk)] = chunk
        at += len(chunk)
    return torch.from_numpy(frames)


class _Components:
    """Stands for Types.VideoComponents; the frames come with the first look at them."""

    audio = None
    metadata = None

    def __init__(self, model: RushesModel, latents: torch.Tensor, shot: Shot) -> None:
        assert shot.fps is not None
        self._model, self._latents, self._shot = model, latents, shot
        self.frame_rate: Fraction = shot.fps

    @cached_property
    def images(self) -> torch.Tensor:
        with spoken_plainly():
            return decoded(self._model.engine, self._latents, self._shot)


class LazyVideo(InputImpl.VideoFromComponents):
    """A VIDEO like ComfyUI's own, which keeps no frames between its uses."""

    def __init__(self, model: RushesModel, latents: torch.Tensor, shot: Shot) -> None:
        super().__init__(_Components(model, latents, shot))
        self._source = (model, latents, shot)

    def _decoded(self) -> Any:
        parts = _Components(*self._source)
        return InputImpl.VideoFromComponents(
            Types.VideoComponents(images=parts.images, audio=None, frame_rate=parts.frame_rate)
        )

    def get_components(self) -> Any:
        return self._decoded().get_components()

    def save_to(self, *arguments: Any, **options: Any) -> Any:
        return self._decoded().save_to(*arguments, **options)

    def get_dimensions(self) -> tuple[int, int]:
        size = self._source[2].size
        assert size is not None
        return size

    def get_frame_count(self) -> int:
        frames = self._source[2].frames
        assert frames is not None
        return frames

    def get_frame_rate(self) -> Fraction:
        rate = self._source[2].fps
        assert rate is not None
        return rate

    def get_duration(self) -> float:
        return float(self.get_frame_count() / self.get_frame_rate())
