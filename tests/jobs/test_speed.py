# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Sparse attention, reuse and guidance of a part of the steps, in jobs: asked for, kept, made, told, taken up again."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rushes import Engine, Shot
from rushes.attention.layers import SparseAttention
from rushes.jobs import estimate, runner
from rushes.jobs.client import Client, Event
from rushes.jobs.folder import Job, create_job
from rushes.jobs.runner import run_job
from rushes.jobs.warm import Engines
from rushes.media import read_latents
from rushes.shot import ShotError
from rushes.speed import PLAIN, Speed

Start = Callable[..., Client]
Wait = Callable[..., list[Event]]
Ask = Callable[..., Any]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

SPARSE = Speed(SparseAttention(density=0.3, first_layers=1))
FIELDS = {"density": 0.3, "first_layers": 1}


@pytest.fixture
def large(shot: Shot) -> Shot:
    """576 tokens: fewer than 512 are dense in any case. Random weights change much from step to step."""
    return shot.replace(size=(128, 128), frames=33, steps=6, reuse=0.9, guided=0.5)


def _ended(event: Event) -> bool:
    return event.kind in ("done", "failed", "died")


def _latents(job: Job) -> bytes:
    return bytes(read_latents(job.latents_path)[0].tobytes())


def _run(job: Job, engine: Engine, told: list[tuple[str, dict[str, Any]]] | None = None) -> str:
    def tell(kind: str, **fields: Any) -> None:
        if told is not None:
            told.append((kind, fields))

    return run_job(job, lambda *_: engine, tell, threading.Event())


def test_the_starter_is_made_as_the_engine_makes_it(start: Start, wait: Wait, ask: Ask) -> None:
    """A real worker's frames, latents and record are those of an engine with the same settings; the host hears both
    reports; and the next job, which asks for nothing of it, is plain again on the same warm model."""
    shot = Shot("a red ball rolls to the right", size=(160, 96), frames=33, steps=8, seed=3, reuse=0.1, guided=0.5)
    worker = start()
    jobs = []
    for extra in ({"attention": "density=0.3"}, {}):
        jobs.append(Job(Path(ask(worker, "submit", {"shot": shot.to_dict(), **extra})["folder"])))
        events = wait(worker, _ended)
        assert events[-1].kind == "done"
        notes = [event.fields for event in events if event.kind == "note"]
        assert any("reuse" in note for note in notes) and any("attention" in note for note in notes) == bool(extra)
        if extra:
            sentence, report = next((n["message"], n["attention"]) for n in notes if "attention" in n)
            assert sentence.startswith("attention: 3") and "of the scores" in sentence
            assert 0.3 <= report["density"] < 0.5
            assert [e["report"] for e in jobs[0].events() if e["event"] == "attention"] == [report]
    engine = Engine.load(device="cpu", attention=SparseAttention(density=0.3))
    for job, attention in zip(jobs, (engine.attention, None), strict=True):
        engine.attention = attention
        clip = engine.generate(shot)
        assert _latents(job) == clip.latents.numpy().tobytes()
        made = np.stack([np.asarray(Image.open(path)) for path in job.frames()])
        assert np.array_equal(made, np.rint(clip.frames * 255).astype(np.uint8))
        ending = job.ending()
        assert ending is not None and ending["record"] == json.loads(json.dumps(clip.record))
    assert _latents(jobs[0]) != _latents(jobs[1])


def test_what_is_wrong_is_refused_when_it_is_asked_for(
    start: Start, ask: Ask, shot: Shot, home: Path, rushes: Run
) -> None:
    """With the command line's sentences; no folder is left behind."""
    worker, plain = start(), shot.to_dict()
    for text in ("0", "2", "dens", "density=x", "tile=4x4", "first_steps=1.5", "0.2,window=3x3x3", "sharp=1"):
        said = ask(worker, "submit", {"shot": plain, "attention": text})
        typed = rushes("generate", "a ball", "-o", "a.mp4", "--attention", text)
        assert typed.returncode == 2 and typed.stderr == f"rushes: {said}\n"
        assert "attention" in said and " allowed" in said
    cases = [
        ({"attention": {"density": "0.3"}}, "attention: density is '0.3'; a number is allowed"),
        ({"attention": {"sharp": 1}}, "attention: got 'sharp'; mode, tile"),
        ({"attention": {"first_steps": True}}, "attention: first_steps is True; a whole number is allowed"),
        ({"attention": {"tile": [4, 4]}}, "attention: tile is (4, 4); T x H x W such as 4x4x4 is allowed"),
        ({"attention": {"mode": "some"}}, "attention: mode is 'some'; dense or window or density is allowed"),
        ({"attention": {"density": 1.5}}, "attention: density: got 1.5; above 0 and up to 1 is allowed"),
        ({"attention": 0.3}, "attention: got 0.3; a text such as 0.2"),
        ({"fp8_products": "yes"}, "fp8-products: got 'yes'; true or false is allowed"),
        ({"shot": {**plain, "reuse": 2}}, "reuse: got 2; a share from 0 to 1 is allowed"),
        ({"shot": {**plain, "guided": -1}}, "guided: got -1; a share from 0 to 1 is allowed"),
    ]  # fmt: skip
    for params, words in cases:
        for method in ("submit", "estimate"):
            assert words in ask(worker, method, {"shot": plain, **params}), (method, params)
    assert not [path for path in home.iterdir() if path.is_dir()]


def test_a_device_without_fp8_is_named_at_once(start: Start, ask: Ask, shot: Shot, home: Path) -> None:
    """As the command line does it; the processor multiplies in fp8, for tests, so it is asked for another device."""
    worker = start()
    assert worker.hello is not None and worker.hello["device"] == "cpu"
    job = Job(Path(ask(worker, "submit", {"shot": shot.to_dict(), "fp8_products": True})["folder"]))
    assert job.request()["fp8_products"] is True
    from rushes.engine import check_fp8_products

    with pytest.raises(ShotError, match="fp8-products: got meta; meta multiplies no fp8; cuda does"):
        check_fp8_products(torch.device("meta"))


def test_a_killed_job_goes_on_with_its_attention(
    start: Start, wait: Wait, ask: Ask, large: Shot, home: Path, rushes: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 after a saved step; `rushes resume` knows the attention from the folder alone, and the bits are those of
    an unbroken run."""
    monkeypatch.setenv("RUSHES_JOBS", str(home))
    long = large.replace(steps=800)  # some seconds, so that a state is saved long before the end
    worker = start()
    answer = ask(worker, "submit", {"shot": long.to_dict(), "attention": "density=0.3,first_layers=1"})
    assert isinstance(answer, dict), answer
    job = Job(home / answer["job"])
    end = time.monotonic() + 60
    while not any(event["event"] == "saved" for event in job.events()) and time.monotonic() < end:
        worker.tick()
        time.sleep(0.005)
    worker.kill()
    wait(worker, lambda event: event.kind == "died")
    assert job.state() == "interrupted", "killed in the middle"
    done = rushes("resume", job.id)
    assert done.returncode == 0, done.stderr
    assert "rushes: attention: " in done.stderr and "rushes: reuse: " in done.stderr, "told, and as no warning"
    engine = Engine.load(long.model, device="cpu", attention=SPARSE.attention)
    assert _latents(job) == engine.denoise(long).numpy().tobytes()
    reports = {event["event"]: event["report"] for event in job.events() if "report" in event}
    assert reports["attention"]["settings"]["density"] == 0.3 and reports["reuse"]["reused_steps"]


def test_a_report_says_which_steps_it_is_of(home: Path, large: Shot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before an interruption are not known any more."""
    monkeypatch.setattr(runner, "SAVE_EVERY", 0.0)
    job, cancel = create_job(home, large, speed=SPARSE), threading.Event()
    engine = Engine.load(large.model, device="cpu", attention=SPARSE.attention)

    def tell(kind: str, **fields: Any) -> None:
        if fields.get("phase") == "denoise" and fields["step"] == 4:
            cancel.set()

    assert run_job(job, lambda *_: engine, tell, cancel) == "cancelled"
    told: list[tuple[str, dict[str, Any]]] = []
    assert _run(job, engine, told) == "done"
    (note,) = [fields["message"] for kind, fields in told if "attention" in fields]
    assert note.endswith(", in the last 2 steps, made since the job was taken up again")
    assert _latents(job) == engine.denoise(large).numpy().tobytes()


def test_a_job_of_an_older_rushes_is_plain(home: Path, large: Shot) -> None:
    """Its request has neither field, and it has the bits it always had."""
    job, asked = create_job(home, large), []
    request = job.request()
    assert (request.pop("attention"), request.pop("fp8_products")) == (None, False)
    (job.path / "shot.json").write_text(json.dumps(request))
    engine = Engine.load(large.model, device="cpu")

    def load(shot: Shot, speed: Speed) -> Engine:
        asked.append(speed)
        return engine

    assert run_job(job, load, lambda *_, **__: None, threading.Event()) == "done"
    assert asked == [PLAIN] and _latents(job) == engine.denoise(large).numpy().tobytes()


def test_a_warm_model_takes_another_attention(large: Shot) -> None:
    """Without a weight being read again; other products in fp8 need another model. The report is of the last shot."""
    engines = Engines("cpu", memory=10**9)
    plain = engines.load(large, PLAIN)
    first = plain.denoise(large)
    assert plain.attention_report() is None
    sparse = engines.load(large, SPARSE)
    assert sparse is plain
    assert not torch.equal(sparse.denoise(large), first) and sparse.attention_report() is not None
    again = engines.load(large, PLAIN)
    assert again is plain and torch.equal(again.denoise(large), first) and again.attention_report() is None
    assert engines.load(large, Speed(fp8_products=True)) is not plain
    assert engines.free()


def test_fast_jobs_spoil_no_estimate(home: Path, large: Shot, start: Start, ask: Ask, wait: Wait) -> None:
    """A pace is of one kind: what reuse, sparse attention and fp8 save is not expected of jobs without them."""
    engine = Engine.load(large.model, device="cpu", attention=SPARSE.attention)
    slow = large.replace(reuse=0.0)

    def measured(shot: Shot, speed: Speed) -> tuple[bool, float]:
        found = estimate.estimate(home, engine, engine.resolve(shot), "cpu", None, speed)
        return found["measured"], found["seconds"]

    _run(create_job(home, large, speed=SPARSE), engine)
    assert measured(large, SPARSE)[0] and not measured(slow, SPARSE)[0] and not measured(large, PLAIN)[0]
    engine.attention = None
    job = create_job(home, slow)
    _run(job, engine)
    before = measured(slow, PLAIN)
    assert before[0] and measured(large, PLAIN) == (False, before[1]), "until one was made, it takes as long as plain"
    about = {"unit": "flops", "model": "tiny", "device": "cpu"}
    job.append("pace", rate=1e18, kind=estimate.pace_kind(large, PLAIN), **about)
    assert measured(slow, PLAIN) == before and measured(large, PLAIN) < (True, before[1])
    job.append("pace", rate=1e18, **about)  # of an older Rushes, which made plain jobs alone
    assert measured(slow, PLAIN) < before
    worker = start()
    asked = {"shot": large.to_dict(), "attention": FIELDS}
    assert ask(worker, "estimate", asked)["measured"] is True
    assert ask(worker, "estimate", {**asked, "shot": slow.to_dict()})["measured"] is False


def test_a_worker_keeps_to_the_memory_it_is_given(start: Start, ask: Ask, shot: Shot, rushes: Run) -> None:
    """The host names it when it starts the worker, and estimates keep to it; nonsense is one sentence."""
    worker = start(memory="1.5")
    assert ask(worker, "estimate", {"shot": shot.to_dict()})["memory"]["budget"] == 1_500_000_000
    for command in (("worker",), ("resume", "20260101")):
        refused = rushes(*command, "--memory", "much")
        assert refused.returncode == 2 and refused.stderr == "rushes: memory: got 'much'; a number is allowed\n"
