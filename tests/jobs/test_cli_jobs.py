# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes jobs` and `rushes resume`, as somebody types them after a crash."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rushes import Engine, Shot
from rushes.jobs.folder import Job, create_job
from rushes.jobs.runner import run_job

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _home_is_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSHES_JOBS", str(home))


def _broken(home: Path, shot: Shot, outputs: list[str] | None = None) -> Job:
    """A job that stopped after its first step."""
    job, cancel = create_job(home, shot, outputs or []), threading.Event()
    engine = Engine.load(shot.model)
    run_job(
        job, lambda _: engine, lambda kind, **fields: cancel.set() if fields.get("phase") == "denoise" else None, cancel
    )
    assert job.state() == "cancelled"
    return job


def test_an_interrupted_job_is_listed_resumed_and_cleaned(rushes: Run, home: Path, shot: Shot, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    job = _broken(home, shot, [str(out)])
    assert not out.exists()
    listed = rushes("jobs").stdout
    assert job.id in listed and "cancelled" in listed and shot.prompt in listed
    done = rushes("resume", job.id)
    assert done.returncode == 0 and done.stdout.strip() == str(out) and out.is_file()
    (row,) = json.loads(rushes("jobs", "--json").stdout)["jobs"]
    assert (row["state"], row["frames"], row["outputs"]) == ("done", 9, [str(out)])
    assert rushes("jobs", "clean").stdout == "1 jobs removed\n"
    assert not job.path.exists() and out.is_file()
    assert rushes("jobs").stdout == f"no jobs in {home}\n"


def test_clean_keeps_what_could_be_resumed(rushes: Run, home: Path, shot: Shot) -> None:
    job = _broken(home, shot)
    assert rushes("jobs", "clean").stdout == "0 jobs removed\n" and job.path.exists()
    assert rushes("jobs", "clean", "--all", "--days", "1").stdout == "0 jobs removed\n"
    assert rushes("jobs", "clean", "--all").stdout == "1 jobs removed\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resume", "1999"], "job: got '1999', there is no such job"),
        (["resume"], "JOB: it is missing"),
        (["jobs", "clean", "--days", "-1"], "--days"),
        (["jobs", "paint"], "paint"),
    ],
)
def test_wrong_words_are_refused(rushes: Run, arguments: list[str], words: str) -> None:
    done = rushes(*arguments)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_done_job_is_not_made_again(rushes: Run, home: Path, shot: Shot) -> None:
    job = _broken(home, shot)
    assert rushes("resume", job.id).returncode == 0
    done = rushes("resume", job.id)
    assert done.returncode == 2 and "is done" in done.stderr


def test_an_estimate_learns_from_what_was_made(rushes: Run, home: Path, shot: Shot) -> None:
    """First a guess, then by the pace of a finished job; more frames take more."""
    command = ["estimate", shot.prompt, "--model", shot.model, "--steps", "4", "--json", "--frames"]
    first = json.loads(rushes(*command, "9").stdout)
    assert first["measured"] is False and first["seconds"] > 0 and first["shot"]["frames"] == 9
    job = create_job(home, shot)
    engine = Engine.load(shot.model)
    run_job(job, lambda _: engine, lambda *_, **__: None, threading.Event())
    short, long = (json.loads(rushes(*command, frames).stdout) for frames in ("9", "33"))
    assert short["measured"] is True and long["seconds"] > 2 * short["seconds"] and long["bytes"] > short["bytes"]
    assert "by earlier jobs here" in rushes(*command[:-2]).stdout
    assert "frames: got 6" in rushes(*command, "6").stderr
