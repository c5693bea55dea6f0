# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Movies: H.264 and ProRes through PyAV, BT.709 in the numbers as well as in the tags."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream

from rushes.media import color
from rushes.media.paths import Target
from rushes.media.record import to_text, unreadable
from rushes.media.sink import Sink, WriteError, printable
from rushes.media.ycbcr import to_ycbcr
from rushes.shot import ShotError

BT709 = 1  # ITU-T H.273: primaries, transfer and matrix all have this code
VIDEO_RANGE = 1  # FFmpeg's AVCOL_RANGE_MPEG

# A QuickTime (c)cmt atom counts its bytes in 16 bits; a longer text is cut without a word.
QUICKTIME_TEXT_MAX = 65535


@dataclass(frozen=True)
class _Format:
    container: str
    codec: str
    options: Mapping[str, str]
    pixels: str
    bits: int
    chroma_rows: int  # luma rows for one chroma row


_FORMATS = {
    # x264 makes High of 8-bit 4:2:0 by itself; ProRes profile 3 is HQ. Older PyAV takes no profile by name.
    "mp4": _Format("mp4", "libx264", {"crf": "16"}, "yuv420p", 8, 2),
    "mov": _Format("mov", "prores_ks", {"profile": "3", "vendor": "apl0"}, "yuv422p10le", 10, 1),
}


class MovieSink(Sink):
    """One movie: .mp4 is H.264 High 4:2:0 in 8 bits, .mov is ProRes 422 HQ in 10 bits."""

    colorspace = color.SRGB

    def __init__(self, target: Target, staging: Path, record: Mapping[str, Any]) -> None:
        super().__init__(target, staging, record)
        self._format = _FORMATS[target.kind]
        self._path = staging / target.name
        self._container: av.container.OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._count = 0

    def write(self, frame: np.ndarray, number: int) -> None:
        if self._stream is None or self._container is None:
            self._open(frame.shape[1], frame.shape[0])
            assert self._stream is not None and self._container is not None
        planes = to_ycbcr(self.finite(frame), self._format.bits, self._format.chroma_rows)
        picture = av.VideoFrame(frame.shape[1], frame.shape[0], self._format.pixels)
        for plane, values in zip(picture.planes, planes, strict=True):
            rows, columns = values.shape
            # a plane's rows are padded to the encoder's alignment
            room = np.frombuffer(memoryview(plane), values.dtype).reshape(rows, -1)  # [rows, padded columns]
            room[:, :columns] = values
        picture.pts = self._count
        picture.time_base = 1 / self.fps
        picture.colorspace, picture.color_range = BT709, VIDEO_RANGE
        self._container.mux(self._stream.encode(picture))
        self._count += 1

    def _open(self, width: int, height: int) -> None:
        if self._format.chroma_rows == 2 and (width % 2 or height % 2):
            raise ShotError(
                f"-o {self.target.text}: the size is {width}x{height}; an even width and height are allowed"
            )
        text = to_text(self.record)
        flags = "+faststart"
        if len(text) > QUICKTIME_TEXT_MAX and self._format.container == "mov":
            flags += "+use_metadata_tags"  # 32-bit lengths; the short form is what players show
        self._container = av.open(str(self._path), "w", format=self._format.container, options={"movflags": flags})
        self._container.metadata["title"] = printable(self.shot.prompt)
        self._container.metadata["comment"] = text
        stream = self._container.add_stream(self._format.codec, rate=self.fps, options=dict(self._format.options))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, self._format.pixels
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = VIDEO_RANGE
        self._stream = stream

    def close(self) -> None:
        if self._container is None or self._stream is None:
            return
        self._container.mux(self._stream.encode(None))
        self._container.close()
        with av.open(str(self._path)) as movie:
            found = movie.streams.video[0].frames
        if found != self._count:
            raise WriteError(f"{found} of {self._count} frames read back")
        self.add(self._path.name, None)

    def abort(self) -> None:
        if self._container is not None:
            # the file is thrown away, so what it has to say about its missing trailer is of no interest
            with contextlib.suppress(av.FFmpegError, OSError):
                self._container.close()


def read_text(path: Path) -> str | None:
    """The comment in a movie, None when it has none. Raises ShotError when the file is damaged."""
    try:
        # of a damaged or foreign movie the texts may be no UTF-8
        with av.open(str(path), metadata_errors="replace") as movie:
            return movie.metadata.get("comment")
    except (av.FFmpegError, OSError) as error:
        raise unreadable(path, "a movie", error) from error
