# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Noise: where a shot starts. Drawn on the CPU, so that every card begins with the same bits."""

from __future__ import annotations

import torch
from torch import Tensor


def initial_noise(channels: int, latent_frames: int, height: int, width: int, seed: int) -> Tensor:
    """Unit Gaussian noise, as diffusers and ComfyUI draw it for the same seed.

    height, width: of the latent. seed: 0 ... 2^63 - 1.
    Returns float32 [1, channels, latent_frames, height, width] on the CPU; the global generator is not used.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn([1, channels, latent_frames, height, width], generator=generator, dtype=torch.float32)


def noised(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Latents at a noise level: (1 - sigma) latents + sigma noise. sigma: 0 (clean) ... 1 (noise alone)."""
    return (1.0 - sigma) * latents + sigma * noise
