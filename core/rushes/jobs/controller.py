# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Jobs as a host's plug-in sees them: what was asked, where each stands, and the worker that makes them.

Standard library only, Python 3.9 to 3.14: hosts vendor this file beside client.py. Nothing here waits. The host's timer
calls `tick()`, which hands over the keys of the jobs that have changed; tests call it themselves. A job's key is ours
and known at once; its id is the name of its folder, which the worker gives later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .client import Client, Event  # relative: beside it in a host too
from .plan import Wish, plan, speed

ACTIVE = ("planning", "queued", "running")
POLL = 1.0  # seconds between looks at a job that another worker makes
DENOISING = 0.8  # of the bar; the rest is decoding
MAX_NOTES = 4


@dataclass
class Job:
    """One clip that is being made, or was. frames: how many lie in its folder, whole."""

    key: str
    wish: Wish
    home: str
    id: str = ""
    shot: dict[str, Any] | None = None
    length: int = 0  # frames of the host that it takes; 0: not known yet
    state: str = "planning"
    phase: str = ""
    step: int = 0
    steps: int = 0
    remaining: float = 0.0
    frames: int = 0
    message: str = ""
    notes: list[str] = field(default_factory=list)
    record: dict[str, Any] | None = None
    delivery: dict[str, Any] = field(default_factory=dict)  # more of what `submit` takes: outputs, colorspace, plate
    patterns: list[str] = field(default_factory=list)  # names of its outputs, with their version; known when decoding
    preview: str = ""  # path of a rough picture
    is_elsewhere: bool = False  # made by a worker of another session, which is heard of only through the folder

    @property
    def folder(self) -> Path:
        return Path(self.home) / self.id

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    @property
    def done_share(self) -> float:
        """0 ... 1 of the whole job, for a bar."""
        part = self.step / self.steps if self.steps else 0.0
        if self.state == "done":
            return 1.0
        return {"denoise": DENOISING * part, "decode": DENOISING + (1 - DENOISING) * part}.get(self.phase, 0.0)


@dataclass
class Quote:
    """What a wish would cost, or the sentence that says why it cannot be made."""

    wish: Wish
    shot: dict[str, Any] | None = None
    length: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    bytes: int = 0
    is_measured: bool = False
    message: str = ""


class Controller:
    """connect: makes a client that is not started yet; raises WorkerMissing when there is none to make."""

    def __init__(self, connect: Callable[[], Client], now: Callable[[], float] = time.monotonic) -> None:
        self.jobs: dict[str, Job] = {}
        self.limits: dict[str, dict[str, Any]] = {}  # by model, as the artist names it
        self.quote: Quote | None = None
        self.worker = ""  # a sentence on how it is
        self.log: list[str] = []  # a dead worker's last words
        self._connect, self._now = connect, now
        self._client: Client | None = None
        self._changed: set[str] = set()
        self._early: dict[str, list[Event]] = {}  # of jobs whose acceptance has not been read yet
        self._next_poll = 0.0

    # --- the worker -----------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        return self._client is not None and self._client.is_running

    @property
    def is_ready(self) -> bool:
        return self.is_running and self._client is not None and self._client.hello is not None

    @property
    def is_on_cuda(self) -> bool:
        """Whether the worker makes clips on a CUDA card. False until it has said so."""
        hello = None if self._client is None else self._client.hello
        return hello is not None and str(hello.get("device", "")).startswith("cuda")

    @property
    def client(self) -> Client | None:
        """Of the worker that was started last."""
        return self._client

    @property
    def trouble(self) -> str:
        """A sentence when the worker is there and says nothing."""
        if self._client is None or not self._client.is_stuck:
            return ""
        return "no sign of life from the worker; it may come back, or End Worker and Retry"

    def start(self) -> Client:
        """The running worker's client; starts it when needed. Raises WorkerMissing."""
        if self._client is None or not self._client.is_running:
            client = self._connect()
            client.start()
            if self._client is not None:  # dead before anybody has heard of it
                for event in self._client.tick():
                    self._take(event)
                self._interrupt("the worker has ended")
            self._client, self.worker, self.log = client, "the worker starts", []
            self.limits.clear()
        return self._client

    def close(self) -> None:
        """Let go of the worker; it finishes what it has accepted, and the folders stay."""
        if self._client is not None:
            self._client.close()
        self._client, self.worker = None, ""

    def kill(self) -> None:
        """End the worker now. Its jobs can be resumed."""
        if self._client is not None:
            self._client.kill()

    def free(self) -> None:
        """Give the model's memory back; a running job is cancelled for it, and can be resumed."""
        if not self.is_running or self._client is None:
            return
        running = [job for job in self.jobs.values() if job.state == "running" and not job.is_elsewhere]
        for job in running:
            self.cancel(job.key, free=True)
        if not running:
            self._client.request("free", then=self._freed, failed=self._say)

    def _freed(self, answer: dict[str, Any]) -> None:
        self._say("the model's memory is free" if answer["freed"] else "no model was loaded")

    def _say(self, sentence: str) -> None:
        self.worker = sentence

    def ask(
        self, method: str, params: Mapping[str, Any], then: Callable[[Any], Any], failed: Callable[[str], Any]
    ) -> None:
        """Any other request of the worker; the answer comes in a later tick. Raises WorkerMissing."""
        self.start().request(method, params, then, failed)

    # --- jobs -----------------------------------------------------------------------------------------------------

    def submit(self, key: str, wish: Wish, home: str, delivery: Mapping[str, Any] | None = None) -> Job:
        """Have a new clip made, in a folder under `home`; delivery: see Job. Raises WorkerMissing."""
        self.start()
        self.jobs[key] = job = Job(key, wish, home, delivery=dict(delivery or {}))
        self._send(job)
        return job

    def attach(self, key: str, wish: Wish, home: str, name: str, is_resuming: bool = True) -> Job:
        """Take up a job of an earlier session, or of another: show it, follow it, and go on with it if it has stopped.

        is_resuming: also with one that has failed or was cancelled. Raises WorkerMissing.
        """
        job = self.jobs.get(key)
        if job is not None and job.is_active:
            return job
        client = self.start()
        if job is None:
            job = self.jobs[key] = Job(key, wish, home, name)
        job.home, job.id, job.state, job.message = home, name, "planning", ""
        client.request(
            "attach",
            {"job": name, "home": home},
            then=lambda answer: self._attached(job, answer, is_resuming),
            failed=lambda sentence: self._fail(job, sentence),
        )
        return job

    def show(self, job: Job) -> None:
        """Take up a job that is done, from its folder alone; no worker is needed for that."""
        self.jobs[job.key] = job
        self._read_done(job)
        self._changed.add(job.key)

    def cancel(self, key: str, free: bool = False) -> None:
        """Stop a job. free: give the model's memory back too."""
        job = self.jobs[key]
        if not job.is_active:
            return
        if job.is_elsewhere and self._client is not None:
            job.message = "stopping"
            request = {"job": job.id, "home": job.home}  # without the client's ladder, which would end our own worker
            self._client.request("cancel", request, failed=lambda sentence: self._fail_to_stop(job, sentence))
        elif not job.id:  # should it have been sent already, it is cancelled as soon as it has a name
            job.state, job.message = "cancelled", "it was cancelled"
        elif self._client is not None:
            job.message = "stopping"
            self._client.cancel(job.id, free=free, home=job.home)
        self._changed.add(key)

    def _fail_to_stop(self, job: Job, sentence: str) -> None:
        job.message = sentence
        self._changed.add(job.key)

    def retry(self, key: str) -> None:
        """Go on where it stopped, or begin anew when its folder is gone. Raises WorkerMissing."""
        job = self.jobs[key]
        if job.is_active:
            return
        if job.id and (job.folder / "shot.json").is_file():
            self.attach(key, job.wish, job.home, job.id)
            return
        self.start()
        job.id, job.state, job.message, job.frames = "", "planning", "", 0
        self._send(job)

    def forget(self, key: str) -> None:
        """Out of the list; its folder and what shows it stay."""
        if not self.jobs[key].is_active:
            del self.jobs[key]

    def ask_quote(self, wish: Wish, home: str) -> None:
        """Have `quote` say what a wish would cost. Raises WorkerMissing."""
        quote = Quote(wish)
        client = self.start()

        def refused(sentence: str) -> None:
            quote.message = sentence
            self.quote = quote

        def priced(answer: dict[str, Any]) -> None:
            quote.shot, quote.seconds, quote.bytes = answer["shot"], answer["seconds"], answer["bytes"]
            quote.is_measured = answer["measured"]
            self.quote = quote

        def planned() -> None:
            made = plan(wish, self.limits[wish["model"]])
            quote.length, quote.notes = made.length, made.notes
            request = {"shot": made.shot, "home": home, "fit": True, **speed(wish)}
            client.request("estimate", request, then=priced, failed=refused)

        self.with_limits(wish["model"], planned, refused)

    def tick(self) -> set[str]:
        """Read what has come. Returns the keys of the jobs that have changed since the last tick."""
        if self._client is not None:
            for event in self._client.tick():
                self._take(event)
            self._poll()
        changed, self._changed = self._changed, set()
        return changed

    # --- requests -------------------------------------------------------------------------------------------------

    def with_limits(self, model: str, then: Callable[[], None], failed: Callable[[str], None]) -> None:
        """Call `then` once the model's limits are known, now or in a later tick. The worker has been started."""
        if model in self.limits:
            then()
            return

        def known(answer: dict[str, Any]) -> None:
            self.limits[model] = answer["models"][0]
            then()

        assert self._client is not None
        self._client.request("models", {"model": model}, then=known, failed=failed)

    def _send(self, job: Job) -> None:
        client = self._client
        assert client is not None
        self._changed.add(job.key)

        def refused(sentence: str) -> None:
            self._fail(job, sentence)

        def planned() -> None:
            if job.state != "planning":
                return  # cancelled meanwhile
            made = plan(job.wish, self.limits[job.wish["model"]])
            job.shot, job.length, job.notes = made.shot, made.length, list(made.notes)
            request = {"shot": made.shot, "home": job.home, "fit": True, **speed(job.wish), **job.delivery}
            client.request("submit", request, then=lambda answer: self._accepted(job, answer), failed=refused)

        self.with_limits(job.wish["model"], planned, refused)

    def _accepted(self, job: Job, answer: dict[str, Any]) -> None:
        job.id, job.shot, job.is_elsewhere = answer["job"], answer["shot"], False
        self._changed.add(job.key)
        if job.state == "cancelled" and self._client is not None:
            self._client.cancel(job.id, home=job.home)
            return
        job.state, job.message = "queued", ""
        for event in self._early.pop(job.id, []):
            self._take(event)

    def _attached(self, job: Job, answer: dict[str, Any], is_resuming: bool) -> None:
        job.shot, job.frames = answer["shot"], len(answer["frames"])
        state, ending = answer["state"], answer["ending"] or {}
        job.message, job.patterns = ending.get("message", ""), list(ending.get("patterns", ()))
        self._changed.add(job.key)
        stopped = ("interrupted", "queued", *(("failed", "cancelled") if is_resuming else ()))
        if state in stopped and self._client is not None and (is_resuming or self._is_harmless(job)):
            job.state, job.is_elsewhere, job.message = "queued", False, ""
            self._client.request(
                "resume",
                {"job": job.id, "home": job.home},
                then=lambda answer: self._accepted(job, answer),
                failed=lambda sentence: self._fail(job, sentence),
            )
            return
        job.state, job.is_elsewhere = state, state == "running"
        if state == "done":
            self._read_done(job)

    def _is_harmless(self, job: Job) -> bool:
        """Whether going on writes into the job's folder only. A scene from elsewhere must not write where it likes."""
        try:
            return json.loads((job.folder / "shot.json").read_text(encoding="utf-8")).get("outputs") == []
        except (OSError, ValueError, AttributeError):
            return False

    def _fail(self, job: Job, sentence: str) -> None:
        job.state, job.message = "failed", sentence
        self._changed.add(job.key)

    def _poll(self) -> None:
        """Look again at the jobs that a worker of another session is finishing."""
        now = self._now()
        if now < self._next_poll or self._client is None:
            return
        self._next_poll = now + POLL
        for job in self.jobs.values():
            if job.is_elsewhere and job.is_active:
                self._look_again(self._client, job)

    def _look_again(self, client: Client, job: Job) -> None:
        client.request(
            "attach",
            {"job": job.id, "home": job.home},
            then=lambda answer: self._attached(job, answer, False),
            failed=lambda sentence: self._fail(job, sentence),
        )

    # --- what comes -----------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        kind, fields = event
        if kind == "ready":
            self.worker = f"Rushes {fields['rushes']} is ready ({', '.join(fields['devices'])})"
        elif kind == "died":
            self._died(fields)
        elif kind in ("garbage", "refused"):
            self.worker = fields["message"]
        elif name := fields.get("job"):
            job = next((job for job in self.jobs.values() if job.id == name and not job.is_elsewhere), None)
            if job is None:
                self._early.setdefault(name, []).append(event)
            else:
                self._tell(job, kind, fields)
                self._changed.add(job.key)

    def _tell(self, job: Job, kind: str, fields: dict[str, Any]) -> None:
        if kind == "started":
            job.state = "running"
        elif kind == "progress":
            job.state, job.phase = "running", fields["phase"]
            job.step, job.steps, job.remaining = fields["step"], fields["steps"], fields["remaining"]
        elif kind == "frame":
            job.frames = max(job.frames, fields["number"])
        elif kind == "preview":
            job.preview = fields["path"]
        elif kind == "named":
            job.patterns = list(fields["outputs"])
        elif kind == "note":
            job.notes = [*job.notes, fields["message"]][-MAX_NOTES:]
        elif kind == "done":
            job.frames, job.message, job.patterns = fields["frames"], "", list(fields["patterns"])
            self._read_done(job)
        elif kind == "failed":
            job.state, job.message = "cancelled" if fields["cancelled"] else "failed", fields["message"]

    def _read_done(self, job: Job) -> None:
        job.state, job.phase, job.remaining = "done", "", 0.0
        try:
            ending = json.loads((job.folder / "done.json").read_text(encoding="utf-8"))
            job.frames, job.record = ending["frames"], ending["record"]
        except (OSError, ValueError, KeyError) as error:
            job.notes = [*job.notes, f"done.json cannot be read ({error}); the model's digest is not known"]

    def _died(self, fields: dict[str, Any]) -> None:
        self.worker, self.log = fields["message"], fields["log"]
        self._interrupt(fields["message"])

    def _interrupt(self, sentence: str) -> None:
        for job in self.jobs.values():
            if job.is_active:
                job.state, job.message = "interrupted", sentence
                self._changed.add(job.key)
