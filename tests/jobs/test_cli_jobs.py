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
import torch

from rushes import Engine, Shot
from rushes.engine import Model
from rushes.jobs import estimate
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
        job,
        lambda *_: engine,
        lambda kind, **fields: cancel.set() if fields.get("phase") == "denoise" else None,
        cancel,
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


def test_a_folder_from_the_future_is_listed_and_kept(rushes: Run, home: Path, shot: Shot) -> None:
    """It says what it is, and hides no other."""
    strange, plain = create_job(home, shot), _broken(home, shot)
    request = json.loads((strange.path / "shot.json").read_text())
    (strange.path / "shot.json").write_text(json.dumps({**request, "version": 99}))
    rows = {row["job"]: row for row in json.loads(rushes("jobs", "--json").stdout)["jobs"]}
    assert rows[strange.id]["state"] == "unreadable" and "update Rushes" in rows[strange.id]["prompt"]
    assert rows[plain.id]["state"] == "cancelled"
    done = rushes("jobs", "clean", "--all")
    assert done.stdout == "1 jobs removed\n" and "version 99" in done.stderr and done.returncode == 0
    assert strange.path.exists() and not plain.path.exists()
    done = rushes("resume", strange.id)
    assert done.returncode == 2 and "update Rushes" in done.stderr


def test_a_job_is_stopped_from_a_terminal(rushes: Run, home: Path, shot: Shot) -> None:
    """Whoever makes it; one that nobody makes is refused."""
    job = create_job(home, shot.replace(steps=1000))
    engine, told = Engine.load(shot.model), threading.Event()
    states: list[str] = []

    def make() -> None:
        states.append(run_job(job, lambda *_: engine, lambda *_, **__: told.set(), threading.Event()))

    maker = threading.Thread(target=make)
    maker.start()
    told.wait(60)
    done = rushes("jobs", "cancel", job.id)
    maker.join(60)
    assert done.stdout == f"{job.id} is asked to stop\n" and states == ["cancelled"] == [job.state()]
    done = rushes("jobs", "cancel", job.id)
    assert done.returncode == 2 and f"{job.id} is cancelled; one that is being made is allowed" in done.stderr
    assert rushes("resume", job.id).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resume", "1999"], "job: got '1999', there is no such job"),
        (["resume"], "JOB: it is missing"),
        (["jobs", "clean", "--days", "-1"], "--days"),
        (["jobs", "paint"], "paint"),
        (["jobs", "cancel", "1999"], "job: got '1999', there is no such job"),
        (["worker", "--idle", "-1"], "--idle"),
        (["worker", "--home", "/dev/null/jobs"], "job: /dev/null/jobs cannot be written (Not a directory)"),
        (["estimate"], "prompt: it is missing"),
        (["package", "houdini", "-o", "x"], "houdini"),
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
    run_job(job, lambda *_: engine, lambda *_, **__: None, threading.Event())
    short, long = (json.loads(rushes(*command, frames).stdout) for frames in ("9", "33"))
    assert short["measured"] is True and long["seconds"] > 2 * short["seconds"] and long["bytes"] > short["bytes"]
    assert "by earlier jobs here" in rushes(*command[:-2]).stdout
    assert "frames: got 6" in rushes(*command, "6").stderr


def test_an_estimate_is_for_the_device_that_makes_the_shot(
    home: Path, shot: Shot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest there is, or the one that is named: what another made is no measure of it."""
    job, model = create_job(home, shot), Model.open(shot.model)
    shot = model.resolve(shot)
    for unit in ("flops", "pixels"):
        job.append("pace", unit=unit, rate=1e9, model="tiny", device="cuda")
    job.append("pace", unit="flops")  # of another version: read over
    assert estimate.estimate(home, model, shot, "cpu")["measured"] is False
    monkeypatch.setattr(estimate, "find_device", lambda name: torch.device(name or "cuda:1"))
    monkeypatch.setattr("rushes.model.placement.device_bytes", lambda device: None)  # of a card that is not here
    found = estimate.estimate(home, model, shot)
    work = model.work(shot)
    assert found["measured"] is True and found["seconds"] == pytest.approx((work.flops + work.pixels) / 1e9, abs=1e-4)
