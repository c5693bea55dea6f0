# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Movies read again: samples written here plane by plane, colours by the standards' formulas."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rushes.media import open_outputs, read_frames
from rushes.media.ycbcr import from_ycbcr
from rushes.shot import ShotError

WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}  # red and blue, by the codes of ITU-T H.273


def rgb_of(codes: Sequence[float], weights: tuple[float, float], bits: int, is_full: bool) -> list[float]:
    """R'G'B' of one sample, float64: the three equations of ITU-R BT.709-6, items 3.2 to 3.4, solved."""
    kr, kb = weights
    if is_full:
        y, cb, cr = codes[0] / (2**bits - 1), *((c - 2 ** (bits - 1)) / (2**bits - 1) for c in codes[1:])
    else:
        y, cb, cr = (codes[0] / 2 ** (bits - 8) - 16) / 219, *((c / 2 ** (bits - 8) - 128) / 224 for c in codes[1:])
    blue, red = y + cb * 2 * (1 - kb), y + cr * 2 * (1 - kr)
    return [red, (y - kr * red - kb * blue) / (1 - kr - kb), blue]


def smooth(frames: int, width: int, height: int) -> np.ndarray:
    """What a camera sees, moving: [n, h, w, 3]."""
    t, y, x = np.mgrid[:frames, :height, :width].astype(np.float32)
    waves = [0.5 + 0.4 * np.sin(x / 17 + phase + t / 5) * np.cos(y / 13 - phase) for phase in (0, 1, 2)]
    return np.stack(waves, axis=3).astype(np.float32)


def noise(*shapes: tuple[int, int], top: int = 255, kind: Any = np.uint8) -> list[np.ndarray]:
    return [np.random.default_rng().integers(0, top, shape, endpoint=True).astype(kind) for shape in shapes]


def everything(path: str | Path, **options: Any) -> np.ndarray:
    return np.concatenate(list(read_frames(path, **options)))


# Error of our own encoders on a smooth picture, [mean, largest]: half of a code, and what compression adds
@pytest.mark.parametrize(
    ("name", "size", "mean", "largest"),
    [("a.mov", (64, 48), 1.5e-3, 0.05), ("a.mov", (63, 47), 1.5e-3, 0.05), ("a.mp4", (64, 48), 8e-3, 0.1)],
)
@pytest.mark.parametrize("fps", ["24000/1001", "25"])
def test_our_movies_come_back(
    tmp_path: Path, make_record: Any, name: str, size: tuple[int, int], mean: float, largest: float, fps: str
) -> None:
    """ProRes in 10 bits and H.264 in 8, with their count and exact rate told before a frame is read."""
    frames = smooth(18, *size)
    with open_outputs([tmp_path / name], make_record(18, size=size, fps=fps)) as outputs:
        outputs.write(frames)
    with read_frames(outputs.paths[0]) as reader:
        assert (reader.frames, reader.size, reader.fps, reader.start_frame) == (18, size, Fraction(fps), None)
        assert reader.colorspace == "sRGB Encoded Rec.709 (sRGB)"
        back = np.concatenate(list(reader))
    assert back.shape == frames.shape and back.dtype == np.float32
    assert back.min() >= 0 and back.max() <= 1
    error = np.abs(back - frames)
    assert error.mean() < mean and error.max() < largest
    assert np.abs((back - frames).mean(axis=(0, 1, 2))).max() < mean / 2  # no channel is off as a whole
    assert reader.notes == ()


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize(
    ("size", "chroma"),
    [((6, 4), (6, 4)), ((6, 4), (3, 4)), ((6, 4), (3, 2)), ((7, 5), (4, 3)), ((7, 5), (4, 5)), ((1, 1), (1, 1))],
)
def test_planes_are_read_as_by_a_slow_loop(
    size: tuple[int, int], chroma: tuple[int, int], bits: int, is_full: bool
) -> None:
    """Chroma lies on the even columns and between two rows; every pixel looks for its neighbours alone."""
    (width, height), kind = size, np.uint8 if bits == 8 else np.uint16
    planes = noise((height, width), chroma[::-1], chroma[::-1], top=2**bits - 1, kind=kind)
    got = from_ycbcr(planes, WEIGHTS[1], bits, is_full)
    for y, x in np.ndindex(height, width):
        codes = [float(planes[0][y, x])]
        for plane in planes[1:]:
            rows, columns = plane.shape
            v = y if rows == height else (y - 0.5) / 2
            u = x if columns == width else x / 2
            total = 0.0
            for row in range(int(np.floor(v)), int(np.floor(v)) + 2):
                for column in range(int(np.floor(u)), int(np.floor(u)) + 2):
                    weight = (1 - abs(v - row)) * (1 - abs(u - column))
                    total += weight * plane[min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)]
            codes.append(total)
        assert got[y, x] == pytest.approx(rgb_of(codes, WEIGHTS[1], bits, is_full), abs=2e-6)


@pytest.mark.parametrize(
    ("tags", "weights", "is_full"),
    [
        ((2, 2, 2, 0), WEIGHTS[1], False),  # untagged
        ((1, 1, 1, 1), WEIGHTS[1], False),
        ((1, 1, 1, 2), WEIGHTS[1], True),
        ((1, 13, 1, 2), WEIGHTS[1], True),
        ((6, 6, 6, 1), WEIGHTS[5], False),
        ((5, 6, 5, 2), WEIGHTS[5], True),
        ((1, 1, 9, 1), WEIGHTS[9], False),
    ],
)
def test_matrix_and_range_are_those_of_the_tags(
    tmp_path: Path, write_movie: Any, tags: tuple[int, ...], weights: tuple[float, float], is_full: bool
) -> None:
    """Lossless 4:4:4, so every pixel is the formula's, clipped as video is."""
    pictures = [noise(*((14, 18),) * 3) for _ in range(2)]
    path = write_movie(tmp_path / "a.mp4", pictures, "yuv444p", tags=tags)
    back = everything(path)
    assert back.shape == (2, 14, 18, 3)
    for picture, planes in zip(back, pictures, strict=True):
        for y, x in np.ndindex(14, 18):
            expected = rgb_of([float(plane[y, x]) for plane in planes], weights, 8, is_full)
            assert picture[y, x] == pytest.approx(np.clip(expected, 0, 1), abs=2e-6)


def test_light_in_a_movie_is_encoded_and_not_clipped(tmp_path: Path, write_movie: Any) -> None:
    """Tagged as linear, or given so; superwhite is kept, as in a plate."""
    planes = [noise(*((14, 18),) * 3)]
    planes[0][0][0, 0] = 255
    light = np.array([[rgb_of([float(p[y, x]) for p in planes[0]], WEIGHTS[1], 8, False) for x in range(18)]
                      for y in range(14)])  # fmt: skip
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)
    assert expected.max() > 1.05
    tagged = everything(write_movie(tmp_path / "a.mp4", planes, "yuv444p", tags=(1, 8, 1, 1)))
    given = everything(write_movie(tmp_path / "b.mp4", planes, "yuv444p", tags=(1, 1, 1, 1)), colorspace="lin_rec709")
    for back in (tagged[0], given[0]):
        assert back == pytest.approx(expected, rel=3e-4, abs=1e-5)


def test_pq_is_read_as_light_of_100_nits(tmp_path: Path, write_movie: Any) -> None:
    """SMPTE ST 2084 with BT.2020 primaries, on greys, where primaries play no part: 203 nits are above white."""
    codes = np.linspace(64, 900, 8 * 8).reshape(8, 8).astype(np.uint16)
    grey = [codes, np.full((8, 8), 512, np.uint16), np.full((8, 8), 512, np.uint16)]
    path = write_movie(tmp_path / "a.mp4", [grey], "yuv444p10le", tags=(9, 16, 9, 1))
    v = ((codes / 4 - 16) / 219) ** (1 / 78.84375)
    nits = 10_000 * (np.maximum(v - 0.8359375, 0) / (18.8515625 - 18.6875 * v)) ** (1 / 0.1593017578125)
    light = nits / 100
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert expected.max() > 2
    assert everything(path)[0, ..., 1] == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (
            (9, 18, 9, 1),
            "tagged with primaries 9 and transfer 18 of ITU-T H.273, .*give colorspace, such as 'sRGB",
        ),  # HLG
        ((9, 14, 9, 1), "primaries 9 and transfer 14"),
        ((1, 1, 8, 1), "its matrix has code 8 of ITU-T H.273, which Rushes does not read; BT.709, BT.601 or"),  # YCgCo
    ],
)
def test_tags_that_we_cannot_honour_are_refused(
    tmp_path: Path, write_movie: Any, tags: tuple[int, ...], words: str
) -> None:
    """And not read as something else."""
    path = write_movie(tmp_path / "a.mp4", [noise(*((16, 16),) * 3)], "yuv444p", tags=tags)
    with pytest.raises(ShotError, match=rf"a\.mp4: .*{words}"):
        read_frames(path)
    if "matrix" not in words:
        assert len(everything(path, colorspace="sRGB - Texture")) == 1


def test_prores_4444_is_read_in_12_bits(tmp_path: Path, write_movie: Any) -> None:
    """Every one of the decoder's 4096 codes counts: what comes is the formula on its planes."""
    ramp = np.linspace(300, 700, 64 * 48).reshape(48, 64)
    planes = [(ramp + offset).round().astype(np.uint16) for offset in (0, 20, -30)]
    path = write_movie(
        tmp_path / "a.mov", [planes], "yuv444p10le", "prores_ks", options={"profile": "4"}, tags=(1, 1, 1, 1)
    )
    with av.open(str(path)) as movie:
        frame = next(movie.decode(video=0))
        assert frame.format.name == "yuv444p12le"
        decoded = [np.frombuffer(memoryview(p), "<u2").reshape(48, -1)[:, :64].astype(np.int64) for p in frame.planes]
    assert any((plane % 4).any() for plane in decoded), "ten bits would do"
    back = everything(path)[0]
    for y, x in ((0, 0), (5, 63), (47, 1), (20, 30)):
        expected = rgb_of([float(plane[y, x]) for plane in decoded], WEIGHTS[1], 12, False)
        assert back[y, x] == pytest.approx(np.clip(expected, 0, 1), abs=2e-6)


@pytest.mark.parametrize("alpha", [1023, 500])
def test_alpha_in_a_movie_is_noted_unless_it_is_one(tmp_path: Path, write_movie: Any, alpha: int) -> None:
    """ProRes 4444: the colours are as they are stored."""
    planes = [np.full((16, 16), code, np.uint16) for code in (600, 512, 512, alpha)]
    path = write_movie(tmp_path / "a.mov", [planes] * 3, "yuva444p10le", "prores_ks", options={"profile": "4"})
    reader = read_frames(path)
    back = np.concatenate(list(reader))
    assert np.abs(back - (600 / 4 - 16) / 219).max() < 2e-3
    assert [note.partition(": ")[2] for note in reader.notes] == (
        [] if alpha == 1023 else
        ["alpha is not 1 everywhere; it is left out, and the colours are as the file stores them"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("codec", "pixels", "order", "kind"),
    [
        ("png", "rgb24", "rgb", "u1"),
        ("png", "rgb48be", "rgb", ">u2"),
        ("png", "rgba", "rgba", "u1"),
        ("png", "rgba64be", "rgba", ">u2"),
        ("qtrle", "argb", "argb", "u1"),
        ("qtrle", "rgb24", "rgb", "u1"),
        ("png", "gray", "y", "u1"),
    ],
)
def test_movies_in_rgb_lose_nothing(
    tmp_path: Path, write_movie: Any, codec: str, pixels: str, order: str, kind: str
) -> None:
    """Animation codecs: full range, no matrix, whatever the order of the channels."""
    top = np.iinfo(kind).max
    values = noise((12, 16 * len(order)), top=top, kind=kind)[0].reshape(12, 16, len(order))
    if "a" in order:
        values[..., order.index("a")] = top
    path = write_movie(tmp_path / "a.mov", [[values]], pixels, codec, options={})
    places = [order.index(letter) for letter in "rgb"] if len(order) > 1 else [0, 0, 0]
    reader = read_frames(path)
    assert np.abs(next(reader)[0] - values[..., places] / top).max() < 1e-6
    assert reader.notes == ()


def test_jpeg_in_a_movie_is_full_range_bt601(tmp_path: Path, write_movie: Any) -> None:
    """As its decoder tags it."""
    planes = [np.full((16, 16), 180, np.uint8), np.full((8, 8), 100, np.uint8), np.full((8, 8), 150, np.uint8)]
    path = write_movie(tmp_path / "a.mov", [planes], "yuvj420p", "mjpeg", options={"qmin": "1", "qmax": "1"})
    assert everything(path)[0, 8, 8] == pytest.approx(rgb_of([180, 100, 150], WEIGHTS[5], 8, True), abs=0.01)


def test_packed_ycbcr_is_taken_apart(tmp_path: Path, write_movie: Any) -> None:
    """Uncompressed 4:2:2, as capture cards write it."""
    values = noise((6, 2 * 8))[0]
    path = write_movie(tmp_path / "a.mov", [[values]], "uyvy422", "rawvideo", options={})
    planes = [values[:, 1::2], values[:, 0::4], values[:, 2::4]]
    expected = rgb_of([float(planes[0][3, 4]), float(planes[1][3, 2]), float(planes[2][3, 2])], WEIGHTS[1], 8, False)
    assert everything(path)[0, 3, 4] == pytest.approx(np.clip(expected, 0, 1), abs=2e-6)


def test_pixels_that_we_cannot_read_are_named(tmp_path: Path) -> None:
    """A palette is no colour of ours."""
    planes = [[np.zeros((8, 8), np.uint8), np.zeros((1, 1024), np.uint8)]]
    with av.open(str(tmp_path / "a.mov"), "w") as movie:
        stream = movie.add_stream("png", rate=24)
        stream.width, stream.height, stream.pix_fmt = 8, 8, "pal8"
        frame = av.VideoFrame(8, 8, "pal8")
        frame.pts, frame.time_base = 0, Fraction(1, 24)
        movie.mux(stream.encode(frame))
        movie.mux(stream.encode(None))
    assert planes
    with pytest.raises(ShotError, match=r"a\.mov: its pixels are pal8, which Rushes does not read; H\.264, ProRes"):
        read_frames(tmp_path / "a.mov")
