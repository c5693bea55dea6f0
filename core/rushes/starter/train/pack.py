# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""From the states of a training run to the one file that ships: half-precision weights with their card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rushes.model.bundle import Card, Defaults, write_bundle
from rushes.model.text import TIED_EMBEDDING
from rushes.model.vae import VideoVAE
from rushes.shot import ShotError
from rushes.starter.configs import TRANSFORMER, VAE, text_config
from rushes.starter.scene import FPS
from rushes.starter.train.latents import FRAMES
from rushes.starter.train.model import Starter
from rushes.starter.train.practice import SIZE
from rushes.starter.train.run import load_state
from rushes.starter.train.vae import load_vae
from rushes.starter.world import render, sample_scenes

DEFAULTS = Defaults(size=SIZE, frames=FRAMES, fps=str(FPS), steps=16, guidance=3.0, shift=5.0)
MODEL, STUDENT = "model_state.pt", "distil_state.pt"
MAX_FRAMES = 513
MAX_PIXELS = 512 * 512


def pack(folder: Path, path: Path, name: str = "starter", student: bool = False) -> Card:
    """Write the run's averaged weights as a bundle: the model's, or its student's, which needs fewer steps.

    Raises ShotError when the run has none yet.
    """
    state = load_state(folder / (STUDENT if student else MODEL), "cpu")
    if state is None:
        stage = "distil" if student else "model"
        raise ShotError(f"folder: {folder} holds no {stage}_state.pt; run `rushes train {stage}` first")
    vae_state = load_state(folder / "vae_state.pt", "cpu")
    assert vae_state is not None
    starter = Starter(state["words"])
    starter.load_state_dict(state["average"])
    vae = load_vae(folder)
    card = Card(
        name=name,
        transformer=TRANSFORMER,
        vae=dataclasses.replace(VAE, latents_mean=tuple(state["mean"]), latents_std=tuple(state["std"])),
        text=text_config(state["words"]),
        vocabulary=tuple(state["words"]),
        defaults=_student_defaults(state["steps"]) if student else DEFAULTS,
        preview=_preview(vae, state["mean"], state["std"]),
        trained_frames=FRAMES,
        max_frames=MAX_FRAMES,
        max_pixels=MAX_PIXELS,
        training=_record(state, vae_state),
    )
    parts = {"transformer": starter.transformer, "vae": vae, "text": starter.text}
    write_bundle(path, card, {part: _half(module.state_dict()) for part, module in parts.items()})
    return card


def _student_defaults(steps: int) -> Defaults:
    # What it learnt are straight lines between the levels, and the guidance is in them
    return dataclasses.replace(DEFAULTS, steps=steps, guidance=1.0, solver="euler")


def _record(state: dict[str, Any], vae_state: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": "procedural clips of rushes.starter.world; no other data",
        "vae_minutes": round(vae_state["elapsed"] / 60, 1),
        "vae_steps": vae_state["step"],
        "model_minutes": round(state["elapsed"] / 60, 1),
        "model_steps": state["step"],
    }


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # The tied second name of the text embedding would only repeat its bytes
    return {name: t.half() for name, t in state.items() if name != TIED_EMBEDDING}


@torch.no_grad()
def _preview(vae: VideoVAE, mean: list[float], std: list[float]) -> tuple[tuple[float, ...], ...]:
    """Least-squares map from a latent cell (and 1) to the mean colour of the last frame it stands for."""
    rendered = render(sample_scenes(48, seed=4242, frames=9))
    frames = rendered.frames.permute(0, 4, 1, 2, 3).float() / 255  # [B, 3, 9, H, W]
    latents = vae.posterior(frames * 2 - 1, 2)[0]  # [B, C, 3, h, w]
    shape = (1, -1, 1, 1, 1)
    latents = (latents - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    T, h, w = latents.shape[2:]
    colors = torch.nn.functional.adaptive_avg_pool3d(frames[:, :, ::4], (T, h, w))
    cells = latents.movedim(1, -1).flatten(0, -2)
    table = torch.linalg.lstsq(
        torch.cat((cells, torch.ones(len(cells), 1)), dim=1), colors.movedim(1, -1).flatten(0, -2)
    ).solution
    return tuple(tuple(round(float(value), 5) for value in row) for row in table)
