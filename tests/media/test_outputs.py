# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Outputs appear together and whole, or not at all; writer threads hide nothing."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rushes.media import WriteError, open_outputs, verify
from rushes.media.plates import PlateSink
from rushes.media.stills import StillSink
from rushes.shot import ShotError

EVERYTHING = ["new/sub/a.%04d.exr", "new/a.%04d.png", "a.mp4", "a.mov", "a.otio", "a.safetensors"]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def latents() -> np.ndarray:
    return np.random.default_rng().standard_normal((1, 4, 2, 3, 5), dtype=np.float32)


def test_all_outputs_are_complete_after_the_block_and_none_before(
    tmp_path: Path, make_record: Any, make_frames: Any, latents: np.ndarray
) -> None:
    """Frames come in uneven chunks; until the end only hidden folders are there."""
    frames = make_frames(5)
    paths = [tmp_path / name for name in EVERYTHING]
    with open_outputs(paths, make_record(5), latents=latents) as outputs:
        for start, stop in ((0, 1), (1, 4), (4, 5)):
            outputs.write(frames[start:stop])
        assert outputs.paths == []
        visible = [name for name in tree(tmp_path) if not any(part.startswith(".") for part in Path(name).parts)]
        assert visible == ["new", "new/sub"]
    files = [f"new/sub/a.{n}.exr" for n in range(1001, 1006)] + [f"new/a.{n}.png" for n in range(1001, 1006)]
    assert [str(path.relative_to(tmp_path)) for path in outputs.paths] == files + EVERYTHING[2:]
    assert tree(tmp_path) == sorted([*files, *EVERYTHING[2:], "new", "new/sub", "new/sub/a.exr.manifest.json"])


@pytest.mark.parametrize("wrong", [RuntimeError("decoder"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_in_the_block_leaves_nothing(
    tmp_path: Path, make_record: Any, make_frames: Any, latents: np.ndarray, wrong: BaseException
) -> None:
    """Neither files, nor hidden folders, nor folders that were created; the exception itself goes on."""
    paths = [tmp_path / name for name in EVERYTHING]
    with (
        pytest.raises(type(wrong)) as caught,
        open_outputs(paths, make_record(5), latents=latents) as outputs,
    ):
        outputs.write(make_frames(3))
        raise wrong
    assert caught.value is wrong
    assert tree(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rushes ")]


def test_a_failing_writer_surfaces_at_a_later_write(
    tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding does not go on for minutes after the disk is full; output and reason are named."""

    def full(self: Any, frame: np.ndarray, number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PlateSink, "write", full)
    written = 0
    with (
        pytest.raises(WriteError, match=r"a\.%04d\.exr could not be written: the disk is full"),
        open_outputs([tmp_path / "a.%04d.exr", tmp_path / "a.mp4"], make_record(1000)) as outputs,
    ):
        for _ in range(1000):
            outputs.write(make_frames(1))
            written += 1
            time.sleep(0.01)
    assert written < 100
    assert tree(tmp_path) == []


def test_a_failure_with_the_last_frame_surfaces_at_the_end(
    tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block was left in peace and still nothing may appear."""
    original = StillSink.write

    def fails_late(self: Any, frame: np.ndarray, number: int) -> None:
        if number == 1003:
            time.sleep(0.2)
            raise ValueError("late")
        original(self, frame, number)

    monkeypatch.setattr(StillSink, "write", fails_late)
    outputs = open_outputs([tmp_path / "a.%04d.png", tmp_path / "a.%04d.exr"], make_record(3))
    with pytest.raises(WriteError, match=r"a\.%04d\.png could not be written: late"), outputs:
        outputs.write(make_frames(3))
    assert tree(tmp_path) == []
    assert outputs.paths == []


def test_writing_overlaps_with_decoding_and_is_bounded(
    tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """write() returns while files are still being written, and waits once the queue is full."""
    gate = threading.Event()
    monkeypatch.setattr(StillSink, "write", lambda self, frame, number: gate.wait(10) and None)
    taken = 0

    def feed() -> None:
        nonlocal taken
        with open_outputs([tmp_path / "a.%04d.png"], make_record(40)) as outputs:
            for _ in range(40):
                outputs.write(make_frames(1))
                taken += 1

    thread = threading.Thread(target=feed)
    thread.start()
    deadline = time.monotonic() + 5
    while taken < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert 8 <= taken <= 10  # one frame at work, eight waiting
    gate.set()
    thread.join(10)
    assert taken == 40


def test_frames_are_copied(tmp_path: Path, make_record: Any) -> None:
    """A caller may use its buffer again at once."""
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it

    buffer = np.empty((1, 14, 20, 3), np.float32)
    with open_outputs([tmp_path / "a.%04d.png"], make_record(6)) as outputs:
        for index in range(6):
            buffer[:] = index / 10
            outputs.write(buffer)
    for index, path in enumerate(outputs.paths):
        pixels = oiio.ImageInput.open(str(path)).read_image(oiio.UINT8)
        assert (pixels == round(index / 10 * 255)).all()


@pytest.mark.parametrize("count", [0, 2])
def test_missing_frames_are_no_success(tmp_path: Path, make_record: Any, make_frames: Any, count: int) -> None:
    """A shot of three frames with fewer is not published."""
    with (
        pytest.raises(WriteError, match=f"^{count} frames came for .*a.%04d.exr, the shot has 3$"),
        open_outputs([tmp_path / "a.%04d.exr", tmp_path / "a.otio"], make_record(3)) as outputs,
    ):
        if count:
            outputs.write(make_frames(count))
    assert tree(tmp_path) == []


def test_wrong_frames_are_refused_at_once(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Shape, size and number of frames must be those of the record."""
    for frames, message in (
        (make_frames(3)[0], r"frames: got \[14, 20, 3\]; \[n, height, width, 3\] is allowed"),
        (make_frames(3)[..., :2], r"is allowed"),
        (make_frames(3, size=(14, 20)), r"got \[20, 14, 3\] after 0 frames; \[14, 20, 3\] is allowed"),
        (make_frames(4), r"got 4; the record's 3 are allowed"),
    ):
        with (
            pytest.raises(ValueError, match=message),
            open_outputs([tmp_path / "a.mp4"], make_record(3)) as outputs,
        ):
            outputs.write(frames)
    assert tree(tmp_path) == []


def test_overwriting_a_sequence_leaves_no_old_frame_and_touches_no_other_file(
    tmp_path: Path, make_record: Any, make_frames: Any
) -> None:
    """A shorter shot over a longer one: frames beyond it go, neighbours stay."""
    pattern = tmp_path / "a.%04d.exr"
    for name in ("a.0990.exr", "a.1001.exr", "a.1002.exr", "a.1003.exr", "a.1004.exr"):
        (tmp_path / name).write_bytes(b"old")
    neighbours = ["a.1004.png", "a.1.exr", "ab.1004.exr", "a.txt"]
    for name in neighbours:
        (tmp_path / name).write_bytes(b"keep")
    with open_outputs([pattern], make_record(2), overwrite=True) as outputs:
        outputs.write(make_frames(2))
    assert tree(tmp_path) == sorted(["a.1001.exr", "a.1002.exr", "a.exr.manifest.json", *neighbours])
    assert all(path.stat().st_size > 300 for path in outputs.paths)
    assert all((tmp_path / name).read_bytes() == b"keep" for name in neighbours)


def test_old_files_stay_when_overwriting_fails(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Until the end the old shot is what everybody sees, and after a failure as well."""
    (tmp_path / "a.mp4").write_bytes(b"old")
    with (
        pytest.raises(RuntimeError, match="stop"),
        open_outputs([tmp_path / "a.mp4"], make_record(3), overwrite=True) as outputs,
    ):
        outputs.write(make_frames(2))
        assert (tmp_path / "a.mp4").read_bytes() == b"old"
        raise RuntimeError("stop")
    assert tree(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"old"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_move_that_fails_midway_is_undone(
    tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """A host that holds the movie open (Windows) breaks the third move: old files are back, new ones gone."""
    (tmp_path / "a.1001.exr").write_bytes(b"old plate")
    (tmp_path / "a.mp4").write_bytes(b"old movie")
    real = os.replace

    def held(source: Any, target: Any) -> None:
        if Path(target).name == "a.mp4":
            raise PermissionError(13, "in use by another process")
        real(source, target)

    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(1, "no hard links here")

    monkeypatch.setattr(os, "replace", held)
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    with (
        pytest.raises(PermissionError, match="in use"),
        open_outputs([tmp_path / "a.%04d.exr", tmp_path / "a.mp4"], make_record(2), overwrite=True) as outputs,
    ):
        outputs.write(make_frames(2))
    assert tree(tmp_path) == ["a.1001.exr", "a.mp4"]
    assert (tmp_path / "a.1001.exr").read_bytes() == b"old plate"
    assert (tmp_path / "a.mp4").read_bytes() == b"old movie"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Two artists, one name: the second is told, the first keeps the file."""
    with (
        pytest.raises(ShotError, match=r"a\.mp4 has appeared meanwhile"),
        open_outputs([tmp_path / "a.%04d.exr", tmp_path / "a.mp4"], make_record(3)) as outputs,
    ):
        outputs.write(make_frames(3))
        (tmp_path / "a.mp4").write_bytes(b"theirs")
    assert tree(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"theirs"


def test_files_can_be_read_by_others(tmp_path: Path, make_record: Any, make_frames: Any, latents: np.ndarray) -> None:
    """Published files have the mode the umask gives, not that of a private temporary file."""
    if os.name != "posix":
        pytest.skip("file modes are POSIX")
    old = os.umask(0o022)
    try:
        paths = [tmp_path / name for name in EVERYTHING]
        with open_outputs(paths, make_record(1), latents=latents) as outputs:
            outputs.write(make_frames(1))
    finally:
        os.umask(old)
    assert {oct(path.stat().st_mode & 0o777) for path in outputs.paths} == {"0o644"}


def test_a_very_long_name_is_still_written(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """The hidden name must not exceed what the file system takes when the real one does not."""
    with open_outputs([tmp_path / ("x" * 240 + ".%04d.exr")], make_record(1)) as outputs:
        outputs.write(make_frames(1))
    assert len(outputs.paths[0].name) == 249
    assert len(outputs.manifests[0].name) == 255  # cut, and told from others by a digest
    assert verify(tmp_path / ("x" * 240 + ".%04d.exr")).ok


def test_open_outputs_refuses_what_it_could_not_finish(tmp_path: Path, make_record: Any) -> None:
    """Latents missing or of a wrong shape, a shot without a rate, a negative start, a foreign record."""
    path = tmp_path / "a.mp4"
    with pytest.raises(ShotError, match=r"-o \S*l\.safetensors: there are no latents to write"):
        open_outputs([tmp_path / "l.safetensors"], make_record(3))
    with pytest.raises(ValueError, match=r"float32 \[1, channels, latent_frames, h, w\] is allowed"):
        open_outputs([tmp_path / "l.safetensors"], make_record(3), latents=np.zeros((4, 2, 3, 5), np.float32))
    with pytest.raises(ShotError, match=r"-o \S*a\.mp4: the shot has no frame rate; give --fps"):
        open_outputs([path], make_record(3, fps=None))
    with pytest.raises(ShotError, match="start frame: got -1; a whole number from 0"):
        open_outputs([path], make_record(3), start_frame=-1)
    with pytest.raises(ShotError, match="it holds no record of a shot"):
        open_outputs([path], {"shot": {}})
    assert tree(tmp_path) == []
