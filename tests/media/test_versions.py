# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Versions in names: which counts, what changes with it, and what makes it taken."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rushes.media import WriteError, next_version, open_outputs, read_record
from rushes.shot import ShotError

NAMES = [  # given, files that exist, what comes
    ("plate_v003.%04d.exr", [], "plate_v003.%04d.exr"),
    ("plate_v003.%04d.exr", ["plate_v003.0990.exr"], "plate_v004.%04d.exr"),  # any frame
    ("plate_v003.####.exr", ["plate_v003.1001.exr", "plate_v004.1001.exr"], "plate_v005.####.exr"),
    ("plate_v003.%04d.exr", ["plate_v003.0001.exr", "plate_v005.1001.exr"], "plate_v004.%04d.exr"),  # a hole is free
    ("plate_v003.%04d.exr", ["plate_v002.1001.exr", "plate_v003.1001.png"], "plate_v003.%04d.exr"),
    ("plate_v1.%04d.exr", ["plate_v1.1001.exr"], "plate_v2.%04d.exr"),
    ("plate_v9.mov", ["plate_v9.mov"], "plate_v10.mov"),
    ("plate_v099.mov", ["plate_v099.mov"], "plate_v100.mov"),
    ("plate_v0999.mov", ["plate_v0999.mov"], "plate_v1000.mov"),
    ("plate.V003.png", ["plate.V003.png"], "plate.V004.png"),  # in capitals, after a dot
    ("v007.mp4", ["v007.mp4"], "v008.mp4"),  # after a slash
    ("plate_v003_fix.mov", ["plate_v003_fix.mov"], "plate_v004_fix.mov"),
    ("plate_v003b.mov", ["plate_v003b.mov"], "plate_v004b.mov"),
    ("comp_v002_of_v005.mov", ["comp_v002_of_v005.mov"], "comp_v002_of_v006.mov"),  # the last one counts
    ("plate.%04d.exr", [], "plate_v001.%04d.exr"),
    ("plate.%04d.exr", ["plate.1001.exr"], "plate_v001.%04d.exr"),
    ("plate.####.exr", ["plate_v001.1001.exr"], "plate_v002.####.exr"),
    ("plate_####.exr", [], "plate_v001_####.exr"),
    ("plate%04d.exr", [], "plate_v001.%04d.exr"),  # v0011001 would be one number
    ("%04d.exr", [], "v001.%04d.exr"),
    ("shot.mov", ["shot_v001.mov", "shot_v002.mov"], "shot_v003.mov"),
    ("still.png", [], "still_v001.png"),
    ("lv3.mov", [], "lv3_v001.mov"),  # Nuke wants a separator before the v
    ("sh-v3.mov", [], "sh-v3_v001.mov"),
    ("Straße 'nuit' \"2\" 夜.%04d.exr", [], "Straße 'nuit' \"2\" 夜_v001.%04d.exr"),
    ("shot.safetensors", ["shot_v001.safetensors"], "shot_v002.safetensors"),
    # Folders that end with the same version go along, as Alt+Up takes them along
    ("v003/plate_v003.%04d.exr", ["v003/plate_v003.1001.exr"], "v004/plate_v004.%04d.exr"),
    ("a_v01/x/a_v01.mov", ["a_v01/x/a_v01.mov", "a_v02/x/a_v02.mov"], "a_v03/x/a_v03.mov"),
    ("v003/plate.%04d.exr", ["v003/plate.1001.exr"], "v004/plate.%04d.exr"),
    # Others stay: another number, other digits, something after it, or a part of a name alone
    ("v002/plate_v003.mov", ["v002/plate_v003.mov"], "v002/plate_v004.mov"),
    ("tool_v3/plate_v003.mov", ["tool_v3/plate_v003.mov"], "tool_v3/plate_v004.mov"),
    ("tool_v3.1/plate_v3.mov", ["tool_v3.1/plate_v3.mov"], "tool_v3.1/plate_v4.mov"),
    ("tool_v3/plate.mov", [], "tool_v3/plate_v001.mov"),
]


@pytest.mark.parametrize(("given", "there", "expected"), NAMES)
def test_the_first_free_version_is_found(tmp_path: Path, given: str, there: list[str], expected: str) -> None:
    """From the given version on; the rest of the name is as it was."""
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    assert next_version(f"{tmp_path}/{given}") == f"{tmp_path}/{expected}"
    assert next_version(Path(f"{tmp_path}/{given}")) == f"{tmp_path}/{expected}"
    assert sorted(tmp_path.rglob("*")) == before  # nothing is created


def test_a_relative_name_stays_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back is for a knob or a widget, not for this process alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_v001.mov").touch()
    assert next_version("a.mov") == "a_v002.mov"
    assert next_version("./sub/../a.mov") == "./sub/../a_v002.mov"


def test_whatever_stands_in_the_way_takes_the_version(tmp_path: Path) -> None:
    """A folder of that name, and a link to nowhere."""
    (tmp_path / "a_v001.mov").mkdir()
    (tmp_path / "a_v002.mov").symlink_to(tmp_path / "gone")
    assert next_version(f"{tmp_path}/a.mov") == f"{tmp_path}/a_v003.mov"


@pytest.mark.parametrize("name", ["a.avi", "a", "a.%04d.####.exr", ""])
def test_a_name_that_is_no_output_is_refused(name: str) -> None:
    """With the sentence that outputs give."""
    with pytest.raises(ShotError, match=r"allowed"):
        next_version(name)


def test_a_version_that_is_being_written_is_taken(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Two processes that ask at the same time of a long render do not end with one name."""
    asked = f"{tmp_path}/plate.%04d.exr"
    with open_outputs([next_version(asked)], make_record(1)) as first:
        other = next_version(asked)
        with open_outputs([other], make_record(1)) as second:
            second.write(make_frames(1))
        first.write(make_frames(1))
    assert [first.paths[0].name, second.paths[0].name] == ["plate_v001.1001.exr", "plate_v002.1001.exr"]
    with pytest.raises(WriteError), open_outputs([f"{tmp_path}/plate_v003.%04d.exr"], make_record(1)):
        pass
    assert next_version(asked).endswith("plate_v003.%04d.exr")  # a failure leaves the version free


def test_very_long_names_have_versions_too(tmp_path: Path) -> None:
    """Beyond what a hidden name repeats; every version would look as if it were being written."""
    stem = "x" * 100
    (tmp_path / f".{stem[:60]}.rushes-1-0").mkdir()
    assert next_version(f"{tmp_path}/{stem}_v001.mov").endswith("_v001.mov")


@pytest.mark.parametrize("has_links", [True, False])
def test_only_one_of_many_writers_gets_a_name(
    tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """All that are late are told, keep nothing, and what the first has written stays whole."""
    if not has_links:

        def no_links(*_: Any, **__: Any) -> None:
            raise OSError(1, "no hard links here")

        monkeypatch.setattr(os, "link", no_links)
    path, count = tmp_path / "a_v001.%04d.png", 6 if has_links else 1
    barrier, winners, losers = threading.Barrier(count), [], []

    def write(seed: int) -> None:
        try:
            with open_outputs([path], make_record(3, seed=seed)) as outputs:
                outputs.write(make_frames(3))
                barrier.wait()
            winners.append(seed)
        except ShotError as error:
            losers.append(str(error))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1 and len(losers) == count - 1
    assert all("has appeared meanwhile; give another name" in line for line in losers)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"a_v001.{frame}.png" for frame in range(1001, 1004)]
    seeds = {read_record(file)["shot"]["seed"] for file in tmp_path.iterdir()}
    assert seeds == set(winners)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_between_look_and_move_is_kept(
    tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """The last frame's name is taken in the very moment; the two frames before it are taken back."""
    real = os.link

    def late(source: Any, target: Any, **options: Any) -> None:
        if Path(target).name == "a.1003.exr":
            Path(target).write_bytes(b"theirs")
        if not has_links:
            raise OSError(1, "no hard links here")
        real(source, target, **options)

    monkeypatch.setattr(os, "link", late)
    with (
        pytest.raises(ShotError, match=r"-o \S*a\.%04d\.exr: a\.1003\.exr has appeared meanwhile"),
        open_outputs([tmp_path / "a.%04d.exr"], make_record(3)) as outputs,
    ):
        outputs.write(make_frames(3))
    assert [file.name for file in tmp_path.iterdir()] == ["a.1003.exr"]
    assert (tmp_path / "a.1003.exr").read_bytes() == b"theirs"


def test_an_interruption_between_two_names_leaves_nothing(
    tmp_path: Path, make_record: Any, make_frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C when the second frame has its new name and still has its old one."""
    real = Path.unlink

    def interrupted(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == "a.1002.exr" and self.parent != tmp_path:
            monkeypatch.setattr(Path, "unlink", real)
            raise KeyboardInterrupt
        real(self, *arguments, **options)

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt), open_outputs([tmp_path / "a.%04d.exr"], make_record(3)) as outputs:
        outputs.write(make_frames(3))
    assert list(tmp_path.iterdir()) == []
