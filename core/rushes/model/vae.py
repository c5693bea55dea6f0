# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Causal video VAE of Wan 2.1 and 2.2 (arXiv:2503.20314, section 4.1), streamed.

A clip of 1 + f n frames becomes 1 + n latent frames (f = temporal_factor). Frames go through in chunks: the first frame
alone, then any number of latent frames at a time. What a convolution must remember of the past it keeps in a `Stream`,
so memory depends on the chunk and never on the length of the clip, and the chunk size does not change the result.

Module names are those of the original checkpoints, so their state dicts load as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from rushes.model.config import VAEConfig
from rushes.model.vae_layers import (
    CausalConv3d,
    Downsample,
    DownStage,
    ResidualBlock,
    Stream,
    Upsample,
    UpStage,
    head,
    middle,
    run,
)


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.encoder_dim * m for m in (1, *config.multipliers)]
        last = len(widths) - 2
        layers: list[nn.Module] = []
        for i, (channels_in, channels_out) in enumerate(pairwise(widths)):
            temporal = i != last and config.temporal_downsample[i]
            if config.shortcuts:
                layers.append(DownStage(channels_in, channels_out, config.blocks_per_stage, i != last, temporal))
                continue
            for j in range(config.blocks_per_stage):
                layers.append(ResidualBlock(channels_in if j == 0 else channels_out, channels_out))
            if i != last:
                layers.append(Downsample(channels_out, temporal))
        self.conv1 = CausalConv3d(3 * config.patch_size**2, widths[0], (3, 3, 3))
        self.downsamples = nn.Sequential(*layers)
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.conv1(x, stream)
        for part in (self.downsamples, self.middle, self.head):
            x = run(part, x, stream)
        return x


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.decoder_dim * m for m in (config.multipliers[-1], *reversed(config.multipliers))]
        last = len(widths) - 2
        doubles_time = tuple(reversed(config.temporal_downsample))
        blocks = config.blocks_per_stage + 1
        layers: list[nn.Module] = []
        for i, (channels_in, channels_out) in enumerate(pairwise(widths)):
            temporal = i != last and doubles_time[i]
            if config.shortcuts:
                layers.append(UpStage(channels_in, channels_out, blocks, i != last, temporal))
                continue
            if i > 0:
                channels_in //= 2  # the doubling before this stage halved its channels
            for j in range(blocks):
                layers.append(ResidualBlock(channels_in if j == 0 else channels_out, channels_out))
            if i != last:
                layers.append(Upsample(channels_out, channels_out // 2, temporal))
        self.conv1 = CausalConv3d(config.latent_channels, widths[0], (3, 3, 3))
        self.middle = middle(widths[0])
        self.upsamples = nn.Sequential(*layers)
        self.head = head(widths[-1], 3 * config.patch_size**2)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.conv1(x, stream)
        for part in (self.middle, self.upsamples, self.head):
            x = run(part, x, stream)
        return x


class VideoVAE(nn.Module):
    """Frames [B, 3, 1 + f n, H, W] in [-1, 1] <-> latents [B, C, 1 + n, H / s, W / s] in model space."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.latent_channels, 2 * config.latent_channels, (1, 1, 1))
        self.conv2 = CausalConv3d(config.latent_channels, config.latent_channels, (1, 1, 1))
        self.decoder = Decoder(config)

    def posterior(self, frames: Tensor, chunk: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B, C, 1 + n, h, w] of the latents, before normalisation; see `encode`."""
        T, H, W = frames.shape[2:]
        f, s = self.config.temporal_factor, self.config.spatial_factor
        if (T - 1) % f or H % s or W % s:
            raise ValueError(
                f"frames: got {T} frames of {W}x{H}; 1 + a multiple of {f} frames, "
                f"sides in multiples of {s} are allowed"
            )
        frames = patchify(frames, self.config.patch_size)
        stream: Stream = {}
        parts = [self.encoder(frames[:, :, a:b], stream) for a, b in _chunks(T, chunk, f)]
        mean, log_variance = self.conv1(torch.cat(parts, dim=2), stream).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, frames: Tensor, chunk: int = 1) -> Tensor:
        """Latents in model space: the posterior's mean, normalised. frames: [B, 3, 1 + f n, H, W] in [-1, 1].

        chunk: latent frames at a time. Raises ValueError for a number of frames or a size that the VAE does not divide.
        """
        return self.scaled(self.posterior(frames, chunk)[0])

    def encode_keyframe(self, pictures: Tensor, first: bool) -> Tensor:
        """One latent frame [B, C, 1, h, w] in model space that stands for pictures [B, 3, H, W] in [-1, 1].

        first: for the first latent frame of a clip, which holds one frame. A later one holds several frames of motion,
        so there the picture is encoded as a still clip, and its second latent frame is taken.
        """
        held = 1 if first else 1 + self.config.temporal_factor
        still = pictures[:, :, None].expand(-1, -1, held, -1, -1).contiguous()
        return self.encode(still)[:, :, -1:]

    def decode(self, latents: Tensor, chunk: int = 1) -> Tensor:
        """All frames [B, 3, 1 + f n, H, W] in [-1, 1] of latents in model space; see `stream_decode`."""
        return torch.cat(list(self.stream_decode(latents, chunk)), dim=2)

    def stream_decode(self, latents: Tensor, chunk: int = 1, tile: int | None = None) -> Iterator[Tensor]:
        """Frames [B, 3, n, H, W] in [-1, 1], first one alone, then those of `chunk` latent frames at a time.

        tile: side of spatial tiles in latent cells; they overlap by a quarter, blended linearly. None: no tiles.
        """
        x = self.conv2(self.unscaled(latents), {})
        boxes = _tiles(x.shape[3], x.shape[4], tile)
        streams: list[Stream] = [{} for _ in boxes]
        for a, b in _chunks(x.shape[2], chunk):
            if len(boxes) == 1:
                part = self.decoder(x[:, :, a:b], streams[0])
            else:
                part = self._decode_tiles(x[:, :, a:b], boxes, streams)
            yield unpatchify(part, self.config.patch_size).clamp_(-1, 1)

    def _decode_tiles(self, x: Tensor, boxes: list[Box], streams: list[Stream]) -> Tensor:
        s = self.config.spatial_factor // self.config.patch_size
        total = weight = None
        for (top, left, bottom, right), stream in zip(boxes, streams, strict=True):
            part = self.decoder(x[:, :, :, top:bottom, left:right], stream)
            if total is None or weight is None:
                total = part.new_zeros(*part.shape[:3], x.shape[3] * s, x.shape[4] * s)
                weight = part.new_zeros(*total.shape[3:])
            ramp = _ramp(part.shape[3], top > 0, bottom < x.shape[3])[:, None] * _ramp(
                part.shape[4], left > 0, right < x.shape[4]
            )
            ramp = ramp.to(part)
            area = (slice(top * s, bottom * s), slice(left * s, right * s))
            total[..., area[0], area[1]] += part * ramp
            weight[area] += ramp
        assert total is not None and weight is not None
        return total / weight

    def scaled(self, latents: Tensor) -> Tensor:
        """Model space from the encoder's own numbers: (latents - mean) / deviation, per channel of [B, C, T, h, w]."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def unscaled(self, latents: Tensor) -> Tensor:
        """The inverse of `scaled`."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1)
        mean = torch.tensor(self.config.latents_mean, dtype=like.dtype, device=like.device).view(shape)
        std = torch.tensor(self.config.latents_std, dtype=like.dtype, device=like.device).view(shape)
        return mean, std


def _chunks(length: int, chunk: int, factor: int = 1) -> list[tuple[int, int]]:
    """Spans of a clip's frames: the first one alone, then `chunk` times `factor` at a time."""
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}; at least 1 latent frame is allowed")
    starts = [0, *range(1, length, chunk * factor)]
    return list(zip(starts, [*starts[1:], length], strict=True))


def patchify(frames: Tensor, size: int) -> Tensor:
    """[B, C, T, H, W] -> [B, C size^2, T, H / size, W / size], column offset before row offset as Wan 2.2 has it."""
    if size == 1:
        return frames
    B, C, T, H, W = frames.shape
    x = frames.reshape(B, C, T, H // size, size, W // size, size).permute(0, 1, 6, 4, 2, 3, 5)
    return x.reshape(B, C * size * size, T, H // size, W // size)


def unpatchify(x: Tensor, size: int) -> Tensor:
    """The inverse of `patchify`."""
    if size == 1:
        return x
    B, C, T, H, W = x.shape
    x = x.reshape(B, C // size**2, size, size, T, H, W).permute(0, 1, 4, 5, 3, 6, 2)
    return x.reshape(B, C // size**2, T, H * size, W * size)


Box = tuple[int, int, int, int]  # top, left, bottom, right in latent cells


def _tiles(height: int, width: int, tile: int | None) -> list[Box]:
    if tile is None:
        return [(0, 0, height, width)]
    if tile < 2:
        raise ValueError(f"tile: got {tile}; at least 2 latent cells, which can overlap, or None are allowed")
    return [(top, left, bottom, right) for top, bottom in _spans(height, tile) for left, right in _spans(width, tile)]


def _spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Spans of at most `tile` cells that cover `length` evenly and overlap by at least a quarter."""
    if length <= tile:
        return [(0, length)]
    overlap = -(-tile // 4)
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def _ramp(length: int, rises: bool, falls: bool) -> Tensor:
    """Weights of a tile's rows: rising over the first quarter and falling over the last where a neighbour overlaps."""
    position = torch.arange(length, dtype=torch.float32) + 0.5
    quarter = max(1, length // 4)
    weight = torch.ones(length)
    if rises:
        weight = torch.minimum(weight, position / quarter)
    if falls:
        weight = torch.minimum(weight, (length - position) / quarter)
    return weight
