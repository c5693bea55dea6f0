# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A version appears whole or not at all: two publishers at once, kills at every point, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rushes.media import verify
from rushes.publish import Settings, run
from rushes.publish.progress import Cancelled
from rushes.publish.version import reserve
from rushes.shot import ShotError

Visible = Callable[[Path], list[str]]
Studio = Callable[[str], Path]
PLACE = Path("sh010/plates/sh010_ball")


def _publisher(
    environment: dict[str, str], plate: str, root: Path, *more: str, code: str = ""
) -> subprocess.Popen[str]:
    """The command line in a process of its own. code: Python that runs before it."""
    program = f"import os, signal, sys\n{code}\nfrom rushes.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", program, "publish", plate, "--to", str(root), *more],
        env={**environment, "PYBLISHPLUGINPATH": os.environ.get("PYBLISHPLUGINPATH", "")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _meeting(studio: Studio, folder: Path) -> None:
    """A plug-in that holds a publisher, after it has its version, until two are there or somebody has failed."""
    folder.mkdir()
    studio(
        "import os, pathlib, time\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "class Meet(api.ContextPlugin):\n    order = api.ExtractorOrder - 0.1\n"
        "    def process(self, context):\n"
        "        (folder / str(os.getpid())).touch()\n"
        "        while len(list(folder.iterdir())) < 2: time.sleep(0.02)\n"
    )


def test_two_publishers_at_once_get_two_versions(
    approved: str, tmp_path: Path, environment: dict[str, str], studio: Studio, visible: Visible
) -> None:
    _meeting(studio, tmp_path / "meeting")
    root = tmp_path / "show"
    both = [_publisher(environment, approved, root) for _ in range(2)]
    outs = [publisher.communicate(timeout=240) for publisher in both]
    assert [publisher.returncode for publisher in both] == [0, 0], outs
    assert sorted(path.name for path in (root / PLACE).iterdir()) == ["v001", "v002"]
    for version in ("v001", "v002"):
        assert verify(root / PLACE / version / f"sh010_ball_{version}.%04d.exr").ok
    assert len({len(visible(root / PLACE / version)) for version in ("v001", "v002")}) == 1


def test_of_two_that_want_one_version_the_second_is_refused(
    approved: str, tmp_path: Path, environment: dict[str, str], studio: Studio
) -> None:
    meeting = tmp_path / "meeting"
    _meeting(studio, meeting)
    root = tmp_path / "show"
    first = _publisher(environment, approved, root, "--version", "3")
    while not list(meeting.iterdir()):
        assert first.poll() is None, first.communicate()
    second = _publisher(environment, approved, root, "--version", "3")
    _, err = second.communicate(timeout=240)
    assert (
        second.returncode == 2 and f"version: 3 of sh010_ball in {root / PLACE} is being published by somebody" in err
    )
    (meeting / "go").touch()
    _, err = first.communicate(timeout=240)
    assert first.returncode == 0, err
    assert [path.name for path in (root / PLACE).iterdir()] == ["v003"]


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("point", "survives"),
    [
        ("api.ExtractorOrder - 0.3", False),  # before there is a version
        ("api.ExtractorOrder - 0.1", False),  # with the plate copied
        ("api.ExtractorOrder + 0.1", False),  # with the proxy and the pictures
        ("api.IntegratorOrder - 0.1", False),  # with everything but its name
        ("the copy", False),
        ("the rename", False),
        ("after the rename", True),
    ],
)
def test_a_kill_leaves_nothing_that_is_seen(
    approved: str, tmp_path: Path, environment: dict[str, str], studio: Studio, visible: Visible, point: str,
    survives: bool,
) -> None:  # fmt: skip
    """And the next publish removes what is hidden."""
    root, code = tmp_path / "show", ""
    if point == "the copy":  # of the third frame
        code = (
            "import shutil; real, count = shutil.copyfile, []\n"
            f"def copy(source, target, **more):\n    count.append(0)\n    {KILL} if len(count) == 3 else None\n"
            "    return real(source, target, **more)\nshutil.copyfile = copy"
        )
    elif "rename" in point:
        after = "real(*names)" if survives else "None"
        code = f"real = os.rename\ndef rename(*names):\n    {after}\n    {KILL}\nos.rename = rename"
    else:
        studio(
            f"import os, signal\nclass Killed(api.ContextPlugin):\n    order = {point}\n"
            f"    def process(self, context):\n        {KILL}\n"
        )
    killed = _publisher(environment, approved, root, code=code)
    assert killed.wait(240) == -signal.SIGKILL
    assert bool(visible(root)) == survives if root.exists() else not survives
    if survives:
        assert verify(root / PLACE / "v001" / "sh010_ball_v001.%04d.exr").ok
    for path in (tmp_path / "studio").iterdir():
        path.unlink()
    next_one = _publisher(environment, approved, root)
    _, err = next_one.communicate(timeout=240)
    assert next_one.returncode == 0, err
    versions = ["v001", "v002"] if survives else ["v001"]
    assert sorted(path.name for path in (root / PLACE).iterdir()) == versions  # hidden ones would be here too
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == [".rushes-publish.lock"]


@pytest.mark.parametrize("size", ["64k", "280k"], ids=["in the plate", "in what comes after it"])
def test_a_full_disk_leaves_nothing_and_is_named(
    approved: str, disk: tuple[Path, Callable[[str], None]], visible: Visible, size: str
) -> None:
    place, mount = disk
    mount(f"size={size}")
    report = run([approved], place / "show")
    assert not report.ok and "No space left on device" in report.sentence, report.to_text()
    assert [path for path in (place / "show").rglob("*") if path.name != ".rushes-publish.lock"] == []
    mount("size=16m")
    assert run([approved], place / "show").ok


def test_a_root_that_cannot_be_written_is_named(approved: str, disk: tuple[Path, Callable[[str], None]]) -> None:
    place, mount = disk
    mount("ro")
    report = run([approved], place / "show")
    assert f"--to: {place / 'show'} cannot be written (Read-only file system)" in report.sentence
    file = place.parent / "a file"
    file.write_text("")
    assert f"--to: {file} is not a folder" in run([approved], file).sentence


def test_a_plate_that_changes_while_it_is_published_is_refused(approved: str, tmp_path: Path, studio: Studio) -> None:
    path = approved.replace("%04d", "1004")
    studio(
        f"class Meddles(api.ContextPlugin):\n    order = api.ExtractorOrder - 0.3\n"
        f"    def process(self, context):\n        open({path!r}, 'ab').write(b'!')\n"
    )
    report = run([approved], tmp_path / "show")
    assert report.sentence == "sh010_ball_v002.1004.exr: it has changed since it was checked; publish again"
    assert not list((tmp_path / "show").rglob("*.exr"))


def test_stopping_leaves_nothing(approved: str, tmp_path: Path) -> None:
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        run(
            [approved], tmp_path / "show", cancel=cancel,
            on_progress=lambda step: cancel.set() if step.phase == "Proxy movie" else None,
        )  # fmt: skip
    assert cancel.is_set() and [path.name for path in (tmp_path / "show").rglob("*")] == [".rushes-publish.lock"]


def test_numbers_are_found_in_any_template(tmp_path: Path) -> None:
    """Other plates and other names beside them do not count."""
    settings = Settings(template="{root}/{shot}/{name}_v{version:04d}_final")
    folder = tmp_path / "sh010"
    for name in ("ball_v0007_final", "ball_v0012", "car_v0020_final", "ball_v0031_final.txt"):
        (folder / name).mkdir(parents=True)
    version = reserve(settings, tmp_path, "sh010", "ball")
    assert version.final == folder / "ball_v0008_final" and version.number == 8
    other = reserve(settings, tmp_path, "sh010", "ball")
    assert other.number == 9
    for taken, words in ((7, "exists already"), (8, "is being published by somebody else")):
        with pytest.raises(ShotError, match=words):
            reserve(settings, tmp_path, "sh010", "ball", taken)
    version.discard()
    other.discard()
    other.discard()
    assert reserve(settings, tmp_path, "sh010", "ball").number == 8


@pytest.mark.skipif(os.name == "nt", reason="there are no such modes")
def test_another_user_may_take_the_roots_lock(approved: str, tmp_path: Path) -> None:
    """Whatever the first publisher's umask was; the file holds nothing."""
    before = os.umask(0o077)
    try:
        assert run([approved], tmp_path / "show").ok
    finally:
        os.umask(before)
    assert (tmp_path / "show" / ".rushes-publish.lock").stat().st_mode & 0o666 == 0o666


def test_a_version_may_be_finished_in_another_thread(tmp_path: Path) -> None:
    """Hosts run plug-ins where they like."""
    version = reserve(Settings(), tmp_path, "sh010", "ball")
    (version.building / "a.txt").write_text("a")
    states: list[object] = []
    thread = threading.Thread(target=lambda: states.extend([version.is_open, version.commit(), version.is_open]))
    thread.start()
    thread.join(60)
    assert states == [True, version.final, False] and (version.final / "a.txt").read_text() == "a"
