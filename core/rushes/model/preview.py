# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A linear map from latents to colours, fitted to a VAE: rough pictures while a shot is made, at no cost."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rushes.model.vae import VideoVAE

SIDE, PATCH = 16, 4  # latent cells along the picture and along a flat patch; patches of 8 give twice the error
RIDGE = 1e-3  # of the latents' unit variance; without it, directions that flat colours hardly use would be blown up


def fit_preview(vae: VideoVAE, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Map [channels + 1, 3] float32, on the CPU, from a latent cell in model space, and 1, to sRGB in [0, 1].

    Least squares over the cells of a still clip of flat patches in random colours, each against its patch's colour.
    """
    patches = torch.rand(1, 3, SIDE // PATCH, SIDE // PATCH, generator=torch.Generator("cpu").manual_seed(0))
    cells = F.interpolate(patches, scale_factor=PATCH)  # [1, 3, SIDE, SIDE]
    picture = F.interpolate(cells, scale_factor=vae.config.spatial_factor)  # [1, 3, H, W]
    still = picture[:, :, None].expand(-1, -1, 1 + vae.config.temporal_factor, -1, -1)
    latents = vae.encode((still * 2 - 1).to(device, dtype)).double().cpu()  # [1, C, 2, SIDE, SIDE]
    known = torch.cat((latents, torch.ones_like(latents[:, :1])), dim=1).movedim(1, -1).flatten(0, -2)  # [cells, C + 1]
    wanted = cells[:, :, None].expand(-1, -1, latents.shape[2], -1, -1).movedim(1, -1).flatten(0, -2).to(known)
    gram = known.T @ known + RIDGE * len(known) * torch.eye(known.shape[1], dtype=known.dtype)
    return torch.linalg.solve(gram, known.T @ wanted).float()
