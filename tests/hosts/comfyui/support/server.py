# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A headless ComfyUI with our nodes, on a port of its own, in folders of its own; and what a frontend does with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .environment import ComfyUI
from .websocket import TEXT, WebSocket

HOST = "127.0.0.1"
FOLDERS = ("custom_nodes", "models", "input", "output", "user", "temp")
PREVIEW, PREVIEW_WITH_METADATA = 1, 4  # kinds of binary messages

Prompt = dict[str, dict[str, Any]]


def process_environment(package: Path) -> dict[str, str]:
    """For a process in ComfyUI's environment that imports rushes from a folder. One thread each: sums of another number
    of threads round otherwise, and threads that wait for a busy core wait long."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(package),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


@dataclass
class Run:
    """What a frontend saw of one prompt. progress: (value, max) by node; previews: encoded pictures by node."""

    end: str = ""
    error: dict[str, Any] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    executed: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    previews: dict[str, list[bytes]] = field(default_factory=dict)
    seconds: float = 0.0

    def ran(self, node: str) -> bool:
        return node not in self.cached


class Server:
    """ComfyUI as a process. base: its folders, which are made."""

    def __init__(self, comfyui: ComfyUI, base: Path, pack: Path, *arguments: str, package: Path | None = None) -> None:
        self.base = base
        for name in FOLDERS:
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "rushes").symlink_to(pack, target_is_directory=True)
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = free.getsockname()[1]
        self._log = base / "server.log"
        command = [
            str(comfyui.python), str(Path(__file__).with_name("boot.py")), "main.py", "--cpu", "--listen", HOST,
            "--port", str(self.port), "--base-directory", str(base), "--disable-auto-launch", "--disable-api-nodes",
            "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}", *arguments,
        ]  # fmt: skip
        environment = process_environment(comfyui.rushes if package is None else package)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=comfyui.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_until_up(self, seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the server has ended:\n{self.log[-4000:]}"
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise AssertionError(f"the server did not start in {seconds} s:\n{self.log[-4000:]}")

    def stop(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                try:
                    self.process.wait(10)
                except subprocess.TimeoutExpired:
                    continue

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=30) as answer:
            body = answer.read()
        return json.loads(body) if "json" in answer.headers.get("Content-Type", "") else body

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """HTTP status and the JSON that came back, None for an empty answer."""
        request = urllib.request.Request(
            f"http://{HOST}:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text else None

    def rss(self) -> int:
        """Bytes of memory that the server occupies."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def peak_rss(self) -> int:
        """Bytes that it has occupied at most, since its start or the last reset."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM"))) * 1024

    def reset_peak_rss(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


class Client:
    """A frontend: it submits prompts and listens to what becomes of them."""

    def __init__(self, server: Server) -> None:
        self.server, self._id = server, uuid.uuid4().hex
        self._socket = WebSocket(HOST, server.port, f"/ws?clientId={self._id}")
        self._socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))

    def close(self) -> None:
        self._socket.close()

    def submit(self, prompt: Prompt, workflow: Any = None) -> tuple[int, dict[str, Any]]:
        extra = {} if workflow is None else {"extra_data": {"extra_pnginfo": {"workflow": workflow}}}
        return self.server.post("/prompt", {"prompt": prompt, "client_id": self._id, **extra})

    def refused(self, prompt: Prompt) -> dict[str, str]:
        """The complaints of a prompt that must not run, by node and input: {"3.frames": "..."}."""
        status, body = self.submit(prompt)
        assert status == 400, f"/prompt answered {status}: {body}"
        return {
            f"{node}.{error['extra_info'].get('input_name', '')}": f"{error['message']}: {error['details']}"
            for node, found in body["node_errors"].items()
            for error in found["errors"]
        }

    def run(
        self,
        prompt: Prompt,
        timeout: float = 120,
        on_progress: Callable[[str, float], None] | None = None,
        workflow: Any = None,
    ) -> Run:
        """Submit and follow to the end. on_progress(node, value): with each progress event of a running node."""
        status, body = self.submit(prompt, workflow)
        assert status == 200 and not body.get("node_errors"), f"/prompt answered {status}: {json.dumps(body)[:3000]}"
        return self.follow(body["prompt_id"], timeout, on_progress)

    def follow(
        self, prompt_id: str, timeout: float = 120, on_progress: Callable[[str, float], None] | None = None
    ) -> Run:
        run, started = Run(), time.monotonic()
        while not run.end:
            message = self._socket.receive(max(0.1, started + timeout - time.monotonic()))
            assert message is not None, f"no end after {timeout} s:\n{self.server.log[-3000:]}"
            kind, payload = message
            if kind != TEXT:
                _keep_preview(run, payload)
                continue
            event = json.loads(payload)
            data = event.get("data") or {}
            if data.get("prompt_id") in (None, prompt_id):
                _keep(run, event["type"], data, on_progress)
        run.seconds = time.monotonic() - started
        return run

    def outputs(self, prompt_id: str) -> Any:
        for _ in range(100):  # the end is told a moment before it is history
            if found := self.server.get(f"/history/{prompt_id}").get(prompt_id):
                return found["outputs"]
            time.sleep(0.05)
        raise AssertionError(f"no history of {prompt_id}")


def _keep(run: Run, kind: str, data: dict[str, Any], on_progress: Callable[[str, float], None] | None) -> None:
    if kind == "execution_cached":
        run.cached = data["nodes"]
    elif kind == "executed":
        run.executed[str(data["node"])] = data.get("output")
    elif kind == "progress_state":
        for node, state in data["nodes"].items():
            if state["state"] != "running" or state["max"] <= 1:
                continue
            seen = run.progress.setdefault(node, [])
            if not seen or seen[-1] != (state["value"], state["max"]):
                seen.append((state["value"], state["max"]))
                if on_progress is not None:
                    on_progress(node, state["value"])
    elif kind in ("execution_success", "execution_error", "execution_interrupted"):
        run.end = kind.removeprefix("execution_")
        run.error = data if kind == "execution_error" else {}


def _keep_preview(run: Run, payload: bytes) -> None:
    (kind,) = struct.unpack(">I", payload[:4])
    if kind == PREVIEW_WITH_METADATA:
        (size,) = struct.unpack(">I", payload[4:8])
        node = str(json.loads(payload[8 : 8 + size]).get("node_id"))
        run.previews.setdefault(node, []).append(payload[8 + size :])
