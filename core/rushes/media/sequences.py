# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Frames from pictures: an EXR or PNG sequence by its pattern, or one file, through OpenImageIO."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it

from rushes.media import color, images, plates, stills, timecodes, views
from rushes.media.paths import MAX_START_FRAME, Target
from rushes.media.record import from_text, unreadable
from rushes.media.source import Source
from rushes.shot import Shot, ShotError

ALLOWED_SPACES = f"give colorspace, such as {', '.join(color.EXAMPLES)}"
# The frame number of plate.1001.exr or plate_1001.exr; v003 and sh010 are names
_NUMBER = re.compile(r"(?:^|[._-])([0-9]+)\.[^.]+$")


def find_pictures(text: str) -> tuple[list[Path], int | None]:
    """The files that a name stands for, in the order of their numbers, and the first number where there is one.

    text: a file, or a pattern such as plate.%04d.exr or plate.####.exr. Raises ShotError for a missing file, and
    for a pattern without files or with a gap.
    """
    if os.path.isfile(text):  # before patterns: a file may really be called take#2.png
        match = _NUMBER.search(os.path.basename(text))
        number = int(match[1]) if match else MAX_START_FRAME + 1
        return [Path(text)], number if number <= MAX_START_FRAME else None
    target = Target.parse(text, argument="")
    there = target.existing()
    if target.padding is None or not there:
        what = "file" if target.padding is None else "frame"
        raise ShotError(f"{text}: there is no such {what}; an existing file, or the pattern of a sequence, is allowed")
    for _, path in there:
        if not path.is_file():
            raise ShotError(f"{text}: {path.name} is not a file; frames that are files are allowed")
    first, last = there[0][0], there[-1][0]
    missing = last - first + 1 - len(there)
    if missing:
        number = next(at for at, (number, _) in enumerate(there, first) if at != number)
        more = f" and {missing - 1} more are" if missing > 1 else " is"
        raise ShotError(
            f"{text}: of the frames {first} to {last}, {number} ({target.file_name(number)}){more} missing; "
            "a sequence without gaps is allowed"
        )
    return [path for _, path in there], first


class PictureSource(Source):
    """EXR or PNG files. colorspace: overrides what they say of their colours; None goes by that.

    A PNG that says nothing is sRGB. An EXR has to say it, by colorInteropID, by chromaticities (then it is
    scene-linear) or by our own rushes/colorspace, in this order. numbers: the pass to look for among many layers, see
    `images.pass_channels`; "" for colours. Raises ShotError.
    """

    def __init__(self, text: str, colorspace: str | None, numbers: str = "") -> None:
        super().__init__(text)
        self._numbers = numbers
        self._files, number = find_pictures(text)
        self.frames = len(self._files)
        self._given = None if colorspace is None else color.find_space(colorspace)
        picture = _opened(self._files[0])
        spec, kind = picture.spec(), picture.format_name()
        picture.close()
        if len(self._files) > 1 and spec.getattribute(plates.SLATE):
            # the frames begin after it
            self._files, self.frames = self._files[1:], self.frames - 1
            number = None if number is None else number + 1
            picture = _opened(self._files[0])
            spec, kind = picture.spec(), picture.format_name()
            picture.close()
        self.space = self._given or _declared(spec, kind, self._files[0])
        text = spec.getattribute(plates.VIEW)
        if isinstance(text, str) and self._given is None:
            try:
                self.view = views.from_text(text)
            except ShotError as error:
                self.note(f"it was made for a view that is not here, and comes as it would be without ({error})")
        self.fps = _fps(spec, self._files[0])
        self.start_frame = _first_number(spec, self.fps) if number is None else number
        # of no channels: only its shape is wanted
        blank, self.aspect = images.upright(np.empty((*_window(spec), 0), np.float32), spec)
        self.size = blank.shape[1], blank.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for path in self._files:
            picture = _opened(path)
            spec, kind = picture.spec(), picture.format_name()
            try:
                self._check_space(spec, kind, path)
                rgb = self._colours(picture, spec, path)
            finally:
                picture.close()
            rgb = images.upright(images.display_window(rgb, spec), spec)[0]
            if rgb.shape != (self.size[1], self.size[0], 3):
                raise ShotError(
                    f"{path}: its size is {rgb.shape[1]}x{rgb.shape[0]}, and the first frame's is "
                    f"{self.size[0]}x{self.size[1]}; frames of one size are allowed"
                )
            yield rgb

    def _check_space(self, spec: oiio.ImageSpec, kind: str, path: Path) -> None:
        if self._given is not None or path == self._files[0]:
            return
        space = _declared(spec, kind, path)
        if space != self.space:
            raise ShotError(
                f"{path}: its colours are declared as {space.name!r}, and the first frame's as "
                f"{self.space.name!r}; {ALLOWED_SPACES}"
            )

    def _colours(self, picture: oiio.ImageInput, spec: oiio.ImageSpec, path: Path) -> np.ndarray:
        """The colour channels as they are stored: float32 [h, w, 3]."""
        wanted = images.pass_channels(spec, self._numbers) if self._numbers else images.rgb_channels(spec)
        if spec.alpha_channel >= 0 and spec.alpha_channel not in wanted and not self._numbers:
            wanted = [*wanted, spec.alpha_channel]
        pixels = _channels(picture, spec, wanted)  # [h, w, 3 or 4]
        if pixels is None:
            raise unreadable(path, "a picture", picture.geterror())
        if len(wanted) == 4 and (pixels[..., 3] != 1).any():
            self.note("alpha is not 1 everywhere; it is left out, and the colours are as the file stores them")
        return np.ascontiguousarray(pixels[..., :3])


def _opened(path: Path) -> oiio.ImageInput:
    hint = oiio.ImageSpec()
    hint.attribute("oiio:UnassociatedAlpha", 1)  # or a PNG's colours would come multiplied by its alpha
    picture = oiio.ImageInput.open(str(path), hint)
    if picture is None:
        raise unreadable(path, "a picture", oiio.geterror())
    return picture


def is_slate(path: Path) -> bool:
    """Whether a picture says that it is no frame of its plate. Raises ShotError."""
    picture = _opened(path)
    found = picture.spec().getattribute(plates.SLATE)
    picture.close()
    return bool(found)


def read_stored(path: Path) -> list[np.ndarray]:
    """Every number of a picture as its file has it, all parts of a file: [h, w, c] each. Raises ShotError."""
    picture = _opened(path)
    parts: list[np.ndarray] = []
    try:
        while picture.seek_subimage(len(parts), 0):
            pixels = picture.read_image(len(parts), 0, 0, picture.spec().nchannels, oiio.UNKNOWN)
            if pixels is None:
                raise unreadable(path, "a picture", picture.geterror())
            parts.append(pixels)
    finally:
        picture.close()
    oiio.geterror()  # there always is a part that there is not
    return parts


def _channels(picture: oiio.ImageInput, spec: oiio.ImageSpec, wanted: list[int]) -> np.ndarray | None:
    """Some channels as float32 [h, w, len(wanted)]; None where the file is damaged."""
    formats = spec.channelformats or (spec.format,) * spec.nchannels
    groups = [(min(wanted), max(wanted) + 1)]
    if picture.format_name() == "openexr" and any(formats[place].basetype == oiio.UINT for place in wanted):
        groups = [(place, place + 1) for place in sorted(set(wanted))]
    found: dict[int, np.ndarray] = {}
    for first, end in groups:
        # OpenImageIO takes whole numbers for fractions of their largest; in an EXR they are what they are
        is_uint = len(groups) > 1 and formats[first].basetype == oiio.UINT
        part = picture.read_image(0, 0, first, end, oiio.UINT if is_uint else oiio.FLOAT)
        if part is None:
            return None
        part = np.asarray(part).reshape(spec.height, spec.width, end - first)
        found.update({place: part[..., place - first] for place in range(first, end)})
    return np.stack([found[place] for place in wanted], axis=2).astype(np.float32, copy=False)


def _declared(spec: oiio.ImageSpec, kind: str, path: Path) -> color.Space:
    if kind != "openexr":
        return color.find_space(images.source_space(spec, path))
    tag = spec.getattribute("colorInteropID")
    primaries = spec.getattribute("chromaticities")
    if not tag and primaries is not None:
        linear = color.find_gamut(primaries)
        if linear is None:
            raise ShotError(f"{path}: its primaries are none that Rushes knows; {ALLOWED_SPACES}")
        return linear
    tag = tag or spec.getattribute("rushes/colorspace")
    if not tag:
        raise ShotError(f"{path}: it does not say what its colours are; {ALLOWED_SPACES}")
    try:
        return images.tagged_space(str(tag))
    except ShotError as error:
        raise ShotError(
            f"{path}: it is tagged as {tag!r}, a colour space that Rushes does not know; {ALLOWED_SPACES}"
        ) from error


def _window(spec: oiio.ImageSpec) -> tuple[int, int]:
    """Height and width of what `display_window` gives."""
    if spec.full_width < 1 or spec.full_height < 1:
        return spec.height, spec.width
    return spec.full_height, spec.full_width


def _fps(spec: oiio.ImageSpec, path: Path) -> Fraction | None:
    """From OpenEXR's rational framesPerSecond, whatever its capitals, or from the record in a PNG of ours."""
    rate: Any = spec.getattribute("framesPerSecond")
    if isinstance(rate, tuple) and len(rate) == 2 and all(isinstance(part, int) and part > 0 for part in rate):
        return Fraction(*rate)
    text = spec.getattribute(stills.RECORD)
    if not isinstance(text, str):
        return None
    try:
        return Shot.from_dict(from_text(text, path)["shot"]).fps
    except ShotError:  # somebody else's text of that name, which says nothing of a rate
        return None


def _first_number(spec: oiio.ImageSpec, fps: Fraction | None) -> int | None:
    code = spec.getattribute("smpte:TimeCode")
    if fps is None or not isinstance(code, tuple):
        return None
    return timecodes.frame_of_timecode(code[0], fps)
