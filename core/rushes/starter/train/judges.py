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

from rushes.starter.scene import ATTRIBUTES, CAMERAS, MOTIONS, Scene
from rushes.starter.train.run import Average, Clock, Log, Means, Team, rate
from rushes.starter.world import render, sample_scenes

VERSION = "1"
SEEN = 9  # frames of a clip that the judge sees, evenly spaced
SIZE = (128, 80)
LOOKS = (2, 6)  # of those, the frames in which it looks at shapes and colours
APART = 2  # frames that are compared with each other
GRID = (10, 16)  # rows and columns of the cells of 8 pixels that are compared
REACH = (2, 3)  # over so many rows and columns
HEADS = {**{name: len(classes) for name, classes in ATTRIBUTES.items()}, "present": 2}
ABSENT, FROZEN = 0.06, 0.08  # shares of training clips without a subject, and of one frame held still
POOL = 1000  # clips kept in memory
FRESH = 5  # new clips a step
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


STILL, STATIC = MOTIONS.index("still"), CAMERAS.index("static")


def _turned(labels: dict[str, int], pairs: dict[str, str]) -> dict[str, int]:
    """Labels of a clip that is shown backwards or mirrored; -1, not asked, stays."""
    swap = {**pairs, **{b: a for a, b in pairs.items()}}
    turned = {}
    for name, classes in (("motion", MOTIONS), ("camera", CAMERAS)):
        if (label := labels[name]) >= 0:
            turned[name] = classes.index(swap.get(classes[label], classes[label]))
    return {**labels, **turned}


class Judge(nn.Module):
    """Clips [B, SEEN, 3, 80, 128] in [0, 1] -> logits of each attribute, and of the subject's mask in 4-pixel cells."""

    def __init__(self) -> None:
        super().__init__()
        # No normalisation anywhere: it would hide how bright and how coloured a picture is, which is asked
        self.near = nn.Sequential(_block(3, 24, 5, 2), _block(24, 48, 3, 2), _block(48, 64))
        self.mask = nn.Conv2d(64, 1, 1)
        self.deep = nn.Sequential(_block(64, 96, 3, 2), _block(96, 128))
        self.wide = _block(128, 128, 3, 2)
        self.thing = _head(64 + 128, ("kind", "color"))
        self.place = _head(128 + 128 + 3 * 40, ("time", "setting"))
        self.present = nn.Linear(64 + 128 + 1, 2)
        self.cells = nn.Sequential(_block(3, 24, 8, 4), _block(24, 48, 3, 2))
        self.compared = nn.Conv2d(48, 16, 1)
        self.register_buffer("around", _neighbours(), persistent=False)
        self.flow = nn.Sequential(_block3(48 + self.around.shape[1] + 2, 64, (1, 1, 1)), _block3(64, 96, (2, 2, 2)))
        self.move = _head(2 * 96 * 4, ("motion", "camera"))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        clips = (clips - 0.5) * 3
        return {**self._shown(clips[:, list(LOOKS)]), **self._moves(clips)}

    def _shown(self, looks: Tensor) -> dict[str, Tensor]:
        B, n = looks.shape[:2]
        looks = looks.flatten(0, 1)
        near = self.near(looks)  # [B n, 64, 20, 32]
        mask = self.mask(near)  # [B n, 1, 20, 32]
        deep = self.deep(near)  # [B n, 128, 10, 16]
        weight = torch.sigmoid(mask.float())
        # The subject's features, seen through the mask that the renderer taught
        thing = torch.cat((_weighted(near, weight), _weighted(deep, F.avg_pool2d(weight, 2))), dim=1)
        wide = self.wide(deep)  # [B n, 128, 5, 8]
        tones = F.adaptive_avg_pool2d(looks, (5, 8)).flatten(1)
        place = torch.cat((wide.mean((2, 3)), wide.amax((2, 3)), tones), dim=1)
        thing, place = (x.unflatten(0, (B, n)).mean(1) for x in (thing, place))
        largest = mask.amax((2, 3)).unflatten(0, (B, n)).mean(1)
        return {
            **{name: head(thing) for name, head in self.thing.items()},
            **{name: head(place) for name, head in self.place.items()},
            "present": self.present(torch.cat((thing, largest), dim=1)),
            "mask": mask.unflatten(0, (B, n))[:, :, 0],
        }

    def _moves(self, clips: Tensor) -> dict[str, Tensor]:
        B, n = clips.shape[:2]
        cells = self.cells(clips.flatten(0, 1))
        keys = F.normalize(self.compared(cells).float(), dim=1).flatten(2).unflatten(0, (B, n))  # [B, 9, 16, cells]
        cells = cells.unflatten(0, (B, n))  # [B, 9, 48, 10, 16]
        every = keys[:, :-APART].transpose(2, 3) @ keys[:, APART:]  # [B, 7, cells, cells]
        every = F.pad(every, (0, 1))  # the last column stands for cells outside the frame
        alike = every.gather(3, self.around.expand(B, n - APART, -1, -1))  # [B, 7, cells, 35]
        alike = 4 * alike.transpose(2, 3).unflatten(3, GRID)
        flow = torch.cat((cells[:, APART:], alike.to(cells.dtype)), dim=2).transpose(1, 2)  # [B, 83, 7, 10, 16]
        flow = self.flow(torch.cat((flow, _places(flow)), dim=1))  # [B, 96, 4, 5, 8]
        pooled = torch.cat((flow.mean((3, 4)), flow.amax((3, 4))), dim=1).flatten(1)
        return {name: head(pooled) for name, head in self.move.items()}


def _block(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    padding = (kernel - stride + 1) // 2 if kernel % 2 == 0 else kernel // 2
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, kernel, stride, padding), nn.ReLU())


def _block3(channels_in: int, channels_out: int, stride: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(channels_in, channels_out, 3, stride, 1), nn.ReLU())


def _head(width: int, names: Sequence[str]) -> nn.ModuleDict:
    return nn.ModuleDict(
        {name: nn.Sequential(nn.Linear(width, 96), nn.ReLU(), nn.Linear(96, HEADS[name])) for name in names}
    )


def _weighted(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum((2, 3)) / (weight.sum((2, 3)) + 0.5)


def _neighbours() -> Tensor:
    """Which cells lie within REACH of each cell, int64 [cells, 35]; the number of cells stands for none.

    How alike a cell is to those around it in a later frame tells where it went (as in FlowNet, arXiv:1504.06852).
    """
    rows, columns = GRID
    y, x = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
    down = torch.arange(-REACH[0], REACH[0] + 1).repeat_interleave(2 * REACH[1] + 1)
    right = torch.arange(-REACH[1], REACH[1] + 1).repeat(2 * REACH[0] + 1)
    at_y, at_x = y[:, None] + down, x[:, None] + right
    inside = (at_y >= 0) & (at_y < rows) & (at_x >= 0) & (at_x < columns)
    return torch.where(inside, at_y * columns + at_x, rows * columns)


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


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a clip. mask: bool [looks, 80, 128], where it sees the subject in the frames LOOKS."""

    classes: dict[str, str]
    present: bool
    mask: Tensor


@torch.inference_mode()
def judge_clips(judge: Judge, clips: Sequence[Tensor]) -> list[Verdict]:
    """What a judge says of clips as `seen_frames` gives them."""
    device = judge.mask.weight.device
    said: list[Verdict] = []
    for start in range(0, len(clips), 32):
        logits = judge(torch.stack(list(clips[start : start + 32])).to(device))
        best = {name: logits[name].argmax(1).tolist() for name in HEADS}
        sure = logits["mask"].cpu() > 1.0  # the subject covers nearly all of the cell
        masks = sure.repeat_interleave(4, 2).repeat_interleave(4, 3)  # [B, looks, 80, 128]
        for row in range(len(masks)):
            classes = {name: ATTRIBUTES[name][best[name][row]] for name in ATTRIBUTES}
            said.append(Verdict(classes, best["present"][row] == 1, masks[row]))
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
    """A batch. clips float [B, SEEN, 3, H, W]; mask float [B, looks, 20, 32]; labels int64 [B], -1 where not asked."""

    clips: Tensor
    mask: Tensor
    labels: dict[str, Tensor]


def practice_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes for the judge: many still subjects and static cameras, since those are what it is asked about."""
    scenes = [scene.replace(second=None) for scene in sample_scenes(6 * count, seed, split="all")]
    still = [s for s in scenes if s.motion == "still"][: round(0.35 * count)]
    static = [s for s in scenes if s.camera == "static"][: round(0.45 * count)]
    return [*still, *static, *scenes[2 * count :][: count - len(still) - len(static)]]


class Practice:
    """Batches of rendered clips without end; a few of the pool are drawn anew with each batch."""

    def __init__(self, seed: int, device: str) -> None:
        self._dice = torch.Generator().manual_seed(seed)
        self._device = device
        self._queue: list[Scene] = []
        self._frames: list[Tensor] = []
        self._masks: list[Tensor] = []
        self._labels: list[dict[str, int]] = []

    def add(self, count: int) -> None:
        """Render so many more clips; the oldest beyond POOL go."""
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
            del kept[:-POOL]  # type: ignore[attr-defined]

    def _number(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._dice))

    def __iter__(self) -> Iterator[Sample]:
        while True:
            self.add(FRESH if len(self._frames) >= POOL else POOL)
            yield self.draw(BATCH)

    def draw(self, count: int) -> Sample:
        """A batch with backward, mirrored and held clips in it, and with worn pictures."""
        rows = [self._one(self._number(len(self._frames))) for _ in range(count)]
        clips = torch.stack([wear(frames.permute(0, 3, 1, 2).float().div_(255), self._dice) for frames, _, _ in rows])
        mask = torch.stack([mask for _, mask, _ in rows])
        labels = {name: torch.tensor([kept[name] for _, _, kept in rows], device=self._device) for name in HEADS}
        return Sample(clips.to(self._device), mask.to(self._device), labels)

    def _one(self, pick: int) -> tuple[Tensor, Tensor, dict[str, int]]:
        frames, mask, labels = self._frames[pick], self._masks[pick], dict(self._labels[pick])
        if self._number(2):
            frames, mask, labels = frames.flip(0), mask.flip(0), _turned(labels, BACKWARDS)
        if self._number(2):
            frames, mask, labels = frames.flip(2), mask.flip(2), _turned(labels, MIRRORED)
        if float(torch.rand((), generator=self._dice)) < FROZEN:
            look = self._number(len(LOOKS))
            frames, mask = frames[LOOKS[look]].expand_as(frames), mask[look].expand_as(mask)
            labels = {**labels, "motion": min(labels["motion"], STILL), "camera": STATIC}
        return frames, mask, labels


def wear(clip: Tensor, dice: torch.Generator) -> Tensor:
    """Tint, blur and noise for a clip [T, 3, H, W], in place; half of the clips stay sharp, half free of noise."""
    *gain, lift, blurs, width, noises, strength = torch.rand(8, generator=dice).tolist()
    clip.mul_(torch.tensor([0.94 + 0.12 * part for part in gain]).view(3, 1, 1)).add_(0.06 * (lift - 0.5))
    if blurs < 0.5:
        clip = _blurred(clip, 0.2 + 1.6 * width)
    if noises < 0.5:
        clip.add_(torch.randn(clip.shape, generator=dice), alpha=0.04 * strength)
    return clip.clamp_(0, 1)


def _blurred(frames: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of frames [..., H, W]; sigma in pixels."""
    return _blur_matrix(frames.shape[-2], sigma, frames) @ frames @ _blur_matrix(frames.shape[-1], sigma, frames).T


def _blur_matrix(length: int, sigma: float, like: Tensor) -> Tensor:
    x = torch.arange(length, device=like.device, dtype=like.dtype)
    weights = torch.exp(-0.5 * ((x[:, None] - x) / sigma) ** 2)
    # Without a floor the tails are denormal numbers, and products of those take a hundred times as long
    weights = torch.where(weights > 1e-4, weights, 0.0)
    return weights / weights.sum(1, keepdim=True)


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
    """A judge after so many minutes of processor time, whatever else the machine does; the averaged weights."""
    torch.manual_seed(seed)
    judge = Judge().to(device)
    average = Average(judge, horizon=200)
    optimizer = torch.optim.AdamW(judge.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    clock, started = Clock(minutes * 60), time.process_time()
    log, means, logged = Log(folder / "judges_log.txt", Team(0, 1), clock), Means(), 0.0
    for step, sample in enumerate(Practice(seed * 7919 + 90_001, device)):
        clock.elapsed = time.process_time() - started
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
        if clock.elapsed - logged > LOG_EVERY:
            logged = clock.elapsed
            log(step=step + 1, **means.take())
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
