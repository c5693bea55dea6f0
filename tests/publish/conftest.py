# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A plate and jobs that the starter has really made, once; each test gets copies of its own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rushes import Engine, Shot
from rushes.jobs.folder import Job, create_job
from rushes.jobs.runner import run_job
from rushes.publish import add_review, find_subject

pytest.importorskip("pyblish.api", reason="the extra `publish` is not installed")

PATTERN = "sh010_ball_v002.%04d.exr"
SHOT = Shot("a red ball rolls to the right across a desert at sunset", frames=5, steps=2, seed=11)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, starter: str) -> Path:
    """A folder with the plate PATTERN, a job that wrote a plate, and one that wrote none."""
    folder, engine = tmp_path_factory.mktemp("made"), Engine.load(starter, device="cpu")
    engine.generate(SHOT).write(str(folder / "plate" / PATTERN))
    for name, outputs in (("with", [str(folder / "of_job" / "sh020_v001.####.exr")]), ("without", [])):
        job = create_job(folder / name, SHOT, outputs)
        assert run_job(job, lambda *_: engine, lambda *_, **__: None, threading.Event()) == "done"
    return folder


@pytest.fixture
def plate(made: Path, tmp_path: Path) -> str:
    """The pattern of a fresh copy."""
    shutil.copytree(made / "plate", tmp_path / "plates")
    return str(tmp_path / "plates" / PATTERN)


@pytest.fixture
def approved(plate: str) -> str:
    """The same, looked at by a person."""
    add_review(find_subject(plate), "Ada", "approved", "as discussed")
    return plate


def _copied(home: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    shutil.copytree(home, to)
    monkeypatch.setenv("RUSHES_JOBS", str(to))
    (job,) = (Job(path) for path in to.iterdir())
    return job


@pytest.fixture
def frames_job(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that has made frames alone, in a home of the test's own."""
    return _copied(made / "without", tmp_path / "jobs", monkeypatch)


@pytest.fixture
def plate_job(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job whose output was a plate."""
    return _copied(made / "with", tmp_path / "jobs_with", monkeypatch)


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """studio(source): puts a plug-in file of a studio on PYBLISHPLUGINPATH."""
    folder = tmp_path / "studio"
    folder.mkdir()
    monkeypatch.setenv("PYBLISHPLUGINPATH", str(folder))

    def write(source: str) -> Path:
        path = folder / f"studio_{len(list(folder.iterdir()))}.py"
        path.write_text(f"from pyblish import api\n{source}")
        return path

    return write


@pytest.fixture(autouse=True)
def _fresh_pyblish() -> Iterator[None]:
    """What one test registers, the next does not see."""
    from pyblish import api

    paths, hosts = api.registered_paths(), api.registered_hosts()
    yield
    api.deregister_all_paths()
    for path in paths:
        api.register_plugin_path(path)
    for host in set(api.registered_hosts()) - set(hosts):
        api.deregister_host(host)


@pytest.fixture
def visible() -> Callable[[Path], list[str]]:
    """visible(root): names below it of what an artist sees, files only."""

    def read(root: Path) -> list[str]:
        found: list[Any] = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
        return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))

    return read
