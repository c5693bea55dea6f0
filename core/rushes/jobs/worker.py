# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The worker: makes jobs for a host that talks to it over a pipe, and outlives that host.

Standard input carries requests, the process's own standard output answers and notifications (wire.py, pipe.py). No port
is opened. When standard input ends, the host is gone: what was accepted is finished, then the worker exits.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from rushes._version import __version__
from rushes.jobs.folder import Job, JobError, create_job, find_job, list_jobs, not_writable
from rushes.jobs.pipe import Pipe, private_output, receive
from rushes.jobs.priority import step_behind
from rushes.jobs.warm import Engines
from rushes.jobs.wire import PROTOCOL, Message, WireError
from rushes.shot import Shot, ShotError
from rushes.speed import Speed

HEARTBEAT = 2.0  # seconds
IDLE = 300.0  # seconds after which the model's memory is given back
SLOW = ("record",)  # reads all of a model's weights; a cancel must not wait behind it
PARSE_ERROR, INVALID_REQUEST, NO_METHOD, BAD_PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603


class Worker:
    """One queue, one running job. serve() answers on the calling thread while jobs run on another."""

    def __init__(
        self, home: Path, pipe: Pipe, device: str | None = None, idle: float = IDLE, memory: int | None = None
    ) -> None:
        self.home, self._pipe, self._idle = home, pipe, idle
        self._engines = Engines(device, memory)
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._accepted: dict[str, threading.Event] = {}  # id -> its cancel event, queued or running
        self._free_after: set[str] = set()
        self._lock = threading.RLock()  # a signal's handler takes it on the thread that may hold it just then
        self._running = ""
        self._methods: dict[str, Callable[[dict[str, Any]], Any]] = {
            "hello": self._hello, "submit": self._submit, "resume": self._resume, "cancel": self._cancel,
            "jobs": self._jobs, "attach": self._attach, "models": self._models, "estimate": self._estimate,
            "free": self._free, "shutdown": self._shutdown, "record": self._record, "colorspaces": self._colorspaces,
        }  # fmt: skip

    def serve(self, stream: BinaryIO) -> None:
        """Until standard input ends or `shutdown`; then the accepted jobs are finished."""
        maker = threading.Thread(target=self._make_jobs, name="rushes jobs", daemon=True)
        maker.start()
        threading.Thread(target=self._beat, name="rushes heartbeat", daemon=True).start()
        inbox: queue.Queue[Message | WireError | None] = queue.Queue()
        threading.Thread(target=receive, args=(stream, inbox), name="rushes reader", daemon=True).start()
        self._stream_open = True
        while self._stream_open:
            try:
                came = inbox.get(timeout=0.2)  # not for ever: a signal is handled on this thread, between two waits
            except queue.Empty:
                continue
            if isinstance(came, WireError):
                self._pipe.send({"id": None, "error": {"code": PARSE_ERROR, "message": str(came)}})
            elif came is None:
                break
            else:
                self._take(came)
        self._queue.put(None)
        while maker.is_alive():  # join() without a time limit would keep Ctrl-C waiting
            maker.join(0.2)

    def interrupt(self) -> None:
        """Ctrl-C: stop what runs. Its state is kept."""
        with self._lock:
            if event := self._accepted.get(self._running):
                event.set()

    # --- requests ---------------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        if message.get("method") in SLOW:
            threading.Thread(target=self._answer, args=(message,), name="rushes answer", daemon=True).start()
        else:
            self._answer(message)

    def _answer(self, message: Message) -> None:
        method, number = message.get("method"), message.get("id")
        params = message.get("params") or {}
        try:
            if not isinstance(method, str) or not isinstance(params, dict):
                raise _RpcError(INVALID_REQUEST, "got no method and parameters by name; they are needed")
            if method not in self._methods:
                raise _RpcError(NO_METHOD, f"method: got {method!r}; {', '.join(self._methods)} are allowed")
            answer: dict[str, Any] = {"result": self._methods[method](params)}
        except _RpcError as error:
            answer = {"error": {"code": error.code, "message": str(error)}}
        except ShotError as error:
            answer = {"error": {"code": BAD_PARAMS, "message": str(error)}}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": {"code": INTERNAL, "message": f"{type(error).__name__}: {error}"}}
        if "id" in message:
            self._pipe.send({"id": number, **answer})

    def _hello(self, params: dict[str, Any]) -> dict[str, Any]:
        if (theirs := params.get("protocol")) != PROTOCOL:
            raise _RpcError(
                BAD_PARAMS, f"protocol: the host speaks {theirs!r}, this worker {PROTOCOL}; update the older one"
            )
        from rushes.engine import find_device

        return {
            "protocol": PROTOCOL, "rushes": __version__, "pid": os.getpid(), "home": str(self.home),
            "heartbeat": HEARTBEAT, "models": self._models({})["models"], "devices": _devices(),
            "device": self._engines.device or str(find_device(None)),
        }  # fmt: skip

    def _submit(self, params: dict[str, Any]) -> dict[str, Any]:
        from rushes.jobs.delivery import check_delivery
        from rushes.media import seal_footage

        shot = Shot.from_dict(_taken(params, "shot", dict))
        outputs, plate = _taken(params, "outputs", list, []), _taken(params, "plate", dict, {})
        colorspace, overwrite = params.get("colorspace"), bool(params.get("overwrite"))
        speed = self._speed(params)
        shot = _model(shot).resolve(shot, bool(params.get("fit")))
        if shot.control:  # now: a host may change or take away the files while the job waits
            shot = seal_footage(shot)
        check_delivery(outputs, shot, colorspace, overwrite, plate)
        job = create_job(
            self._home(params), shot, outputs, colorspace=colorspace, overwrite=overwrite, plate=plate, speed=speed
        )
        self._accept(job)
        return self._about(job)

    def _speed(self, params: Mapping[str, Any]) -> Speed:
        """Raises ShotError, also for what the device cannot do."""
        speed = Speed.read(params)
        if speed.fp8_products:
            from rushes.engine import check_fp8_products, find_device

            check_fp8_products(find_device(self._engines.device))
        return speed

    def _resume(self, params: dict[str, Any]) -> dict[str, Any]:
        job = self._job(params)
        job.request()
        if job.state() in ("done", "running") or job.id in self._accepted:
            raise JobError(
                f"job: {job.id} is {self._about(job)['state']}; an interrupted, failed or cancelled job is allowed"
            )
        job.reopen()
        self._accept(job)
        return self._about(job)

    def _accept(self, job: Job) -> None:
        with self._lock:
            self._accepted[job.id] = threading.Event()
        self._queue.put(job)

    def _cancel(self, params: dict[str, Any]) -> dict[str, Any]:
        job = self._job(params)
        with self._lock:
            event = self._accepted.get(job.id)
            is_waiting = event is not None and job.id != self._running
            if is_waiting:
                del self._accepted[job.id]
            elif event is not None and params.get("free"):
                self._free_after.add(job.id)
        if event is None:
            if not job.is_running():
                raise JobError(f"job: {job.id} is {job.state()}; one that waits here or is being made is allowed")
            job.ask_to_stop()  # another worker has it, whose host may be gone
            return {"job": job.id}
        event.set()
        if is_waiting:  # it is told now, not when its turn comes: a host that hears nothing stops the running job
            sentence = "it was cancelled"
            job.fail(sentence, cancelled=True)
            job.append("cancelled", sync=True, message=sentence)
            told = {"job": job.id, "message": sentence, "cancelled": True, "traceback": ""}
            self._pipe.send({"method": "failed", "params": told})
        return {"job": job.id}

    def _jobs(self, params: dict[str, Any]) -> dict[str, Any]:
        rows = []
        for job in list_jobs(self._home(params)):
            try:
                rows.append(self._about(job))
            except ShotError as error:  # one folder from the future must not hide the others
                about = {"job": job.id, "folder": str(job.path), "state": "unreadable", "shot": None}
                rows.append({**about, "message": str(error)})
        return {"jobs": rows}

    def _attach(self, params: dict[str, Any]) -> dict[str, Any]:
        """What the job's folder holds; whatever this worker makes from now on comes as notifications anyway."""
        job = self._job(params)
        return {**self._about(job), "frames": [str(path) for path in job.frames()], "ending": job.ending()}

    def _home(self, params: dict[str, Any]) -> Path:
        """A host may keep a project's jobs beside the project: `home` in any request about jobs."""
        return Path(_taken(params, "home", str, str(self.home))).absolute()

    def _job(self, params: dict[str, Any]) -> Job:
        return find_job(self._home(params), _taken(params, "job", str))

    def _about(self, job: Job) -> dict[str, Any]:
        with self._lock:
            waiting = job.id in self._accepted and job.id != self._running
        state = "queued" if waiting else job.state()
        return {"job": job.id, "folder": str(job.path), "state": state, "shot": job.request()["shot"]}

    def _models(self, params: dict[str, Any]) -> dict[str, Any]:
        """The limits of the models on the shelf that can be used, or of one by name, folder or file."""
        from rushes.engine import Model, look

        if asked := _taken(params, "model", str, ""):
            return {"models": [Model.open(asked).limits()]}
        return {"models": [entry.limits for entry in look().entries if entry.is_ready]}

    def _estimate(self, params: dict[str, Any]) -> dict[str, Any]:
        from rushes.jobs.estimate import estimate

        shot, speed = Shot.from_dict(_taken(params, "shot", dict)), self._speed(params)
        model, engines = _model(shot), self._engines
        shot = model.resolve(shot, bool(params.get("fit")))
        return estimate(self._home(params), model, shot, engines.device, engines.memory, speed)

    def _record(self, params: dict[str, Any]) -> dict[str, Any]:
        """What one of our files says of itself, and whether it could be made again here."""
        from rushes.jobs.delivery import about_file

        return about_file(_taken(params, "path", str))

    def _colorspaces(self, params: dict[str, Any]) -> dict[str, Any]:
        """Those a plate can be written in, with every name that a host's own configuration may have for them."""
        from rushes.media.color import list_spaces
        from rushes.media.paths import COMPRESSIONS, DEPTHS
        from rushes.media.views import list_views

        choices = {"depths": DEPTHS, "compressions": COMPRESSIONS, "views": list_views()}
        return {"colorspaces": list_spaces(), **choices}

    def _free(self, params: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._running:
                raise JobError(f"free: {self._running} is being made; cancel it, or wait")
        return {"freed": self._engines.free()}

    def _shutdown(self, params: dict[str, Any]) -> dict[str, Any]:
        """now: cancel what was accepted; otherwise it is finished first."""
        self._stream_open = False
        if params.get("now"):
            with self._lock:
                for event in self._accepted.values():
                    event.set()
        return {"waits_for": len(self._accepted)}

    # --- jobs -------------------------------------------------------------------------------------------------

    def _make_jobs(self) -> None:
        used = time.monotonic()
        while True:
            try:
                job = self._queue.get(timeout=1.0)
            except queue.Empty:
                if time.monotonic() - used > self._idle:
                    self._engines.free()
                    used = time.monotonic()
                continue
            if job is None:
                return
            self._make(job)
            used = time.monotonic()

    def _make(self, job: Job) -> None:
        from rushes.jobs.runner import run_job

        with self._lock:
            if job.id not in self._accepted:  # cancelled while it waited
                return
            self._running, cancel = job.id, self._accepted[job.id]

        endings: list[dict[str, Any]] = []  # told when nothing is in the way of what a host asks for next: Retry

        def tell(name: str, **fields: Any) -> None:
            message = {"method": name, "params": {"job": job.id, **fields}}
            if name in ("done", "failed"):
                endings.append(message)
            else:
                self._pipe.send(message)
            if name == "failed":
                print(f"{job.id} failed: {fields['message']}\n{fields['traceback']}", file=sys.stderr, flush=True)

        try:
            run_job(job, self._engines.load, tell, cancel)
        except Exception as error:  # another process has it, or the folder is gone: the queue goes on
            tell("failed", message=str(error), cancelled=False, traceback=traceback.format_exc())
        with self._lock:
            self._running = ""
            del self._accepted[job.id]
            is_freeing = job.id in self._free_after
            self._free_after.discard(job.id)
        if is_freeing:
            self._engines.free()
        for message in endings:
            self._pipe.send(message)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            self._pipe.send({"method": "heartbeat", "params": {"job": self._running or None}})


class _RpcError(Exception):
    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def _taken(params: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = params.get(name, default)
    if not isinstance(value, kind):
        raise _RpcError(BAD_PARAMS, f"{name}: got {type(value).__name__}; {kind.__name__} is allowed")
    return value


def _model(shot: Shot) -> Any:
    from rushes.engine import Model

    return Model.open(shot.model)


def _devices() -> list[str]:
    import torch

    cards = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def run_worker(
    home: Path,
    log: Path | None = None,
    device: str | None = None,
    idle: float = IDLE,
    memory: int | None = None,
) -> None:
    """The command `rushes worker`. Returns when the host is gone and the accepted jobs are made."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        pipe = Pipe(private_output(log or home / "worker.log"))
    except OSError as error:
        raise not_writable(home, error) from error
    step_behind()
    worker = Worker(home, pipe, device, idle, memory)

    def stop(number: int, frame: FrameType | None) -> None:
        worker.interrupt()

    signal.signal(signal.SIGINT, stop)
    if hasattr(signal, "SIGBREAK"):
        signal.signal(signal.SIGBREAK, stop)
    # A copy: the reader may still wait in it when the interpreter ends, which it must not in sys.stdin
    worker.serve(os.fdopen(os.dup(0), "rb"))
