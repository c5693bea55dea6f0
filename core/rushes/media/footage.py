# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Frames from movies, through PyAV: colours by the tags, every frame counted, damage told."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from rushes.media import color
from rushes.media.record import unreadable
from rushes.media.source import Source
from rushes.media.ycbcr import from_ycbcr, unit_range
from rushes.shot import ShotError

# Codes of ITU-T H.273. Matrices, as the weights of red and blue; what is untold (2) is BT.709.
_MATRICES = {
    1: (0.2126, 0.0722),
    2: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
# Transfers that say "video for a display", whose values we take for sRGB as we write them, and primaries that
# are BT.709's, or those of standard definition, which differ from them by less than a display does
_VIDEO = (1, 2, 6, 13, 14, 15)
_REC709 = (1, 2, 5, 6)
_FULL_RANGE, _VIDEO_RANGE = 2, 1  # FFmpeg's AVCOL_RANGE

_PLANAR = re.compile(r"(?:yuv(?P<kind>[aj]?)4(?:20|22|44|40)p|gbr(?P<alpha>a?)p|gray)(?P<bits>\d+)?(?:le|be)?")
# Packed forms of the same numbers: libswscale only takes them apart
_UNPACKED = {
    **dict.fromkeys(("rgb24", "bgr24", "rgb0", "bgr0", "0rgb", "0bgr"), "gbrp"),
    **dict.fromkeys(("rgba", "bgra", "argb", "abgr"), "gbrap"),
    **dict.fromkeys(("rgb48le", "rgb48be"), "gbrp16le"),
    **dict.fromkeys(("rgba64le", "rgba64be"), "gbrap16le"),
    **dict.fromkeys(("uyvy422", "yuyv422"), "yuv422p"),
}
_TIMECODE = re.compile(r"(\d\d):(\d\d):(\d\d)([:;.])(\d\d)")


class MovieSource(Source):
    """A movie's first video stream. colorspace: what its R'G'B' means; None goes by its tags.

    Untagged is BT.709 in video range. Chroma is taken to lie on the even columns, as H.264 has it when untold.
    A rotation in the container is followed. Raises ShotError, for damage too as far as FFmpeg notices it: inside
    of an H.264 slice it often does not, and conceals.
    """

    def __init__(self, text: str, colorspace: str | None) -> None:
        super().__init__(text)
        self._path = Path(text)
        self._given = None if colorspace is None else color.find_space(colorspace)
        self._decoded: Iterator[av.VideoFrame] = iter(())
        self._first: av.VideoFrame | None = None
        self.frames = _count(self._path)
        container = _opened(self._path)
        self._container: av.container.InputContainer | None = container
        try:
            # in here alone: whoever holds the stream keeps its decoder's threads, the container closed or not
            stream = _video(container, self._path)
            self._decoded = _decode(container, stream, self._path)
            self._first = next(self._decoded, None)
            if self._first is None:
                raise unreadable(self._path, "a movie", "it has no frame")
            self.space = self._given or _declared(stream, self._path)
            shape = self._rgb(self._first).shape
            aspect = stream.sample_aspect_ratio
            if aspect:
                self.aspect = float(1 / aspect if _quarter_turns(self._first) % 2 else aspect)
            self.fps = stream.average_rate
            self.start_frame = _start(container, self.fps)
        except BaseException:
            self.close()
            raise
        self.size = shape[1], shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        assert self._first is not None
        first, self._first = self._first, None
        begin, count = first.pts, 0
        for frame in chain([first], self._decoded):
            rgb = self._rgb(frame)
            if rgb.shape != (self.size[1], self.size[0], 3):
                raise ShotError(
                    f"{self.text}: frame {count + 1} is {rgb.shape[1]}x{rgb.shape[0]}, and the first is "
                    f"{self.size[0]}x{self.size[1]}; frames of one size are allowed"
                )
            self._check_time(frame, begin, count)
            count += 1
            yield rgb
        if count != self.frames:
            raise unreadable(self._path, "a movie", f"{count} of its {self.frames} frames can be decoded")

    def close(self) -> None:
        container, self._container = self._container, None
        self._decoded, self._first = iter(()), None
        if container is not None:
            container.close()

    def _check_time(self, frame: av.VideoFrame, begin: int | None, count: int) -> None:
        if frame.interlaced_frame:
            self.note("it is interlaced; the two fields of a frame stay woven into it")
        if self.fps is None or begin is None or frame.pts is None or frame.time_base is None:
            return
        if abs((frame.pts - begin) * frame.time_base * self.fps - count) > Fraction(1, 2):
            self.note(f"its frames are not evenly spaced; they come one by one, as if at {float(self.fps):g} fps")

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """R'G'B' with black 0 and white 1, upright: float32 [h, w, 3]."""
        matrix, is_full = frame.colorspace, frame.color_range == _FULL_RANGE
        is_untold = frame.color_range != _VIDEO_RANGE and not is_full
        turns = _quarter_turns(frame)  # a frame that was taken apart does not know it any more
        if frame.format.name in _UNPACKED:
            frame = frame.reformat(format=_UNPACKED[frame.format.name])
        name = frame.format.name
        match = _PLANAR.fullmatch(name)
        if match is None:
            raise ShotError(
                f"{self.text}: its pixels are {name}, which Rushes does not read; "
                "H.264, ProRes and most other movies, or an image sequence, are allowed"
            )
        bits = int(match["bits"] or 8)
        planes = _planes(frame, bits)
        if (match["kind"] == "a" or match["alpha"]) and (planes.pop() != 2**bits - 1).any():
            self.note("alpha is not 1 everywhere; it is left out, and the colours are as the file stores them")
        if name.startswith("yuv"):
            if matrix not in _MATRICES:
                raise ShotError(
                    f"{self.text}: its matrix has code {matrix} of ITU-T H.273, which Rushes does not read; "
                    "BT.709, BT.601 or BT.2020 is allowed"
                )
            rgb = from_ycbcr(planes, _MATRICES[matrix], bits, is_full or match["kind"] == "j")
        else:  # grey is one plane, and G'B'R' are stored in this order
            order = (0, 0, 0) if len(planes) == 1 else (2, 0, 1)
            rgb = unit_range(np.stack([planes[place] for place in order], axis=2), bits, is_full or is_untold)
        return np.ascontiguousarray(np.rot90(rgb, turns))


def count_decoded(path: Path) -> int:
    """How many frames a movie gives when each of them is decoded. Raises ShotError for damage and for fewer than it
    tells of.
    """
    told = _count(path)
    with _opened(path) as container:
        count = sum(1 for _ in _decode(container, _video(container, path), path))
    if count != told:
        raise unreadable(path, "a movie", f"{count} of its {told} frames can be decoded")
    return count


def _opened(path: Path) -> av.container.InputContainer:
    try:
        # of a foreign movie the texts may be no UTF-8
        return av.open(str(path), metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise unreadable(path, "a movie", error) from error


def _video(container: av.container.InputContainer, path: Path) -> VideoStream:
    if not container.streams.video:
        raise unreadable(path, "a movie", "it has no pictures")
    return container.streams.video[0]


def _count(path: Path) -> int:
    """Number of frames that decoding will give, without decoding."""
    with _opened(path) as container:
        stream = _video(container, path)
        seconds = (stream.duration or 0) * (stream.time_base or Fraction(0))
        if stream.frames and round(seconds * (stream.average_rate or 0)) == stream.frames:
            return stream.frames  # where an edit list hides frames, the two disagree
        try:
            return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
        except (av.FFmpegError, OSError) as error:
            raise unreadable(path, "a movie", error) from error


def _decode(container: av.container.InputContainer, stream: VideoStream, path: Path) -> Iterator[av.VideoFrame]:
    count = 0
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise unreadable(path, "a movie", f"it is damaged after frame {count}")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise unreadable(path, "a movie", f"frame {count + 1} is damaged")
                assert isinstance(frame, av.VideoFrame)
                count += 1
                yield frame
    except (av.FFmpegError, OSError) as error:
        raise unreadable(path, "a movie", f"after frame {count}: {error}") from error


def _planes(frame: av.VideoFrame, bits: int) -> list[np.ndarray]:
    """The planes' codes, without the padding of their rows: each [h, w], uint8 or uint16."""
    kind = np.dtype(np.uint8 if bits == 8 else ">u2" if frame.format.is_big_endian else "<u2")
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), kind)[: plane.height * plane.line_size // kind.itemsize]
        planes.append(rows.reshape(plane.height, -1)[:, : plane.width])
    return planes


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Turns to the left that bring the picture upright; none with a PyAV that does not tell."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def _declared(stream: VideoStream, path: Path) -> color.Space:
    context = stream.codec_context
    primaries, transfer = context.color_primaries, context.color_trc
    gamut = {9: "rec2020", 12: "p3d65"}.get(primaries, "rec709" if primaries in _REC709 else "")
    if transfer in _VIDEO and gamut in ("rec709", "p3d65"):
        return color.find_space(f"srgb_{gamut}_scene")
    known = {
        (8, "rec709"): "lin_rec709",
        (8, "p3d65"): "lin_p3d65",
        (8, "rec2020"): "lin_rec2020",
        (4, "rec709"): "g22_rec709",
        (16, "rec2020"): "Rec.2100-PQ - Display",
        (16, "p3d65"): "ST2084-P3-D65 - Display",
    }.get((transfer, gamut))
    if known is None:
        raise ShotError(
            f"{path}: its colours are tagged with primaries {primaries} and transfer {transfer} of ITU-T H.273, "
            f"which Rushes does not know; give colorspace, such as {color.SRGB!r} or {', '.join(color.EXAMPLES)}"
        )
    return color.find_space(known)


def _start(container: av.container.InputContainer, fps: Fraction | None) -> int | None:
    """The frame number of the container's SMPTE time code, counted from 0."""
    for metadata in (*(stream.metadata for stream in container.streams), container.metadata):
        match = _TIMECODE.fullmatch(metadata.get("timecode", ""))
        if match is not None and fps:
            hours, minutes, seconds, frames = (int(match[group]) for group in (1, 2, 3, 5))
            nominal = math.floor(fps + Fraction(1, 2))
            whole_minutes = 60 * hours + minutes
            number = (60 * whole_minutes + seconds) * nominal + frames
            if match[4] != ":":  # drop frame: numbers are left out each minute but the tenth (SMPTE ST 12-1)
                number -= nominal // 15 * (whole_minutes - whole_minutes // 10)
            return number
    return None
