# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Training of the starter's video VAE on crops of rendered clips.

Loss: L1, six-fold on the subject, plus L1 of the picture's gradients, plus the logarithms of squared errors, of each
crop and of its subject, whose means PSNRs are (without them a small subject is lost in a large picture), plus the KL
term that keeps the posterior as wide as the picture forgives. In the second half the decoder also sees latents with
more noise than the posterior's: what the transformer will make is never exact, and a decoder that has only seen exact
latents turns small errors into blocks. In the last quarter the encoder rests, and the decoder learns to read what it
writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from rushes.model.vae import VideoVAE
from rushes.shot import ShotError
from rushes.starter.configs import VAE
from rushes.starter.train.loop import Training
from rushes.starter.train.run import Average, Optimizers, Options, Team, load_state
from rushes.starter.world import render, sample_scenes

CROP = 64
POOL = 192  # clips kept in memory; one new clip a step
SUBJECT_WEIGHT = 6.0
GRADIENT_WEIGHT = 0.3
LOG_WEIGHT = 0.04
FLOOR = 1e-5  # of a mean squared error in [-1, 1], 56 dB: finer than frames of 8 bits
LEAST_AREA = 16  # pixels of a subject over all frames, below which its mean says little
KL_WEIGHT = 1e-4
DECODER_NOISE = (0.0, 0.0, 0.15, 0.05)  # up to so much of the latents' spread, in each quarter of the budget
MUON_RATE = 0.02
ADAM_RATE = 2e-3


def train_vae(options: Options, team: Team) -> None:
    """Train until the budget is used, resuming from folder/vae_state.pt."""
    torch.manual_seed(options.seed + 7919 * team.rank)
    vae = VideoVAE(VAE).to(options.device)
    average = Average(vae, horizon=500)
    kernels = [p for p in vae.parameters() if p.ndim >= 4]
    training = Training("vae", options, team, vae, average, Optimizers(vae, kernels, MUON_RATE, ADAM_RATE))
    if training.resume() is None and team.size > 1:
        _same_start(vae, average)
    crops = _crops(options, team.rank + team.size * training.step)

    def again(frames: Tensor) -> Tensor:
        with torch.autocast(options.device, dtype=torch.bfloat16):
            return average.model.decode(average.model.encode(frames, 4).float(), 4).float()

    def next_losses(progress: float) -> dict[str, Tensor]:
        quarter = min(int(4 * progress), 3)
        return _losses(vae, *next(crops), noise=DECODER_NOISE[quarter], encoder_rests=quarter == 3)

    training.run(
        next_losses,
        test=lambda last: test_vae(again, 48 if last else 16, options.device),
    )


def load_vae(folder: Path, device: str = "cpu") -> VideoVAE:
    """The averaged VAE of a run. Raises ShotError before there is one."""
    state = load_state(folder / "vae_state.pt", device)
    if state is None:
        raise ShotError(f"folder: {folder} holds no vae_state.pt; run `rushes train vae` first")
    vae = VideoVAE(VAE).to(device)
    vae.load_state_dict(state["average"])
    return vae.eval().requires_grad_(False)


def _same_start(vae: VideoVAE, average: Average[VideoVAE]) -> None:
    for parameter, mean in zip(vae.parameters(), average.model.parameters(), strict=True):
        torch.distributed.broadcast(parameter.data, 0)
        mean.copy_(parameter)


def _crops(options: Options, first_seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of crops: frames [B, 3, T, CROP, CROP] in [-1, 1] and subject masks [B, 1, T, CROP, CROP]."""
    dice = torch.Generator().manual_seed(options.seed * 1_000_003 + first_seed)
    frames: list[Tensor] = []
    masks: list[Tensor] = []
    while True:
        new = 16 if len(frames) < POOL else 1
        scenes = sample_scenes(new, int(torch.randint(2**31, (1,), generator=dice)))
        rendered = render(scenes, device=options.device)
        frames += list(rendered.frames.cpu())
        masks += list(rendered.mask.cpu())
        del frames[:-POOL], masks[:-POOL]
        if new > 1 and len(frames) >= POOL:
            continue
        length = 17 if torch.rand((), generator=dice) < 0.5 else 9
        count = options.batch if length == 9 else max(1, options.batch // 2)
        picks = torch.randint(len(frames), (count,), generator=dice).tolist()
        cut = [_cut(frames[i], masks[i], length, dice) for i in picks]
        video = torch.stack([a for a, _ in cut]).to(options.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        yield video, torch.stack([b for _, b in cut]).to(options.device)[:, None].float()


def _cut(frames: Tensor, mask: Tensor, length: int, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    """A window at any offset, so that any frame can be a clip's first; three of four crops hold the subject."""
    T, H, W, _ = frames.shape
    start = int(torch.randint(T - length + 1, (1,), generator=dice))
    frames, mask = frames[start : start + length], mask[start : start + length]
    top, left = (
        int(torch.randint(H - CROP + 1, (1,), generator=dice)),
        int(torch.randint(W - CROP + 1, (1,), generator=dice)),
    )
    seen = mask[length // 2].nonzero()
    if len(seen) and torch.rand((), generator=dice) < 0.75:
        y, x = seen[int(torch.randint(len(seen), (1,), generator=dice))].tolist()
        top, left = min(max(y - CROP // 2, 0), H - CROP), min(max(x - CROP // 2, 0), W - CROP)
    window = (slice(None), slice(top, top + CROP), slice(left, left + CROP))
    return frames[window], mask[window]


def _losses(
    vae: VideoVAE, frames: Tensor, mask: Tensor, noise: float, encoder_rests: bool = False
) -> dict[str, Tensor]:
    chunk = max(1, (frames.shape[2] - 1) // vae.config.temporal_factor)
    with torch.autocast(frames.device.type, dtype=torch.bfloat16):
        with torch.set_grad_enabled(not encoder_rests):
            mean, log_variance = vae.posterior(frames, chunk)
        mean, log_variance = mean.float(), log_variance.float().clamp(-14, 4)
        extra = noise * torch.rand(mean.shape[0], 1, 1, 1, 1, device=mean.device) * mean.detach().std()
        sigma = torch.sqrt(log_variance.exp() + extra**2)
        latents = mean + sigma * torch.randn_like(mean)
        output = torch.cat(list(vae.stream_decode(latents, chunk)), dim=2).float()
    weight = 1 + (SUBJECT_WEIGHT - 1) * mask
    weight = weight / weight.mean()
    error = output - frames
    picture, logs = (error.abs() * weight).mean(), _log_squares(error, mask)
    gradient = sum(((output.diff(dim=d) - frames.diff(dim=d)).abs()).mean() for d in (2, 3, 4))
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    loss = picture + GRADIENT_WEIGHT * gradient + LOG_WEIGHT * logs + KL_WEIGHT * divergence
    parts = {"l1": picture, "gradient": torch.as_tensor(gradient), "logs": logs, "nats": divergence}
    return {"loss": loss, **parts}


def _log_squares(error: Tensor, mask: Tensor) -> Tensor:
    """Mean logarithm of each crop's squared error, plus that of its subject's after the first frame, if it has one."""
    squares = error.square().mean(1)  # [B, T, H, W]
    inside = mask[:, 0, 1:]
    area = inside.sum((1, 2, 3))
    subject = (squares[:, 1:] * inside).sum((1, 2, 3)) / area.clamp_min(1)
    whole, subject = ((part + FLOOR).log() for part in (squares.mean((1, 2, 3)), subject))
    seen = area >= LEAST_AREA
    return whole.mean() + (subject * seen).sum() / seen.sum().clamp_min(1)


@torch.no_grad()
def test_vae(again: Callable[[Tensor], Tensor], clips: int, device: str = "cpu") -> dict[str, float]:
    """PSNR in dB on held-out clips: whole frames, and pixels of moving subjects after the first latent frame.

    again: frames [B, 3, T, H, W] in [-1, 1], encoded and decoded.
    """
    scenes = [dataclasses.replace(scene, frames=17) for scene in sample_scenes(clips, seed=10_007, split="held_out")]
    squares, moving = [], []
    for i in range(0, clips, 8):
        rendered = render(scenes[i : i + 8], device=device)
        frames = rendered.frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        error = ((again(frames) - frames) / 2).square().mean(1)  # [B, T, H, W]
        squares += error.mean((1, 2, 3)).tolist()
        for scene, e, m in zip(scenes[i : i + 8], error, rendered.mask, strict=True):
            inside = m[1:] > 0
            if scene.motion != "still" and inside.any():
                moving.append(float(e[1:][inside].mean()))
    return {"psnr": _mean_psnr(squares), "subject_psnr": _mean_psnr(moving)}


def _mean_psnr(squares: list[float]) -> float:
    return float((-10 * torch.tensor(squares).clamp_min(1e-10).log10()).mean())
