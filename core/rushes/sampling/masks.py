# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Masks: the extra input channels that tell Wan I2V and Wan VACE which pixels are given. Pure functions.

Videos are [1, 3, F, H, W] in [-1, 1], F = 4 n + 1 frames; latents are [1, 16, T, h, w], T = n + 1, h = H / 8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TIME = 4  # frames in a latent frame (the first latent frame holds one)
SPACE = 8  # pixels along the edge of a latent pixel


def grey_where_unknown(video: Tensor, known: Tensor) -> Tensor:
    """The condition video of Wan I2V: known frames as they are, the others 0 (mid grey).

    video: [1, 3, F, H, W]; known: bool [F]. Encode the result for `image_condition`.
    """
    _check_known(known, video.shape[2])
    return torch.where(known.to(video.device).view(1, 1, -1, 1, 1), video, torch.zeros_like(video))


def image_mask(known: Tensor, height: int, width: int) -> Tensor:
    """The 4 mask channels of Wan I2V, FLF2V and "extend": 1 where a frame is given.

    known: bool [F], F = 4 n + 1; frame 0 for image-to-video, first and last to connect, several first ones to
    extend. height, width: of the latent.
    Returns float32 [1, 4, T, height, width]: channel c of latent frame t is pixel frame 4 (t - 1) + 1 + c;
    latent frame 0 is pixel frame 0 four times, because the VAE encodes that frame alone.
    """
    _check_known(known, len(known))
    spread = torch.cat([known[:1].expand(TIME), known[1:]]).float()  # [4 T]
    mask = spread.view(-1, TIME).T  # [4, T]
    return mask[None, :, :, None, None].expand(1, TIME, -1, height, width).contiguous()  # [1, 4, T, h, w]


def image_condition(mask: Tensor, latents: Tensor) -> Tensor:
    """What Wan I2V wants behind its 16 noisy channels: [mask 4 | condition latent 16].

    mask: from `image_mask`, [1, 4, T, h, w]; latents: the encoded condition video. Returns [1, 20, T, h, w].
    """
    _check_fits("mask", mask, TIME, latents)
    return torch.cat([mask.to(latents), latents], dim=1)


def vace_split(video: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(inactive, reactive): the video where it is kept and where it is made anew, 0 elsewhere. Encode both.

    video: [1, 3, F, H, W]; mask: [1, 1, F, H, W] in [0, 1], above 0.5 = make anew.
    """
    is_reactive = mask > 0.5
    nothing = torch.zeros_like(video)
    return torch.where(is_reactive, nothing, video), torch.where(is_reactive, video, nothing)


def vace_mask(mask: Tensor) -> Tensor:
    """The 64 mask channels of Wan VACE: each 8 x 8 block of pixels goes to the channels of its latent pixel.

    mask: [1, 1, F, H, W] in [0, 1], 1 = make anew; grey stays grey, as in Wan's code. H, W: multiples of 8.
    Returns [1, 64, T, H / 8, W / 8], T = (F + 3) // 4; latent frame t takes the pixel frame under its middle
    (torch's "nearest-exact": floor((t + 1/2) F / T)). Raises ValueError for other shapes.
    """
    if mask.ndim != 5 or mask.shape[:2] != (1, 1) or mask.shape[3] % SPACE or mask.shape[4] % SPACE:
        raise ValueError(f"mask: got {list(mask.shape)}; [1, 1, F, H, W] with H and W multiples of {SPACE} is allowed")
    frames, height, width = mask.shape[2], mask.shape[3] // SPACE, mask.shape[4] // SPACE
    latent_frames = (frames + TIME - 1) // TIME
    middles = [(2 * t + 1) * frames // (2 * latent_frames) for t in range(latent_frames)]
    mask = mask[0, 0, middles]  # [T, H, W]
    blocks = mask.view(latent_frames, height, SPACE, width, SPACE)  # [T, h, 8, w, 8]
    return blocks.permute(2, 4, 0, 1, 3).reshape(1, SPACE * SPACE, latent_frames, height, width)


def vace_condition(inactive: Tensor, reactive: Tensor, mask: Tensor, references: Sequence[Tensor] = ()) -> Tensor:
    """What Wan VACE's own blocks read: [inactive 16 | reactive 16 | mask 64], references first in time.

    inactive, reactive: the encoded halves of `vace_split`, [1, 16, T, h, w]; mask: from `vace_mask`;
    references: R encoded pictures [1, 16, 1, h, w], in the order of Wan's code (diffusers reverses several).
    Returns [1, 96, R + T, h, w]. The noise needs the same R more latent frames; drop them before decoding.
    """
    _check_fits("mask", mask, SPACE * SPACE, inactive)
    condition = torch.cat([inactive, reactive, mask.to(inactive)], dim=1)  # [1, 96, T, h, w]
    rest = condition.new_zeros(1, 80, 1, *condition.shape[3:])  # nothing reactive, nothing to make anew
    pictures = [torch.cat([picture, rest], dim=1) for picture in references]  # R x [1, 96, 1, h, w]
    return torch.cat([*pictures, condition], dim=2)


def _check_known(known: Tensor, frames: int) -> None:
    if known.dtype != torch.bool or list(known.shape) != [frames] or frames % TIME != 1:
        got = f"{known.dtype} {list(known.shape)} for {frames} frames"
        raise ValueError(f"known: got {got}; torch.bool [F] with F = 4 n + 1 is allowed")


def _check_fits(name: str, got: Tensor, channels: int, latents: Tensor) -> None:
    allowed = [1, channels, *latents.shape[2:]]
    if list(got.shape) != allowed:
        raise ValueError(f"{name}: got {list(got.shape)}; {allowed} is allowed with these latents")
