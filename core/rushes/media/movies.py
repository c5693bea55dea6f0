# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Movies: H.264, ProRes and DNxHR through PyAV, BT.709 in the numbers as well as in the tags."""

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
from rushes.media.format import OutputFormat
from rushes.media.paths import CODECS, Target
from rushes.media.record import to_text, unreadable
from rushes.media.sink import Sink, WriteError, printable
from rushes.media.ycbcr import to_ycbcr
from rushes.shot import ShotError

BT709 = 1  # ITU-T H.273: primaries, transfer and matrix all have this code
VIDEO_RANGE = 1  # FFmpeg's AVCOL_RANGE_MPEG

# A QuickTime (c)cmt atom counts its bytes in 16 bits; a longer text is cut without a word.
QUICKTIME_TEXT_MAX = 65535


@dataclass(frozen=True)
class _Codec:
    encoder: str
    options: Mapping[str, str]
    pixels: str
    bits: int
    chroma: tuple[int, int]  # luma columns and rows for one of chroma

    @property
    def has_alpha(self) -> bool:
        return self.pixels.startswith("yuva")


# By the names of paths.CODECS. x264 makes High of 8-bit 4:2:0 by itself, and High 10 of 10-bit; ProRes profile 3 is HQ
# and 4 is 4444. Older PyAV takes no profile by name.
_CODECS = {
    "h264": _Codec("libx264", {"crf": "16"}, "yuv420p", 8, (2, 2)),
    "h264-10bit": _Codec("libx264", {"crf": "14"}, "yuv420p10le", 10, (2, 2)),
    "prores-422hq": _Codec("prores_ks", {"profile": "3", "vendor": "apl0"}, "yuv422p10le", 10, (2, 1)),
    "prores-4444": _Codec("prores_ks", {"profile": "4", "vendor": "apl0"}, "yuva444p10le", 10, (1, 1)),
    "dnxhr-hqx": _Codec("dnxhd", {"profile": "dnxhr_hqx"}, "yuv422p10le", 10, (2, 1)),
}


class MovieSink(Sink):
    """One movie, in the codec that `form` names: without one .mp4 is H.264 High 4:2:0 in 8 bits and .mov ProRes 422 HQ.

    ProRes 4444 has an alpha channel, which is 1 everywhere: a clip fills its frame.
    """

    colorspace = color.SRGB

    def __init__(self, target: Target, staging: Path, record: Mapping[str, Any], form: OutputFormat) -> None:
        super().__init__(target, staging, record)
        self._codec = _CODECS[form.codec or CODECS[target.kind][0]]
        self._timecode = form.timecode
        self._path = staging / target.name
        self._container: av.container.OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._count = 0

    def write(self, frame: np.ndarray, number: int) -> None:
        if self._stream is None or self._container is None:
            self._open(frame.shape[1], frame.shape[0])
            assert self._stream is not None and self._container is not None
        planes = list(to_ycbcr(self.finite(frame), self._codec.bits, *self._codec.chroma))
        if self._codec.has_alpha:
            planes.append(np.full_like(planes[0], 2**self._codec.bits - 1))
        picture = av.VideoFrame(frame.shape[1], frame.shape[0], self._codec.pixels)
        for plane, values in zip(picture.planes, planes, strict=True):
            rows, columns = values.shape
            # a plane's rows are padded to the encoder's alignment
            room = np.frombuffer(memoryview(plane), values.dtype).reshape(rows, -1)  # [rows, padded columns]
            room[:, :columns] = values
        picture.pts = self._count
        picture.time_base = 1 / self.fps
        picture.colorspace, picture.color_range = BT709, VIDEO_RANGE
        if hasattr(picture, "color_primaries"):  # an older PyAV cannot tell a frame; the container is tagged
            # ProRes repeats them in the header of each frame, which some readers believe more than the container
            picture.color_primaries = picture.color_trc = BT709
        self._container.mux(self._stream.encode(picture))
        self._count += 1

    def _open(self, width: int, height: int) -> None:
        if self._codec.chroma[1] == 2 and (width % 2 or height % 2):
            raise ShotError(
                f"-o {self.target.text}: the size is {width}x{height}; an even width and height are allowed"
            )
        text = to_text(self.record)
        flags = "+faststart"
        if len(text) > QUICKTIME_TEXT_MAX and self.target.kind == "mov":
            flags += "+use_metadata_tags"  # 32-bit lengths; the short form is what players show
        self._container = av.open(str(self._path), "w", format=self.target.kind, options={"movflags": flags})
        self._container.metadata["title"] = printable(self.shot.prompt)
        self._container.metadata["comment"] = text
        stream = self._container.add_stream(self._codec.encoder, rate=self.fps, options=dict(self._codec.options))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, self._codec.pixels
        if self._timecode is not None:
            stream.metadata["timecode"] = self._timecode
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
