# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The starter model's shape: a small configuration of the same classes that hold Wan."""

from __future__ import annotations

from collections.abc import Sequence

from rushes.model.config import TransformerConfig, VAEConfig
from rushes.model.text import TextConfig
from rushes.model.tokenizer import WordTokenizer

# Sixteen numbers cannot hold a cell of 4 x 8 x 8 pixels in which something moves; see README.md, what was tried
LATENT_CHANNELS = 48
TEXT_LEN = 40  # tokens; the longest caption of the world has fewer

# Wan 2.2's VAE with one halving less: 8 x 8 pixels and 4 frames to a latent cell. Statistics are measured later.
VAE = VAEConfig(
    latent_channels=LATENT_CHANNELS,
    encoder_dim=32,
    decoder_dim=32,
    latents_mean=(0.0,) * LATENT_CHANNELS,
    latents_std=(1.0,) * LATENT_CHANNELS,
    multipliers=(1, 2, 2),
    blocks_per_stage=1,
    temporal_downsample=(True, True),
    patch_size=2,
    shortcuts=True,
)


def text_config(words: Sequence[str]) -> TextConfig:
    """The text encoder for a vocabulary."""
    return TextConfig(vocab_size=WordTokenizer(words).vocab_size, dim=128, heads=4, layers=2, ffn_dim=256, head_dim=32)


# Wan reads text in cross-attention alone. A small model trained from nothing does not get there in hours: among 40 rows
# a word's share of an untrained attention is a fortieth, and what cross-attention adds is alike at every noise level.
# So the whole sentence is also added to the time embedding, which shifts and scales every block.
TRANSFORMER = TransformerConfig(
    dim=256, heads=4, layers=6, ffn_dim=1024, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
    text_dim=128, text_len=TEXT_LEN, pooled_dim=128, preconditioned=True,
)  # fmt: skip
