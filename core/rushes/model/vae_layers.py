# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Layers of the causal video VAE. Those that look into the past keep what they need of it in a `Stream`."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        # Squares summed, because a norm over a dimension that is not the last is several times slower on a CPU.
        length = x.float().square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
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
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"),
            nn.Conv2d(channels, channels_out, 3, padding=1),
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


def middle(channels: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels))


def head(channels: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(RMSNorm(channels, 3), nn.SiLU(), CausalConv3d(channels, channels_out, (3, 3, 3)))


def run(layers: nn.Sequential, x: Tensor, stream: Stream) -> Tensor:
    """A sequence in which only some layers have a memory."""
    for layer in layers:
        x = layer(x, stream) if isinstance(layer, _REMEMBERING) else layer(x)
    return x


_REMEMBERING = (CausalConv3d, ResidualBlock, Downsample, Upsample, DownStage, UpStage)


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    B, _, T, _, _ = x.shape
    frames = layer(x.transpose(1, 2).flatten(0, 1))  # [B T, C, H, W]
    return cast(Tensor, frames.unflatten(0, (B, T)).transpose(1, 2))
