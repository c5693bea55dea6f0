# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The world, rendered and encoded once: shards of latents with their scenes, for the transformer's training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rushes.model.vae import VideoVAE
from rushes.replacing import FOR_ALL, replacing
from rushes.starter.scene import Scene
from rushes.starter.train.run import Clock, Log, Options, Team
from rushes.starter.train.vae import load_vae
from rushes.starter.world import render, sample_scenes

FRAMES = 33  # latents of its first 17 frames are those of a 17-frame clip, since the VAE is causal
LENGTHS = (5, 9)  # latent frames of the clips that the transformer trains on
SHARD = 128
AT_ONCE = 8


@dataclass
class Latents:
    """Latents before normalisation, with what training needs beside them.

    clips [N, C, 9, h, w]; holds [N, C, 2, h, w]: the clip's frames 16 and 32 as held pictures; cover [N, 9, h, w]:
    share of each cell that the subject covers; shifts [N, 9, 3]: the camera's shift (x, y, log zoom) since frame 0.
    """

    clips: Tensor
    holds: Tensor
    cover: Tensor
    shifts: Tensor
    scenes: list[Scene]


def make_latents(options: Options, team: Team, clips: int) -> None:
    """Append shards to folder/latents until there are `clips` clips; shards already there are kept."""
    vae = load_vae(options.folder, options.device)
    folder = options.folder / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(options.folder / "latents_log.txt", team, clock := Clock(1.0))
    for number in range(team.rank, -(-clips // SHARD), team.size):
        path = folder / f"{number:05d}.safetensors"
        if path.exists():
            continue
        scenes = sample_scenes(SHARD, seed=options.seed * 100_003 + 50_000 + number, frames=FRAMES)
        _write_shard(path, scenes, vae, options.device)
        clock.tick()
        log(shard=number, clips=min(clips, (number + team.size) * SHARD))


@torch.no_grad()
def _write_shard(path: Path, scenes: list[Scene], vae: VideoVAE, device: str) -> None:
    parts: dict[str, list[Tensor]] = {"clips": [], "holds": [], "cover": [], "shifts": []}
    for start in range(0, len(scenes), AT_ONCE):
        rendered = render(scenes[start : start + AT_ONCE], device=device)
        frames = rendered.frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1  # [B, 3, 33, H, W]
        with torch.autocast(device, dtype=torch.bfloat16):
            clips, _ = vae.posterior(frames, 8)
            holds = torch.cat([vae.encode_keyframe(frames[:, :, 4 * (n - 1)], first=False) for n in LENGTHS], dim=2)
        h, w = clips.shape[3:]
        cover = torch.nn.functional.adaptive_avg_pool2d(rendered.mask.float(), (h, w))  # [B, 33, h, w]
        parts["clips"].append(clips.half().cpu())
        parts["holds"].append(holds.half().cpu())
        parts["cover"].append(cover[:, ::4].half().cpu())
        parts["shifts"].append(rendered.shifts[:, ::4].cpu().float())
    tensors = {name: torch.cat(value).contiguous() for name, value in parts.items()}
    with replacing(path, FOR_ALL) as temporary:
        save_file(tensors, temporary, metadata={"scenes": json.dumps([scene.to_dict() for scene in scenes])})


def read_latents(folder: Path) -> Latents:
    """All shards of a run's folder. Raises FileNotFoundError when there are none."""
    paths = sorted((folder / "latents").glob("[0-9]*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder / 'latents'} holds no shards; run `rushes train world` first")
    parts: dict[str, list[Tensor]] = {"clips": [], "holds": [], "cover": [], "shifts": []}
    scenes: list[Scene] = []
    for path in paths:
        with safe_open(path, "pt") as file:
            for name in parts:
                parts[name].append(file.get_tensor(name))
            scenes += [Scene.from_dict(values) for values in json.loads(file.metadata()["scenes"])]
    return Latents(**{name: torch.cat(value) for name, value in parts.items()}, scenes=scenes)


def statistics(latents: Latents) -> tuple[list[float], list[float], list[float]]:
    """Mean of each channel, one spread for all of them, and the variance of each in units of that spread.

    A spread per channel would give channels of fine detail the weight of those that hold the picture.
    """
    sample = latents.clips[:2048].float()
    mean = sample.mean((0, 2, 3, 4))
    spread = float((sample - mean[:, None, None, None]).square().mean().sqrt())
    variances = (sample.var((0, 2, 3, 4)) / spread**2).clamp_min(1e-4)  # a dead channel too has to divide
    return [round(float(m), 4) for m in mean], [round(spread, 4)] * len(mean), variances.tolist()
