# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A student for few steps: what it is taught is where the teacher's guided path ends, and it is packed as it works."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rushes import Engine, Shot
from rushes.model.vae import VideoVAE
from rushes.sampling.schedules import schedule
from rushes.shot import ShotError
from rushes.starter.captions import vocabulary
from rushes.starter.configs import LATENT_CHANNELS, VAE
from rushes.starter.train.distil import target, train_student
from rushes.starter.train.latents import _write_shard
from rushes.starter.train.model import Starter
from rushes.starter.train.pack import DEFAULTS, MODEL, pack
from rushes.starter.train.run import Options, Team, save_state
from rushes.starter.train.vae import load_vae
from rushes.starter.world import sample_scenes

EMPTY = [1]


class Field(torch.nn.Module):
    """A teacher whose velocity is known: `pull` times x with a prompt, nothing without."""

    def __init__(self, pull: float) -> None:
        super().__init__()
        self.pull = pull

    def forward(self, x: Tensor, timestep: Tensor, prompts: list[list[int]]) -> Tensor:
        told = torch.tensor([float(prompt != EMPTY) for prompt in prompts])
        return self.pull * told[:, None, None, None, None] * x.float()


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_the_target_ends_where_the_guided_path_ends(steps: int) -> None:
    """dx/dsigma = guidance pull x has the end x exp(guidance pull (end - start)); given frames stay where they are."""
    torch.manual_seed(steps)
    levels = torch.tensor(schedule("simple", steps, 2.0).sigmas)
    B, T = 6, 5
    index = torch.randint(steps, (B,))
    timestep = (1000 * levels[index])[:, None].repeat(1, T)
    timestep[::2, 0] = 0
    noisy = torch.randn(B, 3, T, 4, 6)
    batch = {"noisy": noisy, "timestep": timestep, "prompts": [[5, 1]] * B}
    pull = 0.1
    velocity = target(Field(pull), batch, levels, EMPTY)  # type: ignore[arg-type]
    start, end = levels[index].double(), levels[index + 1].double()
    factor = torch.exp(DEFAULTS.guidance * pull * (end - start))[:, None, None, None, None]
    wanted = noisy * (factor - 1) / (end - start)[:, None, None, None, None]
    given = (timestep == 0)[:, None, :, None, None].expand_as(noisy)
    assert not velocity[given].any()
    error = (velocity - wanted)[~given].norm() / wanted[~given].norm()
    assert error < 0.01  # of a midpoint step; two Euler steps would be off by 0.02 to 0.05


def test_a_student_is_packed_for_its_own_steps_without_guidance(tmp_path: Path) -> None:
    """It goes on from the trained model, and the file's shot without wishes runs as the student was taught."""
    torch.manual_seed(0)
    with pytest.raises(ShotError, match="model_state"):
        train_student(Options(folder=tmp_path, minutes=0.01, batch=2), Team(0, 1), steps=4)
    vae, starter = VideoVAE(VAE), Starter(vocabulary())
    save_state(tmp_path / "vae_state.pt", {"average": vae.state_dict(), "elapsed": 60.0, "step": 1})
    (tmp_path / "latents").mkdir()
    _write_shard(tmp_path / "latents" / "00000.safetensors", sample_scenes(8, 3, frames=33), load_vae(tmp_path), "cpu")
    trained = {
        "average": starter.state_dict(), "words": list(vocabulary()), "elapsed": 60.0, "step": 1,
        "mean": [0.0] * LATENT_CHANNELS, "std": [1.0] * LATENT_CHANNELS,
    }  # fmt: skip
    save_state(tmp_path / MODEL, trained)
    train_student(Options(folder=tmp_path, minutes=0.03, batch=2), Team(0, 1), steps=4)
    with pytest.raises(ShotError, match="steps: got 8; 4"):
        train_student(Options(folder=tmp_path, minutes=0.06, batch=2), Team(0, 1), steps=8)
    card = pack(tmp_path, tmp_path / "student.safetensors", student=True)
    assert (card.defaults.steps, card.defaults.guidance, card.defaults.solver) == (4, 1.0, "euler")
    engine = Engine.load(tmp_path / "student.safetensors", device="cpu")
    clip = engine.generate(Shot("a red ball", frames=5))
    assert (clip.shot.steps, clip.shot.guidance, clip.frames.shape) == (4, 1.0, (5, 80, 128, 3))
