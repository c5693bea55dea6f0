# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Real workers over real pipes: what a host asks, what kills them, and what is left of a job then."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rushes import Control, Engine, Shot
from rushes.jobs.client import Client, Event
from rushes.jobs.delivery import about_file
from rushes.jobs.folder import Job, create_job
from rushes.jobs.pipe import Pipe
from rushes.jobs.runner import run_job
from rushes.jobs.wire import encode, read
from rushes.jobs.worker import Worker
from rushes.media import read_latents

Start = Callable[..., Client]
Wait = Callable[..., list[Event]]
Ask = Callable[..., Any]


def _ended(event: Event) -> bool:
    return event.kind in ("done", "failed", "died")


def _bits(job: Job) -> list[bytes]:
    return [path.read_bytes() for path in job.frames()]


def test_a_host_gets_its_clip(start: Start, wait: Wait, ask: Ask, home: Path, shot: Shot, tmp_path: Path) -> None:
    """Hello, estimate, submit, progress, previews, frames, done; then attach tells the same from the folder."""
    worker = start()
    assert worker.hello is not None and worker.hello["protocol"] == 1 and "cpu" in worker.hello["devices"]
    assert worker.hello["models"][0]["name"] == "starter"
    guess = ask(worker, "estimate", {"shot": shot.to_dict()})
    assert guess["seconds"] > 0 and guess["bytes"] > 0 and guess["measured"] is False
    out = tmp_path / "shot.mp4"
    job = ask(worker, "submit", {"shot": shot.to_dict(), "outputs": [str(out)]})
    assert job["state"] in ("queued", "running")
    events = wait(worker, _ended)
    assert events[-1].kind == "done" and events[-1].fields["outputs"] == [str(out)] and out.is_file()
    frames = [event.fields for event in events if event.kind == "frame"]
    assert [frame["number"] for frame in frames] == list(range(1, 10))
    found = ask(worker, "attach", {"job": job["job"]})
    assert found["state"] == "done" and found["frames"] == [frame["path"] for frame in frames]
    assert ask(worker, "estimate", {"shot": shot.to_dict()})["measured"] is True
    assert [row["job"] for row in ask(worker, "jobs")["jobs"]] == [job["job"]]


def test_refusals_are_sentences(start: Start, ask: Ask, home: Path, shot: Shot) -> None:
    """Each names the argument; the worker goes on, and no folder is left behind."""
    worker = start()
    plain = shot.to_dict()
    cases = [
        ("submit", {"shot": {**plain, "frames": 6}}, "frames: got 6"),
        ("submit", {"shot": {**plain, "prompt": ""}}, "prompt: it is empty"),
        ("submit", {"shot": {**plain, "prompt": "x" * 10_000_000}}, "prompt: it has 10000000 characters"),
        ("submit", {"shot": {**plain, "model": "nothing"}}, "model: got 'nothing'"),
        ("submit", {"shot": "a ball"}, "shot: got str; dict is allowed"),
        ("submit", {"shot": plain, "outputs": ["a.gif"]}, "a.gif"),
        ("cancel", {"job": "1999"}, "there is no such job"),
        ("attach", {}, "job: got NoneType; str is allowed"),
        ("paint", {}, "method: got 'paint'; hello, submit"),
        ("hello", {"protocol": 99}, "the host speaks 99, this worker 1"),
    ]
    for method, params, words in cases:
        assert words in ask(worker, method, params), method
    assert not [path for path in home.iterdir() if path.is_dir()]
    assert ask(worker, "submit", {"shot": {**plain, "frames": 6}, "fit": True})["shot"]["frames"] == 5


def test_footage_is_sealed_when_it_is_asked_for(
    start: Start, wait: Wait, ask: Ask, tiny_wan: Callable[..., Any], tmp_path: Path
) -> None:
    """Under the names that the worker has for it, with the bits of a run of its own; changed since, it is refused."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.symlink_to(theirs)
    wan = tiny_wan(layers=4, vace_in_channels=96, vace_layers=(0, 2))
    dice = np.random.default_rng(5)
    for name in ("depth.0001", "depth.0002", "mask", "one"):
        Image.fromarray(dice.integers(0, 256, (37, 67, 3), dtype=np.uint8)).save(theirs / f"{name}.png")
    passes = [
        Control("depth", str(ours / "depth.%04d.png"), 0.5, str(ours / "mask.png")),
        Control("reference", references=(str(ours / "one.png"),)),
    ]
    model = str(wan.files.transformer.parent)
    shot = Shot("a red ball", size=(64, 32), frames=5, steps=2, seed=4, model=model, control=passes)
    worker = start(paths=[(str(theirs), str(ours))])
    job = ask(worker, "submit", {"shot": shot.to_dict()})
    folder = Job(Path(job["folder"]))
    depth, reference = folder.shot().control
    assert depth.files == (str(theirs / "depth.%04d.png"), str(theirs / "mask.png")) and len(depth.sha256) == 2
    assert reference.references == (str(theirs / "one.png"),) and len(reference.sha256) == 1
    assert wait(worker, _ended)[-1].kind == "done"
    engine = Engine.load(wan.files, device="cpu")
    made = engine.denoise(engine.resolve(shot))
    assert read_latents(folder.latents_path)[0].tobytes() == made.numpy().tobytes()
    assert about_file(str(folder.latents_path))["notes"] == []
    job = ask(worker, "submit", {"shot": shot.replace(steps=400).to_dict()})["job"]
    worker.cancel(job)
    wait(worker, _ended)
    Image.new("RGB", (67, 37)).save(theirs / "mask.png")
    ask(worker, "resume", {"job": job})
    ended = wait(worker, _ended)[-1]
    assert "mask.png is not the footage this shot was made with" in ended.fields["message"]
    assert any("is not the footage" in note for note in about_file(str(folder.latents_path))["notes"])


def test_cancelled_jobs_go_on_where_they_stood(start: Start, wait: Wait, ask: Ask, shot: Shot, home: Path) -> None:
    """By request, the running one and the waiting one; then resumed by the same worker."""
    worker = start()
    long = shot.replace(steps=400)
    first, second = (ask(worker, "submit", {"shot": long.to_dict()})["job"] for _ in range(2))
    wait(worker, lambda event: event.kind == "progress" and event.fields["step"] > 3)
    worker.cancel(second)
    worker.cancel(first)
    ended = wait(worker, lambda e: e.kind == "failed" and e.fields["job"] == first)  # the waiting one ends at once
    assert {event.fields["job"] for event in ended if event.kind == "failed"} == {first, second}
    assert {row["state"] for row in ask(worker, "jobs")["jobs"]} == {"cancelled"}
    assert ask(worker, "resume", {"job": first})["job"] == first
    assert wait(worker, _ended)[-1].kind == "done"
    whole = create_job(home, long)
    engine = Engine.load(long.model)
    run_job(whole, lambda *_: engine, lambda *_, **__: None, threading.Event())
    assert _bits(whole) == _bits(Job(home / first))


def test_a_waiting_job_is_cancelled_at_once(start: Start, wait: Wait, ask: Ask, shot: Shot) -> None:
    """Not when its turn comes: until then the ladder would have stopped the running one, and killed the worker."""
    worker = start(patience=(1.0, 1.0))
    long = shot.replace(steps=600, frames=33)
    first, second, third = (ask(worker, "submit", {"shot": long.to_dict()})["job"] for _ in range(3))
    wait(worker, lambda event: event.kind == "progress" and event.fields["phase"] == "denoise")
    worker.cancel(second)
    assert wait(worker, _ended)[-1].fields == {
        "job": second, "message": "it was cancelled", "cancelled": True, "traceback": ""
    }  # fmt: skip
    states = {row["job"]: row["state"] for row in ask(worker, "jobs")["jobs"]}
    assert states == {first: "running", second: "cancelled", third: "queued"}
    assert ask(worker, "resume", {"job": second})["state"] == "queued"
    for job in (third, second, first):
        worker.cancel(job)
    assert _until(lambda: {row["state"] for row in ask(worker, "jobs")["jobs"]} == {"cancelled"})
    assert ask(worker, "free") == {"freed": True}, "it goes on"


def test_jobs_live_where_the_host_says(start: Start, wait: Wait, ask: Ask, shot: Shot, tmp_path: Path) -> None:
    """Beside a project and not in the worker's own home: made, listed, attached, cancelled, resumed there."""
    worker, project = start(), tmp_path / "project" / "jobs"
    there = {"home": str(project)}
    done = ask(worker, "submit", {"shot": shot.to_dict(), **there})
    assert Path(done["folder"]).parent == project
    assert wait(worker, _ended)[-1].kind == "done"
    job = ask(worker, "submit", {"shot": shot.replace(steps=600).to_dict(), **there})["job"]
    wait(worker, lambda event: event.kind == "progress" and event.fields["phase"] == "denoise")
    worker.cancel(job, home=str(project))
    assert wait(worker, _ended)[-1].fields["cancelled"]
    assert {row["state"] for row in ask(worker, "jobs", there)["jobs"]} == {"done", "cancelled"}
    assert ask(worker, "jobs")["jobs"] == [] and "there is no such job" in ask(worker, "attach", {"job": job})
    assert ask(worker, "resume", {"job": job, **there})["job"] == job
    assert wait(worker, _ended)[-1].kind == "done"
    assert ask(worker, "estimate", {"shot": shot.to_dict(), **there})["measured"] is True
    assert [model["name"] for model in ask(worker, "models", {"model": shot.model})["models"]] == ["tiny"]


def test_a_worker_outlives_its_host(start: Start, wait: Wait, ask: Ask, shot: Shot, home: Path) -> None:
    """Its input ends while a job runs and another waits: both are made, then it exits."""
    worker = start()
    jobs = [Job(Path(ask(worker, "submit", {"shot": shot.replace(steps=60).to_dict()})["folder"])) for _ in range(2)]
    wait(worker, lambda event: event.kind == "progress" and event.fields["phase"] == "denoise")
    worker.close()
    assert wait(worker, lambda event: event.kind == "died")[-1].fields["status"] == 0
    assert [job.state() for job in jobs] == ["done", "done"]


def test_a_host_that_is_killed_loses_nothing(home: Path, shot: Shot, environment: dict[str, str]) -> None:
    """Killed with both its pipes while a job runs: the worker finishes, whom nobody hears any more."""
    code = (
        "import sys, time; from rushes.jobs.client import Client; import rushes.jobs.client as c, os, json\n"
        "c.clean_environment = lambda: dict(os.environ)\n"
        "client = Client([sys.executable, '-m', 'rushes'], sys.argv[1]); client.start()\n"
        "client.request('submit', {'shot': json.loads(sys.argv[2])}, failed=print)\n"
        "while True:\n"
        "    for event in client.tick():\n"
        "        if event.kind == 'progress' and event.fields['step'] > 2: print('now', flush=True)\n"
        "    time.sleep(0.01)\n"
    )
    text = shot.replace(steps=150).to_json()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home), text], env=environment, stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdout is not None and host.stdout.readline() == "now\n"
        host.kill()
    (job,) = [Job(path) for path in home.iterdir() if path.is_dir()]
    assert _until(lambda: job.state() == "done"), job.state()


def _until(true: Callable[[], bool], seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def test_ctrl_c_stops_the_job_and_not_the_worker(start: Start, wait: Wait, ask: Ask, shot: Shot) -> None:
    """The middle step of the cancel ladder."""
    worker = start()
    ask(worker, "submit", {"shot": shot.replace(steps=900).to_dict()})
    wait(worker, lambda event: event.kind == "progress")
    worker._interrupt()
    assert wait(worker, _ended)[-1].fields.get("cancelled") is True
    assert ask(worker, "free") == {"freed": True} and ask(worker, "free") == {"freed": False}


def test_a_deaf_worker_is_killed_in_the_end(start: Start, wait: Wait, ask: Ask, shot: Shot) -> None:
    """Stopped by SIGSTOP it hears neither message nor signal: first it counts as stuck, and cancelling kills it."""
    worker = start(silent=3.0, patience=(0.3, 0.3))
    job = ask(worker, "submit", {"shot": shot.replace(steps=900).to_dict()})["job"]
    wait(worker, lambda event: event.kind == "progress")
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGSTOP)
    wait(worker, lambda event: event.kind == "stuck")
    worker.cancel(job)
    assert wait(worker, lambda event: event.kind == "died")[-1].fields["status"] == -signal.SIGKILL
    worker.start()
    wait(worker, lambda event: event.kind == "ready")
    assert ask(worker, "attach", {"job": job})["state"] == "interrupted"


def test_a_worker_that_dies_says_its_last_words(start: Start, wait: Wait, home: Path) -> None:
    """Here it cannot start at all, its home being a file."""
    home.rmdir()
    (home.parent / "other").mkdir()
    home.write_text("")
    worker = start(ready=False, log=home.parent / "other" / "worker.log")
    event = wait(worker, lambda event: event.kind == "died")[-1]
    assert event.fields["status"] != 0 and event.fields["log"] and "its last words" in event.fields["message"]


def test_garbage_on_the_pipe_is_answered(home: Path, environment: dict[str, str]) -> None:
    """Noise, other JSON, wrong types: an error each, and the next request is served."""
    with subprocess.Popen(
        [sys.executable, "-m", "rushes", "worker", "--home", str(home)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as worker:  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None
        for data in (
            b"hello\r\nContent-Length: 2\r\n\r\n{}", b"Content-Length: 4\r\n\r\nnull",
            encode({"jsonrpc": "2.0", "id": 7}), encode({"jsonrpc": "2.0", "id": 8, "method": "jobs", "params": [1]}),
            encode({"jsonrpc": "2.0", "id": 9, "method": "jobs"}),
        ):  # fmt: skip
            worker.stdin.write(data)
        worker.stdin.close()
        answers = []
        while (message := read(worker.stdout)) is not None:  # type: ignore[arg-type]
            if message.get("method") != "heartbeat":
                answers.append(message)
    assert [message["id"] for message in answers] == [None, None, 7, 8, 9]
    assert all("error" in message for message in answers[:4]) and answers[4]["result"] == {"jobs": []}
    assert worker.returncode == 0


def test_two_workers_share_a_home(start: Start, wait: Wait, ask: Ask, shot: Shot) -> None:
    """Each makes its own; one cannot take what the other runs."""
    one, two = start(), start()
    job = ask(one, "submit", {"shot": shot.replace(steps=150).to_dict()})["job"]
    other = ask(two, "submit", {"shot": shot.to_dict()})["job"]
    wait(one, lambda event: event.kind == "progress")
    assert "is running" in ask(two, "resume", {"job": job})
    assert wait(two, _ended)[-1].fields["job"] == other
    assert wait(one, _ended)[-1].kind == "done"


def test_one_worker_stops_what_another_makes(start: Start, wait: Wait, ask: Ask, shot: Shot) -> None:
    """A host that came back after a crash has a worker of its own; the old one still listens to the folder."""
    one, two = start(), start()
    job = ask(one, "submit", {"shot": shot.replace(steps=900).to_dict()})["job"]
    wait(one, lambda event: event.kind == "progress")
    assert ask(two, "cancel", {"job": job}) == {"job": job}
    assert wait(one, _ended)[-1].fields["cancelled"] is True
    assert f"{job} is cancelled; one that waits here or is being made is allowed" in ask(two, "cancel", {"job": job})
    assert ask(two, "resume", {"job": job})["job"] == job
    assert wait(two, _ended)[-1].kind == "done"


def test_a_folder_from_the_future_hides_no_other(start: Start, ask: Ask, home: Path, shot: Shot) -> None:
    strange, plain = create_job(home, shot), create_job(home, shot)
    request = json.loads((strange.path / "shot.json").read_text())
    (strange.path / "shot.json").write_text(json.dumps({**request, "version": 99}))
    worker = start()
    rows = {row["job"]: row for row in ask(worker, "jobs")["jobs"]}
    assert rows[plain.id]["state"] == "queued"
    assert rows[strange.id]["state"] == "unreadable" and "update Rushes" in rows[strange.id]["message"]
    for method in ("resume", "attach"):
        assert "update Rushes" in ask(worker, method, {"job": strange.id})


def test_a_signal_waits_for_no_lock(home: Path) -> None:
    """Python handles it on the main thread, wherever that is just then: also inside the worker's own lock."""
    worker = Worker(home, Pipe(io.BytesIO()))
    with worker._lock:
        worker.interrupt()


def test_what_has_ended_can_be_asked_for_at_once(
    home: Path, shot: Shot, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    """When the host hears the end, the worker has let go of the job, and of the memory that it was to free."""
    engine, told = Engine.load(tiny_model, device="cpu"), []
    worker = Worker(home, Pipe(io.BytesIO()))
    job = create_job(home, shot.replace(steps=1000))
    monkeypatch.setattr(worker._engines, "load", lambda *_: engine)
    monkeypatch.setattr(worker._engines, "free", lambda: told.append("freed"))

    def send(message: dict[str, Any]) -> None:
        told.append(message["method"])
        if message["method"] == "progress":
            worker._cancel({"job": job.id, "free": True})
        if message["method"] == "failed":
            assert worker._resume({"job": job.id})["state"] == "queued"

    monkeypatch.setattr(worker._pipe, "send", send)
    worker._accept(job)
    worker._make(job)
    assert told[-2:] == ["freed", "failed"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux which files a process has open")
def test_no_port_is_opened(start: Start, wait: Wait, ask: Ask, shot: Shot) -> None:
    """While it makes a job, the worker holds not one socket."""
    worker = start()
    ask(worker, "submit", {"shot": shot.replace(steps=300).to_dict()})
    wait(worker, lambda event: event.kind == "progress" and event.fields["phase"] == "denoise")
    assert worker._process is not None
    files = [os.readlink(path) for path in Path(f"/proc/{worker._process.pid}/fd").iterdir()]
    assert any(name.startswith("pipe:") for name in files) and not [name for name in files if "socket" in name]
    worker.kill()


def test_an_idle_worker_gives_the_memory_back(home: Path, shot: Shot, environment: dict[str, str]) -> None:
    """Unasked, when the time has come; before that the model stays warm."""
    with subprocess.Popen(
        [sys.executable, "-m", "rushes", "worker", "--home", str(home), "--idle", "1"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as worker:  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None

        def ask(number: int, method: str, **params: Any) -> None:
            worker.stdin.write(encode({"jsonrpc": "2.0", "id": number, "method": method, "params": params}))
            worker.stdin.flush()

        def hear(is_right: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            while (message := read(worker.stdout)) is not None:  # type: ignore[arg-type]
                if is_right(message):
                    return message
            raise AssertionError("the worker has ended")

        for number, pause, is_warm in ((1, 0.0, True), (2, 4.0, False)):
            ask(number, "submit", shot=shot.to_dict())
            hear(lambda message: message.get("method") == "done")
            time.sleep(pause)
            ask(number + 10, "free")
            answer = hear(lambda message, number=number: message.get("id") == number + 10)
            assert answer["result"] == {"freed": is_warm}
        worker.stdin.close()


def test_two_hundred_jobs_wait_their_turn(start: Start, ask: Ask, shot: Shot, home: Path) -> None:
    """All are accepted while one is made, each has its folder, and the worker answers all the while."""
    worker = start()
    answers: list[Any] = []
    for seed in range(200):
        tiny = shot.replace(seed=seed, frames=1, steps=1).to_dict()
        worker.request("submit", {"shot": tiny}, then=answers.append, failed=answers.append)

    def served() -> bool:
        worker.tick()
        return len(answers) == 200

    assert _until(served)
    assert len({answer["job"] for answer in answers}) == 200
    assert len(ask(worker, "jobs")["jobs"]) == 200
    ask(worker, "shutdown", {"now": True})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_cost_no_bit(start: Start, wait: Wait, ask: Ask, shot: Shot, home: Path) -> None:
    """kill -9 at 20 random moments of one long job, a fresh worker each time: the frames of an unbroken run."""
    long = shot.replace(steps=250, frames=33)
    engine = Engine.load(long.model)
    whole = create_job(home, long)
    began = time.monotonic()
    run_job(whole, lambda *_: engine, lambda *_, **__: None, threading.Event())
    seconds = time.monotonic() - began
    dice, kills, job = random.Random(), 0, None
    while kills < 20:
        worker = start()
        if job is None or Job(home / job).state() == "done":
            job = ask(worker, "submit", {"shot": long.to_dict()})["job"]
        else:
            ask(worker, "resume", {"job": job})
        deadline = time.monotonic() + dice.uniform(0, seconds)
        while time.monotonic() < deadline and not any(_ended(event) for event in worker.tick()):
            time.sleep(0.002)
        worker.kill()
        wait(worker, lambda event: event.kind == "died")
        kills += 1
        if Job(home / job).state() == "done":
            assert _bits(Job(home / job)) == _bits(whole)
    assert job is not None
    if Job(home / job).state() != "done":
        last = start()
        ask(last, "resume", {"job": job})
        assert wait(last, _ended)[-1].kind == "done"
    assert _bits(Job(home / job)) == _bits(whole)


def test_a_model_on_the_shelf_is_made_by_its_name(
    nobody: Path, start: Start, wait: Wait, ask: Ask, home: Path, tiny_wan: Any
) -> None:
    """A host is told of it, estimates it part by part, and gets the clip; the job's record names it."""
    from rushes.model.added import Added, add

    add(Added("mine", tuple(tiny_wan().files.paths.values())))
    worker = start()
    assert worker.hello is not None and [model["name"] for model in worker.hello["models"]] == ["starter", "mine"]
    (limits,) = ask(worker, "models", {"model": "mine"})["models"]
    assert limits["size"] == [832, 480] and limits == worker.hello["models"][1]
    shot = Shot("a red ball", model="mine", size=(64, 32), frames=5, steps=4, guidance=1.0, reuse=0.5)
    guess = ask(worker, "estimate", {"shot": shot.to_dict()})
    assert {part["part"] for part in guess["memory"]["parts"]} == {"text", "transformer", "vae"}
    assert guess["bytes"] == guess["memory"]["peak"] > 0
    job = ask(worker, "submit", {"shot": shot.to_dict()})
    assert wait(worker, _ended)[-1].kind == "done"
    assert (
        Job(Path(job["folder"])).request()["shot"]["model"] == "mine"
        and len(list(Job(Path(job["folder"])).frames())) == 5
    )
