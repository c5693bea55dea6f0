# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Sequences as they lie on disk: names, numbers, gaps, damage, and the chunks that come of them."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it
import pytest

from rushes.media import open_outputs, read_frames
from rushes.media.timecodes import frame_of_timecode, timecode
from rushes.shot import ShotError

REC709_TAG = {"chromaticities": ("float[8]", (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329))}


def encode(light: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1 encoding, its straight part going on below zero and its curve above one."""
    v = light.astype(np.float64)
    return np.where(v <= 0.0031308, 12.92 * v, 1.055 * np.maximum(v, 0) ** (1 / 2.4) - 0.055)


def light(*shape: int) -> np.ndarray:
    """Fresh scene-linear values from -0.1 to 12, float32."""
    return np.random.default_rng().uniform(-0.1, 12, shape).astype(np.float32)


def everything(path: str | Path, **options: Any) -> np.ndarray:
    return np.concatenate(list(read_frames(path, **options)))


@pytest.mark.parametrize(("pattern", "name"), [("p.%04d.exr", "p.{:04d}.exr"), ("p.####.exr", "p.{:04d}.exr"),
                                               ("p_%d.exr", "p_{}.exr"), ("##.exr", "{:02d}.exr")])  # fmt: skip
def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path, save_picture: Any, pattern: str, name: str) -> None:
    """Also where 10 sorts before 9; neighbours of other names do not come at all."""
    for number in (11, 8, 10, 9):
        save_picture(tmp_path / name.format(number), np.full((2, 2, 3), number, np.float32), **REC709_TAG)
    save_picture(tmp_path / "other.0012.exr", np.zeros((2, 2, 3), np.float32), **REC709_TAG)
    reader = read_frames(f"{tmp_path}/{pattern}")
    assert (reader.frames, reader.start_frame, reader.fps) == (4, 8, None)
    assert np.concatenate(list(reader))[:, 0, 0, 0] == pytest.approx(encode(np.arange(8, 12)), rel=1e-4)


def test_one_frame_of_a_sequence_is_that_frame(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Its number is the start."""
    frames = make_frames(3)
    with open_outputs([tmp_path / "p.%04d.exr", tmp_path / "v001_%03d.png"], make_record(3)) as outputs:
        outputs.write(frames)
    for name in ("p.1002.exr", "v001_1002.png"):
        reader = read_frames(tmp_path / name)
        assert (reader.frames, reader.start_frame, reader.fps) == (1, 1002, Fraction(24000, 1001)), name
        assert np.abs(next(reader)[0] - frames[1]).max() < 0.02  # in the dark a half is coarse


@pytest.mark.parametrize(
    ("name", "number"),
    [("still.png", None), ("plate_v003.png", None), ("sh010.png", None), ("take-7.png", 7), ("0012.png", 12),
     ("shot_20261125093000.png", None), ("a.b.1001.png", 1001)],
)  # fmt: skip
def test_a_number_in_a_name_is_a_frame_where_it_stands_alone(
    tmp_path: Path, save_picture: Any, name: str, number: int | None
) -> None:
    """A version or a shot's number is none."""
    assert read_frames(save_picture(tmp_path / name, np.zeros((2, 2, 3), np.uint8), oiio.UINT8)).start_frame == number


@pytest.mark.parametrize(
    "fps", [Fraction(24), Fraction(24000, 1001), Fraction(25), Fraction(50), Fraction(60000, 1001)]
)
def test_a_time_code_is_a_start_frame(tmp_path: Path, make_record: Any, make_frames: Any, fps: Fraction) -> None:
    """Where the name has no number; the code counts at the nominal rate, in pairs above 30."""
    with open_outputs([tmp_path / "p.exr"], make_record(1, fps=fps), start_frame=86_523) as outputs:
        outputs.write(make_frames(1))
    reader = read_frames(tmp_path / "p.exr")
    assert (reader.start_frame, reader.fps) == (86_523, fps)
    for number in np.random.default_rng().integers(0, 24 * 3600 * 24, 50).tolist():
        packed = timecode(number, fps)
        assert packed is not None and frame_of_timecode(packed, fps) == number


GAPS = [
    ([1, 2, 4], r"of the frames 1 to 4, 3 \(p\.0003\.png\) is missing; a sequence without gaps is allowed"),
    ([1, 4], r"of the frames 1 to 4, 2 \(p\.0002\.png\) and 1 more are missing"),
    ([0, 3, 1001], r"of the frames 0 to 1001, 1 \(p\.0001\.png\) and 998 more are missing"),
]


@pytest.mark.parametrize(("numbers", "words"), GAPS)
def test_a_gap_is_refused_by_the_name_of_the_missing_frame(tmp_path: Path, numbers: list[int], words: str) -> None:
    """Before anything is read."""
    for number in numbers:
        (tmp_path / f"p.{number:04d}.png").touch()  # not even a picture
    with pytest.raises(ShotError, match=rf"p\.%04d\.png: {words}"):
        read_frames(tmp_path / "p.%04d.png")


MISSING = [
    ("gone.exr", r"gone\.exr: there is no such file; an existing file, or the pattern of a sequence, is allowed$"),
    ("gone.%04d.exr", r"gone\.%04d\.exr: there is no such frame; an existing file, or the pattern"),
    ("no/folder/gone.####.png", r"there is no such frame"),
    ("folder.exr", r"folder\.exr: it is a folder; a file, or a pattern such as plate\.%04d\.exr, is allowed$"),
    ("frames.%04d.exr", r"frames\.0001\.exr is not a file; frames that are files are allowed$"),
    ("a.%04d.####.exr", r"^\S*a\.%04d\.####\.exr: the name holds 2 frame patterns; one %04d or #### is allowed$"),
    ("a.tif", r"a\.tif: the suffix is '\.tif'; allowed are \.exr, \.png, \.mov, \.mp4$"),
    ("a", r"a: the name has no suffix; allowed are \.exr"),
    ("a.safetensors", r"the suffix is '\.safetensors'; allowed are"),
    ("gone.mov", r"gone\.mov: there is no such file; an existing movie is allowed$"),
    ("gone.%04d.mp4", r"there is no such file"),  # a movie's name is no pattern
]


@pytest.mark.parametrize(("name", "words"), MISSING)
def test_what_is_not_there_is_told_in_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    """The name as given, and what is allowed."""
    (tmp_path / "folder.exr").mkdir()
    (tmp_path / "frames.0001.exr").mkdir()
    with pytest.raises(ShotError, match=words) as caught:
        read_frames(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x76\x2f\x31\x01" + bytes(40)])
@pytest.mark.parametrize("suffix", ["exr", "png"])
def test_a_file_that_is_no_picture_is_refused_at_once(tmp_path: Path, content: bytes, suffix: str) -> None:
    """By its name."""
    (tmp_path / f"a.{suffix}").write_bytes(content)
    with pytest.raises(ShotError, match=rf"a\.{suffix}: it cannot be read as a picture \(.*\); a complete file is"):
        read_frames(tmp_path / f"a.{suffix}")


def test_a_truncated_frame_is_named_when_its_turn_comes(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Its header is whole, so only its pixels tell; afterwards the reader is closed and gives nothing more."""
    with open_outputs([tmp_path / "p.%04d.exr"], make_record(20, size=(64, 48))) as outputs:
        outputs.write(make_frames(20, size=(64, 48)))
    bad = outputs.paths[17]
    bad.write_bytes(bad.read_bytes()[:-2000])
    reader = read_frames(tmp_path / "p.%04d.exr")
    assert reader.frames == 20 and len(next(reader)) == 16
    with pytest.raises(ShotError, match=r"p\.1018\.exr: it cannot be read as a picture"):
        next(reader)
    with pytest.raises(ValueError, match="the reader is closed"):
        next(reader)


def test_frames_that_differ_are_refused(tmp_path: Path, save_picture: Any) -> None:
    """In size, and in colours unless these are given."""
    save_picture(tmp_path / "p.1.exr", light(4, 6, 3), **REC709_TAG)
    save_picture(tmp_path / "p.2.exr", light(4, 6, 3), colorInteropID="lin_ap1_scene")
    with pytest.raises(ShotError, match=r"p\.2\.exr: its colours are declared as 'ACEScg', and the first.*give col"):
        everything(tmp_path / "p.#.exr")
    assert len(everything(tmp_path / "p.#.exr", colorspace="ACEScg")) == 2
    save_picture(tmp_path / "p.2.exr", light(6, 4, 3), **REC709_TAG)
    with pytest.raises(
        ShotError, match=r"p\.2\.exr: its size is 4x6, and the first frame's is 6x4; frames of one size"
    ):
        everything(tmp_path / "p.#.exr")


@pytest.mark.parametrize("name", ["Straße 夕焼け 🎬", 'it\'s "quoted"', " leading and trailing ", "100% #1", "a;b&c$d"])
def test_names_of_all_kinds_are_read(tmp_path: Path, make_record: Any, make_frames: Any, name: str) -> None:
    """A file that is really there comes before a pattern of the same look."""
    frames, folder = make_frames(1, size=(16, 16)), tmp_path / name
    names = [f"{name}.exr", f"{name}.png", f"{name}.mov", f"{name}.mp4"]
    with open_outputs([folder / plain for plain in ("a.exr", "a.png", "a.mov", "a.mp4")],
                      make_record(1, size=(16, 16))) as outputs:  # fmt: skip
        outputs.write(frames)
    for path, given in zip(outputs.paths, names, strict=True):
        shutil.move(path, folder / given)
        assert everything(folder / given).shape == (1, 16, 16, 3)


def test_chunks_hold_every_frame_once(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """At most 16 at a time; an iterator that is at its end stays there, closed or not."""
    frames = make_frames(35, size=(8, 8))
    with open_outputs([tmp_path / "p.%04d.png"], make_record(35, size=(8, 8))) as outputs:
        outputs.write(frames)
    with read_frames(tmp_path / "p.%04d.png") as reader:
        assert iter(reader) is reader
        chunks = list(reader)
        assert list(reader) == []
    assert list(reader) == []
    assert [len(chunk) for chunk in chunks] == [16, 16, 3]
    assert np.array_equal(np.rint(np.concatenate(chunks) * 255), np.rint(frames * 255))
    with read_frames(tmp_path / "p.%04d.png") as reader:
        next(reader)
    with pytest.raises(ValueError, match="the reader is closed; open the frames again"):
        next(reader)
    reader.close()  # again


def test_a_frame_that_vanishes_meanwhile_is_named(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Somebody tidies up while we read."""
    with open_outputs([tmp_path / "p.%04d.png"], make_record(20, size=(8, 8))) as outputs:
        outputs.write(make_frames(20, size=(8, 8)))
    reader = read_frames(tmp_path / "p.%04d.png")
    next(reader)
    outputs.paths[18].unlink()
    with pytest.raises(ShotError, match=r"p\.1019\.png: it cannot be read"):
        next(reader)
