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
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.model.config import VAEConfig

Stream = dict[nn.Module, Tensor]  # what each causal layer remembers of earlier chunks; a new clip starts with {}


class CausalConv3d(nn.Conv3d):
    """3-D convolution that sees the present and the past: kernel_t - 1 remembered (or zero) frames go in front."""

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(channels_in, channels_out, kernel, stride=(stride, 1, 1), padding=padding)
        self.history = kernel[0] - 1

    def forward(self, x: Tensor, stream: Stream) -> Tensor:  # type: ignore[override]
        if self.history:
            past = stream.get(self)
            if past is None:
                past = x.new_zeros(*x.shape[:2], self.history, *x.shape[3:])
            x = torch.cat([past, x], dim=2)  # [B, C, history + T, H, W]
            stream[self] = x[:, :, -self.history :].clone()  # a view would keep the whole chunk alive
        return super().forward(x)


class RMSNorm(nn.Module):
    """Unit length over channels, times sqrt(channels) and a learned gain."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
        gain = self.gamma.shape[0] ** 0.5 / length  # [B, 1, T, H, W]
        return x * gain.to(x.dtype) * self.gamma.to(x.dtype)


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        # Indices 1, 4 and 5 (activations, dropout) hold no weights; they keep the original numbering.
        self.residual = nn.Sequential(
            RMSNorm(channels_in, 3),
            nn.SiLU(),
            CausalConv3d(channels_in, channels_out, (3, 3, 3)),
            RMSNorm(channels_out, 3),
            nn.SiLU(),
            nn.Identity(),
            CausalConv3d(channels_out, channels_out, (3, 3, 3)),
        )
        self.shortcut = CausalConv3d(channels_in, channels_out, (1, 1, 1)) if channels_in != channels_out else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x, stream)
        return run(self.residual, x, stream) + shortcut


class AttentionBlock(nn.Module):
    """Single-head self-attention within each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        B, C, T, H, W = x.shape
        frames = x.transpose(1, 2).reshape(B * T, C, H, W)
        qkv = self.to_qkv(self.norm(frames))  # [B T, 3 C, H, W]
        q, k, v = qkv.flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)  # each [B T, 1, H W, C]
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed[:, 0].transpose(1, 2).reshape(B * T, C, H, W)
        return x + self.proj(mixed).reshape(B, T, C, H, W).transpose(1, 2)


class Downsample(nn.Module):
    """Half the picture, and half the frame rate where `temporal`. The first frame of a clip passes time unchanged."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        # No zero history here: the frame before a chunk is always real, the first one having passed through.
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = _per_frame(self.resample, x)
        if self.time_conv is None:
            return x
        past = stream.get(self)
        stream[self] = x[:, :, -1:].clone()  # a view would keep the whole chunk alive
        if past is None:
            return x
        return cast(Tensor, self.time_conv(torch.cat([past, x], dim=2)))  # [B, C, T / 2, H, W]


class Upsample(nn.Module):
    """Twice the picture, and twice the frame rate where `temporal`. The first latent frame gives one frame."""

    def __init__(self, channels: int, channels_out: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"), nn.Conv2d(channels, channels_out, 3, padding=1)
        )
        self.time_conv = CausalConv3d(channels, channels * 2, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        if self.time_conv is not None:
            if self in stream:
                pair = self.time_conv(x, stream)  # [B, 2 C, T, H, W]
                B, _, T, H, W = pair.shape
                x = pair.reshape(B, 2, -1, T, H, W).permute(0, 2, 3, 1, 4, 5).reshape(B, -1, 2 * T, H, W)
            else:
                stream[self] = x.new_empty(0)  # the mark that the first latent frame has passed
        return _per_frame(self.resample, x)


class Average(nn.Module):
    """Shortcut of a down stage: space (and time) folded into channels, then averaged in groups."""

    def __init__(self, channels_in: int, channels_out: int, time: int, space: int) -> None:
        super().__init__()
        self.channels_out, self.time, self.space = channels_out, time, space
        if channels_in * time * space**2 % channels_out:
            raise ValueError(f"VAE: {channels_in} channels cannot be averaged into {channels_out}")

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.time, 0))  # the lone first frame gets a black one before it
        B, C, T, H, W = x.shape
        t, s = self.time, self.space
        x = x.reshape(B, C, T // t, t, H // s, s, W // s, s).permute(0, 1, 3, 5, 7, 2, 4, 6)
        return x.reshape(B, self.channels_out, -1, T // t, H // s, W // s).mean(2)


class Duplicate(nn.Module):
    """Shortcut of an up stage: channels repeated and unfolded into space (and time)."""

    def __init__(self, channels_in: int, channels_out: int, time: int, space: int) -> None:
        super().__init__()
        self.channels_out, self.time, self.space = channels_out, time, space
        if channels_out * time * space**2 % channels_in:
            raise ValueError(f"VAE: {channels_in} channels cannot be repeated into {channels_out}")
        self.repeats = channels_out * time * space**2 // channels_in

    def forward(self, x: Tensor, first: bool) -> Tensor:
        x = x.repeat_interleave(self.repeats, dim=1)
        B, _, T, H, W = x.shape
        t, s = self.time, self.space
        x = x.reshape(B, self.channels_out, t, s, s, T, H, W).permute(0, 1, 5, 2, 6, 3, 7, 4)
        x = x.reshape(B, self.channels_out, T * t, H * s, W * s)
        return x[:, :, t - 1 :] if first else x


class DownStage(nn.Module):
    """Wan 2.2: residual blocks and a halving, with an averaging shortcut around them."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, halve: bool, temporal: bool) -> None:
        super().__init__()
        self.shortcut = Average(channels_in, channels_out, 2 if temporal else 1, 2 if halve else 1)
        layers: list[nn.Module] = [
            ResidualBlock(channels_in if i == 0 else channels_out, channels_out) for i in range(blocks)
        ]
        if halve:
            layers.append(Downsample(channels_out, temporal))
        self.downsamples = nn.Sequential(*layers)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        return run(self.downsamples, x, stream) + self.shortcut(x)


class UpStage(nn.Module):
    """Wan 2.2: residual blocks and a doubling, with a duplicating shortcut around them."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, double: bool, temporal: bool) -> None:
        super().__init__()
        self.shortcut = Duplicate(channels_in, channels_out, 2 if temporal else 1, 2) if double else None
        layers: list[nn.Module] = [
            ResidualBlock(channels_in if i == 0 else channels_out, channels_out) for i in range(blocks)
        ]
        if double:
            layers.append(Upsample(channels_out, channels_out, temporal))
        self.upsamples = nn.Sequential(*layers)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        first = self not in stream
        stream[self] = x.new_empty(0)
        out = run(self.upsamples, x, stream)
        return out if self.shortcut is None else out + self.shortcut(x, first)


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.encoder_dim * m for m in (1, *config.multipliers)]
        last = len(widths) - 2
        layers: list[nn.Module] = []
        for i, (channels_in, channels_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
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
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], 2 * config.latent_channels)

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
        for i, (channels_in, channels_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
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
        self.middle = _middle(widths[0])
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(widths[-1], 3 * config.patch_size**2)

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
        mean, _ = self.posterior(frames, chunk)
        shift, scale = self._statistics(mean)
        return (mean - shift) / scale

    def decode(self, latents: Tensor, chunk: int = 1) -> Tensor:
        """All frames [B, 3, 1 + f n, H, W] in [-1, 1] of latents in model space; see `stream_decode`."""
        return torch.cat(list(self.stream_decode(latents, chunk)), dim=2)

    def stream_decode(self, latents: Tensor, chunk: int = 1, tile: int | None = None) -> Iterator[Tensor]:
        """Frames [B, 3, n, H, W] in [-1, 1], first one alone, then those of `chunk` latent frames at a time.

        tile: side of spatial tiles in latent cells; they overlap by a quarter and are blended linearly. None: whole pictures.
        """
        shift, scale = self._statistics(latents)
        x = self.conv2(latents * scale + shift, {})
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

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1)
        mean = torch.tensor(self.config.latents_mean, dtype=like.dtype, device=like.device).view(shape)
        std = torch.tensor(self.config.latents_std, dtype=like.dtype, device=like.device).view(shape)
        return mean, std


def run(layers: nn.Sequential, x: Tensor, stream: Stream) -> Tensor:
    """A sequence in which only some layers have a memory."""
    for layer in layers:
        x = layer(x, stream) if isinstance(layer, _REMEMBERING) else layer(x)
    return x


_REMEMBERING = (CausalConv3d, ResidualBlock, Downsample, Upsample, DownStage, UpStage)


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


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels)
    )


def _head(channels: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(RMSNorm(channels, 3), nn.SiLU(), CausalConv3d(channels, channels_out, (3, 3, 3)))


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    B, _, T, _, _ = x.shape
    frames = layer(x.transpose(1, 2).flatten(0, 1))  # [B T, C, H, W]
    return cast(Tensor, frames.unflatten(0, (B, T)).transpose(1, 2))


def _chunks(length: int, chunk: int, factor: int = 1) -> list[tuple[int, int]]:
    """Spans of a clip's frames: the first one alone, then `chunk` times `factor` at a time."""
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}; at least 1 latent frame is allowed")
    starts = [0, *range(1, length, chunk * factor)]
    return list(zip(starts, [*starts[1:], length], strict=True))  # noqa: RUF007


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
