# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A job in its folder: made, broken in every place, and made to its end with the same bits."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rushes import Control, Engine, Shot
from rushes.jobs import folder, runner
from rushes.jobs.folder import Job, JobError, create_job, find_job, list_jobs
from rushes.jobs.runner import run_job
from rushes.media import read_latents, read_record
from rushes.shot import ShotError


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.load(tiny_model, device="cpu")


class Told(list[tuple[str, dict[str, Any]]]):
    """What run_job tells; at a chosen event it breaks the job as a caller chooses."""

    def __init__(self, at: str = "", count: int = 1, error: BaseException | None = None) -> None:
        super().__init__()
        self._at, self._count, self._error = at, count, error
        self.cancel = threading.Event()

    def __call__(self, event: str, **fields: Any) -> None:
        self.append((event, fields))
        if event == self._at:
            self._count -= 1
            if self._count == 0 and self._error is not None:
                raise self._error
            if self._count == 0:
                self.cancel.set()


def _run(job: Job, engine: Engine, told: Told | None = None) -> str:
    told = told if told is not None else Told()
    return run_job(job, lambda *_: engine, told, told.cancel)


def _content(job: Job) -> tuple[bytes, ...]:
    latents, _ = read_latents(job.latents_path)
    return (latents.tobytes(), *(path.read_bytes() for path in job.frames()))


@pytest.fixture(autouse=True)
def save_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SAVE_EVERY", 0.0)


def test_a_job_is_made_and_told(home: Path, shot: Shot, engine: Engine, tmp_path: Path) -> None:
    """State by state, frame by frame; outputs carry the record, and the folder has everything."""
    job = create_job(home, shot, [str(tmp_path / "a.mp4"), str(tmp_path / "p.%04d.exr")])
    assert (job.state() == "queued" and list_jobs(home) == [job]) or list_jobs(home)[0].path == job.path
    told = Told()
    assert _run(job, engine, told) == "done" == job.state()
    kinds = [kind for kind, _ in told]
    assert kinds[0] == "started" and kinds[-1] == "done" and kinds.count("frame") == 9
    numbers = [fields["number"] for kind, fields in told if kind == "frame"]
    assert numbers == list(range(1, 10)) and all(Path(f["path"]).is_file() for k, f in told if k == "frame")
    assert [path.name for path in job.frames()] == [f"{n:04d}.png" for n in range(1, 10)]
    ending = job.ending()
    assert ending is not None and ending["frames"] == 9 and len(ending["outputs"]) == 1 + 9
    assert read_record(job.frames()[0]) == read_record(tmp_path / "a.mp4") == ending["record"]
    assert not [path for path in job.path.rglob(".*")], "nothing half-written is left"
    with pytest.raises(JobError, match="is done"):
        _run(job, engine)


def test_frames_are_those_of_the_engine(home: Path, shot: Shot, engine: Engine) -> None:
    """The latents have the engine's own bits."""
    job = create_job(home, shot)
    _run(job, engine)
    latents, record = read_latents(job.latents_path)
    assert torch.equal(torch.from_numpy(latents), engine.denoise(shot)) and "denoising" not in record


BREAKS = [
    ("started", 1),
    ("progress", 1),
    ("progress", 3),
    ("progress", 5),
    ("progress", 6),
    ("frame", 1),
    ("frame", 6),
]


@pytest.mark.parametrize("how", ["cancelled", "failed"])
@pytest.mark.parametrize(("at", "count"), BREAKS)
def test_a_broken_job_ends_with_the_same_bits(
    home: Path, shot: Shot, engine: Engine, at: str, count: int, how: str
) -> None:
    """Cancelled or failed at any event; what was saved is not made again."""
    whole = create_job(home, shot)
    _run(whole, engine)
    job = create_job(home, shot)
    told = Told(at, count, RuntimeError("the power went") if how == "failed" else None)
    state = _run(job, engine, told)
    if state == "done":  # cancelled with the last event: too late
        assert how == "cancelled"
    else:
        assert state == how == job.state()
        assert told[-1][0] == "failed" and told[-1][1]["cancelled"] == (how == "cancelled")
        again = Told()
        assert _run(job, engine, again) == "done" == job.state()
        steps = [fields["step"] for kind, fields in again if kind == "progress" and fields["phase"] == "denoise"]
        assert len(steps) < 4 or count <= 3, "it began anew"
    assert _content(job) == _content(whole)


def test_a_failure_has_a_sentence_and_a_traceback(home: Path, shot: Shot, engine: Engine) -> None:
    job = create_job(home, shot)
    _run(job, engine, Told("progress", 2, RuntimeError("the power went")))
    ending = json.loads((job.path / "failed.json").read_text())
    assert ending["message"] == "RuntimeError: the power went" and "Traceback" in ending["traceback"]
    assert [event["event"] for event in job.events()][-1] == "failed"


def test_a_full_disk_says_so(home: Path, shot: Shot, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the failure cannot be written then: the host hears it, and the job can be resumed."""
    job = create_job(home, shot)
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: object, **__: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_latents", refuse)
        patch.setattr(folder, "write_json", refuse)
        told = Told()
        assert _run(job, engine, told) == "failed"
    assert "the disk is full" in told[-1][1]["message"]
    assert job.state() == "interrupted"
    assert _run(job, engine) == "done"


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_latents_cost_time_and_not_the_job(home: Path, shot: Shot, engine: Engine, damage: str) -> None:
    job, whole = create_job(home, shot), create_job(home, shot)
    _run(whole, engine)
    _run(job, engine, Told("progress", 4))
    data = job.latents_path.read_bytes()
    job.latents_path.write_bytes({"cut": data[:-7], "empty": b"", "other": b"not a file of latents" * 99}[damage])
    told = Told()
    assert _run(job, engine, told) == "done"
    assert any(kind == "note" and "starts anew" in fields["message"] for kind, fields in told)
    assert _content(job) == _content(whole)


def test_other_weights_do_not_go_on(home: Path, shot: Shot, engine: Engine) -> None:
    """Half of a clip by one model and half by another would be neither's."""
    job = create_job(home, shot)
    _run(job, engine, Told("progress", 4))
    other = Engine.load(engine.path)
    other._sha256 = "0" * 64
    told = Told()
    assert _run(job, other, told) == "failed"
    assert "have changed since this job began" in told[-1][1]["message"]
    assert _run(job, engine) == "done"


def test_outputs_that_a_kill_left_behind_are_known(home: Path, shot: Shot, engine: Engine, tmp_path: Path) -> None:
    """Killed between the outputs' names and done.json: the job's own files are no obstacle, others are."""
    out = tmp_path / "a.mp4"
    job = create_job(home, shot, [str(out)])
    _run(job, engine)
    (job.path / "done.json").unlink()
    assert job.state() == "interrupted"
    assert _run(job, engine) == "done"
    other = create_job(home, shot.replace(seed=6), [str(out)])
    assert _run(other, engine) == "failed" and "a.mp4" in str(other.ending())


def test_states_survive_a_power_cut(home: Path, shot: Shot, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change of state is on the disk, and not only in the system's memory, before the next thing happens."""
    synced: list[str] = []
    really = os.fsync

    def fsync(number: int) -> None:
        if (path := Path(os.readlink(f"/proc/self/fd/{number}"))).name == "events.jsonl":
            synced.append(json.loads(path.read_bytes().splitlines()[-1])["event"])
        else:
            synced.append(path.name.split(".")[1])
        really(number)

    if not Path("/proc/self/fd").exists():
        pytest.skip("this system does not tell which file a number stands for")
    monkeypatch.setattr(os, "fsync", fsync)
    _run(create_job(home, shot), engine)
    assert synced == ["shot", "submitted", "started", "denoised", "done", "done"]
    synced.clear()
    _run(create_job(home, shot), engine, Told("progress", 2))
    assert synced == ["shot", "submitted", "started", "failed", "cancelled"]


def test_a_line_that_was_cut_short_takes_no_other_with_it(home: Path, shot: Shot) -> None:
    """As a full disk leaves it: the lines before and behind it are read."""
    job = create_job(home, shot)
    with (job.path / "events.jsonl").open("ab") as file:
        file.write(b'{"time": 1, "event": "pa')
    job.append("started", sync=True)
    job.append("saved", step=3)
    assert [event["event"] for event in job.events()] == ["submitted", "started", "saved"]
    assert job.state() == "interrupted"


def test_whoever_can_write_into_the_folder_can_stop_it(home: Path, shot: Shot, engine: Engine) -> None:
    """A host that came back after a crash; what it wanted is forgotten when somebody goes on with the job."""
    job = create_job(home, shot.replace(steps=1000))

    class Ask(Told):
        def __call__(self, event: str, **fields: Any) -> None:
            super().__call__(event, **fields)
            if event == "started":
                job.ask_to_stop()

    told = Ask()
    assert _run(job, engine, told) == "cancelled" == job.state()
    assert not job.is_asked_to_stop()
    job.ask_to_stop()  # and its worker is killed before it looks
    job.reopen()
    assert not job.is_asked_to_stop() and job.state() == "interrupted"


def test_a_folder_that_cannot_be_made_leaves_nothing(
    home: Path, shot: Shot, monkeypatch: pytest.MonkeyPatch, tree: Callable[[], Any]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = tree()
    monkeypatch.setattr(folder, "write_json", refuse)
    with pytest.raises(JobError, match=r"cannot be written \(No space left on device\)"):
        create_job(home, shot)
    assert tree() == before


def test_what_kills_have_left_is_swept_up(home: Path, shot: Shot) -> None:
    """Folders that never got their name, unless somebody may just be at it; and nothing else."""
    job = create_job(home, shot)
    old, fresh, other = home / ".20260101-000000-abcdef", home / ".20260102-000000-abcdef", home / ".config"
    for path in (old, fresh, other):
        path.mkdir()
        (path / "file").write_text("")
    for path in (old, other, job.path):
        os.utime(path, (0, 0))
    assert folder.remove_leftovers(home) == 1
    assert sorted(home.iterdir()) == sorted([fresh, other, job.path])


def test_two_cannot_run_one_job(home: Path, shot: Shot, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOCK_WAIT", 0.05)
    job = create_job(home, shot)
    with job.lock():
        assert job.state() == "running"
        with pytest.raises(JobError, match="by another process"):
            _run(job, engine)
    assert _run(job, engine) == "done"


def test_a_job_from_the_future_is_refused(home: Path, shot: Shot, engine: Engine, tree: Callable[[], Any]) -> None:
    """And nothing is written into a folder whose rules are not known."""
    job = create_job(home, shot)
    request = json.loads((job.path / "shot.json").read_text())
    (job.path / "shot.json").write_text(json.dumps({**request, "version": 99}))
    before = tree()
    for refused in (job.request, lambda: _run(job, engine)):
        with pytest.raises(JobError, match=r"version 99, .* update Rushes"):
            refused()
    assert tree() == before


def test_a_vanished_folder_ends_in_a_sentence(home: Path, shot: Shot, engine: Engine) -> None:
    job = create_job(home, shot)

    class Vanish(Told):
        def __call__(self, event: str, **fields: Any) -> None:
            super().__call__(event, **fields)
            if event == "progress" and len(self) == 4:
                shutil.rmtree(job.path)

    told = Vanish()
    assert _run(job, engine, told) == "failed"
    assert told[-1][0] == "failed"
    assert told[-1][1]["message"] == f"job: its folder {job.path} is gone; ask for the shot again"
    with pytest.raises(JobError, match=r"holds no shot\.json"):
        _run(job, engine)
    assert not job.path.exists(), "nor does it come back, empty"


def test_jobs_are_found_by_a_clear_beginning(home: Path, shot: Shot) -> None:
    first, second = create_job(home, shot), create_job(home, shot)
    assert find_job(home, first.id).path == first.path == find_job(home, str(first.path)).path
    with pytest.raises(JobError, match="2 jobs begin so"):
        find_job(home, first.id[:8])
    with pytest.raises(JobError, match="there is no such job"):
        find_job(home, "1999")
    assert [job.id for job in list_jobs(home)] == sorted([first.id, second.id])


def test_a_home_that_is_a_file_is_refused(tmp_path: Path, shot: Shot) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(JobError, match=r"home cannot be written \(Not a directory\); a writable folder is allowed"):
        create_job(tmp_path / "home", shot)
    with pytest.raises(ShotError):
        find_job(tmp_path / "home", "x")


def test_a_controlled_job_goes_on_after_a_failure_unless_its_footage_changed(
    tiny_wan: Callable[..., Any], home: Path, tmp_path: Path
) -> None:
    """References lie before the clip in the saved state; with other footage the state is of another shot."""
    from PIL import Image

    files = tiny_wan(layers=4, vace_in_channels=96, vace_layers=(0, 2)).files
    vace = Engine.load(files, device="cpu")
    guide, picture = tmp_path / "guide.png", tmp_path / "reference.png"
    Image.new("RGB", (32, 32), (200, 30, 90)).save(guide)
    Image.new("RGB", (40, 20), (10, 130, 90)).save(picture)
    control = (Control("pose", str(guide)), Control("reference", references=(str(picture),)))
    shot = Shot("a red ball", negative="", size=(32, 32), frames=5, steps=4, seed=3, control=control)
    whole = create_job(home, shot, [])
    assert _run(whole, vace) == "done"
    broken, changed = (create_job(home, shot, []) for _ in range(2))
    for job in (broken, changed):
        assert _run(job, vace, Told("progress", 4, OSError(errno.ENOSPC, "full"))) == "failed"
        assert job.latents_path.exists()
    assert _run(broken, vace) == "done" and _content(broken) == _content(whole)
    Image.new("RGB", (32, 32), (0, 0, 0)).save(guide)
    told = Told()
    assert _run(changed, vace, told) == "failed"
    assert told[-1][1]["message"].startswith("control: a file has changed since this job began")
