# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The forms of Wan: what each takes beside words, and the settings that Wan published with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rushes.model.bundle import Card, Defaults
from rushes.model.config import TransformerConfig
from rushes.shot import Control, ShotError

# "text": words alone. "frames": pictures as latent frames with a timestep of 0. "image": the first picture as further
# channels. "ends": the first and the last one so, both. "control": pictures, footage and masks through VACE.
Kind = Literal["text", "frames", "image", "ends", "control"]
Size = tuple[int, int]

TAKES = {  # beside words, for people
    "text": "words; a keyframe is forced on it",
    "frames": "words, and keyframes at any frame",
    "image": "a picture at frame 0",
    "ends": "a picture at frame 0 and one at the last frame",
    "control": "words, keyframes at any frame, control passes with masks, and references",
}
MASK_CHANNELS = 4  # that image-to-video models read beside the noisy latent and the pictures' latent
SMALL = 832 * 480  # pixels up to which Wan 2.1 image-to-video takes its lower shift
# `sample_neg_prompt` of Wan's own shared_config.py: Wan gives it to every model where the user gives none.
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
    "背景人很多，倒着走"
)


@dataclass(frozen=True)
class Form:
    """One form. small_shift: for pictures of up to SMALL pixels. boundary: a sigma, above it the high-noise expert."""

    name: str
    kind: Kind
    defaults: Defaults
    sizes: tuple[Size, ...]
    small_shift: float | None = None
    boundary: float | None = None

    @property
    def takes(self) -> str:
        """What it is given, in words."""
        return TAKES[self.kind] + (", and one at the last frame" if self.kind == "image" and self.boundary else "")

    def shift(self, size: Size) -> float:
        """What Wan sets for a clip of that size."""
        is_small = size[0] * size[1] <= SMALL
        return self.small_shift if is_small and self.small_shift is not None else self.defaults.shift


_480P, _720P = (832, 480), (1280, 720)


def _form(
    name: str,
    kind: Kind,
    sizes: Sequence[Size],
    guidance: float | tuple[float, float],
    shift: float,
    steps: int = 50,
    frames: int = 81,
    fps: str = "16",
    small_shift: float | None = None,
    boundary: float | None = None,
) -> Form:
    defaults = Defaults(sizes[0], frames, fps, steps, guidance, shift, "wan_unipc", "unipc", NEGATIVE)
    both = (*sizes, *((height, width) for width, height in sizes))
    return Form(name, kind, defaults, both, small_shift, boundary)


T2V_1_3B = _form("Wan 2.1 T2V 1.3B", "text", [_480P], 6.0, 8.0)
T2V_14B = _form("Wan 2.1 T2V 14B", "text", [_480P, _720P], 5.0, 5.0)
I2V_14B = _form("Wan 2.1 I2V", "image", [_480P, _720P], 5.0, 5.0, steps=40, small_shift=3.0)
FLF2V_14B = _form("Wan 2.1 FLF2V", "ends", [_720P, _480P], 5.5, 16.0)
VACE_1_3B = _form("Wan 2.1 VACE 1.3B", "control", [_480P], 5.0, 16.0)
VACE_14B = _form("Wan 2.1 VACE 14B", "control", [_480P, _720P], 5.0, 16.0)
T2V_A14B = _form("Wan 2.2 T2V A14B", "text", [_480P, _720P], (4.0, 3.0), 12.0, steps=40, boundary=0.875)
I2V_A14B = _form("Wan 2.2 I2V A14B", "image", [_480P, _720P], (3.5, 3.5), 5.0, steps=40, boundary=0.9)
VACE_A14B = _form("Wan 2.2 VACE A14B", "control", [_480P, _720P], 5.0, 16.0, boundary=0.875)
TI2V_5B = _form("Wan 2.2 TI2V 5B", "frames", [(1280, 704)], 5.0, 5.0, frames=121, fps="24")


def find_form(config: TransformerConfig, name: str, has_experts: bool) -> Form:
    """The form of a transformer's shape. name: of its file, which alone tells a 480p from a 720p model."""
    if config.vace_layers:
        return VACE_A14B if has_experts else VACE_14B if config.dim >= 5120 else VACE_1_3B
    if reads_pictures(config):
        if config.image_positions:
            return FLF2V_14B
        found = I2V_14B if config.image_dim is not None else I2V_A14B
        return _at_720p(found) if "720" in name else found
    if config.out_channels == 48:
        return TI2V_5B
    if has_experts:
        return T2V_A14B
    return T2V_14B if config.dim >= 5120 else T2V_1_3B


def reads_pictures(config: TransformerConfig) -> bool:
    """Whether pictures are further channels: [noise C | mask 4 | pictures C]."""
    return config.in_channels == 2 * config.out_channels + MASK_CHANNELS


def _at_720p(form: Form) -> Form:
    return dataclasses.replace(form, defaults=dataclasses.replace(form.defaults, size=_720P))


def check_keyframes(card: Card, at: Sequence[int], frames: int, is_given: bool) -> None:
    """Raise ShotError where a model cannot take pictures at these frames of a clip of so many, or lacks some.

    is_given: there is a start already, the clip before.
    """
    if card.kind not in ("image", "ends"):
        return
    last = frames - 1
    needed = () if is_given else (0,) if card.kind == "image" else (0, last)
    # with CLIP, Wan 2.1's first-frame models have learnt one picture only
    optional = (last,) if card.boundary is not None else ()
    if card.kind == "ends" and is_given:
        needed = (last,)
    if missing := [frame for frame in needed if frame not in at]:
        got = f"frame{'s' if len(at) > 1 else ''} {', '.join(map(str, at))}" if at else "none"
        raise ShotError(f"keyframe: got {got}; {card.name} needs a picture at frame {missing[0]}{_first(missing[0])}")
    allowed = sorted({*needed, *optional})
    if extra := [frame for frame in at if frame not in allowed]:
        places = " and ".join(map(str, allowed)) or "none"
        raise ShotError(f"keyframe: got frame {extra[0]}; {card.name} takes a picture at frame {places} of this clip")


def check_control(card: Card, control: Sequence[Control], frames: int, continues: bool) -> None:
    """Raise ShotError where a model takes no such control passes, or one of them starts after the clip.

    continues: the clip goes on from another one already.
    """
    if card.kind == "control":
        for one in control:
            if one.start >= frames:
                raise ShotError(f"control: got the start {one.start}; 0 to {frames - 1} is allowed in this clip")
        return
    if any(one.kind != "source" for one in control) or (control and card.kind == "text"):
        got = next((one.kind for one in control if one.kind != "source"), "source")
        also = "" if card.kind == "text" else " but a source that the clip goes on from"
        raise ShotError(
            f"control: got {got}; {card.name} takes no control passes{also}, a VACE model such as "
            "wan2.1_vace_1.3B_fp16 does"
        )
    if len(control) > 1 or any(one.start or one.mask or one.references for one in control):
        raise ShotError(f"control: {card.name} goes on from a source; one at frame 0, without a mask, is allowed")
    if control and continues:
        raise ShotError("control: got a source with a clip before; one of them is allowed")


def _first(frame: int) -> str:
    return " to start from (--keyframe 0=IMAGE)" if frame == 0 else " to end at (--keyframe -1=IMAGE)"
