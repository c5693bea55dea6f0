# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Movies decoded again: BT.709 in the numbers and in the tags, the exact rate, every frame."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rushes.media import WriteError, open_outputs, read_record
from rushes.media.movies import to_ycbcr
from rushes.shot import ShotError

FORMATS = [("mp4", "yuv420p", 8), ("mov", "yuv422p10le", 10)]


def bt709(rgb: tuple[float, float, float]) -> tuple[float, float, float]:
    """ITU-R BT.709-6 items 3.2 to 3.5, in 8-bit codes, float64."""
    red, green, blue = rgb
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return 16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748


def decode(path: Path) -> list[list[np.ndarray]]:
    """Planes of each frame in 8-bit codes, float64."""
    frames = []
    with av.open(str(path)) as movie:
        for frame in movie.decode(video=0):
            kind, scale = (np.uint8, 1) if frame.format.name == "yuv420p" else (np.dtype("<u2"), 4)
            planes = [np.frombuffer(plane, kind).reshape(plane.height, -1) for plane in frame.planes]
            frames.append([p[:, : q.width] / scale for p, q in zip(planes, frame.planes, strict=True)])
    return frames


@pytest.mark.parametrize(("suffix", "pixels", "bits"), FORMATS)
def test_colours_are_bt709_and_tagged_so(tmp_path: Path, make_record: Any, suffix: str, pixels: str, bits: int) -> None:
    """Patches decode to the standard's codes, not to BT.601's (green: 173 42 26, not 145 54 34)."""
    colours = [(0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.2, 0.4, 0.9)]
    frames = np.empty((4, 48, 64, 3), np.float32)
    frames[:] = np.array(colours, np.float32)[:, None, None]
    path = tmp_path / f"shot.{suffix}"
    with open_outputs([path], make_record(4, size=(64, 48))) as outputs:
        outputs.write(frames)
    assert outputs.paths == [path]
    decoded = decode(path)
    assert len(decoded) == 4
    for planes, colour in zip(decoded, colours, strict=True):
        for plane, expected in zip(planes, bt709(colour), strict=True):
            assert abs(np.median(plane) - expected) <= (1.0 if bits == 8 else 0.5)
            assert np.ptp(plane) <= 1.0
    with av.open(str(path)) as movie:
        stream = movie.streams.video[0]
        context = stream.codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 1)
        # video range; QuickTime's nclc box does not name one, so for ProRes it may come back as untold
        assert context.color_range in ((1,) if suffix == "mp4" else (0, 1))
        assert context.pix_fmt == pixels
        assert stream.frames == 4
        assert stream.average_rate == Fraction(24000, 1001)
        if suffix == "mov":
            assert context.codec_tag == "apch"  # ProRes 422 HQ
        else:
            assert context.profile == "High"
    head = path.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # plays before it is wholly loaded


@pytest.mark.parametrize("fps", ["24000/1001", "25", "8", "30000/1001", "120", "12.5"])
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_the_rate_is_exact(tmp_path: Path, make_record: Any, make_frames: Any, suffix: str, fps: str) -> None:
    """Every frame has its own, exact time."""
    path = tmp_path / f"shot.{suffix}"
    with open_outputs([path], make_record(5, size=(32, 16), fps=Fraction(fps))) as outputs:
        outputs.write(make_frames(5, size=(32, 16)))
    with av.open(str(path)) as movie:
        assert movie.streams.video[0].average_rate == Fraction(fps)
        times = [frame.pts * frame.time_base for frame in movie.decode(video=0)]
    assert times == [n / Fraction(fps) for n in range(5)]


@pytest.mark.parametrize(("bits", "rows", "size"), [(8, 2, (18, 6)), (10, 1, (17, 5)), (10, 1, (1, 1)), (8, 2, (2, 2))])
def test_planes_are_those_of_a_slow_loop(bits: int, rows: int, size: tuple[int, int]) -> None:
    """Matrix, chroma on even columns and rounding, pixel by pixel; odd sizes keep their last column."""
    width, height = size
    frame = np.random.default_rng().random((height, width, 3), dtype=np.float32)
    scale = 2 ** (bits - 8)
    codes = np.array([[bt709(tuple(frame[y, x])) for x in range(width)] for y in range(height)]) * scale
    luma, blue, red = to_ycbcr(frame, bits, 2, rows)
    assert np.abs(luma - codes[..., 0]).max() <= 0.51
    for plane, channel in ((blue, 1), (red, 2)):
        assert plane.shape == (height // rows, (width + 1) // 2)
        for y, x in np.ndindex(plane.shape):
            columns = [max(2 * x - 1, 0), 2 * x, 2 * x, min(2 * x + 1, width - 1)]
            expected = codes[y * rows : (y + 1) * rows, columns, channel].mean()
            assert abs(plane[y, x] - expected) <= 0.51


def test_prores_keeps_more_than_eight_bits(tmp_path: Path, make_record: Any) -> None:
    """A ramp finer than 8 bits comes back with its steps, so nothing on the way was 8 bits wide."""
    ramp = np.repeat(np.linspace(0.4, 0.42, 16, dtype=np.float32), 8)  # 16 flat steps of 1.2 ten-bit codes
    frame = np.broadcast_to(ramp[None, None, :, None], (1, 32, 128, 3))
    with open_outputs([tmp_path / "a.mov"], make_record(1, size=(128, 32))) as outputs:
        outputs.write(frame)
    luma = decode(outputs.paths[0])[0][0] * 4  # ten-bit codes
    expected = (16 + 219 * ramp) * 4
    assert np.abs(luma.mean(0) - expected).max() < 1.5
    assert len(np.unique(np.round(luma.mean(0)))) > 10  # 8-bit input would leave 6


def test_an_odd_size_is_kept_by_prores_and_refused_for_h264(tmp_path: Path, make_record: Any) -> None:
    """63x47 decodes to 63x47; H.264 is refused, also when the size is only known from the frames."""
    record = make_record(2, size=(63, 47))
    ramp = np.add.outer(np.arange(47), np.arange(63)) / 108  # the last row and column are the brightest
    frames = np.broadcast_to(ramp.astype(np.float32)[None, ..., None], (2, 47, 63, 3))
    with open_outputs([tmp_path / "a.mov"], record) as outputs:
        outputs.write(frames)
    decoded = decode(outputs.paths[0])
    assert decoded[0][0].shape == (47, 63)
    assert np.abs(decoded[1][0] - (16 + 219 * ramp)).max() < 2
    with pytest.raises(ShotError, match="62x46 or 64x48"):
        open_outputs([tmp_path / "a.mp4"], record)
    record["shot"]["size"] = None
    with (
        pytest.raises(ShotError, match="the size is 63x47"),
        open_outputs([tmp_path / "a.mp4"], record) as outputs,
    ):
        outputs.write(frames)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mov"]


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_the_longest_prompts_survive(tmp_path: Path, make_record: Any, make_frames: Any, suffix: str) -> None:
    """Twice ten thousand emoji are 240 000 bytes of JSON, more than a short QuickTime text holds."""
    record = make_record(1, size=(16, 16), prompt="🎬" * 10_000, negative="é" * 10_000)
    with open_outputs([tmp_path / f"a.{suffix}"], record) as outputs:
        outputs.write(make_frames(1, size=(16, 16)))
    assert read_record(outputs.paths[0]) == record
    with av.open(str(outputs.paths[0])) as movie:
        assert movie.metadata["title"].startswith("🎬🎬🎬")


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_equal_shots_give_equal_movies(tmp_path: Path, make_record: Any, make_frames: Any, suffix: str) -> None:
    """The same frames and record twice: the same bytes."""
    frames, digests = make_frames(3, size=(32, 32)), set()
    for name in ("a", "b"):
        with open_outputs([tmp_path / f"{name}.{suffix}"], make_record(3, size=(32, 32))) as outputs:
            outputs.write(frames)
        digests.add(hashlib.sha256(outputs.paths[0].read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_movie_that_lost_frames_is_not_published(
    tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished file is opened and its frames are counted."""
    from rushes.media import movies

    original = movies.MovieSink.write

    def losing(self: Any, frame: np.ndarray, number: int) -> None:
        if number == 1002:
            self._count += 1
            return
        original(self, frame, number)

    monkeypatch.setattr(movies.MovieSink, "write", losing)
    with (
        pytest.raises(WriteError, match=r"a\.mp4 could not be written: 2 of 3 frames read back"),
        open_outputs([tmp_path / "a.mp4"], make_record(3, size=(16, 16))) as outputs,
    ):
        outputs.write(make_frames(3, size=(16, 16)))
    assert list(tmp_path.iterdir()) == []
