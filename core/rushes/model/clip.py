# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""CLIP vision tower: a picture to the tokens that Wan 2.1's image-to-video models read.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
Wan uses ViT-H/14.
Module names are those of transformers' `CLIPVisionModel`, so that its files load without renaming.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.model.config import Shapes, count_indices, required_shape
from rushes.shot import ShotError

# statistics of CLIP's own training pictures, per channel, for values in [0, 1]
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipVisionConfig:
    """Shape of one vision tower for square pictures of image_size pixels, cut into patch_size squares."""

    dim: int
    heads: int
    layers: int
    ffn_dim: int
    patch_size: int = 14
    image_size: int = 224
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide dim {self.dim}; a divisor is allowed")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size: {self.patch_size} does not divide {self.image_size}; a divisor is allowed")
        if self.layers < 2:
            raise ValueError(f"layers: got {self.layers}; 2 or more are allowed, the last but one is read")

    @property
    def tokens(self) -> int:
        """Rows that come out for one picture: one per patch and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


VIT_H14 = ClipVisionConfig(dim=1280, heads=16, layers=32, ffn_dim=5120)


class ClipVision(nn.Module):
    """Pictures to tokens, read before the last layer.

    The last layer and `post_layernorm` belong to every file of this tower and are loaded, but never run: Wan
    reads the output of the last layer but one, without a norm.
    """

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.dim, eps=config.eps)  # misspelt so in every file
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.dim, eps=config.eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens [B, tokens, dim], the class token first.

        pixels: [B, 3, image_size, image_size] from `clip_pixels`. Raises ValueError for another shape.
        """
        size = self.config.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ValueError(f"pixels: got {tuple(pixels.shape)}; [batch, 3, {size}, {size}] is allowed")
        return self.encoder(self.pre_layrnorm(self.embeddings(pixels)))


class Embeddings(nn.Module):
    """Patches and the class token, each with its learned position."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(config.dim))
        patch = config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.dim, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(config.tokens, config.dim)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))  # [B, dim, h, w]
        patches = patches.flatten(2).transpose(1, 2)  # [B, h * w, dim]
        first = self.class_embedding.expand(patches.shape[0], 1, -1)  # [B, 1, dim]
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight  # [B, tokens, dim]


class Encoder(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x)
        return x


class Layer(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.mlp = FeedForward(config)
        self.layer_norm2 = nn.LayerNorm(config.dim, eps=config.eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SelfAttention(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.dim, config.dim)
        self.k_proj = nn.Linear(config.dim, config.dim)
        self.v_proj = nn.Linear(config.dim, config.dim)
        self.out_proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, L, head_dim]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v)  # [B, H, L, head_dim]
        return self.out_proj(out.transpose(1, 2).flatten(2))  # [B, L, dim]


class FeedForward(nn.Module):
    """fc2(gelu(fc1 x)) with the exact (erf) GELU of ViT-H; OpenAI's smaller towers use another one."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def clip_pixels(images: Tensor, image_size: int = VIT_H14.image_size) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] to the tower's input [B, 3, image_size, image_size].

    As Wan does it: squeezed to a square by bicubic interpolation without antialiasing and not cropped, so
    that the whole frame is seen; then CLIP's mean and deviation.
    """
    square = F.interpolate(images.float(), size=(image_size, image_size), mode="bicubic", align_corners=False)
    mean, std = (square.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (square - mean) / std


def infer_clip_config(shapes: Shapes, *, heads: int = VIT_H14.heads) -> ClipVisionConfig:
    """The configuration that a state dict's shapes (transformers names) imply.

    heads: shapes do not tell; 16 is ViT-H's. Raises ShotError if the shapes are not CLIP's.
    """
    what = "CLIP vision tower"
    dim, _, patch_size, _ = required_shape(shapes, "embeddings.patch_embedding.weight", what, 4)
    side = round((required_shape(shapes, "embeddings.position_embedding.weight", what, 2)[0] - 1) ** 0.5)
    layers = count_indices(shapes, "encoder.layers.")
    if dim % heads or layers < 2:
        raise ShotError(f"model: {dim} channels in {layers} layers are no {what} like ViT-H; choose another")
    return ClipVisionConfig(
        dim=dim,
        heads=heads,
        layers=layers,
        ffn_dim=required_shape(shapes, "encoder.layers.0.mlp.fc1.weight", what, 2)[0],
        patch_size=patch_size,
        image_size=side * patch_size,
    )
