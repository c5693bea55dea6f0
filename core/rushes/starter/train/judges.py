# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A small network that says what a clip shows, trained on rendered clips: the judge of what the starter model makes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rushes.replacing import FOR_ALL, replacing
from rushes.starter.scene import ATTRIBUTES
from rushes.starter.train.practice import LABELS, LOOKS, Practice, Sample
from rushes.starter.train.run import Average, Clock, Log, Means, Optimizers, Team, rate

VERSION = "1"
APART = 2  # frames that are compared with each other
GRID = (10, 16)  # rows and columns of the cells of 8 pixels that are compared
REACH = (2, 3)  # over so many rows and columns
PATH = 12  # shifts of backdrop and subject in the middle and at the end of a clip
HEADS = {**{name: len(classes) for name, classes in ATTRIBUTES.items()}, "present": 2, "path": PATH}
MUON_RATE, ADAM_RATE = 0.02, 2e-3
MASK_WEIGHT, PATH_WEIGHT = 4.0, 4.0
LOG_EVERY = 20.0  # seconds


class Judge(nn.Module):
    """Clips [B, SEEN, 3, 80, 128] in [0, 1] -> logits of each attribute and of the subject's mask in 4-pixel cells, and
    how far backdrop and subject have moved: the renderer knows both, and motion is learnt sooner for it."""

    around: Tensor

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
        around = _neighbours()
        self.register_buffer("around", around, persistent=False)
        self.flow = nn.Sequential(_block3(48 + around.shape[1] + 2, 64, (1, 1, 1)), _block3(64, 96, (2, 2, 2)))
        self.move = _head(2 * 96 * 4, ("motion", "camera", "path"))
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
        best = {name: logits[name].argmax(1).tolist() for name in LABELS}
        sure = logits["mask"].cpu() > 1.0  # the subject covers nearly all of the cell
        masks = sure.repeat_interleave(4, 2).repeat_interleave(4, 3)  # [B, looks, 80, 128]
        for row in range(len(masks)):
            classes = {name: ATTRIBUTES[name][best[name][row]] for name in ATTRIBUTES}
            said.append(Verdict(classes, best["present"][row] == 1, masks[row]))
    return said


def losses(judge: Judge, sample: Sample) -> dict[str, Tensor]:
    """Cross entropy of each attribute and of the mask, and their sum as `loss`."""
    with torch.autocast(sample.clips.device.type, dtype=torch.bfloat16):
        logits = judge(sample.clips)
    parts = {}
    for name in LABELS:
        asked = (sample.labels[name] >= 0).sum().clamp_min(1)
        sums = F.cross_entropy(logits[name].float(), sample.labels[name], ignore_index=-1, reduction="sum")
        parts[name] = sums / asked
    total = torch.stack(list(parts.values())).sum()
    mask = F.binary_cross_entropy_with_logits(logits["mask"].float(), sample.mask)
    seen = (sample.labels["present"] == 1)[:, None, None]
    asked = torch.cat((torch.ones_like(seen).expand(-1, 3, 2), seen.expand(-1, 3, 2)), dim=1)
    error = F.smooth_l1_loss(5 * logits["path"].float().view(-1, 6, 2), 5 * sample.path, reduction="none", beta=0.3)
    path = torch.where(asked, error, 0.0).mean()
    return {"loss": total + MASK_WEIGHT * mask + PATH_WEIGHT * path, **parts, "mask": mask, "path": path}


def train_judge(folder: Path, minutes: float, seed: int = 0, device: str = "cpu") -> Judge:
    """A judge after so many minutes of processor time, whatever else the machine does; the averaged weights."""
    torch.manual_seed(seed)
    judge = Judge().to(device)
    average = Average(judge, horizon=200)
    kernels = [module.weight for module in judge.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    optimizers = Optimizers(judge, kernels, MUON_RATE, ADAM_RATE)
    clock, started = Clock(minutes * 60), time.process_time()
    log, means, logged = Log(folder / "judges_log.txt", Team(0, 1), clock), Means(), 0.0
    for step, sample in enumerate(Practice(seed * 7919 + 90_001, device)):
        clock.elapsed = time.process_time() - started
        if clock.progress >= 1:
            break
        parts = losses(judge, sample)
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 2.0)
        optimizers.step(rate(clock.progress, warmup=0.03, decay=0.6))
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
    state = {name: value.cpu().contiguous() for name, value in judge.state_dict().items()}
    with replacing(path, FOR_ALL) as temporary:
        save_file(state, temporary, metadata={"version": VERSION, "minutes": str(minutes), "seed": str(seed)})
    return judge
