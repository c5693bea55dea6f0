# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What lasts as long as Nuke runs: the controller of jobs, what the worker has told, and how both reach the nodes.

All of it lives on the main thread. `tick` reads what has come and brings nodes to it; the pump posts it while something
is to be expected, and `nuke -t` calls it in a loop of its own.
"""

from __future__ import annotations

import atexit
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import nuke

from . import host, knobs, places, preferences, readers, speed, takes
from .pump import Bar, Pump
from .ranges import describe
from .refusal import Refusal
from .vendor.client import Client, WorkerMissing, find_worker
from .vendor.controller import ACTIVE, Controller, Job
from .vendor.plan import describe_bytes, describe_error, describe_time, plan

QUIET = 0.4  # seconds after the last change of a knob before its cost is asked for
LINGER = 3.0  # seconds that the pump goes on after the last sign of something to do
REFUSALS = (Refusal, WorkerMissing, OSError)


class Session:
    """One in a process; see session()."""

    def __init__(self) -> None:
        self.controller = Controller(_connect)
        self.answer: dict[str, Any] | None = None  # to `colorspaces`
        self.models: list[str] = []  # the worker's own, by name
        self.message = ""  # for the panel
        self.pump = Pump(self.tick_posted, self._has_news, self.cancel)
        self._client: Client | None = None  # whose answers these are
        self._pending: list[tuple[Callable[[], None], Callable[[str], None]]] = []  # until the worker is ready
        self._quote_due: dict[str, float] = {}  # full name of a node -> when to ask
        self._quote_of = ""
        self._shown: Any = None  # the quote that a node shows
        self._last_need = 0.0
        self._dirty: set[str] = set()  # keys of jobs that nodes are to be brought to, changed or not
        self._errands = 0  # threads whose result is to come
        self.results: list[Callable[[], None]] = []  # of errands; appended by their threads

    # --- the worker ---------------------------------------------------------------------------------------------------

    @property
    def spaces(self) -> list[dict[str, Any]]:
        return self.answer["colorspaces"] if self.answer is not None else []

    def when_ready(self, then: Callable[[], None], failed: Callable[[str], None]) -> None:
        """Call `then` once the worker has said what it has: now, or in a later tick. Raises WorkerMissing, Refusal."""
        self.controller.start()
        self._pending.append((then, failed))
        self._settle_pending()
        self.need()

    def with_limits(self, name: str, then: Callable[[str], None], failed: Callable[[str], None]) -> None:
        """As when_ready, with a model's limits known too. `then` gets its name: the worker's first model for ""."""

        def ready() -> None:
            model = name or self.models[0]
            self.controller.with_limits(model, lambda: attempt(lambda: then(model), failed), failed)

        self.when_ready(ready, failed)

    def _settle_pending(self) -> None:
        controller = self.controller
        if not controller.is_running:
            self._fail_pending(controller.worker or "the worker has ended")
            return
        if controller.is_ready and controller.client is not self._client:
            self._client = controller.client
            assert self._client is not None and self._client.hello is not None
            models = self._client.hello["models"]
            controller.limits.update({model["name"]: model for model in models})
            self.answer, self.models = None, [model["name"] for model in models]
            controller.ask("colorspaces", {}, self._answered, self._fail_pending)
        if controller.is_ready and self.answer is not None:
            pending, self._pending = self._pending, []
            for then, failed in pending:
                attempt(then, failed)

    def _fail_pending(self, sentence: str) -> None:
        pending, self._pending = self._pending, []
        for _, failed in pending:
            failed(sentence)

    def _answered(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        with host.no_undo():
            for tagged in takes.tagged_nodes():
                self.fill(tagged.node)

    def fill(self, node: Any) -> None:
        """What the worker has, as far as it is known, into a node's menus."""
        knobs.fill(node, self.models, self.answer)
        speed.offer(node, self.controller.is_on_cuda)

    def _say(self, sentence: str) -> None:
        self.message = sentence

    # --- the heartbeat ------------------------------------------------------------------------------------------------

    def need(self) -> None:
        """Something is to be expected from now on."""
        self._last_need = time.monotonic()
        if host.is_gui():
            self.pump.wake()

    def _has_news(self) -> bool:
        client = self.controller.client
        return bool(self.results) or (client is not None and client.has_news)

    def tick_posted(self) -> None:
        """For the pump: Nuke prints what a posted call raises, and nobody reads that."""
        try:
            self.tick()
        except Exception as error:
            traceback.print_exc()
            self.message = f"{type(error).__name__}: {error}; the console has the rest"

    def tick(self) -> None:
        """Read what has come, and bring the nodes to it."""
        changed, self._dirty = self.controller.tick() | self._dirty, set()
        while self.results:
            self._errands -= 1
            self.results.pop(0)()
        self._settle_pending()
        if changed:
            with host.no_undo():
                for tagged in list(takes.tagged_nodes()):
                    self._sync(tagged, changed)
        self._ask_quote()
        self._show_quote()
        self._update_pump()

    def run_until(self, is_over: Callable[[], Any]) -> None:
        """`nuke -t`: nothing posted runs while a script does, so the script does it itself."""
        while not is_over():
            self.tick()
            time.sleep(0.02)

    def errand(self, work: Callable[[], Callable[[], None]]) -> None:
        """Have a thread do what takes its time; what it returns runs on the main thread in a later tick."""
        self._errands += 1
        threading.Thread(target=lambda: self.results.append(work()), name="rushes errand", daemon=True).start()
        self.need()
        if not host.is_gui():
            self.run_until(lambda: not self._errands)

    def _update_pump(self) -> None:
        jobs = [job for job in self.controller.jobs.values() if job.is_active]
        self.pump.bars = tuple(_bar(job) for job in jobs)
        if jobs or self._pending or self._quote_due or self._errands:
            self._last_need = time.monotonic()
        self.pump.is_needed = time.monotonic() - self._last_need < LINGER

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _sync(self, tagged: takes.Tagged, changed: set[str]) -> None:
        """Bring one node to what its jobs have made."""
        shown = tagged.take
        for take in tagged.data["takes"]:
            job = self.controller.jobs.get(take["key"])
            if job is None or job.key not in changed:
                continue
            takes.update(take, job)
            if shown is not None and take is shown:
                self._show(tagged.node, take, job)
        takes.write(tagged)

    def _show(self, node: Any, take: takes.Take, job: Job) -> None:
        said = describe_job(job)
        try:
            if job.state == "done" and take["pattern"]:
                if not take["is_shown"]:
                    readers.show_plate(node, take, self.spaces)
                    take["is_shown"] = True
            elif job.frames and job.id:
                readers.show_frames(node, take, job.folder, job.frames, self.spaces)
        except Refusal as error:
            said = str(error)
        tell(node, said)

    def show_take(self, tagged: takes.Tagged) -> None:
        """Have a node show its chosen take, as one step of undo. Raises Refusal."""
        take = tagged.take
        if take is None:
            raise Refusal("version: this node has made no plate; Generate makes one")
        if take["state"] == "done":
            readers.show_plate(tagged.node, take, self.spaces)
            take["is_shown"] = True
        takes.write(tagged)
        tell(tagged.node, describe_take(take))

    def cancel(self, key: str) -> None:
        if key in self.controller.jobs:
            self.controller.cancel(key)
            self.need()

    # --- the price ----------------------------------------------------------------------------------------------------

    def want_quote(self, node: Any) -> None:
        self._quote_due[node.fullName()] = time.monotonic() + QUIET
        self.need()

    def _ask_quote(self) -> None:
        now = time.monotonic()
        for name, due in list(self._quote_due.items()):
            if now < due:
                continue
            del self._quote_due[name]
            node = nuke.toNode(name)
            if node is not None and takes.read(node) is not None:
                try:
                    self._ask_for(node, name)
                except REFUSALS as error:
                    _plan(node, describe_error(error))

    def _ask_for(self, node: Any, name: str) -> None:
        wish = knobs.wish(node, knobs.model(node))
        if not wish["prompt"].strip():
            return

        def known(model: str) -> None:
            self._quote_of = name
            self.controller.ask_quote({**wish, "model": model}, places.jobs_home())

        self.with_limits(wish["model"], known, lambda sentence: _plan(node, sentence))

    def _show_quote(self) -> None:
        """What would come out, and what it would cost, on the node that it was asked for."""
        quote = self.controller.quote
        if quote is None or quote is self._shown:
            return
        self._shown = quote
        node = nuke.toNode(self._quote_of)
        if node is None:
            return
        if quote.message:
            _plan(node, quote.message)
            return
        limits = self.controller.limits[quote.wish["model"]]
        try:
            said = describe(knobs.start(node), plan(quote.wish, limits), quote.wish, limits, host.script_rate())
        except Refusal as error:
            _plan(node, str(error))
            return
        about = "" if quote.is_measured else "about "
        said.append(f"{about}{describe_time(quote.seconds)}, {describe_bytes(quote.bytes)} of memory")
        _plan(node, "; ".join(said))

    # --- scripts ------------------------------------------------------------------------------------------------------

    def after_load(self) -> None:
        """Take up the jobs on the nodes of a script that has just been opened. What stopped waits for Re-attach."""
        for tagged in list(takes.tagged_nodes()):
            with host.no_undo():
                self.fill(tagged.node)
            if any(take["state"] in ACTIVE for take in tagged.data["takes"]):  # else no worker is started for it
                try:
                    self.reattach(tagged, is_resuming=False)
                except REFUSALS as error:
                    with host.no_undo():
                        tell(tagged.node, describe_error(error))

    def reattach(self, tagged: takes.Tagged, is_resuming: bool) -> int:
        """Follow a node's jobs again, and go on with those that stopped. Returns how many. Raises WorkerMissing."""
        count = 0
        for take in tagged.data["takes"]:
            known = self.controller.jobs.get(take["key"])
            if take["state"] == "done" and take["is_shown"]:
                continue
            count += 1
            if known is not None and (known.is_active or known.state == "done"):
                self._dirty.add(known.key)  # undo has made the node forget it
            elif take["job"]:
                job = self.controller.attach(take["key"], take["wish"], take["home"], take["job"], is_resuming)
                job.length, job.delivery = take["length"], dict(take["delivery"])
            elif is_resuming:
                self.controller.submit(take["key"], take["wish"], take["home"], take["delivery"])
            else:
                with host.no_undo():
                    tell(tagged.node, "Nuke ended before the worker had it; Re-attach asks for it again")
        if count:  # the plate's colour is looked up when it is shown
            self.when_ready(lambda: None, self._say)
        return count


def attempt(work: Callable[[], Any], failed: Callable[[str], None]) -> None:
    """In what a tick calls, a refusal is a sentence: nobody is there to catch it."""
    try:
        work()
    except REFUSALS as error:
        failed(describe_error(error))


def tell(node: Any, sentence: str) -> None:
    """The node's status line."""
    host.set_if_other(node["status"], escape(sentence, quote=False) or " ")


def _plan(node: Any, sentence: str) -> None:
    with host.no_undo():
        host.set_if_other(node["plan"], escape(sentence, quote=False) or " ")


def describe_job(job: Job) -> str:
    """Where a job stands, in a sentence."""
    if job.state == "running":
        what = {"text": "reading the prompt", "denoise": "denoising", "decode": "decoding"}.get(job.phase, "starting")
        left = f", {describe_time(job.remaining)} left" if job.remaining else ""
        steps = f" {job.step} of {job.steps}" if job.steps else ""
        return f"{what}{steps}{left}" + (f"; {job.message}" if job.message else "")
    if job.state == "done":
        return "; ".join([f"done: {job.patterns[0] if job.patterns else job.folder}", *job.notes])
    return f"{job.state}: {job.message}" if job.message else job.state


def describe_take(take: Mapping[str, Any]) -> str:
    return f"{take['state']}: {take['pattern'] or take['message'] or take['wish']['prompt']}"


def _bar(job: Job) -> Bar:
    title = f"Rushes: {job.wish['prompt'][:40]}, seed {job.wish['seed']}"
    return Bar(job.key, title, round(100 * job.done_share), describe_job(job))


def _connect() -> Client:
    values, folder = preferences.get(), places.user_folder()
    worker, log = find_worker(values.worker), folder / "worker.log"
    return Client(worker, folder / "jobs", list(values.paths), log, memory=values.memory)


_session: Session | None = None


def session() -> Session:
    """The one of this process; made when it is first needed."""
    global _session
    if _session is None:
        _session = Session()
        atexit.register(end)
    return _session


def end() -> None:
    """Let go of the worker, which finishes what it has accepted."""
    global _session
    if _session is not None:
        _session.pump.end()
        _session.controller.close()
        _session = None
