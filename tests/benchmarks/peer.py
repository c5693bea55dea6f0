# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Peer: a bundle of ours as diffusers' WanPipeline, with the same weights, noise, solver and precision."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rushes.model.bundle import Card, read_card, read_weights
from rushes.model.checkpoint import transformer_names_from_diffusers, vae_names_from_diffusers
from rushes.model.config import TransformerConfig, VAEConfig
from rushes.model.text import TextEncoder
from rushes.model.tokenizer import WordTokenizer
from rushes.sampling.noise import initial_noise
from rushes.shot import Shot

Weights = Mapping[str, Tensor]
SCHEDULE = "diffusers_unipc"  # the one of ours that is diffusers' own; see rushes.sampling.schedules


class Peer:
    """diffusers' pipeline for a bundle. Takes resolved shots, without keyframes, whose size is a multiple of 16."""

    def __init__(self, path: Path) -> None:
        self.card: Card = read_card(path)
        weights = read_weights(path)
        self.transformer = filled(
            diffusers.WanTransformer3DModel(**transformer_options(self.card.transformer)),
            weights["transformer"],
            transformer_names_from_diffusers,
        )
        self.vae = filled(
            diffusers.AutoencoderKLWan(**vae_options(self.card.vae)),
            weights["vae"],
            lambda names: vae_names(names, self.card.vae),
        )
        text = TextEncoder(self.card.text)
        text.load_state_dict(weights["text"])
        self._text = text.float().eval().requires_grad_(False)
        self._tokenizer = WordTokenizer(self.card.vocabulary, self.card.transformer.text_len)
        self._pipeline = cast(Any, diffusers).WanPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=self.vae,
            transformer=self.transformer,
            scheduler=diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=self.card.defaults.shift
            ),
        )
        self._pipeline.set_progress_bar_config(disable=True)

    def embed(self, shot: Shot) -> dict[str, Tensor]:
        """The prompts as the pipeline takes them, [1, text_len, text_dim] each. Not part of what is timed."""
        rows = self.card.transformer.text_len
        texts = {"prompt_embeds": shot.prompt, "negative_prompt_embeds": shot.negative}
        with torch.no_grad():
            return {name: self._text.encode([self._tokenizer.encode(text)[0]], rows) for name, text in texts.items()}

    def noise(self, shot: Shot) -> Tensor:
        """Where the engine starts, [1, channels, latent_frames, h, w]."""
        assert shot.size is not None and shot.frames is not None
        vae = self.card.vae
        width, height = (side // vae.spatial_factor for side in shot.size)
        return initial_noise(vae.latent_channels, vae.latent_frames(shot.frames), height, width, shot.seed)

    def generate(self, shot: Shot, embeds: Mapping[str, Tensor]) -> npt.NDArray[np.float32]:
        """Frames float32 [frames, height, width, 3] in [0, 1]."""
        assert shot.size is not None
        frames: npt.NDArray[np.float32] = self._pipeline(
            **embeds,
            width=shot.size[0],
            height=shot.size[1],
            num_frames=shot.frames,
            num_inference_steps=shot.steps,
            guidance_scale=shot.guidance,
            latents=self.noise(shot),
            output_type="np",
        ).frames[0]
        return frames

    def decode(self, latents: Tensor) -> Tensor:
        """Frames [1, 3, frames, height, width] in [-1, 1] of latents in model space, without the pipeline."""
        with torch.no_grad():
            shape = (1, -1, 1, 1, 1)
            mean = torch.tensor(self.card.vae.latents_mean).view(shape)
            deviation = torch.tensor(self.card.vae.latents_std).view(shape)
            frames: Tensor = self.vae.decode(latents * deviation + mean, return_dict=False)[0]
            return frames


def filled(model: Any, weights: Weights, to_ours: Callable[[Iterable[str]], dict[str, str]]) -> Any:
    """A model of diffusers' with our weights, each of which must find its place."""
    names = to_ours(model.state_dict())
    if left := weights.keys() - names.values():
        raise ValueError(f"model: diffusers has no place for {min(left)!r}")
    model.load_state_dict({theirs: weights[ours] for theirs, ours in names.items()}, strict=True)
    return model.float().eval().requires_grad_(False)


def vae_names(names: Iterable[str], config: VAEConfig) -> dict[str, str]:
    """diffusers' name -> ours. The map is for Wan's two residual blocks a stage: then comes the resampler, whose
    number is another where there are fewer blocks."""
    found = vae_names_from_diffusers(names)
    for half, stages, number in (("encoder", "downsamples", 2), ("decoder", "upsamples", 3)):
        resampler = re.compile(rf"({half}\.{stages}\.\d+\.{stages})\.{number}\.(?=resample|time_conv)")
        moved = config.blocks_per_stage - 2 + number
        found = {theirs: resampler.sub(rf"\1.{moved}.", ours) for theirs, ours in found.items()}
    return found


def transformer_options(config: TransformerConfig) -> dict[str, Any]:
    if config.image_dim is not None or config.vace_layers or config.eps != 1e-6:
        raise ValueError("model: it takes images or control passes; a text-to-video model is allowed here")
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.layers,
        "patch_size": (1, config.patch_size, config.patch_size),
        "ffn_dim": config.ffn_dim,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "freq_dim": config.freq_dim,
        "text_dim": config.text_dim,
        "eps": config.eps,
    }


def vae_options(config: VAEConfig) -> dict[str, Any]:
    channels = 3 * config.patch_size**2
    return {
        "base_dim": config.encoder_dim,
        "decoder_base_dim": config.decoder_dim,
        "z_dim": config.latent_channels,
        "dim_mult": list(config.multipliers),
        "num_res_blocks": config.blocks_per_stage,
        "temperal_downsample": list(config.temporal_downsample),
        "latents_mean": list(config.latents_mean),
        "latents_std": list(config.latents_std),
        "is_residual": config.shortcuts,
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": config.patch_size if config.patch_size > 1 else None,
        "scale_factor_temporal": config.temporal_factor,
        "scale_factor_spatial": config.spatial_factor,
    }
