# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Known frames: latent frames that are given (a keyframe, the end of a shot before); the others are made.

As Wan 2.2 TI2V does it: at every step the known latent frames are clean and their timestep is 0, so the noise
level differs from frame to frame inside one clip; after the last step they are put back, bit for bit.

    velocity = hold(classifier_free(predict, cond, uncond, guidance), known)
    latents = put_back(euler(velocity, noise, schedule), known)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rushes.sampling.solvers import Velocity

# Like Velocity, and also ready for one timestep per latent frame: a tensor [B, T]
FrameVelocity = Callable[[Tensor, float, "float | Tensor", int], Tensor]


@dataclass(frozen=True, eq=False)
class KnownFrames:
    """Latent frames that are given.

    latents: [1, C, T, h, w] in model space; what stands in frames that are not known does not matter.
    mask: bool [T], True where the frame is known. Raises ValueError for other shapes.
    """

    latents: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.latents.ndim != 5 or self.latents.shape[0] != 1:
            shape = list(self.latents.shape)
            raise ValueError(f"known frames: got latents {shape}; [1, C, T, h, w] is allowed")
        frames = self.latents.shape[2]
        if self.mask.dtype != torch.bool or list(self.mask.shape) != [frames]:
            got = f"{self.mask.dtype} {list(self.mask.shape)}"
            raise ValueError(f"known frames: got a mask {got}; torch.bool [{frames}] is allowed")


def hold(velocity: FrameVelocity, known: KnownFrames) -> Velocity:
    """A velocity that sees the known frames clean and drives them to themselves; the solver need not know.

    The inner velocity gets timesteps [B, T], 0 at known frames. Where a frame is known the answer is
    (x - known) / sigma: then x0 = x - sigma v is the known frame, in previews too, whatever the model says.
    """

    def held(x: Tensor, sigma: float, timestep: float, step: int) -> Tensor:
        clean, is_known = _aligned(x, known)
        timesteps = timesteps_for(timestep, known, x.shape[2], x.shape[0], device=x.device)
        v = velocity(torch.where(is_known, clean, x), sigma, timesteps, step)
        return torch.where(is_known, (x - clean) / sigma, v)

    return held


def put_back(x: Tensor, known: KnownFrames) -> Tensor:
    """x with the known latent frames in their place, bit for bit (in x's dtype). x: [B, C, T, h, w]."""
    clean, is_known = _aligned(x, known)
    return torch.where(is_known, clean, x)


def timesteps_for(
    timestep: float, known: KnownFrames | None, frames: int, batch: int, device: torch.device | str = "cpu"
) -> Tensor:
    """The timestep of each latent frame, 0 where it is known. Returns float32 [batch, frames]."""
    timesteps = torch.full([batch, frames], timestep, dtype=torch.float32, device=device)
    if known is None:
        return timesteps
    if len(known.mask) != frames:
        raise ValueError(f"known frames: got a mask of {len(known.mask)}; {frames} is allowed with this clip")
    return timesteps.masked_fill(known.mask.to(device), 0.0)  # [B, T]


def _aligned(x: Tensor, known: KnownFrames) -> tuple[Tensor, Tensor]:
    if x.shape[1:] != known.latents.shape[1:]:
        raise ValueError(
            f"known frames: got latents {list(known.latents.shape)}; "
            f"[1, {', '.join(str(size) for size in x.shape[1:])}] is allowed with this clip"
        )
    clean = known.latents.to(device=x.device, dtype=x.dtype)
    return clean, known.mask.to(x.device).view(1, 1, -1, 1, 1)
