# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""How many bytes the parts of a model need beside their weights, counted from its shape."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import NamedTuple

import torch

from rushes.model.clip import ClipVisionConfig
from rushes.model.config import TransformerConfig, VAEConfig
from rushes.model.text import TextConfig

DECODE_BYTES = 160 * 2**20  # what a decoder chunk may take; larger chunks are slower too, by page faults
STAGE_COPIES = 15  # tensors of the VAE's widest stage that live at once, measured with the convolutions' own buffers
SLACK = 1.25  # what a host makes room for, over what is counted; measured were 0.8 to 1.17 times the count, on the CPU
MIN_TILE = 8  # latent cells; smaller tiles are mostly overlap


SHORT = 0.8  # of a device's memory; a model that needs more does not keep what it can read again


class DecodePlan(NamedTuple):
    """chunk: latent frames at a time. tile: side of spatial tiles in latent cells, None for whole pictures."""

    chunk: int
    tile: int | None


def text_bytes(config: TextConfig, tokens: int, size: int) -> int:
    """Of one prompt. size: bytes of a number."""
    inner = config.heads * config.head_dim
    return size * tokens * (4 * config.dim + 4 * inner + 3 * config.ffn_dim + 2 * config.heads * tokens)


def transformer_bytes(config: TransformerConfig, batch: int, tokens: int, size: int) -> int:
    """The widest tensors of a block (time's six, q, k, v, the feed-forward; norms and sums are float32), and the text's
    keys and values, which are kept in every layer.
    """
    block = tokens * (size * (8 * config.dim + config.ffn_dim) + 4 * 4 * config.dim)
    return batch * (block + size * config.layers * 2 * config.text_len * config.dim)


def clip_bytes(config: ClipVisionConfig, pictures: int, size: int) -> int:
    """The widest tensors of a layer, of so many pictures."""
    tokens = pictures * config.tokens
    return size * tokens * (6 * config.dim + 2 * config.ffn_dim + 2 * config.heads * config.tokens)


def encode_bytes(config: VAEConfig, height: int, width: int, size: int) -> int:
    """Of latents of height x width, encoded one latent frame at a time."""
    return STAGE_COPIES * size * _cells(config) * config.encoder_dim * height * width


def decode_plan(config: VAEConfig, frames: int, height: int, width: int, size: int, limit: int | None) -> DecodePlan:
    """How to decode latents [B, C, frames, height, width]. limit: bytes that this may take; None: DECODE_BYTES, or what
    one latent frame takes.

    Chunks follow a fixed allowance, not the memory that happens to be free, because other chunks round otherwise.
    """
    each = decode_bytes(config, DecodePlan(1, None), height, width, size)
    if limit is not None and each > limit:
        return DecodePlan(1, max(MIN_TILE, int((limit / each * height * width) ** 0.5)))
    return DecodePlan(max(1, min(frames, min(limit or DECODE_BYTES, DECODE_BYTES) // each)), None)


def decode_bytes(config: VAEConfig, plan: DecodePlan, height: int, width: int, size: int) -> int:
    """What decoding latents of height x width by the plan takes."""
    if plan.tile is not None:
        height, width = min(height, plan.tile), min(width, plan.tile)
    return plan.chunk * STAGE_COPIES * size * _cells(config) * config.decoder_dim * height * width


def _cells(config: VAEConfig) -> int:
    """Values of the widest stage per latent cell and channel."""
    return (config.spatial_factor // config.patch_size) ** 2 * config.multipliers[0] * config.temporal_factor


def device_bytes(device: torch.device) -> int | None:
    """The memory of a device, in use or not; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def give_back() -> None:
    """Have the C library return to the system what the last phase has freed: glibc keeps pieces of up to 32 MB each."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
