# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Movies for every --codec: what the boxes of the file say, read byte by byte here, and what ffprobe makes of them."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rushes.media import open_outputs, read_frames, read_record, verify
from rushes.shot import ShotError

# codec, suffix, the sample entry's four letters, pixel format, its profile as ffprobe calls it, error that is allowed
CODECS = [
    ("prores-422hq", "mov", b"apch", "yuv422p10le", "HQ", 0.006),
    ("prores-4444", "mov", b"ap4h", "yuva444p10le", "4444", 0.006),
    ("dnxhr-hqx", "mov", b"AVdh", "yuv422p10le", "DNXHR HQX", 0.006),
    ("h264", "mov", b"avc1", "yuv420p", "High", 0.02),
    ("h264-10bit", "mov", b"avc1", "yuv420p10le", "High 10", 0.02),
    ("h264", "mp4", b"avc1", "yuv420p", "High", 0.02),
    ("h264-10bit", "mp4", b"avc1", "yuv420p10le", "High 10", 0.02),
]
SIZE = (320, 180)
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def boxes(content: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Type and payload of each box of ISO/IEC 14496-12, those inside of others after them."""
    end = len(content) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", content, start)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", content, start + 8), 16
        if size < head or start + size > end:
            return
        yield kind, content[start + head : start + size]
        if kind in _CONTAINERS:
            yield from boxes(content, start + head, start + size)
        elif kind == b"stsd":  # version, flags, count; then the entries, a video's 78 bytes long before its own boxes
            entry, name = struct.unpack_from(">I4s", content, start + head + 8)
            yield b"entry " + name, content[start + head + 16 : start + head + 8 + entry]
            if len(content[start + head + 16 : start + head + 8 + entry]) > 78:
                yield from boxes(content, start + head + 16 + 78, start + head + 8 + entry)
        start += size


def patches() -> np.ndarray:
    """Four colours, and a ramp below them: float32 [4, h, w, 3]."""
    frames = np.empty((4, SIZE[1], SIZE[0], 3), np.float32)
    colours = np.array([(0.1, 0.8, 0.1), (0.8, 0.1, 0.2), (0.5, 0.5, 0.5), (0.2, 0.4, 0.9)], np.float32)
    frames[:] = colours[:, None, None]
    frames[:, 120:] = np.linspace(0.1, 0.9, SIZE[0], dtype=np.float32)[:, None]
    return frames


@pytest.mark.parametrize(("codec", "suffix", "entry", "pixels", "profile", "error"), CODECS)
def test_the_file_says_bt709_where_every_reader_looks(
    tmp_path: Path, make_record: Any, codec: str, suffix: str, entry: bytes, pixels: str, profile: str, error: float
) -> None:
    """The colr box: primaries, transfer and matrix 1; the sample entry names the codec; the colours come back."""
    path, frames = tmp_path / f"m.{suffix}", patches()
    with open_outputs([path], make_record(4, size=SIZE), codec=codec, timecode="01:00:00:00", manifest=True) as outputs:
        outputs.write(frames)
    found = list(boxes(path.read_bytes()))
    assert b"entry " + entry in [kind for kind, _ in found]
    (colr,) = (payload for kind, payload in found if kind == b"colr")
    assert colr[:4] == (b"nclc" if suffix == "mov" else b"nclx")
    assert struct.unpack_from(">HHH", colr, 4) == (1, 1, 1)
    if suffix == "mp4":
        assert colr[10] >> 7 == 0  # video range
    if suffix == "mov":
        assert b"entry tmcd" in [kind for kind, _ in found]
    with av.open(str(path)) as movie:
        stream = movie.streams.video[0]
        # ProRes 4444 holds up to 12 bits, and is decoded to as many
        assert stream.codec_context.pix_fmt in (pixels, pixels.replace("yuva444p10", "yuva444p12"))
        decoded = list(movie.decode(stream))
        assert len(decoded) == stream.frames == 4
        if pixels.startswith("yuva"):
            codes = [np.frombuffer(memoryview(frame.planes[3]), "<u2") for frame in decoded]
            largest = 2 ** decoded[0].format.components[3].bits - 1
            assert all((plane.reshape(SIZE[1], -1)[:, : SIZE[0]] == largest).all() for plane in codes)
    with read_frames(path) as reader:
        back = np.concatenate(list(reader))
        assert reader.start_frame == 86_400 and not reader.notes
    assert np.abs(np.median(back[:, 10:110], axis=(1, 2)) - frames[:, 50, 100]).max() < error
    assert np.abs(back[:, 130:170] - frames[:, 130:170]).max() < 3 * error
    assert read_record(path) == make_record(4, size=SIZE)
    assert verify(path).ok


@pytest.mark.parametrize(("codec", "suffix", "entry", "pixels", "profile", "error"), CODECS)
def test_ffprobe_reads_the_same(
    tmp_path: Path, make_record: Any, codec: str, suffix: str, entry: bytes, pixels: str, profile: str, error: float
) -> None:
    """Another FFmpeg than PyAV's: Debian's, or whichever is installed."""
    if shutil.which("ffprobe") is None:
        warnings.warn("NOT TESTED: colour tags by a foreign ffprobe; the package ffmpeg is not installed", stacklevel=1)
        pytest.skip("the package ffmpeg is not installed")
    path = tmp_path / f"m.{suffix}"
    with open_outputs([path], make_record(4, size=SIZE), codec=codec, timecode="01:00:00:00") as outputs:
        outputs.write(patches())
    asked = ["-v", "error", "-select_streams", "v:0", "-count_frames", "-show_streams", "-of", "json"]
    done = subprocess.run(["ffprobe", *asked, str(path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    (stream,) = json.loads(done.stdout)["streams"]
    tags = {key: stream.get(key) for key in ("color_space", "color_transfer", "color_primaries")}
    assert tags == dict.fromkeys(tags, "bt709")
    assert stream.get("color_range") in (("tv",) if suffix == "mp4" or "h264" in codec else ("tv", None))
    assert (stream["profile"].upper(), stream["nb_read_frames"]) == (profile.upper(), "4")
    # what ProRes 4444 is decoded to differs between releases of FFmpeg: it has 12 bits
    assert stream["pix_fmt"] == pixels or (codec == "prores-4444" and stream["pix_fmt"] == "yuva444p12le")
    assert stream["r_frame_rate"] == "24000/1001"
    assert stream["tags"]["timecode"] == "01:00:00:00"


def test_444_keeps_the_colour_of_every_pixel(tmp_path: Path, make_record: Any) -> None:
    """Columns of red and blue in turn, which half the chroma would mix into one purple."""
    frames = np.zeros((1, SIZE[1], SIZE[0], 3), np.float32)
    frames[..., 0::2, 0], frames[..., 1::2, 2] = 0.8, 0.8
    for codec, is_kept in (("prores-4444", True), ("prores-422hq", False)):
        path = tmp_path / f"{codec}.mov"
        with open_outputs([path], make_record(1, size=SIZE), codec=codec) as outputs:
            outputs.write(frames)
        with read_frames(path) as reader:
            error = float(np.abs(next(iter(reader)) - frames).max())
        assert (error < 0.1) is is_kept


@pytest.mark.parametrize(
    ("codec", "size", "message"),
    [
        ("dnxhr-hqx", (254, 180), r"the size is 254x180; DNxHR allows 256x120 and more$"),
        ("dnxhr-hqx", (320, 119), r"the size is 320x119; DNxHR allows 256x120 and more$"),
        ("h264-10bit", (321, 180), r"the size is 321x180; H\.264 in 4:2:0 needs an even width and height"),
    ],
)
def test_a_size_that_a_codec_does_not_take_is_refused(
    tmp_path: Path, make_record: Any, codec: str, size: tuple[int, int], message: str
) -> None:
    """Before any work; the smallest that is allowed, and odd ones, are written."""
    with pytest.raises(ShotError, match=message):
        open_outputs([tmp_path / "a.mov"], make_record(1, size=size), codec=codec)
    for allowed in ((256, 120), (321, 181)):
        path = tmp_path / f"{allowed[0]}.mov"
        with open_outputs([path], make_record(1, size=allowed), codec="dnxhr-hqx") as outputs:
            outputs.write(np.full((1, allowed[1], allowed[0], 3), 0.5, np.float32))
        with read_frames(path) as reader:
            assert reader.size == allowed
