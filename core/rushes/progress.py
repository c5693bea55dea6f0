# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What the engine tells while it works, and how it is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

Frames = npt.NDArray[np.float32]


class Cancelled(Exception):
    """The caller's cancel event was set; nothing was written."""


@dataclass(frozen=True)
class Progress:
    """phase: text, keyframes, denoise or decode; step of steps done; seconds per step and seconds that remain."""

    phase: str
    step: int
    steps: int
    seconds_per_step: float = 0.0
    remaining: float = 0.0


@dataclass(frozen=True, eq=False)
class Denoising:
    """Where a denoising stands after `step` steps: all that `Engine.denoise` needs to go on from there, bit for bit.

    latents: float32 [1, channels, latent_frames, h, w], still noisy. history: what the clip looked like to the model in
    the last two steps (in one, after one), oldest first, as float32 latents.
    """

    step: int
    latents: Tensor
    history: tuple[Tensor, ...]


class Cancel(Protocol):
    """How work is stopped: a threading.Event, or whatever answers like one."""

    def is_set(self) -> bool: ...


OnProgress = Callable[[Progress], object]
OnState = Callable[[Denoising], object]
OnPreview = Callable[[int, Frames], object]
Prepare = Callable[[str, int], object]  # part ("text", "transformer", "vae"), bytes of activations that it will need


class Steps:
    """The solver's callback: progress with seconds per step, previews, and where the denoising stands."""

    def __init__(
        self,
        tell: OnProgress,
        on_preview: OnPreview | None,
        cancel: Cancel | None,
        preview: Callable[[Tensor], Frames],
        on_state: OnState | None,
        start: int,
        history: Sequence[Tensor],
    ) -> None:
        self._tell, self._on_preview, self._cancel, self._preview = tell, on_preview, cancel, preview
        self._on_state, self._start, self._history = on_state, start, tuple(history)
        self._started = time.perf_counter()

    def __call__(self, step: int, steps: int, x: Tensor, x0: Tensor) -> None:
        done = step + 1
        seconds = (time.perf_counter() - self._started) / (done - self._start)
        self._tell(Progress("denoise", done, steps, seconds, seconds * (steps - done)))
        if self._on_preview is not None:
            self._on_preview(step, self._preview(x0))
        if self._on_state is not None:
            self._history = (*self._history, x0)[-2:]
            self._on_state(Denoising(done, x.cpu(), tuple(t.cpu() for t in self._history)))
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("cancelled while denoising")
