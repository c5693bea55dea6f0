# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Verifying: whatever can happen to a plate on its way is named, frame by frame."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it
import pytest

from rushes.cli import main
from rushes.media import open_outputs, verify
from rushes.shot import ShotError

PATTERN = "sh010_v003.%04d.exr"


def frame(number: int) -> str:
    return f"sh010_v003.{number}.exr"


@pytest.fixture
def plate(tmp_path: Path, make_record: Any, make_frames: Any) -> Path:
    """A folder with a plate of seven frames of an odd size."""
    with open_outputs([tmp_path / PATTERN], make_record(7, size=(61, 37))) as outputs:
        outputs.write(make_frames(7, size=(61, 37)))
    return tmp_path


def resave(path: Path, change: Callable[[np.ndarray], Any], compression: str = "zip") -> None:
    """As another program would: the same header, through OpenImageIO alone."""
    picture = oiio.ImageInput.open(str(path))
    spec, pixels = picture.spec(), np.array(picture.read_image(oiio.HALF))
    picture.close()
    change(pixels)
    spec.attribute("compression", compression)
    out = oiio.ImageOutput.create("openexr")
    assert out.open(str(path), spec) and out.write_image(pixels) and out.close()


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 0x10
    path.write_bytes(content)


def one_step(pixels: np.ndarray) -> None:
    pixels.view(np.uint16)[-1, -1, 2] ^= 1  # the last bit of the last number


def test_a_plate_as_it_was_written_is_proven(plate: Path) -> None:
    """By its pattern in both forms, and by its manifest; the count of files is told while they are read."""
    told: list[tuple[int, int]] = []
    found = verify(plate / PATTERN, on_file=lambda done, total: told.append((done, total)))
    assert found.ok and found.is_proven and found.frames == 7 and found.findings == ()
    assert found.sentence == f"{plate / PATTERN}: 7 frames, complete and unchanged"
    assert told == [(n, 7) for n in range(1, 8)]
    assert verify(plate / "sh010_v003.####.exr").ok
    assert verify(plate / "sh010_v003.exr.manifest.json").ok


CASES: list[tuple[str, Callable[[Path], Any], str, str]] = [  # what happens to frame 1004, problem, what is said
    ("missing", lambda path: path.unlink(), "missing", "is missing"),
    ("empty", lambda path: path.write_bytes(b""), "empty", "is empty"),
    ("half", lambda path: os.truncate(path, path.stat().st_size // 2), "truncated", r"is cut off: \d+ of \d+ bytes"),
    ("one byte less", lambda path: os.truncate(path, path.stat().st_size - 1), "truncated", r"is cut off: \d+ of"),
    ("header only", lambda path: os.truncate(path, 900), "truncated", "is cut off: 900 of"),
    ("a flipped bit", flip_a_byte, "", ""),  # damaged or other pixels, as it falls
    ("no picture", lambda path: path.write_bytes(os.urandom(path.stat().st_size)), "unreadable", "is damaged: it can"),
    ("a folder", lambda path: (path.unlink(), path.mkdir()), "unreadable", "is damaged: it cannot be opened"),
    ("another pixel", lambda path: resave(path, one_step), "altered", "was changed .*, and so were its pixels"),
    ("saved anew", lambda path: resave(path, len, "piz"), "altered", "was changed .*; its pixels are the same"),
    ("renamed", lambda path: path.rename(path.with_name("old.exr")), "renamed", "has the name old.exr now"),
    ("moved on", lambda path: path.rename(path.with_name(frame(1044))), "renamed", f"has the name {frame(1044)} now"),
    ("a copy", lambda path: shutil.copy(path.with_name(frame(1002)), path), "altered", "was replaced by frame 1002"),
]


@pytest.mark.parametrize(("case", "change", "problem", "sentence"), CASES, ids=[case[0] for case in CASES])
def test_what_has_happened_to_a_frame_is_named(
    plate: Path, case: str, change: Callable[[Path], Any], problem: str, sentence: str
) -> None:
    """One finding, with the frame's number, its file, and a sentence that has both."""
    change(plate / frame(1004))
    found = verify(plate / PATTERN)
    assert not found.ok
    (finding,) = found.findings
    assert (finding.number, finding.file) == (1004, frame(1004))
    assert finding.problem == problem or (not problem and finding.problem in ("unreadable", "altered"))
    assert re.match(rf"^frame 1004 \({re.escape(frame(1004))}\) {sentence}", finding.sentence), finding.sentence
    assert "\n" not in finding.sentence
    assert found.sentence.startswith(f"{plate / PATTERN}: 1 thing is not as it should be; ")


def test_every_wrong_frame_is_named(plate: Path) -> None:
    """First those that should be there, in their order, then those that should not."""
    (plate / frame(1007)).unlink()
    os.truncate(plate / frame(1001), 1000)
    shutil.copy(plate / frame(1003), plate / frame(1008))
    os.replace(plate / frame(1005), plate / "t.exr")
    os.replace(plate / frame(1006), plate / frame(1005))
    os.replace(plate / "t.exr", plate / frame(1006))
    found = verify(plate / PATTERN)
    assert [(one.number, one.problem) for one in found.findings] == [
        (1001, "truncated"), (1005, "altered"), (1006, "altered"), (1007, "missing"), (1008, "extra")
    ]  # fmt: skip
    assert f"replaced by frame 1006 ({frame(1006)})" in found.findings[1].sentence
    assert found.frames == 6  # that could be read: two of them in each other's place, one too many


def test_a_plate_that_is_gone_leaves_what_it_was(plate: Path) -> None:
    """Of its manifest alone every frame is told as missing."""
    for path in plate.glob("*.exr"):
        path.unlink()
    found = verify(plate / PATTERN)
    assert [finding.number for finding in found.findings] == list(range(1001, 1008))
    assert found.frames == 0


def test_without_a_manifest_it_is_read_and_not_proven(plate: Path) -> None:
    """Nothing wrong is to be seen, and that is said; ok it is not."""
    (plate / "sh010_v003.exr.manifest.json").unlink()
    found = verify(plate / PATTERN)
    assert (found.ok, found.is_proven, found.frames, found.findings) == (False, False, 7, ())
    assert "7 frames can be read whole, and nothing proves that these are all" in found.sentence
    os.truncate(plate / frame(1002), (plate / frame(1002)).stat().st_size * 3 // 4)  # opens, and shows a black part
    (plate / frame(1004)).unlink()
    (plate / frame(1005)).write_bytes(b"")
    (plate / frame(1007)).unlink()
    found = verify(plate / PATTERN)
    assert [(one.number, one.problem) for one in found.findings] == [
        (1002, "unreadable"), (1004, "missing"), (1005, "empty"), (None, "missing")
    ]  # fmt: skip
    assert found.findings[3].sentence == f"{PATTERN}: its files tell of 7 frames, and 6 are there"


@pytest.mark.parametrize("name", ["s.%04d.png", "m.mov", "m.mp4", "p.exr"])
def test_other_pictures_are_proven_too(tmp_path: Path, make_record: Any, make_frames: Any, name: str) -> None:
    """Stills and movies, where a manifest was asked for; cut off, each of them is found out."""
    frames = 1 if name == "p.exr" else 5
    with open_outputs([tmp_path / name], make_record(frames, size=(64, 48)), manifest=True) as outputs:
        outputs.write(make_frames(frames, size=(64, 48)))
    found = verify(tmp_path / name)
    assert found.ok and found.frames == frames
    last = outputs.paths[-1]
    os.truncate(last, last.stat().st_size * 2 // 3)
    for is_proven in (True, False):
        found = verify(tmp_path / name)
        (finding,) = found.findings
        assert (finding.file, found.is_proven) == (last.name, is_proven)
        assert finding.problem == ("truncated" if is_proven else "unreadable")
        outputs.manifests[0].unlink(missing_ok=True)


REFUSALS = [
    ("q.%04d.exr", r"q\.%04d\.exr: there is no such file; a plate, a still or a movie is allowed$"),
    ("q.mov", r"q\.mov: there is no such file"),
    ("l.safetensors", r"the suffix is '\.safetensors'; allowed are \.exr, \.mov, \.mp4, \.png and \.manifest\.json$"),
    ("sh010_v003.exr", r"sh010_v003\.exr\.manifest\.json is of sh010_v003\.%04d\.exr; this name is allowed$"),
    ("sh010_v003.%05d.exr", r"sh010_v003\.exr\.manifest\.json is of sh010_v003\.%04d\.exr; this name"),
    ("q.exr.manifest.json", r"q\.exr\.manifest\.json: there is no such file"),
]


@pytest.mark.parametrize(("name", "message"), REFUSALS)
def test_what_cannot_be_verified_is_refused(plate: Path, name: str, message: str) -> None:
    """In one sentence."""
    with pytest.raises(ShotError, match=message):
        verify(plate / name)


def test_a_manifest_from_the_future_is_refused(plate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is never taken for one that proves something."""
    path = plate / "sh010_v003.exr.manifest.json"
    path.write_text(path.read_text().replace('"manifest": 1', '"manifest": 9'))
    assert main(["verify", str(plate / PATTERN)]) == 2
    assert "its version is 9; up to 1 is allowed" in capsys.readouterr().err


def test_the_command_says_it_to_people_and_programs(plate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0 only for what is proven; every finding is a line."""
    assert main(["verify", str(plate / PATTERN)]) == 0
    assert capsys.readouterr().out == f"{plate / PATTERN}: 7 frames, complete and unchanged\n"
    (plate / frame(1002)).unlink()
    assert main(["verify", str(plate / PATTERN)]) == 1
    assert capsys.readouterr().out.splitlines()[0] == f"frame 1002 ({frame(1002)}) is missing"
    assert main(["verify", str(plate / PATTERN), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["progress"] * 6 + ["finding", "verified"]
    assert lines[-2]["number"] == 1002 and lines[-2]["problem"] == "missing"
    assert {key: lines[-1][key] for key in ("ok", "proven", "frames", "findings")} == {
        "ok": False, "proven": True, "frames": 6, "findings": 1
    }  # fmt: skip
    (plate / "sh010_v003.exr.manifest.json").unlink()
    assert main(["verify", str(plate / frame(1001))]) == 1
    assert "there is no sh010_v003.1001.exr.manifest.json" in capsys.readouterr().out


def test_a_thousand_frames_are_proven_and_one_of_them_is_found(
    tmp_path: Path, make_record: Any, make_frames: Any
) -> None:
    """A long plate, streamed; one bit in one frame is enough."""
    with open_outputs([tmp_path / PATTERN], make_record(1000, size=(9, 8)), start_frame=500) as outputs:
        for _ in range(10):
            outputs.write(make_frames(100, size=(9, 8)))
    found = verify(tmp_path / PATTERN)
    assert found.ok and found.frames == 1000
    resave(tmp_path / "sh010_v003.1234.exr", one_step)
    assert [finding.number for finding in verify(tmp_path / PATTERN).findings] == [1234]
