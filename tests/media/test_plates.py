# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Plates against formulas written here, and the attributes that compositing relies on."""

from __future__ import annotations

import hashlib
import struct
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it
import pytest

from rushes.media import open_outputs
from rushes.media.timecodes import timecode

AP1 = (0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32168, 0.33767)
REC709 = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329)


def xyz_matrix(primaries: tuple[float, ...]) -> np.ndarray:
    """RGB to CIE XYZ from xy chromaticities (SMPTE RP 177), float64 [3, 3]."""
    xy = np.array(primaries).reshape(4, 2)
    xyz = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]])  # columns r, g, b, white
    return xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])


def bradford(source_xy: tuple[float, float], target_xy: tuple[float, float]) -> np.ndarray:
    """Chromatic adaptation in the Bradford cone space, float64 [3, 3]."""
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    gain = []
    for x, y in (source_xy, target_xy):
        gain.append(cones @ np.array([x / y, 1, (1 - x - y) / y]))
    return np.linalg.inv(cones) @ np.diag(gain[1] / gain[0]) @ cones


def linear(srgb: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1 decoding in float64."""
    v = srgb.astype(np.float64)
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def acescg(srgb: np.ndarray) -> np.ndarray:
    """sRGB picture to linear AP1, D65 adapted to the ACES white."""
    matrix = np.linalg.inv(xyz_matrix(AP1)) @ bradford(REC709[6:], AP1[6:]) @ xyz_matrix(REC709)  # type: ignore[arg-type]
    return linear(srgb) @ matrix.T


def read(path: Path) -> tuple[np.ndarray, Any]:
    picture = oiio.ImageInput.open(str(path))
    assert picture is not None, oiio.geterror()
    pixels, spec = picture.read_image(oiio.HALF), picture.spec()
    picture.close()
    return np.asarray(pixels).view(np.float16), spec


def half_steps(a: np.ndarray, b: np.ndarray) -> int:
    """Largest distance in steps of half float, both finite and not negative."""
    return int(np.abs(a.view(np.int16).astype(int) - b.astype(np.float16).view(np.int16)).max())


@pytest.mark.parametrize(
    ("colorspace", "formula"),
    [
        (None, acescg),
        ("ACEScg", acescg),
        ("lin_ap1", acescg),
        ("lin_rec709", linear),
        ("Linear Rec.709 (sRGB)", linear),
    ],
)
def test_values_are_those_of_the_formula(
    tmp_path: Path, make_record: Any, make_frames: Any, colorspace: str | None, formula: Any
) -> None:
    """Each half is the formula's, or its neighbour where float32 arithmetic falls on the other side."""
    frames = make_frames(2)
    frames[0, 0, :3] = [[0, 0, 0], [1, 1, 1], [0.04045, 0.04, 0.041]]
    with open_outputs([tmp_path / "p.%04d.exr"], make_record(2), colorspace=colorspace) as outputs:
        outputs.write(frames)
    assert [path.name for path in outputs.paths] == ["p.1001.exr", "p.1002.exr"]
    for path, frame in zip(outputs.paths, frames, strict=True):
        pixels, spec = read(path)
        assert spec.format.basetype == oiio.HALF
        assert half_steps(pixels, formula(frame)) <= 1
    white = read(outputs.paths[0])[0][0, 1]
    assert np.abs(white.astype(float) - 1).max() < 2e-3  # display white stays 1.0: no view transform


def test_halves_are_the_nearest_ones(tmp_path: Path, make_record: Any) -> None:
    """At most one in fifty falls to its neighbour; OpenColorIO's fast power misses one in thirty."""
    ramp = np.linspace(0, 1, 30_000, dtype=np.float32).reshape(1, 100, 100, 3)
    with open_outputs([tmp_path / "p.exr"], make_record(1, size=(100, 100)), colorspace="lin_rec709") as outputs:
        outputs.write(ramp)
    off = read(outputs.paths[0])[0] != linear(ramp[0]).astype(np.float16)
    assert off.mean() < 1 / 50


def test_attributes_are_those_that_compositing_reads(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Rate, time code, primaries, colour id, compression, request: all in the header of every frame."""
    record = make_record(2, seed=2**40 + 1)
    with open_outputs([tmp_path / "p.####.exr"], record, start_frame=1001) as outputs:
        outputs.write(make_frames(2))
    spec = read(outputs.paths[1])[1]
    assert spec.getattribute("framesPerSecond") == (24000, 1001)
    assert spec.getattribute("smpte:TimeCode")[0] == 0x00004118  # frame 1002 at 24: 41 s and 18 frames
    assert spec.getattribute("chromaticities") == pytest.approx(AP1)
    assert spec.getattribute("colorInteropID") == "lin_ap1_scene"
    assert spec.getattribute("compression") == "zip"
    assert spec.getattribute("rushes/prompt") == record["shot"]["prompt"]
    assert spec.getattribute("rushes/seed") == str(2**40 + 1)  # larger than an EXR int
    header = outputs.paths[1].read_bytes()[:4096]  # as OpenEXR itself names and types them
    for part in (
        b"framesPerSecond\0rational\0\x08\0\0\0" + struct.pack("<iI", 24000, 1001),
        b"timeCode\0timecode\0\x08\0\0\0" + struct.pack("<II", 0x00004118, 0),
        b"chromaticities\0chromaticities\0",
        b"compression\0compression\0\x01\0\0\0\x03",  # 3 is ZIP
    ):
        assert part in header
    assert b"capDate" not in header
    with open_outputs([tmp_path / "q.####.exr"], make_record(1), colorspace="lin_rec709") as outputs:
        outputs.write(make_frames(1))
    spec = read(outputs.paths[0])[1]
    assert spec.getattribute("rushes/seed") == 7
    assert spec.getattribute("colorInteropID") == "lin_rec709_scene"
    assert spec.getattribute("chromaticities") == pytest.approx(REC709)


def test_a_space_without_an_interop_id_gets_no_false_tags(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """ACEScct is allowed by name, and nothing is claimed about it that would be read as linear."""
    with open_outputs([tmp_path / "p.exr"], make_record(1), colorspace="ACEScct") as outputs:
        outputs.write(make_frames(1))
    spec = read(outputs.paths[0])[1]
    assert spec.getattribute("colorInteropID") is None
    assert spec.getattribute("chromaticities") is None
    assert spec.getattribute("rushes/colorspace") == "ACEScct"


def test_equal_shots_give_equal_bytes(
    tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the time of day, nor the zone, nor the folder is in the file."""
    frames, digests = make_frames(1), []
    for index, zone in enumerate(("UTC", "Asia/Tokyo")):  # hours apart by the clock on the wall
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            if hasattr(time, "tzset"):
                time.tzset()
            record = make_record(1)
            if index:
                record = dict(reversed(record.items()))  # an equal record
            with open_outputs([tmp_path / str(index) / "p.%04d.exr"], record) as outputs:
                outputs.write(frames)
        digests.append(hashlib.sha256(outputs.paths[0].read_bytes()).hexdigest())
    if hasattr(time, "tzset"):
        time.tzset()
    assert digests[0] == digests[1]


@pytest.mark.parametrize("colorspace", ["lin_rec709", "ACEScg"])
def test_values_that_no_plate_may_hold_are_repaired_and_counted(
    tmp_path: Path, make_record: Any, make_frames: Any, colorspace: str
) -> None:
    """NaN becomes 0, infinity the largest half, minus zero zero; one warning for each output."""
    frames = make_frames(1)
    frames[0, 0, 0], frames[0, 0, 1] = np.nan, np.inf
    frames[0, 0, 2], frames[0, 0, 3] = -0.0, 1e6  # finite, and beyond half once it is linear
    with (
        pytest.warns(RuntimeWarning, match=r"p\.%04d\.exr: 9 values were NaN, infinite or beyond half") as caught,
        open_outputs([tmp_path / "p.%04d.exr"], make_record(1), colorspace=colorspace) as outputs,
    ):
        outputs.write(frames)
    assert len(caught) == 1
    pixels = read(outputs.paths[0])[0]
    assert np.isfinite(pixels).all()
    assert (pixels[0, 0].view(np.uint16) == 0).all() and (pixels[0, 2].view(np.uint16) == 0).all()
    if colorspace == "lin_rec709":  # per channel; a matrix mixes them
        assert (pixels[0, 1] == 65504).all() and (pixels[0, 3] == 65504).all()


@pytest.mark.parametrize(
    ("number", "fps", "expected"),
    [
        (0, Fraction(24), "00:00:00:00"),
        (1001, Fraction(24), "00:00:41:17"),
        (1001, Fraction(24000, 1001), "00:00:41:17"),  # counted at the nominal rate
        (86399, Fraction(25), "00:57:35:24"),
        (24 * 3600 * 30 + 1, Fraction(30000, 1001), "00:00:00:01"),  # midnight
        (39, Fraction(8), "00:00:04:07"),  # the rate of a small model
        (1001, Fraction(25, 2), "00:01:17:00"),  # 12.5 counts as 13
    ],
)
def test_time_codes_count_as_an_editor_counts(number: int, fps: Fraction, expected: str) -> None:
    """The packed number is the four fields in binary-coded decimal."""
    assert timecode(number, fps) == int(expected.replace(":", ""), 16)


def test_time_codes_above_thirty_frames_use_the_field_bit() -> None:
    """At 60 a pair of frames shares a code; above 60 there is none."""
    assert timecode(60 + 58, Fraction(60000, 1001)) == 0x00000129
    assert timecode(60 + 59, Fraction(60000, 1001)) == 0x00008129
    assert timecode(7, Fraction(120)) is None
    assert timecode(7, Fraction(1, 4)) is None


def test_a_missing_configuration_is_an_error_and_no_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenImageIO would go on with a list of twelve names; we say what is missing."""
    from rushes.media import color

    monkeypatch.setattr(color, "CONFIG", "ocio://no-such-config")
    color.config.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"has no ocio://no-such-config; opencolorio 2\.4 or newer"):
            color.find_space("ACEScg")
    finally:
        color.config.cache_clear()


def test_every_space_of_the_configuration_is_found_by_all_its_names() -> None:
    """Names, aliases and any case; the interop id is one of the space's own."""
    from rushes.media import color

    for space in color.config().getColorSpaces():
        if space.isData():
            continue
        for name in (space.getName(), *space.getAliases(), space.getName().upper()):
            assert color.find_space(name).name == space.getName()


@pytest.mark.parametrize("target", ["ACEScg", "lin_rec709", "ACEScct", "lin_rec2020"])
def test_the_quick_way_to_halves_is_the_exact_one_but_for_a_step(target: str) -> None:
    """One value in a thousand at most may fall to the other one of its two nearest halves; the ends are exact."""
    from rushes.media import color

    frame = np.random.default_rng().random((101, 307, 3), dtype=np.float32)
    frame[0] = np.linspace(0, 0.06, 307, dtype=np.float32)[:, None]  # where the curve of sRGB bends
    frame[1, :3], frame[1, 3:6] = 0, 1
    quick = color.convert_display(frame, target)
    exact = color.convert(frame, color.SRGB, target, is_half=True)
    steps = np.abs(quick.view(np.int16).astype(int) - exact.view(np.int16))
    assert steps.max() <= 1 and (steps > 0).mean() < 1e-3
    assert (steps[1, :6] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-30, -0.0, np.nextafter(np.float32(1), np.float32(2))])
def test_what_a_display_does_not_show_goes_the_exact_way(value: float) -> None:
    """Told from the range of a display by one value in a frame; its ends belong to it."""
    from rushes.media import color

    frame = np.random.default_rng().random((7, 5, 3), dtype=np.float32)
    frame[0, 0] = 0, 1, np.float32(1e-40)
    assert color.is_displayable(frame)
    frame[6, 4, 2] = value
    assert not color.is_displayable(frame)


def test_frames_keep_their_order_and_content_however_they_are_worked_on(tmp_path: Path, make_record: Any) -> None:
    """Many frames in several threads: the file of each number holds that frame, in the order of the numbers."""
    greys = np.random.default_rng().permutation(np.linspace(0.1, 0.9, 60, dtype=np.float32))
    frames = np.broadcast_to(greys[:, None, None, None], (60, 14, 20, 3))
    with open_outputs([tmp_path / "p.%04d.exr"], make_record(60), colorspace="lin_rec709") as outputs:
        for start in range(0, 60, 7):
            outputs.write(frames[start : start + 7])
    assert [path.name for path in outputs.paths] == [f"p.{number}.exr" for number in range(1001, 1061)]
    for path, grey in zip(outputs.paths, greys, strict=True):
        assert half_steps(read(path)[0], np.full((14, 20, 3), linear(grey))) <= 1
