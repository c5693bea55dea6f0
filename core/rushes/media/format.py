# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""OutputFormat: how outputs are written, apart from their names and their content."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from rushes.media.paths import ALPHAS, CODECS, COMPRESSIONS, DEPTHS, MAX_START_FRAME, PICTURES, Target
from rushes.shot import Shot, ShotError

# Of which outputs a choice is, by its field: where none of them is written, it is refused
_KINDS = {
    "colorspace": ("exr",), "compression": ("exr",), "depth": ("exr",), "alpha": ("exr",), "inverse_view": ("exr",),
    "overscan": ("exr",), "slate": ("exr",), "timecode": ("exr", "mov", "mp4"), "codec": ("mov", "mp4"),
    "handles": ("exr", "png", "otio"),
}  # fmt: skip


@dataclass(frozen=True)
class OutputFormat:
    """Choices that hold for all outputs of a shot; None leaves one to its default.

    colorspace: of plates, a name in the pinned configuration or in that of $OCIO, None means ACEScg;
    compression: of plates, one of COMPRESSIONS, None means zip;
    depth: of plates, one of DEPTHS, None means half;
    start_frame: number of the first file of a sequence;
    manifest: whether a manifest is written beside pictures, None means beside plates alone;
    inverse_view: the view that plates shall look like the clip through, as `views.find_view` has it, None means that
    they are converted colorimetrically; cap: with it, the light that no channel of ACEScg passes;
    alpha: of plates, "none" or "solid", None means none;
    handles: frames at each end of the clip that are no part of the cut; the first file keeps start_frame;
    overscan: pixels at each side of the clip that are outside a plate's display window;
    timecode: of the first frame, HH:MM:SS:FF, None means that the frame number is counted from 00:00:00:00;
    slate: whether a plate's sequence gets a picture before its first frame that says what it is;
    codec: of movies, one of those in CODECS for their suffix, None means the first one.
    Raises ShotError for a value that no output allows.
    """

    colorspace: str | None = None
    compression: str | None = None
    depth: str | None = None
    start_frame: int = 1001
    manifest: bool | None = None
    inverse_view: str | None = None
    cap: float | None = None
    alpha: str | None = None
    handles: int = 0
    overscan: int = 0
    timecode: str | None = None
    slate: bool = False
    codec: str | None = None

    def __post_init__(self) -> None:
        codecs = tuple(dict.fromkeys(codec for kind in CODECS.values() for codec in kind))
        for name, allowed in (
            ("compression", COMPRESSIONS), ("depth", DEPTHS), ("alpha", ALPHAS), ("codec", codecs)
        ):  # fmt: skip
            if (got := getattr(self, name)) not in (None, *allowed):
                raise ShotError(f"--{name}: got {got!r}; allowed are {', '.join(allowed)}")
        if not 0 <= self.start_frame <= MAX_START_FRAME:
            raise ShotError(
                f"start frame: got {self.start_frame}; a whole number from 0 to {MAX_START_FRAME} is allowed"
            )
        if self.slate and self.start_frame < 1:
            raise ShotError("--slate: the start frame is 0 and the slate would be -1; a start frame of 1 is allowed")
        for name in ("handles", "overscan"):
            if (count := getattr(self, name)) < 0:
                raise ShotError(f"--{name}: got {count}; a whole number from 0 on is allowed")
        if self.cap is not None and self.inverse_view is None:
            raise ShotError(f"--cap: got {self.cap:g} without --inverse-view; it is allowed with that")
        if self.cap is not None and not (math.isfinite(self.cap) and 1 <= self.cap <= 1000):
            raise ShotError(f"--cap: got {self.cap:g}; a number from 1 to 1000 is allowed")

    def check(self, targets: Sequence[Target]) -> None:
        """Raise ShotError for a choice that none of the outputs can follow, and for unknown names of colours."""
        kinds = {target.kind for target in targets}
        for field in fields(self):
            got = getattr(self, field.name)
            if field.name in _KINDS and got != field.default and not kinds & set(_KINDS[field.name]):
                name = field.name.replace("_", "-")
                wanted = " or ".join(f".{kind}" for kind in _KINDS[field.name])
                if field.name == "colorspace":
                    wanted += " output (movies are Rec.709, stills are sRGB)"
                    raise ShotError(f"--{name}: got {got!r} without a plate; it is allowed with an {wanted}")
                what = "a plate" if wanted == ".exr" else f"a {wanted}"
                raise ShotError(f"--{name}: got {got!r} without {what}; it is allowed with an {wanted} output")
        for target in targets:
            if self.codec is not None and self.codec not in CODECS.get(target.kind, (self.codec,)):
                allowed = ", ".join(CODECS[target.kind])
                raise ShotError(f"--codec: got {self.codec!r} for {target.text}; allowed there are {allowed}")
        if self.slate and all(target.padding is None for target in targets if target.kind == "exr"):
            raise ShotError("--slate: the plate is one file; it is allowed with a sequence such as plate.%04d.exr")
        if "exr" in kinds:
            from rushes.media import color, views

            color.find_space(self.colorspace or color.DEFAULT_SPACE)
            if self.inverse_view is not None:
                views.find_view(self.inverse_view)

    def check_shot(self, frames: int | None, size: tuple[int, int] | None) -> None:
        """Raise ShotError where nothing would be left of the clip, as far as it is known."""
        if frames is not None and self.handles and 2 * self.handles >= frames:
            raise ShotError(
                f"--handles: got {self.handles} for {frames} frames; up to {(frames - 1) // 2} at each end are allowed"
            )
        if size is not None and 2 * self.overscan >= min(size):
            raise ShotError(
                f"--overscan: got {self.overscan} for {size[0]}x{size[1]}; up to {(min(size) - 1) // 2} pixels at each "
                "side are allowed"
            )

    def check_rate(self, shot: Shot) -> None:
        """Raise ShotError for a time code that the shot's rate does not have."""
        if self.timecode is not None and shot.fps is not None:
            from rushes.media.timecodes import parse_timecode

            parse_timecode(self.timecode, shot.fps)

    def wants_manifest(self, target: Target) -> bool:
        """A plate travels from hand to hand, frame by frame; a movie is one file, whose own reader counts frames."""
        return target.kind == "exr" if self.manifest is None else self.manifest and target.kind in PICTURES
