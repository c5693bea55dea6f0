# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes review` and `rushes publish` as somebody types them, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rushes.jobs.folder import Job

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_job_is_reviewed_listed_and_published(rushes_process: Run, frames_job: Job, tmp_path: Path) -> None:
    """The day of a plate, in five lines."""
    refused = rushes_process("publish", frames_job.id, "--to", "show")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert f"`rushes review {frames_job.id} --by NAME --verdict approved`" in refused.stderr
    assert rushes_process("review", frames_job.id).stdout == "nobody has looked at it yet\n"
    said = rushes_process("review", frames_job.id, "--by", "Zoë", "--verdict", "approved", "--note", "go")
    assert said.returncode == 0 and said.stdout.startswith("approved by Zoë, ") and said.stdout.endswith("UTC: go\n")
    assert "approved: a red ball rolls" in rushes_process("jobs").stdout
    (row,) = json.loads(rushes_process("jobs", "--json").stdout)["jobs"]
    assert row["verdict"] == "approved"
    done = rushes_process("publish", frames_job.id, "--to", "show", "--shot", "sq1_sh1", "--name", "ball")
    assert done.returncode == 0 and not done.stderr
    folder = tmp_path / "show/sq1_sh1/plates/ball/v001"
    assert done.stdout.splitlines()[-1] == f"published: {folder}" and (folder / "ball_v001.0001.png").is_file()


def test_json_is_one_object_a_line_and_nothing_else(
    rushes_process: Run, approved: str, tmp_path: Path, studio: Callable[[str], Path]
) -> None:
    studio("class Prints(api.ContextPlugin):\n    order = 1.3\n    def process(self, context):\n        print('hi')\n")
    done = rushes_process("publish", approved, "--to", "show", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and {event["event"] for event in events} == {"progress", "report"}
    assert all(0 <= event["step"] <= event["steps"] for event in events[:-1]) and "hi" in done.stderr
    assert events[-1]["published"] == [str(tmp_path / "show/sh010/plates/sh010_ball/v001")]
    refused = rushes_process("publish", approved, "--to", "show", "--json", "--version", "1")
    events = [json.loads(line) for line in refused.stdout.splitlines()]
    assert refused.returncode == 2 and [event["event"] for event in events[-2:]] == ["report", "failed"]
    assert events[-2]["message"] == events[-1]["message"] and "exists already" in events[-1]["message"]


def test_a_review_that_no_longer_holds_says_so(rushes: Run, approved: str) -> None:
    assert json.loads(rushes("review", approved, "--json").stdout)["holds"] is True
    path = Path(approved.replace("%04d", "1002"))
    path.write_bytes(path.read_bytes() + b"\0")
    assert "the files have changed since; the last review does not hold" in rushes("review", approved).stdout
    about = json.loads(rushes("review", approved, "--json").stdout)
    assert (about["verdict"], about["holds"], len(about["reviews"])) == ("approved", False, 1)


def test_the_folder_for_pyblish_is_printed(rushes: Run) -> None:
    folder = Path(rushes("publish", "--plugins").stdout.strip())
    assert sorted(path.stem for path in folder.glob("*.py")) == [
        "rushes_collect", "rushes_extract", "rushes_integrate", "rushes_validate",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["publish"], "JOB|PATTERN: it is missing"),
        (["publish", "PLATE"], "--to: it is missing"),
        (["publish", "PLATE", "--to", "show", "--version", "x"], "version: got 'x'; a whole number is allowed"),
        (["publish", "PLATE", "--to", "show", "--version", "0"], "version: got 0; a whole number from 1"),
        (["publish", "PLATE", "--to", "show", "--settings", "no.toml"], "no.toml cannot be read"),
        (["publish", "1999", "--to", "show"], "job: got '1999', there is no such job"),
        (["publish", "no.%04d.exr", "--to", "show"], "stands for no file"),
        (["review"], "JOB|PATTERN: it is missing"),
        (["review", "no.%04d.exr"], "stands for no file"),
        (["review", "PLATE", "--by", "Ada"], "--verdict: it is missing"),
        (["review", "PLATE", "--verdict", "approved"], "--by: it is missing"),
        (["review", "PLATE", "--by", "Ada", "--verdict", "fine"], "verdict: got 'fine'; approved or rejected"),
    ],
)
def test_wrong_lines_are_refused_in_one(
    rushes: Run, plate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setenv("RUSHES_JOBS", str(tmp_path))
    done = rushes(*(plate if argument == "PLATE" else argument for argument in arguments))
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "show").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_ctrl_c_leaves_nothing(approved: str, tmp_path: Path, environment: dict[str, str], studio: Callable) -> None:
    studio(
        "import pathlib, time\nclass Waits(api.ContextPlugin):\n    order = api.ExtractorOrder - 0.1\n"
        f"    def process(self, context):\n        pathlib.Path({str(tmp_path / 'waits')!r}).touch()\n"
        "        time.sleep(1)\n"
    )
    publisher = subprocess.Popen(
        [sys.executable, "-m", "rushes", "publish", approved, "--to", str(tmp_path / "show")],
        env={**environment, "PYBLISHPLUGINPATH": os.environ["PYBLISHPLUGINPATH"]},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    while not (tmp_path / "waits").exists():
        assert publisher.poll() is None, publisher.communicate()
        time.sleep(0.02)
    publisher.send_signal(signal.SIGINT)
    _, err = publisher.communicate(timeout=240)
    assert publisher.returncode == 130 and err == "rushes: stopped by Ctrl-C; no unfinished output is left\n"
    assert [path.name for path in (tmp_path / "show").rglob("*")] == [".rushes-publish.lock"]
