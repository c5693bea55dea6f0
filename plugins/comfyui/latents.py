# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""ComfyUI's LATENT and our latents: it holds the VAE's own space, ours are in the model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rushes.engine import Engine
from rushes.model.bundle import Card
from rushes.shot import ShotError

KEY = "rushes"


@dataclass(frozen=True, eq=False)
class Made:
    """What Rushes Generate knows of a LATENT. True only of the very tensor it was made with: others copy the dict."""

    samples: torch.Tensor
    latents: torch.Tensor
    record: Mapping[str, Any]


def as_latent(engine: Engine, latents: torch.Tensor, record: Mapping[str, Any]) -> dict[str, Any]:
    samples = engine.unscaled(latents)
    return {"samples": samples, KEY: Made(samples, latents, record)}


def made(latent: Mapping[str, Any]) -> Made | None:
    """What is known of a LATENT, or None where its samples are not, or no longer, those of Rushes Generate."""
    known = latent.get(KEY)
    return known if isinstance(known, Made) and known.samples is latent["samples"] else None


def check(card: Card, latent: Mapping[str, Any]) -> None:
    """Raise ShotError for latents that a model's VAE does not decode."""
    shape, channels = latent["samples"].shape, card.vae.latent_channels
    if len(shape) != 5 or tuple(shape[:2]) != (1, channels):
        wanted = f"[1, {channels}, frames, height, width]"
        raise ShotError(f"latent: got {list(shape)}; {wanted} is what {card.name} decodes")


def in_model_space(engine: Engine, latent: Mapping[str, Any]) -> torch.Tensor:
    """Latents [1, C, T, h, w] for our decoder, as `check` allows them."""
    known = made(latent)
    return known.latents if known is not None else engine.scaled(latent["samples"].float())
