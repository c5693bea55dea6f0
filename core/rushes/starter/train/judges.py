# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A small network that says what a clip shows, trained on rendered clips: the judge of what the starter model makes.

A judge must not read the answer off one frame, since position and facing give a motion away. So half of its clips run
backwards (a car that backs to the left is `left`), some are one frame held still (`still`, whatever it looks like), and
pictures are blurred, noisy and tinted, so that it does not lean on a renderer's crisp edges.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rushes.starter.scene import ATTRIBUTES, Scene
from rushes.starter.train.run import Average, Clock, Log, Means, Team, rate
from rushes.starter.world import render, sample_scenes

VERSION = "1"
SEEN = 9  # frames of a clip that the judge sees, evenly spaced
SIZE = (128, 80)
LOOKS = (1, 4, 7)  # of those, the frames in which it looks at shapes and colours
REACH = (3, 2)  # cells of 4 pixels to the right and down over which one frame is compared with the next
HEADS = {**{name: len(classes) for name, classes in ATTRIBUTES.items()}, "present": 2}
ABSENT, FROZEN = 0.06, 0.08  # shares of training clips without a subject, and of one frame held still
POOL = 1200
BATCH = 16
LEARNING_RATE = 2e-3
MASK_WEIGHT = 0.5
LOG_EVERY = 20.0
FAR_AWAY = 1e4  # metres to the side: a subject that no camera sees
BACKWARDS = {
    "left": "right", "rise": "fall", "approach": "recede", "pan_left": "pan_right", "tilt_up": "tilt_down",
    "push_in": "pull_out",
}  # fmt: skip
MIRRORED = {"left": "right", "pan_left": "pan_right"}


def _both_ways(pairs: dict[str, str], attribute: str) -> list[int]:
    """For each class of an attribute the class it turns into."""
    swap = {**pairs, **{b: a for a, b in pairs.items()}}
    classes = ATTRIBUTES[attribute]
    return [classes.index(swap.get(name, name)) for name in classes]


class Judge(nn.Module):
    """Clips [B, SEEN, 3, 80, 128] in [0, 1] -> logits of each attribute, and of the subject's mask in 4-pixel cells."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, 24, 5, 2), _block(24, 32, 3, 2))
        self.look = nn.Sequential(_block(32, 64), _block(64, 64))
        self.mask = nn.Conv2d(64, 1, 1)
        self.deep = nn.Sequential(_block(64, 96, 3, 2), _block(96, 128))
        self.wide = nn.Sequential(_block(128, 128, 3, 2), nn.Flatten())
        self.thing = _head(64 + 128, ("kind", "color"))
        self.place = _head(2 * 128, ("time", "setting"))
        self.present = nn.Linear(64 + 128 + 1, 2)
        self.compared = nn.Conv2d(32, 8, 1)
        cells = (2 * REACH[0] + 1) * (2 * REACH[1] + 1)
        self.pair = _block(cells + 32, 48, 3, 2)
        self.flow = nn.Sequential(_block3(48 + 2, 64, (2, 2, 2)), _block3(64, 96, (1, 1, 1)))
        self.move = _head(2 * 96 * 4, ("motion", "camera"))

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        B = clips.shape[0]
        f = self.stem(((clips - 0.5) * 4).flatten(0, 1)).unflatten(0, (B, SEEN))  # [B, 9, 32, 20, 32]
        return {**self._shown(f[:, list(LOOKS)]), **self._moves(f)}

    def _shown(self, f: Tensor) -> dict[str, Tensor]:
        B, n = f.shape[:2]
        near = self.look(f.flatten(0, 1))  # [B n, 64, 20, 32]
        mask = self.mask(near)  # [B n, 1, 20, 32]
        deep = self.deep(near)  # [B n, 128, 10, 16]
        weight = torch.sigmoid(mask.float())
        coarse = F.avg_pool2d(weight, 2)
        # The subject's features, seen through the mask that the renderer taught
        thing = torch.cat((_weighted(near, weight), _weighted(deep, coarse)), dim=1).unflatten(0, (B, n)).mean(1)
        last = self.wide[0](deep)  # [B n, 128, 5, 8]
        place = torch.cat((last.mean((2, 3)), last.amax((2, 3))), dim=1).unflatten(0, (B, n)).mean(1)
        largest = mask.amax((2, 3)).unflatten(0, (B, n)).mean(1)
        return {
            **{name: head(thing) for name, head in self.thing.items()},
            **{name: head(place) for name, head in self.place.items()},
            "present": self.present(torch.cat((thing, largest), dim=1)),
            "mask": mask.unflatten(0, (B, n))[:, :, 0],
        }

    def _moves(self, f: Tensor) -> dict[str, Tensor]:
        B = f.shape[0]
        keys = self.compared(f.flatten(0, 1)).unflatten(0, (B, SEEN))
        now, later = keys[:, :-1].flatten(0, 1), keys[:, 1:].flatten(0, 1)
        pairs = torch.cat((_compare(now, later), f[:, 1:].flatten(0, 1)), dim=1)
        flow = self.pair(pairs).unflatten(0, (B, SEEN - 1)).transpose(1, 2)  # [B, 48, 8, 10, 16]
        flow = self.flow(torch.cat((flow, _places(flow)), dim=1))  # [B, 96, 4, 5, 8]
        pooled = torch.cat((flow.mean((3, 4)), flow.amax((3, 4))), dim=1).flatten(1)
        return {name: head(pooled) for name, head in self.move.items()}


def _block(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(8, channels_out), nn.ReLU())


def _block3(channels_in: int, channels_out: int, stride: tuple[int, int, int]) -> nn.Sequential:
    conv = nn.Conv3d(channels_in, channels_out, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(8, channels_out), nn.ReLU())


def _head(width: int, names: Sequence[str]) -> nn.ModuleDict:
    return nn.ModuleDict(
        {name: nn.Sequential(nn.Linear(width, 96), nn.ReLU(), nn.Linear(96, HEADS[name])) for name in names}
    )


def _weighted(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum((2, 3)) / (weight.sum((2, 3)) + 0.5)


def _compare(now: Tensor, later: Tensor) -> Tensor:
    """How alike each cell is to the cells around it in the next frame (as in optical flow, arXiv:1504.06852)."""
    height, width = now.shape[2:]
    right, down = REACH
    around = F.pad(later, (right, right, down, down))
    alike = [
        (now * around[:, :, y : y + height, x : x + width]).sum(1)
        for y in range(2 * down + 1)
        for x in range(2 * right + 1)
    ]
    return torch.stack(alike, dim=1) / now.shape[1] ** 0.5


def _places(like: Tensor) -> Tensor:
    """Two channels that say where a cell is."""
    B, _, T, height, width = like.shape
    y = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype).expand(height, width)
    return torch.stack((x, y))[None, :, None].expand(B, 2, T, height, width)


def seen_frames(frames: Tensor) -> Tensor:
    """The frames a judge sees: [F, H, W, 3] uint8, or float in [0, 1], to float [SEEN, 3, 80, 128]."""
    picks = torch.linspace(0, len(frames) - 1, SEEN).round().long()
    some = frames[picks].permute(0, 3, 1, 2)
    some = some.float() / 255 if some.dtype == torch.uint8 else some.float()
    size = (SIZE[1], SIZE[0])
    return some if some.shape[2:] == size else F.interpolate(some, size, mode="area")


@torch.inference_mode()
def judge_clips(judge: Judge, clips: Sequence[Tensor]) -> list[dict[str, str | bool]]:
    """What a judge says of clips as `seen_frames` gives them: the class of each attribute, and whether there is a subject."""
    device = judge.mask.weight.device
    said: list[dict[str, str | bool]] = []
    for start in range(0, len(clips), 32):
        logits = judge(torch.stack(list(clips[start : start + 32])).to(device))
        best = {name: logits[name].argmax(1).tolist() for name in HEADS}
        for row in range(len(best["present"])):
            verdict: dict[str, str | bool] = {name: ATTRIBUTES[name][best[name][row]] for name in ATTRIBUTES}
            said.append({**verdict, "present": best["present"][row] == 1})
    return said


def render_seen(scenes: Sequence[Scene], frames: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Only the frames that a judge would see of clips of 17, 33, ... frames: uint8 [B, 9, H, W, 3], masks [B, 9, H, W].

    A slower frame rate makes the same moments; rendering the frames between them would cost three times as much.
    """
    step, rest = divmod(frames - 1, SEEN - 1)
    if rest or scenes[0].fps % step:
        raise ValueError(f"frames is {frames}; allowed: 9, 17, 25, 33, 49")
    rendered = render([s.replace(frames=SEEN, fps=s.fps // step) for s in scenes], SIZE, device)
    return rendered.frames, rendered.mask


@dataclass
class Sample:
    """Clips of a training batch. clips float [B, SEEN, 3, H, W]; mask float [B, looks, 20, 32]; labels [B], -1: not asked."""

    clips: Tensor
    mask: Tensor
    labels: dict[str, Tensor]


def practice_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes for the judge: more still subjects and more static cameras than the world has, since those are what is asked."""
    scenes = [scene.replace(second=None) for scene in sample_scenes(6 * count, seed, split="all")]
    still = [s for s in scenes if s.motion == "still"][: round(0.35 * count)]
    static = [s for s in scenes if s.camera == "static"][: round(0.45 * count)]
    return [*still, *static, *scenes[2 * count :][: count - len(still) - len(static)]]


class Practice:
    """Batches of rendered clips without end; a few of the pool are drawn anew with each batch."""

    def __init__(self, seed: int, device: str, pool: int = POOL, fresh: int = 4) -> None:
        self._dice = torch.Generator().manual_seed(seed)
        self._device, self._pool, self._fresh = device, pool, fresh
        self._queue: list[Scene] = []
        self._frames: list[Tensor] = []
        self._masks: list[Tensor] = []
        self._labels: list[dict[str, int]] = []

    def _add(self, count: int) -> None:
        while len(self._queue) < count:
            scenes = practice_scenes(200, self._number(2**31))
            self._queue += [scenes[i] for i in torch.randperm(len(scenes), generator=self._dice).tolist()]
        scenes, self._queue = self._queue[:count], self._queue[count:]
        hidden = [float(torch.rand((), generator=self._dice)) < ABSENT for _ in scenes]
        shown = [s.replace(x=FAR_AWAY) if away else s for s, away in zip(scenes, hidden, strict=True)]
        frames, mask = render_seen(shown, (17, 33)[self._number(2)], self._device)
        cells = F.avg_pool2d(mask[:, list(LOOKS)].float(), 4)
        for row, (scene, away) in enumerate(zip(scenes, hidden, strict=True)):
            labels = {name: ATTRIBUTES[name].index(getattr(scene, name)) for name in ATTRIBUTES}
            if away:
                labels.update(kind=-1, color=-1, motion=-1)
            self._labels.append({**labels, "present": int(not away)})
            self._frames.append(frames[row].cpu())
            self._masks.append(cells[row].cpu())
        for kept in (self._frames, self._masks, self._labels):
            del kept[: -self._pool]  # type: ignore[attr-defined]

    def _number(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._dice))

    def __iter__(self) -> Iterator[Sample]:
        while True:
            self._add(self._fresh if len(self._frames) >= self._pool else self._pool)
            yield self.draw(BATCH)

    def draw(self, count: int) -> Sample:
        """A batch with backward, mirrored and held clips in it, and with worn pictures."""
        picks = torch.randint(len(self._frames), (count,), generator=self._dice).tolist()
        clips = torch.stack([self._frames[i] for i in picks]).to(self._device).permute(0, 1, 4, 2, 3).float() / 255
        mask = torch.stack([self._masks[i] for i in picks]).to(self._device)
        labels = {name: torch.tensor([self._labels[i][name] for i in picks]) for name in HEADS}
        backward, mirror = (torch.rand(count, generator=self._dice) < 0.5 for _ in range(2))
        held = torch.rand(count, generator=self._dice) < FROZEN
        clips[backward], mask[backward] = clips[backward].flip(1), mask[backward].flip(1)
        clips[mirror], mask[mirror] = clips[mirror].flip(-1), mask[mirror].flip(-1)
        for change, pairs in ((backward, BACKWARDS), (mirror, MIRRORED)):
            for name in ("motion", "camera"):
                table = torch.tensor([*_both_ways(pairs, name), -1])  # the last stands for -1
                labels[name] = torch.where(change, table[labels[name]], labels[name])
        for row in held.nonzero()[:, 0].tolist():
            look = self._number(len(LOOKS))
            clips[row], mask[row] = clips[row, LOOKS[look]].clone(), mask[row, look].clone()
        labels["motion"] = labels["motion"].masked_fill(held & (labels["motion"] >= 0), 0)
        labels["camera"] = labels["camera"].masked_fill(held, 0)
        device_labels = {name: value.to(self._device) for name, value in labels.items()}
        return Sample(wear(clips, self._dice), mask, device_labels)


def wear(clips: Tensor, dice: torch.Generator) -> Tensor:
    """Tint, blur and noise, different for each clip [B, T, 3, H, W]; half of the clips stay sharp."""
    B, T = clips.shape[:2]
    random = torch.rand(B, 8, generator=dice).to(clips.device)
    gain = 1 + 0.12 * (random[:, :3] - 0.5)
    lift = 0.06 * (random[:, 3:4] - 0.5)
    clips = clips * gain[:, None, :, None, None] + lift[:, None, :, None, None]
    sigma = torch.where(random[:, 4] < 0.5, 1.8 * random[:, 5], 0.0) + 1e-3  # pixels
    x = torch.arange(-4, 5, device=clips.device)
    kernel = torch.softmax(-0.5 * (x / sigma[:, None]) ** 2, dim=1)  # [B, 9]
    flat = clips.permute(1, 2, 0, 3, 4).flatten(0, 1)  # [T 3, B, H, W]: one kernel per clip
    flat = F.conv2d(F.pad(flat, (4, 4, 0, 0), mode="replicate"), kernel[:, None, None, :], groups=B)
    flat = F.conv2d(F.pad(flat, (0, 0, 4, 4), mode="replicate"), kernel[:, None, :, None], groups=B)
    clips = flat.unflatten(0, (T, 3)).permute(2, 0, 1, 3, 4)
    strength = torch.where(random[:, 6] < 0.5, 0.04 * random[:, 7], 0.0)
    noise = torch.randn(clips.shape, generator=dice).to(clips.device)
    return (clips + strength[:, None, None, None, None] * noise).clamp(0, 1)


def losses(judge: Judge, sample: Sample) -> dict[str, Tensor]:
    """Cross entropy of each attribute and of the mask, and their sum as `loss`."""
    with torch.autocast(sample.clips.device.type, dtype=torch.bfloat16):
        logits = judge(sample.clips)
    parts = {}
    for name in HEADS:
        asked = (sample.labels[name] >= 0).sum().clamp_min(1)
        sums = F.cross_entropy(logits[name].float(), sample.labels[name], ignore_index=-1, reduction="sum")
        parts[name] = sums / asked
    parts["mask"] = F.binary_cross_entropy_with_logits(logits["mask"].float(), sample.mask)
    total = torch.stack([value for name, value in parts.items() if name != "mask"]).sum()
    return {"loss": total + MASK_WEIGHT * len(HEADS) * parts["mask"], **parts}


def train_judge(folder: Path, minutes: float, seed: int = 0, device: str = "cpu") -> Judge:
    """A judge after so many minutes of training; the averaged weights."""
    torch.manual_seed(seed)
    judge = Judge().to(device)
    average = Average(judge, horizon=200)
    optimizer = torch.optim.AdamW(judge.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    clock = Clock(minutes * 60)
    log, means, logged = Log(folder / "judges_log.txt", Team(0, 1), clock), Means(), time.monotonic()
    step = 0
    for sample in Practice(seed * 7919 + 90_001, device):
        if clock.progress >= 1:
            break
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate(clock.progress, warmup=0.03, decay=0.6)
        parts = losses(judge, sample)
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(judge)
        means.add(**{name: value.detach() for name, value in parts.items()})
        step += 1
        clock.tick()
        if time.monotonic() - logged > LOG_EVERY:
            logged = time.monotonic()
            log(step=step, **means.take())
    return average.model.eval()  # type: ignore[return-value]


def load_judge(folder: Path, minutes: float, seed: int = 0, device: str = "cpu") -> Judge:
    """The judge in folder/judges.safetensors, trained and put there first when there is none of this version."""
    path = folder / "judges.safetensors"
    if path.exists():
        with safe_open(path, "pt") as file:
            version = (file.metadata() or {}).get("version")
        if version == VERSION:
            judge = Judge()
            judge.load_state_dict(load_file(path))
            return judge.eval().to(device)
    judge = train_judge(folder, minutes, seed, device)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    state = {name: value.cpu().contiguous() for name, value in judge.state_dict().items()}
    save_file(state, temporary, metadata={"version": VERSION, "minutes": str(minutes), "seed": str(seed)})
    os.replace(temporary, path)
    return judge
