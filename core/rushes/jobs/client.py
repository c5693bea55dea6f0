# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The host's side of the pipe: starts a worker, sends requests, hands over what comes back. Never blocks.

Standard library only, Python 3.9 to 3.14: hosts vendor this file and wire.py. Two threads move bytes; everything that
the host sees happens in `tick()`, on the thread that calls it, so a host calls it from its own timer.

    client = Client(find_worker(), home)
    client.start()
    client.request("submit", {"shot": {"prompt": "a red ball"}}, then=submitted, failed=show)
    for event in client.tick(): ...          # every 50 ms
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    from rushes.jobs.wire import PROTOCOL, WireError, encode, read
except ImportError:  # vendored into a host, which has no rushes
    from .wire import PROTOCOL, WireError, encode, read

WORKER_VARIABLE = "RUSHES_WORKER"
# Of the host's own interpreter and libraries; a worker with another Python must not load them.
_HOST_ONLY = ("PYTHON", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_", "QT_", "QML")
# Under these names stand paths, and nothing else does
_PATHS = ("path", "folder", "frames", "outputs", "patterns", "image", "mask", "references", "home", "model")
SILENT = 20.0  # seconds without a sign of life after which a worker counts as stuck
PATIENCE = (3.0, 3.0)  # seconds from asking to SIGINT, and from there to killing
LOG_LINES = 12


class Event(NamedTuple):
    """What has happened. kind: ready, refused (hello), died, stuck, garbage, or a notification's name (progress,
    preview, frame, named, done, failed, note, started); fields: its parameters, paths as this host sees them."""

    kind: str
    fields: dict[str, Any]


class WorkerMissing(RuntimeError):
    """There is no worker that can be started. The sentence says where one was looked for, or why not."""


def find_worker(preference: str = "", environment: Mapping[str, str] | None = None) -> str:
    """The `rushes` executable: the host's preference, RUSHES_WORKER, PATH, or where people put virtual environments.

    Raises WorkerMissing; a preference or variable that names nothing is an error and not passed over.
    """
    environment = os.environ if environment is None else environment
    for source, named in (("the preference", preference), (WORKER_VARIABLE, environment.get(WORKER_VARIABLE, ""))):
        if named:
            found = shutil.which(os.path.expanduser(named), path=environment.get("PATH", ""))
            if found is None:
                raise WorkerMissing(f"worker: {source} names {named!r}; an executable file is allowed")
            return found
    name = "rushes.exe" if os.name == "nt" else "rushes"
    if on_path := shutil.which("rushes", path=environment.get("PATH", "")):
        return on_path
    looked = [place / name for place in _usual_places(environment)]
    for candidate in looked:
        if os.access(candidate, os.X_OK):
            return str(candidate)
    raise WorkerMissing(
        f"worker: no `rushes` on PATH nor in {', '.join(str(path.parent) for path in looked)}; "
        f"`pip install rushes` brings it, then name it in the preferences or in {WORKER_VARIABLE}"
    )


def _usual_places(environment: Mapping[str, str]) -> Iterator[Path]:
    inside = "Scripts" if os.name == "nt" else "bin"
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if environment.get(variable):
            yield Path(environment[variable]) / inside
    home = Path(environment.get("HOME") or environment.get("USERPROFILE") or Path.home())
    for folder in ("rushes/.venv", "rushes/venv", ".rushes", ".venv", "venv", ".local/share/rushes/venv"):
        yield home / folder / inside
    yield home / ".local" / "bin"


class Client:
    """One worker process, and what was asked of it.

    command: the executable, or a whole command line. home: where job folders live. paths: (worker's prefix, host's
    prefix) for a worker that sees the same files under other names. log: where the worker's own words go. memory:
    gigabytes of the device that the worker keeps to, such as "8"; "" for most of what it has.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        home: str | Path,
        paths: Sequence[tuple[str, str]] = (),
        log: str | Path | None = None,
        silent: float = SILENT,
        patience: tuple[float, float] = PATIENCE,
        memory: str = "",
    ) -> None:
        self.home = Path(home)
        self.log = Path(log) if log is not None else self.home / "worker.log"
        self.hello: dict[str, Any] | None = None  # the worker's answer, once it is ready
        self.is_stuck = False  # no sign of life for `silent` seconds
        self._command = [command] if isinstance(command, str) else list(command)
        self._paths, self._silent, self._patience = list(paths), silent, patience
        self._limits = ["--memory", memory] if memory else []
        self._process: subprocess.Popen[bytes] | None = None
        self._came: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._going: queue.Queue[bytes | None] = queue.Queue()
        self._waiting: dict[int, tuple[Callable[[Any], Any], Callable[[str], Any]]] = {}
        self._number = 0
        self._log_start = 0
        self._heard = 0.0
        self._ended = 0.0  # when its output ended, before its process does
        self._refusal = ""  # of hello
        self._cancels: dict[str, tuple[float, int]] = {}  # job -> when to go on, steps done

    # --- life -------------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the worker; `ready` comes with a later tick. Raises WorkerMissing when it cannot be started at all."""
        if self.is_running:
            return
        try:
            self._process = self._spawn()
        except OSError as error:
            what = error.filename or self._command[0]
            raise WorkerMissing(
                f"worker: {what} cannot be used ({error.strerror or error}); the executable `rushes` and a folder that "
                "can be written are allowed"
            ) from error
        self.hello, self._refusal, self.is_stuck, self._heard = None, "", False, time.monotonic()
        self._ended = 0.0
        self._came, self._going = queue.Queue(), queue.Queue()
        for work, name in ((self._read, "rushes reader"), (self._write, "rushes writer")):
            threading.Thread(target=work, args=(self._process, self._came, self._going), name=name, daemon=True).start()
        self.request("hello", {"protocol": PROTOCOL}, then=self._ready, failed=self._refused)

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        places = ["--home", self._theirs(str(self.home)), "--log", self._theirs(str(self.log))]
        options: dict[str, Any] = {"start_new_session": True}  # a Ctrl-C in the host's terminal is not the worker's
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        with self.log.open("ab") as errors:  # for what is said before the worker has opened its log
            return subprocess.Popen(
                [*self._command, "worker", *places, *self._limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=clean_environment(),
                **options,
            )

    def close(self) -> None:
        """Let go: the worker finishes what it has accepted, then exits."""
        self._going.put(None)
        self._waiting.clear()

    def kill(self) -> None:
        """End the worker and what it started, now. Its jobs can be resumed."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        if os.name == "nt":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        else:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    # --- requests ---------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        then: Callable[[Any], Any] = lambda result: None,
        failed: Callable[[str], Any] = lambda sentence: None,
    ) -> None:
        """Ask the worker. The answer comes in a later tick: then(result), or failed(sentence for the artist)."""
        self._number += 1
        self._waiting[self._number] = (then, failed)
        message = {
            "jsonrpc": "2.0",
            "id": self._number,
            "method": method,
            "params": _mapped(params or {}, self._theirs),
        }
        self._going.put(encode(message))

    @property
    def has_news(self) -> bool:
        """Whether something has come that the next tick would hand over. May be asked on any thread."""
        return not self._came.empty()

    def cancel(self, job: str, free: bool = False, home: str = "") -> None:
        """Stop a job: by asking, then by a signal, then by killing the worker; each step waits for the one before.

        free: give the model's memory back as well. home: where the job lives, if not in the worker's own.
        """
        self._cancels.setdefault(job, (time.monotonic() + self._patience[0], 0))
        request = {"job": job, "free": free, **({"home": home} if home else {})}
        self.request("cancel", request, failed=lambda sentence: self._cancels.pop(job, None))

    def tick(self) -> list[Event]:
        """All that has come since the last tick. Callbacks of requests are called from here."""
        events: list[Event] = []
        while True:
            try:
                kind, content = self._came.get_nowait()
            except queue.Empty:
                break
            self._heard, self.is_stuck = time.monotonic(), False
            if kind == "message":
                self._take(content, events)
            elif kind == "garbage":
                events.append(Event("garbage", {"message": content}))
            elif kind == "end":
                self._ended = time.monotonic()
        self._watch(events)
        return events

    def _take(self, message: dict[str, Any], events: list[Event]) -> None:
        if "method" in message:
            fields = _mapped(message.get("params") or {}, self._ours)
            if message["method"] in ("done", "failed"):
                self._cancels.pop(fields.get("job", ""), None)
            if message["method"] != "heartbeat":
                events.append(Event(message["method"], fields))
            return
        then, failed = self._waiting.pop(message.get("id") or 0, (None, None))
        if then is None or failed is None:
            return
        is_new = not self._refusal
        if "error" in message:
            failed(str(message["error"].get("message", "the worker gave no reason")))
        else:
            before = self.hello
            then(_mapped(message.get("result"), self._ours))
            if before is None and self.hello is not None:
                events.append(Event("ready", self.hello))
        if is_new and self._refusal:
            events.append(Event("refused", {"message": self._refusal}))

    def _ready(self, answer: dict[str, Any]) -> None:
        if answer.get("protocol") != PROTOCOL:
            self._refused(
                f"protocol: the worker speaks {answer.get('protocol')!r}, this host {PROTOCOL}; update the older one"
            )
            return
        self.hello = answer

    def _refused(self, sentence: str) -> None:
        self._refusal = sentence
        self.close()

    def _died(self, events: list[Event], status: int) -> None:
        self._ended = 0.0
        waiting, self._waiting = self._waiting, {}
        self._cancels.clear()
        tail = self._tail()
        when = "" if self.hello else f" before it was ready, which was started as {self._command[0]!r}"
        sentence = f"the worker has ended ({_status(status)}){when}"
        sentence += f"; its last words: {tail[-1]}" if tail else ""
        sentence = self._refusal or sentence
        for _, failed in waiting.values():
            failed(sentence)
        events.append(Event("died", {"message": sentence, "status": status, "log": tail}))

    def _watch(self, events: list[Event]) -> None:
        now = time.monotonic()
        status = None if self._process is None else self._process.poll()
        if self._ended:  # not waited for: a process that has closed its output may take its time, or for ever
            if status is not None:
                self._died(events, status)
            elif now - self._ended > self._patience[1]:
                self.kill()
            return
        if self._process is None or status is not None:
            return
        if not self.is_stuck and now - self._heard > self._silent:
            self.is_stuck = True
            events.append(Event("stuck", {"seconds": round(now - self._heard, 1)}))
        for job, (due, steps) in list(self._cancels.items()):
            if now < due:
                continue
            if steps == 0:
                self._interrupt()
                self._cancels[job] = (now + self._patience[1], 1)
            else:
                self.kill()

    def _interrupt(self) -> None:
        assert self._process is not None
        if sys.platform == "win32":
            self._process.send_signal(signal.CTRL_BREAK_EVENT)
        else:
            self._process.send_signal(signal.SIGINT)

    def _tail(self) -> list[str]:
        """The last lines that this worker has written to its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(min(self._log_start, file.seek(0, os.SEEK_END)))
                return file.read().decode("utf-8", "replace").strip().splitlines()[-LOG_LINES:]
        except OSError:
            return []

    # --- threads ----------------------------------------------------------------------------------------------

    @staticmethod
    def _read(process: Any, came: Any, going: Any) -> None:
        while True:
            try:
                message = read(process.stdout)
            except WireError as error:
                came.put(("garbage", str(error)))
                continue
            except (OSError, ValueError):
                message = None
            if message is None:
                going.put(None)
                came.put(("end", None))
                return
            came.put(("message", message))

    @staticmethod
    def _write(process: Any, came: Any, going: Any) -> None:
        try:
            while (data := going.get()) is not None:
                process.stdin.write(data)
                process.stdin.flush()
            process.stdin.close()
        except (OSError, ValueError):  # the worker is gone; the reader tells
            return

    # --- paths ------------------------------------------------------------------------------------------------

    def _theirs(self, path: str) -> str:
        return _swap(path, [(host, worker) for worker, host in self._paths])

    def _ours(self, path: str) -> str:
        return _swap(path, self._paths)


def clean_environment() -> dict[str, str]:
    """This process's environment without what belongs to the host's own interpreter and libraries."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(_HOST_ONLY)}


def _swap(path: str, table: Sequence[tuple[str, str]]) -> str:
    for before, after in ((before.rstrip("/\\"), after.rstrip("/\\")) for before, after in table):
        if path == before or path.startswith((before + "/", before + "\\")):
            rest = path[len(before) :]
            is_to_posix = after.startswith("/") and not before.startswith("/")  # where a backslash is part of a name
            return after + (rest.replace("\\", "/") if is_to_posix else rest)
    return path


def _mapped(value: Any, change: Callable[[str], str], name: str = "") -> Any:
    """The value with every path in it changed, see _PATHS."""
    if isinstance(value, Mapping):
        return {key: _mapped(item, change, key) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change, name) for item in value]
    return change(value) if name in _PATHS and isinstance(value, str) else value


def _status(status: int) -> str:
    if status < 0 and sys.platform != "win32":
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
