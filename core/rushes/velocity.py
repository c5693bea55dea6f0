# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Velocity: what the solver asks at every step, answered by one transformer or two experts, one in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from rushes.attention.layers import SparseLayers
from rushes.conditions import Conditions
from rushes.model.loading import Modules
from rushes.model.parallel import Team
from rushes.model.reuse import Reuse
from rushes.model.text import summarize
from rushes.model.transformer import Context, Control, Transformer
from rushes.progress import Cancel, Cancelled
from rushes.sampling.guidance import classifier_free, experts
from rushes.sampling.known_frames import FrameVelocity

HIGH, LOW = "transformer", "transformer_low"


class GuidedVelocity:
    """The velocity of one shot, a `FrameVelocity`.

    features: text of the prompt and, where guidance is on, of the negative prompt, [1, text_len, text_dim] each.
    guidance: of the high-noise and the low-noise expert. boundary: a sigma; None for one transformer.
    enter: called with the part's name before its first work. sparse: of self-attention, None for all of it.
    team: the processes that share the work. reuse: what steps keep for the next ones, None for nothing. guided_steps:
    from this step on guidance is left out; None for never.
    """

    def __init__(
        self,
        modules: Modules,
        features: Sequence[Tensor],
        given: Conditions,
        guidance: tuple[float, float],
        boundary: float | None,
        enter: Callable[[str], None],
        cancel: Cancel | None,
        sparse: SparseLayers | None = None,
        team: Team | None = None,
        reuse: Reuse | None = None,
        guided_steps: int | None = None,
    ) -> None:
        self._sparse, self._team, self._reuse, self._guided_steps = sparse, team, reuse, guided_steps
        self._modules, self._features, self._given = modules, features, given
        self._guidance = {HIGH: guidance[0], LOW: guidance[1]}
        self._boundary, self._enter, self._cancel = boundary, enter, cancel
        self._part, self._is_guided = "", True
        self._active: FrameVelocity | None = None

    def __call__(self, x: Tensor, sigma: float, timestep: float | Tensor, step: int) -> Tensor:
        if self._sparse is not None:
            self._sparse.begin_step(step)
        if self._reuse is not None:
            self._reuse.begin_step(step)
        # made anew each time: kept, they would hold this object in a cycle, and with it an expert's weights
        high, low = partial(self._ask, HIGH), partial(self._ask, LOW)
        velocity = high if self._boundary is None else experts(high, low, self._boundary)
        return velocity(x, sigma, timestep, step)

    def _ask(self, part: str, x: Tensor, sigma: float, timestep: float | Tensor, step: int) -> Tensor:
        is_guided = self._guided_steps is None or step < self._guided_steps
        if self._part != part or self._active is None or self._is_guided != is_guided:
            self._active = None  # and with it the other expert's contexts and the last hold on its weights
            if self._part != part:
                self._enter(part)
            if self._reuse is not None:
                self._reuse.forget()
            self._part, self._is_guided = part, is_guided
            self._active = self._made(part)
        return self._active(x, sigma, timestep, step)

    def _made(self, part: str) -> FrameVelocity:
        transformer = self._modules.transformer(part)
        guidance = self._guidance[part] if self._is_guided else 1.0
        cond, uncond = self._contexts(transformer, guidance > 1)
        predict = Predict(transformer, self._given, self._cancel, self._sparse, self._team, self._reuse)
        return classifier_free(predict, cond, uncond, guidance, join=Context.join)

    def _contexts(self, transformer: Transformer, is_guided: bool) -> tuple[Context, Context | None]:
        """Embedded prompt and negative prompt; None instead of the second when guidance is off."""
        pools, image = transformer.config.pooled_dim, self._given.image
        cond, *uncond = (
            transformer.context(text, image, cache=True, pooled=summarize(text) if pools else None)
            for text in (self._features if is_guided else self._features[:1])
        )
        return cond, uncond[0] if uncond else None


class Predict:
    """The transformer as guidance calls it; looks at the cancel event before every block."""

    def __init__(
        self,
        transformer: Transformer,
        given: Conditions,
        cancel: Cancel | None,
        sparse: SparseLayers | None = None,
        team: Team | None = None,
        reuse: Reuse | None = None,
    ) -> None:
        self._transformer, self._given, self._cancel, self._team = transformer, given, cancel, team
        self._reuse = reuse
        self._pattern = None if sparse is None else sparse.pattern
        self._attend = None if sparse is None else sparse.attend

    def __call__(self, x: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        if (channels := self._given.channels) is not None:
            x = torch.cat((x, channels.to(x).expand(len(x), -1, -1, -1, -1)), dim=1)
        control = [Control(latents.to(x).expand(len(x), -1, -1, -1, -1), how) for latents, how in self._given.control]
        return self._transformer(
            x, timesteps, context, control, self._check, self._pattern, self._attend, self._team, self._reuse
        )

    def _check(self, block: int) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("cancelled while denoising")
