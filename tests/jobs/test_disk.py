# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A disk that is really full, and one that is really read-only: small file systems in memory, mounted by root."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rushes import Engine, Shot
from rushes.jobs import folder, runner
from rushes.jobs.folder import Job, JobError, create_job, list_jobs
from rushes.jobs.runner import run_job
from rushes.media import read_latents

Mount = Callable[[str], None]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a file system wants root on Linux"
)


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    return Engine.load(tiny_model, device="cpu")


def _run(job: Job, engine: Engine, tell: Callable[..., Any] = lambda kind, **fields: None) -> str:
    return run_job(job, lambda *_: engine, tell, threading.Event())


def _bits(job: Job) -> list[bytes]:
    return [read_latents(job.latents_path)[0].tobytes(), *(path.read_bytes() for path in job.frames())]


@pytest.mark.parametrize("at", [1, 3, 6], ids=["before the first step", "in the middle", "with the last frames"])
def test_a_full_disk_costs_nothing_that_was_made(
    disk: tuple[Path, Mount], shot: Shot, engine: Engine, home: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence says what to do; after it is done the job ends with the bits of an unbroken run."""
    monkeypatch.setattr(runner, "SAVE_EVERY", 0.0)
    place, _ = disk
    large = shot.replace(size=(64, 64), frames=33)
    whole, job = create_job(home, large), create_job(place, large)
    _run(whole, engine)
    told: list[tuple[str, dict[str, Any]]] = []
    filler = place / "somebody else's"

    def tell(kind: str, **fields: Any) -> None:
        told.append((kind, fields))
        if sum(kind == "progress" for kind, _ in told) == at and not filler.exists():
            filler.touch()
            with filler.open("wb") as file:
                try:
                    while True:
                        file.write(b"\0" * 4096)
                        file.flush()
                except OSError:
                    return

    assert _run(job, engine, tell) == "failed"
    assert "the disk is full; make room, then resume the job" in told[-1][1]["message"]
    assert job.state() in ("failed", "interrupted")
    filler.unlink()
    assert _run(job, engine) == "done"
    assert _bits(job) == _bits(whole)


def test_a_read_only_home_is_refused(disk: tuple[Path, Mount], shot: Shot, engine: Engine) -> None:
    """No folder, a sentence; for root too, whom no permission stops. What lies there can be listed."""
    place, mount = disk
    fresh, failed, done = (create_job(place, shot) for _ in range(3))
    _run(done, engine)
    failed.fail("the power went")
    mount("ro")
    for refused in (
        lambda: create_job(place, shot), lambda: _run(fresh, engine), lambda: _run(failed, engine), failed.reopen,
        done.remove,
    ):  # fmt: skip
        with pytest.raises(
            JobError, match=r"cannot be written \(Read-only file system\); a writable folder is allowed"
        ):
            refused()
    states = {job.id: job.state() for job in list_jobs(place)}
    assert states == {fresh.id: "queued", failed.id: "failed", done.id: "done"}


def test_who_may_only_read_sees_what_runs(home: Path, shot: Shot) -> None:
    """A lock that cannot be taken, for want of the right to write, still tells whether it is held."""
    job = create_job(home, shot)
    assert not folder._is_held(job.path / "lock")
    with job.lock():
        assert folder._is_held(job.path / "lock")
    assert not folder._is_held(job.path / "lock")
