# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Jobs with the tiny model, in folders of the test's own, and real workers."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rushes import Shot
from rushes.jobs import client as client_module
from rushes.jobs.client import Client, Event

Start = Callable[..., Client]
_pending: weakref.WeakKeyDictionary[Client, list[Event]] = weakref.WeakKeyDictionary()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With a name that shells and C strings trip over."""
    path = tmp_path / 'jobs "home" ä 日本'
    path.mkdir()
    return path


@pytest.fixture
def shot(tiny_model: Path) -> Shot:
    return Shot("a red ball rolls to the right", frames=9, steps=4, seed=5, model=str(tiny_model))


@pytest.fixture
def start(home: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """start(): a client with its own real worker, ready; all of them are killed at the end."""
    if "PYTHONPATH" in environment:  # a source tree: a user's worker is an installed command and needs none
        clean = client_module.clean_environment
        path = {"PYTHONPATH": environment["PYTHONPATH"]}
        monkeypatch.setattr(client_module, "clean_environment", lambda: {**clean(), **path})
    clients: list[Client] = []

    def begin(ready: bool = True, **options: Any) -> Client:
        client = Client([sys.executable, "-m", "rushes"], home, **options)
        clients.append(client)
        client.start()
        if ready:
            wait(client, lambda event: event.kind == "ready")
        return client

    yield begin
    for client in clients:
        client.kill()


def wait(client: Client, until: Callable[[Event], bool], seconds: float = 120) -> list[Event]:
    """Tick until an event is right; all events on the way to it. What came with it waits for the next call."""
    events: list[Event] = []
    pending = _pending.setdefault(client, [])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pending += client.tick()
        while pending:
            events.append(pending.pop(0))
            if until(events[-1]):
                return events
        time.sleep(0.005)
    raise AssertionError(f"nothing right came in {seconds} s, but {[(e.kind, e.fields) for e in events][-8:]}")


@pytest.fixture(name="wait")
def wait_fixture() -> Callable[..., list[Event]]:
    return wait


@pytest.fixture
def ask() -> Callable[..., Any]:
    """ask(client, method, params): the answer, or the sentence of a refusal."""

    def request(client: Client, method: str, params: dict[str, Any] | None = None) -> Any:
        answers: list[Any] = []
        client.request(method, params, then=answers.append, failed=answers.append)
        end = time.monotonic() + 60
        while not answers and time.monotonic() < end:
            _pending.setdefault(client, []).extend(client.tick())
            time.sleep(0.005)
        assert answers, f"no answer to {method}"
        return answers[0]

    return request
