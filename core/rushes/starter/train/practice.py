# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a judge sees of a clip, and the rendered clips that it practises on.

A judge must not read the answer off one frame, since position and facing give a motion away. So half of its clips run
backwards (a car that backs to the left is `left`), some are one frame held still (`still`, whatever it looks like), and
pictures are blurred, noisy and tinted, so that it does not lean on a renderer's crisp edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rushes.starter.scene import ATTRIBUTES, CAMERAS, MOTIONS, Scene
from rushes.starter.world import Rendered, render, sample_scenes

SEEN = 9  # frames of a clip that the judge sees, evenly spaced
SIZE = (128, 80)
LOOKS = (2, 6)  # of those, the frames in which it looks at shapes and colours
LABELS = (*ATTRIBUTES, "present")
ABSENT, FROZEN = 0.06, 0.08  # shares of training clips without a subject, and of one frame held still
POOL = 1000  # clips kept in memory
FRESH = 5  # new clips a step
BATCH = 16
FAR_AWAY = 1e4  # metres to the side: a subject that no camera sees
BACKWARDS = {
    "left": "right", "rise": "fall", "approach": "recede", "pan_left": "pan_right", "tilt_up": "tilt_down",
    "push_in": "pull_out",
}  # fmt: skip
MIRRORED = {"left": "right", "pan_left": "pan_right"}
STILL, STATIC = MOTIONS.index("still"), CAMERAS.index("static")


def turned(labels: dict[str, int], pairs: dict[str, str]) -> dict[str, int]:
    """Labels of a clip that is shown backwards or mirrored; -1, not asked, stays."""
    swap = {**pairs, **{b: a for a, b in pairs.items()}}
    changed = {}
    for name, classes in (("motion", MOTIONS), ("camera", CAMERAS)):
        if (label := labels[name]) >= 0:
            changed[name] = classes.index(swap.get(classes[label], classes[label]))
    return {**labels, **changed}


def seen_frames(frames: Tensor) -> Tensor:
    """The frames a judge sees: [F, H, W, 3] uint8, or float in [0, 1], to float [SEEN, 3, 80, 128]."""
    picks = torch.linspace(0, len(frames) - 1, SEEN).round().long()
    some = frames[picks].permute(0, 3, 1, 2)
    some = some.float() / 255 if some.dtype == torch.uint8 else some.float()
    size = (SIZE[1], SIZE[0])
    return some if some.shape[2:] == size else F.interpolate(some, size, mode="area")


def render_seen(scenes: Sequence[Scene], frames: int, device: str = "cpu") -> Rendered:
    """Only the frames that a judge would see of clips of 17, 33, ... frames.

    A slower frame rate makes the same moments; rendering the frames between them would cost three times as much.
    """
    step, rest = divmod(frames - 1, SEEN - 1)
    if rest or scenes[0].fps % step:
        raise ValueError(f"frames is {frames}; allowed: 9, 17, 25, 33, 49")
    return render([s.replace(frames=SEEN, fps=s.fps // step) for s in scenes], SIZE, device)


@dataclass
class Sample:
    """Clips with the truth about them. labels: -1 where nothing is asked.

    clips float [B, SEEN, 3, H, W]; mask float [B, looks, 20, 32]; path float [B, 6, 2]; labels int64 [B].
    """

    clips: Tensor
    mask: Tensor
    path: Tensor
    labels: dict[str, Tensor]


@dataclass
class Shown:
    """One clip of the pool. frames uint8 [SEEN, H, W, 3]; mask [looks, 20, 32].

    path [SEEN, 6]: where the backdrop is (right, down, log zoom) and the subject (right, down, log height).
    """

    frames: Tensor
    mask: Tensor
    path: Tensor
    labels: dict[str, int]

    def backwards(self) -> Shown:
        """The clip with its end first."""
        return Shown(self.frames.flip(0), self.mask.flip(0), self.path.flip(0), turned(self.labels, BACKWARDS))

    def mirrored(self) -> Shown:
        """The clip with its left on the right."""
        path = self.path * torch.tensor([-1.0, 1, 1, -1, 1, 1])
        return Shown(self.frames.flip(2), self.mask.flip(2), path, turned(self.labels, MIRRORED))

    def held(self, look: int) -> Shown:
        """One of the frames that the judge looks at, held still."""
        labels = {**self.labels, "motion": min(self.labels["motion"], STILL), "camera": STATIC}
        frame = LOOKS[look]
        frames, mask, path = (
            x[k].expand_as(x) for x, k in ((self.frames, frame), (self.mask, look), (self.path, frame))
        )
        return Shown(frames, mask, path, labels)


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
        self._shown: list[Shown] = []

    def add(self, count: int) -> None:
        """Render so many more clips; the oldest beyond POOL go."""
        while len(self._queue) < count:
            scenes = practice_scenes(200, self._number(2**31))
            self._queue += [scenes[i] for i in torch.randperm(len(scenes), generator=self._dice).tolist()]
        scenes, self._queue = self._queue[:count], self._queue[count:]
        hidden = [float(torch.rand((), generator=self._dice)) < ABSENT for _ in scenes]
        shown = [s.replace(x=FAR_AWAY) if away else s for s, away in zip(scenes, hidden, strict=True)]
        drawn = render_seen(shown, (17, 33)[self._number(2)], self._device)
        cells = F.avg_pool2d(drawn.mask[:, list(LOOKS)].float(), 4).cpu()
        away, height = drawn.subject.split((2, 1), dim=2)
        path = torch.cat((drawn.shifts, away, height.clamp_min(1e-3).log()), dim=2).cpu()  # [B, SEEN, 6]
        for row, (scene, is_hidden) in enumerate(zip(scenes, hidden, strict=True)):
            labels = {name: ATTRIBUTES[name].index(getattr(scene, name)) for name in ATTRIBUTES}
            if is_hidden:
                labels.update(kind=-1, color=-1, motion=-1)
            labels["present"] = int(not is_hidden)
            self._shown.append(Shown(drawn.frames[row].cpu(), cells[row], path[row], labels))
        del self._shown[:-POOL]

    def _number(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._dice))

    def __iter__(self) -> Iterator[Sample]:
        while True:
            self.add(FRESH if len(self._shown) >= POOL else POOL)
            yield self.draw(BATCH)

    def draw(self, count: int) -> Sample:
        """A batch with backward, mirrored and held clips in it, and with worn pictures."""
        rows = [self._one(self._shown[self._number(len(self._shown))]) for _ in range(count)]
        clips = [wear(row.frames.permute(0, 3, 1, 2).float().div_(255), self._dice) for row in rows]
        path = torch.stack([row.path for row in rows])
        path = (path[:, (SEEN // 2, SEEN - 1)] - path[:, :1]).transpose(1, 2)  # [B, 6, 2]
        labels = {name: torch.tensor([row.labels[name] for row in rows], device=self._device) for name in LABELS}
        mask = torch.stack([row.mask for row in rows])
        return Sample(torch.stack(clips).to(self._device), mask.to(self._device), path.to(self._device), labels)

    def _one(self, shown: Shown) -> Shown:
        if self._number(2):
            shown = shown.backwards()
        if self._number(2):
            shown = shown.mirrored()
        if float(torch.rand((), generator=self._dice)) < FROZEN:
            shown = shown.held(self._number(len(LOOKS)))
        return shown


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
