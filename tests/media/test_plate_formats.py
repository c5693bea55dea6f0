# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Plates in the depths and compressions that compositors ask for, against formulas and OpenEXR's own bytes."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it
import pytest

from rushes.media import WriteError, check_outputs, open_outputs
from rushes.shot import ShotError

# compressionType and pixelType as the OpenEXR file layout numbers them
COMPRESSIONS = {"none": 0, "zip": 3, "piz": 4, "dwaa": 8}
DEPTHS = {"half": 1, "float": 2}


def linear(srgb: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1 decoding in float64."""
    v = srgb.astype(np.float64)
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def read(path: Path, kind: Any = oiio.FLOAT) -> tuple[np.ndarray, Any]:
    picture = oiio.ImageInput.open(str(path))
    assert picture is not None, oiio.geterror()
    pixels, spec = picture.read_image(kind), picture.spec()
    picture.close()
    return np.asarray(pixels), spec


def written(folder: Path, record: Any, frames: np.ndarray, **options: Any) -> list[Path]:
    with open_outputs([folder / "p.%04d.exr"], record, **{"colorspace": "lin_rec709", **options}) as outputs:
        outputs.write(frames)
    return outputs.paths


def smooth(width: int, height: int) -> np.ndarray:
    """A picture as a camera sees it, [1, h, w, 3]: what a lossy codec is made for."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [0.5 + 0.4 * np.sin(x / 17 + phase) * np.cos(y / 13 - phase) for phase in (0, 1, 2)]
    return np.stack(waves, axis=2)[None].astype(np.float32)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_file_is_what_was_asked_for(tmp_path: Path, make_record: Any, compression: str, depth: str) -> None:
    """Codes in the header, and values of the formula: all bits where nothing is lossy, close ones in DWA."""
    frames = smooth(61, 47)
    path = written(tmp_path, make_record(1, size=(61, 47)), frames, compression=compression, depth=depth)[0]
    head = path.read_bytes()[:4096]
    assert b"compression\0compression\0\x01\0\0\0" + bytes([COMPRESSIONS[compression]]) in head
    for channel in b"BGR":
        assert bytes([channel, 0]) + struct.pack("<I", DEPTHS[depth]) in head
    assert (b"dwaCompressionLevel\0float\0\x04\0\0\0" + struct.pack("<f", 45) in head) == (compression == "dwaa")
    values, expected = read(path)[0], linear(frames[0])
    error = np.abs(values / expected - 1)
    if compression == "dwaa":
        assert 0 < error.mean() < 0.02 and error.max() < 0.2
    elif depth == "half":
        assert error.max() <= 2**-11 + 1e-6  # half a step
    else:
        assert error.max() < 2e-6  # the curve's power in float32


def test_dwaa_is_smaller(tmp_path: Path, make_record: Any) -> None:
    """The reason for it: about half of zip's bytes on a grainy picture."""
    grain = np.random.default_rng().normal(0, 0.02, (1, 270, 480, 3)).astype(np.float32)
    frames, record = smooth(480, 270) + grain, make_record(1, size=(480, 270))
    sizes = {
        name: written(tmp_path / name, record, frames, compression=name)[0].stat().st_size for name in COMPRESSIONS
    }
    assert sizes["dwaa"] < 0.65 * sizes["zip"]
    assert sizes["zip"] < sizes["none"] and sizes["piz"] < sizes["none"]


def test_the_default_is_half_in_zip(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Naming the defaults changes no byte."""
    frames, digests = make_frames(2), set()
    for index, options in enumerate(({}, {"compression": "zip", "depth": "half"}, {"compression": None})):
        paths = written(tmp_path / str(index), make_record(2), frames, **options)  # type: ignore[arg-type]
        digests.add(tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths))
    assert len(digests) == 1


def test_float_keeps_more_than_half_and_values_beyond_it(tmp_path: Path, make_record: Any) -> None:
    """Neighbours that half float would merge stay apart, and 100 000 is a value like others."""
    srgb = np.full((1, 8, 8, 3), 0.5, np.float32)
    srgb[0, 0, 1] += 1e-6
    srgb[0, 0, 2] = 1.055 * 1e5 ** (1 / 2.4) - 0.055
    srgb[0, 0, 3] = -0.0
    values = read(written(tmp_path, make_record(1, size=(8, 8)), srgb, depth="float")[0])[0][0, :4, 0]
    expected = linear(srgb[0, 0, :4, 0])
    assert np.float16(values[0]) == np.float16(values[1]) and values[0] < values[1]
    assert values[:3] == pytest.approx(expected[:3], rel=2e-6)
    assert np.float32(values[3]).tobytes() == bytes(4)  # zero, not minus zero


@pytest.mark.parametrize("colorspace", ["lin_rec709", "ACEScg"])
def test_float_repairs_what_is_no_number(tmp_path: Path, make_record: Any, make_frames: Any, colorspace: str) -> None:
    """NaN becomes 0, infinity the largest half: a float's own largest would be infinite after one product."""
    frames = make_frames(1)
    frames[0, 0, 0], frames[0, 0, 1], frames[0, 0, 2] = np.nan, np.inf, -np.inf
    with pytest.warns(RuntimeWarning, match=r"p\.%04d\.exr: 9 values were NaN or infinite; .*largest value of a half"):
        path = written(tmp_path, make_record(1), frames, depth="float", colorspace=colorspace)[0]
    pixels = read(path)[0]
    assert np.isfinite(pixels).all()
    assert (pixels[0, 0] == 0).all() and (pixels[0, 1] == 65504).all() and (pixels[0, 2] == -65504).all()
    clean = make_frames(1)
    clean[0, 0, :3] = 0.5
    clean[0, 1:], clean[0, 0, 3:] = frames[0, 1:], frames[0, 0, 3:]
    other = read(written(tmp_path / "clean", make_record(1), clean, depth="float", colorspace=colorspace)[0])[0]
    assert np.array_equal(pixels[1:], other[1:]) and np.array_equal(pixels[0, 3:], other[0, 3:])


REFUSALS = [
    (["a.exr"], {"compression": "htj2k"}, r"^--compression: got 'htj2k'; allowed are zip, zips, dwaa, piz, none$"),
    (["a.exr"], {"compression": "ZIP"}, r"^--compression: got 'ZIP'; allowed are"),
    (["a.exr"], {"compression": ""}, r"^--compression: got ''; allowed are"),
    (["a.exr"], {"depth": "double"}, r"^--depth: got 'double'; allowed are half, float$"),
    (["a.mp4"], {"depth": "float"}, r"^--depth: got 'float' without a plate; it is allowed with an \.exr output$"),
    (["a.png"], {"compression": "zip"}, r"^--compression: got 'zip' without a plate; it is allowed with"),
]


@pytest.mark.parametrize(("names", "options", "message"), REFUSALS)
def test_other_formats_are_refused_in_one_sentence(
    tmp_path: Path, make_record: Any, names: list[str], options: dict[str, Any], message: str
) -> None:
    """Before any work, from both doors, and nothing is created."""
    paths = [tmp_path / "new" / name for name in names]
    with pytest.raises(ShotError, match=message):
        check_outputs(paths, 1, False, None, **options)
    with pytest.raises(ShotError, match=message):
        open_outputs(paths, make_record(1), **options)
    assert list(tmp_path.iterdir()) == []


def test_a_plate_beside_a_movie_takes_the_format(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """The options are the plate's; a movie next to it does not mind."""
    paths = [tmp_path / "a.mp4", tmp_path / "a.exr"]
    with open_outputs(paths, make_record(1), compression="piz", depth="float") as outputs:
        outputs.write(make_frames(1))
    assert read(tmp_path / "a.exr")[1].format.basetype == oiio.FLOAT


def test_a_depth_that_was_not_kept_is_an_error(
    tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenImageIO replaces what it cannot write without a word; the file is read back and not published."""
    from rushes.media import plates

    original = plates.PlateSink._spec

    def halved(self: Any, *arguments: Any) -> Any:
        spec = original(self, *arguments)
        spec.attribute("compression", "rle")
        return spec

    monkeypatch.setattr(plates.PlateSink, "_spec", halved)
    with pytest.raises(WriteError, match=r"p\.1001\.exr reads back as 20x14, float, rle"):
        written(tmp_path, make_record(1), make_frames(1), depth="float", compression="piz")
    assert list(tmp_path.iterdir()) == []
