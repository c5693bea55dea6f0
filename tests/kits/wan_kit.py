# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What the tests of Wan's forms share: the shot, its footage, and how two latents are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rushes import Engine, Shot

WORDS = "a red ball rolls to the right"
SIZE, FRAMES = (64, 32), 9
RELATIVE = 2e-5
IMAGE = {"in_channels": 36}
CLIP = {**IMAGE, "image_dim": 24}
ENDS = {**CLIP, "image_positions": 10}
VACE = {"layers": 4, "vace_in_channels": 96, "vace_layers": (0, 2)}
EXPERTS = ("tiny_i2v_high_noise", "tiny_i2v_low_noise")


def shot(**changes: Any) -> Shot:
    fields = {"size": SIZE, "frames": FRAMES, "seed": 6, "steps": 4, "guidance": 5.0, "negative": "wet sand"}
    return Shot(f"{WORDS}, close-up café", **(fields | changes))


def asked(shot: Shot) -> dict[str, Any]:
    """The same of a pipeline."""
    assert shot.size is not None and shot.seed is not None
    high, low = shot.guidance_pair
    return {
        "prompt": shot.prompt, "negative_prompt": shot.negative, "width": shot.size[0], "height": shot.size[1],
        "num_frames": shot.frames, "num_inference_steps": shot.steps, "guidance_scale": high, "output_type": "latent",
        "generator": torch.Generator("cpu").manual_seed(shot.seed),
        **({"guidance_scale_2": low} if isinstance(shot.guidance, tuple) else {}),
    }  # fmt: skip


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Relative to the largest value, and the two are no constant."""
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"\nlargest difference, relative: {error:.1e}")
    assert ours.shape == theirs.shape and theirs.std() > 0.1
    assert error <= RELATIVE


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[int], str]:
    """picture(seed): a file of noise in the shot's size, so that nothing is scaled."""

    def draw(seed: int) -> str:
        path = tmp_path / f"picture_{seed}.png"
        pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return str(path)

    return draw


def engine_of(wan: Any, shift: float = 5.0) -> Engine:
    """With diffusers' schedule, of the fixture's files."""
    return Engine.load(dataclasses.replace(wan.files, schedule="diffusers_unipc", shift=shift), device="cpu")


@pytest.fixture
def footage(tmp_path: Path) -> Callable[..., str]:
    """footage(seed, frames): numbered pictures of noise in the shot's size, or of black and white squares of 8."""

    def draw(seed: int, frames: int = FRAMES, squares: bool = False) -> str:
        dice = np.random.default_rng(seed)
        for frame in range(frames):
            pixels = dice.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            if squares:
                cells = dice.integers(0, 2, (SIZE[1] // 8, SIZE[0] // 8)) * 255
                pixels = np.kron(cells, np.ones((8, 8))).astype(np.uint8)[..., None].repeat(3, 2)
            Image.fromarray(pixels).save(tmp_path / f"footage_{seed}.{frame:04d}.png")
        return str(tmp_path / f"footage_{seed}.%04d.png")

    return draw


def frames_of(pattern: str, frames: int = FRAMES) -> Tensor:
    """What is in the files, as diffusers takes it."""
    return batch(np.stack([np.asarray(Image.open(pattern % frame), np.float32) / 255 for frame in range(frames)]))


def batch(frames: np.ndarray) -> Tensor:
    """[1, F, 3, H, W] of [F, H, W, 3]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)[None]


def sampled(video: Tensor) -> Tensor:
    """A stand-in for the encoder that can be looked through: every fourth frame, every eighth pixel."""
    return video[:, :, ::4, ::8, ::8]
