# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""VACE contexts: what is kept, what guides and what is referred to, as the control branch of Wan VACE reads it.

A context is one video and one mask, encoded. Frames that are kept (the clip before, keyframes, "source") stand in every
context, with a mask of 0; where a guide holds, its frames stand with a mask of 1; all else is grey, to be made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rushes.model.transformer import Control as Context
from rushes.sampling.masks import vace_condition, vace_mask, vace_split
from rushes.shot import Control, Shot, ShotError

Encode = Callable[[Tensor], Tensor]  # [1, 3, F, H, W] in [-1, 1] to latents in model space, float32


TOLERANCE = 0.01  # between rates of which nobody sees the difference, such as 24 and 23.976


class Layer:
    """A video [1, 3, F, H, W] in [-1, 1], grey where nothing is given, and its mask [1, 1, F, H, W], 1: made anew."""

    def __init__(self, video: Tensor, mask: Tensor) -> None:
        self.video, self.mask = video, mask

    @classmethod
    def empty(cls, frames: int, size: tuple[int, int], device: torch.device) -> Layer:
        video = torch.zeros(1, 3, frames, size[1], size[0], device=device)
        return cls(video, torch.ones_like(video[:, :1]))

    def over(self, other: Layer) -> Layer:
        """What this one keeps, and the other one elsewhere."""
        is_kept = self.mask <= 0.5
        return Layer(torch.where(is_kept, self.video, other.video), torch.where(is_kept, self.mask, other.mask))


def read_contexts(
    shot: Shot, kept: Mapping[int, Tensor], start: Tensor | None, encode: Encode, device: torch.device
) -> tuple[tuple[Context, ...], int]:
    """The contexts of a resolved shot, and how many latent frames of references lie before the clip's.

    kept: pictures [1, 3, H, W] by their frames. start: latents [1, C, n, h, w] of frames that are among them, taken as
    they are. Raises ShotError for footage that cannot be read.
    """
    assert shot.size is not None and shot.frames is not None
    base = Layer.empty(shot.frames, shot.size, device)
    for frame, picture in kept.items():
        base.video[:, :, frame], base.mask[:, :, frame] = picture, 0.0
    for control in shot.control:
        if control.kind == "source":
            base = base.over(_layer(control, shot, device))
    guides = [control for control in shot.control if control.kind not in ("source", "reference")]
    layers = [(base.over(_layer(guide, shot, device)), guide.strength) for guide in guides]
    if not layers:
        layers = [(base, max((control.strength for control in shot.control), default=1.0))]
    pictures = [_reference(path, shot, encode, device) for control in shot.control for path in control.references]
    return tuple(_context(layer, strength, pictures, start, encode) for layer, strength in layers), len(pictures)


def read_start(shot: Shot, device: torch.device) -> Tensor | None:
    """Frames [1, 3, n, H, W] in [-1, 1] of the source that a clip goes on from, for a model without a control branch.

    None without one. Raises ShotError for one that leaves nothing to be made.
    """
    if not shot.control:
        return None
    footage = _read(shot.control[0], shot.control[0].path, "source", shot, holds=False)
    if len(footage) == shot.frames:
        raise ShotError(f"control: the source has all {shot.frames} frames of the clip; a shorter one is allowed")
    return footage.to(device).permute(3, 0, 1, 2)[None] * 2 - 1


def _context(layer: Layer, strength: float, pictures: list[Tensor], start: Tensor | None, encode: Encode) -> Context:
    kept, made = (encode(part) for part in vace_split(layer.video, layer.mask))
    if start is not None:
        kept[:, :, : start.shape[2]] = start  # another round through the VAE would shift its colours
    return Context(vace_condition(kept, made, vace_mask(layer.mask), pictures), strength)


def _layer(control: Control, shot: Shot, device: torch.device) -> Layer:
    """One control's own video and mask; "source" is kept where it lies, but for its mask."""
    assert shot.size is not None and shot.frames is not None
    layer = Layer.empty(shot.frames, shot.size, device)
    is_source = control.kind == "source"
    footage = _read(control, control.path, control.kind, shot, holds=not is_source)
    end = control.start + len(footage)
    here = layer.video[:, :, control.start : end]
    here[:] = footage.to(device).permute(3, 0, 1, 2)[None] * 2 - 1
    if is_source:
        layer.mask[:, :, control.start : end] = 0.0
    if control.mask:
        mask = _read(control, control.mask, "mask", shot, holds=True).to(device)[..., 0]  # [n, H, W]
        end = min(end, control.start + len(mask))
        mask = mask[: end - control.start]
        if is_source:
            layer.mask[:, 0, control.start : end] = mask
        else:
            layer.video[:, :, control.start : end] *= mask > 0.5
    return layer


def _read(control: Control, path: str, kind: str, shot: Shot, holds: bool) -> Tensor:
    """Frames [n, H, W, 3] in [0, 1] of what begins at the control's start. holds: a picture is there to the end."""
    from rushes.media import is_still, read_pass

    assert shot.size is not None and shot.frames is not None
    left = shot.frames - control.start
    try:
        found = torch.from_numpy(read_pass(path, kind, shot.size, left))
    except ShotError as error:
        raise ShotError(f"control: {error}") from error
    return found.expand(left, -1, -1, -1) if holds and is_still(path) else found


def _reference(path: str, shot: Shot, encode: Encode, device: torch.device) -> Tensor:
    from rushes.media import read_reference

    assert shot.size is not None
    try:
        picture = torch.from_numpy(read_reference(path, shot.size)).to(device).permute(2, 0, 1)  # [3, H, W]
    except ShotError as error:
        raise ShotError(f"control: {error}") from error
    return encode(picture[None, :, None] * 2 - 1)  # [1, C, 1, h, w]


def footage_notes(shot: Shot) -> list[str]:
    """What the artist should know of a resolved shot's footage, a sentence each. Raises ShotError for what is gone."""
    from rushes.media import is_still, read_frames

    assert shot.frames is not None
    found = []
    for control in shot.control:
        if not control.path or is_still(control.path):
            continue
        left = shot.frames - control.start
        try:
            with read_frames(control.path, numbers="mask") as reader:
                count, fps = reader.frames, reader.fps
        except ShotError as error:
            raise ShotError(f"control: {error}") from error
        if count > left:
            found.append(f"control: {control.path} has {count} frames, of which the clip takes {left}")
        elif count < left and control.kind != "source":
            found.append(f"control: {control.path} ends at frame {control.start + count}; from there the model is free")
        if fps is not None and shot.fps is not None and abs(fps / shot.fps - 1) > TOLERANCE:
            found.append(f"control: {control.path} runs at {float(fps):g} fps and the clip at {float(shot.fps):g}")
    return found
