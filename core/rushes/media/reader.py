# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Frames in: plates, stills and movies as display-referred sRGB, a few frames at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType

import numpy as np

from rushes.media import color, views
from rushes.media.images import filled
from rushes.media.source import Source
from rushes.shot import ShotError

KINDS = ("exr", "png", "mov", "mp4")
CHUNK_BYTES = 64 * 2**20  # of float32 frames: two at 1920x1080
CHUNK_FRAMES = 16


def read_frames(
    path: str | os.PathLike[str],
    colorspace: str | None = None,
    size: tuple[int, int] | None = None,
    numbers: str = "",
) -> FrameReader:
    """The frames of a sequence, a still or a movie, ready to be iterated; nothing but the first is read yet.

    path: an .exr or .png file, the pattern of a sequence of them (plate.%04d.exr or plate.####.exr, all frames),
    a .mov or an .mp4; colorspace: of what is stored, None goes by the tags; size: (width, height), frames are
    scaled to fill it and cropped, the centre kept, None leaves them as they are; numbers: "depth", "normal" or
    "mask" for what is no colour: as the file has it, NaN and infinity too, of the layer of that name in an EXR of many.
    Untagged PNG is sRGB, an untagged movie BT.709 in video range, and an untagged EXR is refused. Values tagged
    as BT.709 video are taken for sRGB, as we write them. A plate that was made by the inverse of a view comes as that
    view shows it, unless colorspace is given. Raises ShotError for what is missing, damaged, of
    undeclared colour, or a sequence with a gap.
    """
    text = os.fspath(path)
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ShotError(f"size: got {size}; a width and a height of 1 and more are allowed")
    kind = os.path.splitext(text)[1][1:].lower()
    if os.path.isdir(text):
        raise ShotError(f"{text}: it is a folder; a file, or a pattern such as plate.%04d.exr, is allowed")
    if kind not in KINDS:
        got = f"the suffix is '.{kind}'" if kind else "the name has no suffix"
        raise ShotError(f"{text}: {got}; allowed are {', '.join('.' + one for one in KINDS)}")
    return FrameReader(_source(text, kind, color.SRGB if numbers else colorspace, numbers), size, bool(numbers))


def _source(text: str, kind: str, colorspace: str | None, numbers: str) -> Source:
    if kind in ("exr", "png"):
        from rushes.media.sequences import PictureSource

        return PictureSource(text, colorspace, numbers)
    if not os.path.isfile(text):
        raise ShotError(f"{text}: there is no such file; an existing movie is allowed")
    from rushes.media.footage import MovieSource

    return MovieSource(text, colorspace)


class FrameReader:
    """Iterate once over chunks: float32 [n, h, w, 3], display-referred sRGB, n up to 16.

    What is stored as light, or in a camera's or grading's log, may exceed 0 ... 1 and is not clipped; what is
    stored for a display is. Use it as a context, or close it, unless it is read to the end. It starts no thread.

    frames: how many there are; size: (width, height) of what comes; fps: exact, None where the file does not
    tell; start_frame: number of the first, from the name or the time code, None where neither tells;
    colorspace: of what is stored, the configuration's name; aspect: width of a stored pixel over its height.
    """

    def __init__(self, source: Source, size: tuple[int, int] | None = None, as_stored: bool = False) -> None:
        self._source, self._as_stored = source, as_stored
        self._pictures: Iterator[np.ndarray] = iter(source)
        self._is_scaled = size is not None
        self._is_closed = False
        self._given = 0
        self._repaired = 0
        self.frames = source.frames
        self.size: tuple[int, int] = source.size if size is None else (size[0], size[1])
        self.fps: Fraction | None = source.fps
        self.start_frame: int | None = source.start_frame
        self.colorspace = source.space.name
        self.aspect = source.aspect
        if source.aspect != 1 and size is None:
            source.note(f"a pixel is {source.aspect:g} times as wide as high; the frames have the stored pixels")

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what could not be kept, such as alpha; complete once all frames are read."""
        repaired = f"{self._source.text}: {self._repaired} values were NaN or infinite; NaN became 0, infinity 65504"
        return (*self._source.notes, *([repaired] if self._repaired else []))

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; safe to call again."""
        self._is_closed = True
        self._pictures = iter(())  # what it holds of a decoder is let go
        self._source.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        """The next frames. Raises ShotError for a damaged one, ValueError once closed before the end."""
        left = self.frames - self._given
        if not left:
            raise StopIteration
        if self._is_closed:
            raise ValueError("the reader is closed; open the frames again")
        width, height = self.size
        count = min(max(CHUNK_BYTES // (12 * width * height), 1), CHUNK_FRAMES, left)
        chunk = np.empty((count, height, width, 3), np.float32)
        try:
            for index in range(count):
                chunk[index] = self._display(next(self._pictures))
            if left == count and next(self._pictures, None) is not None:
                raise ShotError(f"{self._source.text}: it has more frames than the {self.frames} it tells of")
        except BaseException:
            self.close()
            raise
        self._given += count
        if left == count:
            self.close()
        return chunk

    def _display(self, frame: np.ndarray) -> np.ndarray:
        """One frame of the source, in sRGB and in the size that is wanted: float32 [height, width, 3]."""
        if self._as_stored:
            return filled(frame, self.aspect, *self.size) if self._is_scaled else frame
        bad = frame.size - int(np.count_nonzero(np.isfinite(frame)))
        if bad:
            self._repaired += bad
            frame = np.nan_to_num(frame, nan=0.0, posinf=color.HALF_MAX, neginf=-color.HALF_MAX)
        space = self._source.space
        if self._source.view is not None:
            frame = views.show(frame, self._source.view, space.name)
        elif space.name != color.SRGB:
            frame = color.convert(frame, space.name, color.SRGB)
        if space.is_bounded:
            frame = np.clip(frame, 0.0, 1.0)
        if not self._is_scaled:
            return frame
        frame = filled(frame, self._source.aspect, *self.size)
        return np.clip(frame, 0.0, 1.0) if space.is_bounded else frame
