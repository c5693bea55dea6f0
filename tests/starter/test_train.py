# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The stages of training, each for a few steps: what they hand on fits, and a stopped run goes on."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from rushes import Engine, Shot
from rushes.model.vae import VideoVAE
from rushes.starter.captions import vocabulary
from rushes.starter.configs import LATENT_CHANNELS, VAE
from rushes.starter.train import latents as latents_stage
from rushes.starter.train import text as text_stage
from rushes.starter.train import vae as vae_stage
from rushes.starter.train.latents import LENGTHS, Latents, make_latents, read_latents, statistics
from rushes.starter.train.model import GIVEN, Batches, Starter, _given, _levels, losses, train_model
from rushes.starter.train.pack import pack
from rushes.starter.train.run import Average, Clock, Optimizers, Options, Team, launch, load_state, rate, save_state
from rushes.starter.train.vae import train_vae
from rushes.starter.world import sample_scenes


@pytest.fixture
def data() -> Latents:
    count, generator = 12, torch.Generator().manual_seed(3)
    return Latents(
        clips=torch.randn(count, LATENT_CHANNELS, 9, 10, 16, generator=generator).half(),
        holds=torch.randn(count, LATENT_CHANNELS, 2, 10, 16, generator=generator).half(),
        cover=torch.rand(count, 9, 10, 16, generator=generator).half(),
        shifts=torch.randn(count, 9, 3, generator=generator),
        scenes=sample_scenes(count, seed=5),
    )


@pytest.mark.slow
def test_all_stages_end_in_a_model_that_makes_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """VAE, latents, transformer, packing: the file loads by its card and makes frames of the right shape."""
    monkeypatch.setattr(vae_stage, "POOL", 16)
    monkeypatch.setattr(latents_stage, "SHARD", 8)
    monkeypatch.setattr(text_stage, "STEPS", 8)
    options = Options(folder=tmp_path, minutes=0.05, batch=2)
    train_vae(options, Team(0, 1))
    make_latents(options, Team(0, 1), clips=8)
    assert read_latents(tmp_path).clips.shape == (8, LATENT_CHANNELS, 9, 10, 16)
    train_model(options, Team(0, 1))
    card = pack(tmp_path, tmp_path / "made.safetensors")
    assert card.vocabulary == tuple(vocabulary())
    clip = Engine.load(tmp_path / "made.safetensors", device="cpu").generate(Shot("a red ball", frames=5, steps=2))
    assert clip.frames.shape == (5, 80, 128, 3)


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and working time add up; the weights are those that were saved."""
    monkeypatch.setattr(vae_stage, "POOL", 16)
    train_vae(Options(folder=tmp_path, minutes=0.03, batch=2), Team(0, 1))
    first = load_state(tmp_path / "vae_state.pt", "cpu")
    assert first is not None
    train_vae(Options(folder=tmp_path, minutes=0.0301, batch=2), Team(0, 1))
    second = load_state(tmp_path / "vae_state.pt", "cpu")
    assert second is not None
    assert second["step"] >= first["step"] and second["elapsed"] >= first["elapsed"]
    assert second["step"] <= first["step"] + 2


def test_a_resting_encoder_gets_no_gradients() -> None:
    """Every weight of the decoder gets some; without the rest the encoder's do too."""
    torch.manual_seed(2)
    vae = VideoVAE(VAE)
    frames, mask = torch.rand(1, 3, 5, 32, 32) * 2 - 1, torch.ones(1, 1, 5, 32, 32)
    for rests in (True, False):
        vae.zero_grad()
        vae_stage._losses(vae, frames, mask, noise=0.1, encoder_rests=rests)["loss"].backward()
        reached = {name.split(".")[0] for name, weight in vae.named_parameters() if weight.grad is not None}
        assert reached == {"conv2", "decoder"} | (set() if rests else {"conv1", "encoder"})
        assert all(weight.grad is not None for weight in vae.decoder.parameters())


def test_given_frames_are_clean_and_out_of_the_loss(data: Latents) -> None:
    """Time 0 and weight 0 exactly where a frame is given; the noisy latent there is the clean one."""
    mean, std, _ = statistics(data)
    batches = Batches(data, mean, std, seed=1, device="cpu")
    seen = 0
    for _ in range(8):
        batch = batches.draw(12)
        given = batch["timestep"] == 0  # [B, T]
        seen += int(given.sum())
        assert (batch["weight"].amax((1, 3, 4))[given] == 0).all()
        assert (batch["weight"].amin((1, 3, 4))[~given] > 0).all()
        assert batch["noisy"].shape[2] in LENGTHS
    assert seen > 0


def test_a_given_last_frame_is_the_held_picture(data: Latents) -> None:
    """In use there is only a picture, so training must not see the moving clip's own last latent."""
    mean, std, _ = statistics(data)
    batches = Batches(data, mean, std, seed=2, device="cpu")
    holds = (data.holds.float() - torch.tensor(mean)[:, None, None, None]) / std[0]
    found = 0
    for _ in range(10):
        batch = batches.draw(12)
        last = (batch["timestep"][:, -1] == 0) & (batch["timestep"][:, 1] > 0)
        which = LENGTHS.index(batch["noisy"].shape[2])
        for row in last.nonzero().flatten().tolist():
            distance = (holds[:, :, which] - batch["noisy"][row, :, -1]).abs().amax((1, 2, 3))
            assert distance.min() < 1e-5
            found += 1
    assert found > 0


def test_the_mix_of_given_frames_has_its_shares() -> None:
    """None, first, first few, first and last, last: as often as the table says."""
    given = _given(6000, 9, torch.Generator().manual_seed(0))
    first, last, count = given[:, 0], given[:, -1], given.sum(1)
    shares = {
        "none": (count == 0).float().mean(),
        "first": (first & (count == 1)).float().mean(),
        "few": (given[:, :2].all(1)).float().mean(),
        "both": (first & last).float().mean(),
        "last": (last & ~first).float().mean(),
    }
    expected = (GIVEN[0] + GIVEN[5], GIVEN[1], GIVEN[2], GIVEN[3], GIVEN[4])
    for (name, share), want in zip(shares.items(), expected, strict=True):
        assert abs(float(share) - want) < 0.02, name


def test_noise_levels_are_shared_by_most_clips_and_lie_in_range() -> None:
    """One level for all frames of most clips, one per frame for a few."""
    levels = _levels(4000, 5, torch.Generator().manual_seed(1))
    assert levels.min() > 0 and levels.max() < 1
    per_frame = (levels != levels[:, :1]).any(1).float().mean()
    assert abs(float(per_frame) - GIVEN[5]) < 0.02


def test_losses_reach_every_weight(data: Latents) -> None:
    """Two steps from the zero-initialised output, every parameter has a gradient."""
    torch.manual_seed(0)
    model = Starter(vocabulary())
    mean, std, _ = statistics(data)
    batches = Batches(data, mean, std, seed=3, device="cpu")
    matrices = [p for p in model.transformer.blocks.parameters() if p.ndim == 2]
    optimizer = Optimizers(model, matrices, 0.01, 1e-3)
    for _ in range(2):
        losses(model, batches.draw(4))["loss"].backward()
        optimizer.step(1.0)
    losses(model, batches.draw(6))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_optimizers_move_the_weights_through_their_views() -> None:
    """A convolution updated as a matrix is the convolution itself."""
    torch.manual_seed(0)
    model = torch.nn.Conv3d(4, 8, 3)
    before = model.weight.detach().clone()
    optimizer = Optimizers(model, [model.weight], 0.1, 0.1)
    model(torch.randn(2, 4, 5, 5, 5)).square().mean().backward()
    optimizer.step(1.0)
    assert not torch.equal(before, model.weight)
    assert model.weight.grad is None or not model.weight.grad.any()


def test_the_average_follows_the_weights() -> None:
    """After many equal updates the average is there."""
    model = torch.nn.Linear(3, 3)
    average = Average(model, horizon=20)
    torch.nn.init.constant_(model.weight, 2.0)
    for _ in range(400):
        average.update(model)
    assert torch.allclose(average.model.weight, torch.full((3, 3), 2.0), atol=1e-3)


def test_the_clock_leaves_out_pauses() -> None:
    """A step a hundred times longer than usual was a stopped process."""
    clock = Clock(budget=100.0)
    clock.usual, clock.elapsed = 0.01, 5.0
    clock._last -= 50.0
    clock.tick()
    assert clock.elapsed < 5.1


def test_the_rate_rises_holds_and_falls_to_zero() -> None:
    """Linear warm-up, constant, linear to zero at the end of the budget."""
    assert rate(0.0) < 0.02 and rate(0.3) == 1.0 and 0.4 < rate(0.8) < 0.6 and rate(1.0) == 0.0


def test_a_state_file_is_whole_or_absent(tmp_path: Path) -> None:
    """Written under another name and moved; loads without executing anything."""
    save_state(tmp_path / "state.pt", {"step": 3, "model": {"w": torch.ones(2)}})
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    state = load_state(tmp_path / "state.pt", "cpu")
    assert state is not None and state["step"] == 3
    assert load_state(tmp_path / "none.pt", "cpu") is None


AGREE = """
import torch

def agree(options, team):
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.full((3,), float(team.rank + 1))
    team.average_gradients([parameter])
    assert team.lead(float(team.rank + 7)) == 7.0
    (options.folder / f"{team.rank}.txt").write_text(str(parameter.grad.tolist()))
"""


@pytest.mark.slow
def test_processes_average_their_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one mean, and process 0's clock for both."""
    # A module of its own: the processes import it by name, and `tests` may be another package's in site-packages
    (tmp_path / "agreement_of_processes.py").write_text(AGREE)
    monkeypatch.syspath_prepend(tmp_path)
    launch(Options(folder=tmp_path, minutes=1, processes=2), importlib.import_module("agreement_of_processes").agree)
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {"[1.5, 1.5, 1.5]"}
