# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Interrupts in a real ComfyUI, and that it goes on: a hundred prompts, and no memory kept."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]


def interrupted(client: Any, prompt: Any, node: str, value: float) -> float:
    """Seconds from the interrupt, sent at a node's progress value, to its event."""
    sent: list[float] = []

    def send(at: str, now: float) -> None:
        if at == node and now >= value and not sent:
            sent.append(time.monotonic())
            assert client.server.post("/interrupt", {})[0] == 200

    run = client.run(prompt, on_progress=send)
    assert run.end == "interrupted", (run.end, run.error, run.progress)
    return time.monotonic() - sent[0]


def test_an_interrupt_while_denoising(client: Any, prompts: ModuleType) -> None:
    """Between two blocks of the transformer: steps of more than a second do not hold it."""
    prompt = prompts.plate(width=256, height=256, frames=49, steps=40, seed=41, guidance=4.0)
    seconds = interrupted(client, prompt, "3", 1)
    print(f"interrupt while denoising: {seconds:.2f} s")
    assert seconds < 1


def test_an_interrupt_while_decoding(client: Any, prompts: ModuleType) -> None:
    """Between two chunks of the decoder."""
    prompt = prompts.plate(width=256, height=160, frames=129, steps=1, seed=42)
    prompt["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    seconds = interrupted(client, prompt, "3", 3)
    print(f"interrupt while decoding: {seconds:.2f} s")
    assert seconds < 1


def test_an_interrupt_while_writing_leaves_nothing_behind(client: Any, server: Any, prompts: ModuleType) -> None:
    """No file, no hidden folder, no proxy; and the next version is still the first."""
    prompt = prompts.plate(
        width=256, height=160, frames=129, steps=1, seed=43, writes={"name": "stopped", "folder": "stopped"}
    )
    temporary = set((server.base / "temp").iterdir())
    seconds = interrupted(client, prompt, "4", 3)
    print(f"interrupt while writing: {seconds:.2f} s")
    assert seconds < 1
    folder = server.base / "output/stopped"
    assert not folder.exists() or not list(folder.iterdir())
    assert set((server.base / "temp").iterdir()) == temporary
    run = client.run(prompts.plate(seed=44, writes={"name": "stopped", "folder": "stopped"}))
    assert run.executed["4"]["text"][0].endswith("stopped_v001.%04d.exr")


def test_a_hundred_prompts_keep_no_memory(client: Any, server: Any, prompts: ModuleType) -> None:
    """Queued at once, each with another seed; all end well, and the last eighty need what the first twenty did."""
    ids = []
    for seed in range(100):
        prompt = prompts.plate(seed=1000 + seed, writes={"name": "many", "folder": "many", "format": "PNG"})
        status, body = client.submit(prompt)
        assert status == 200
        ids.append(body["prompt_id"])
    rss = []
    for index, prompt_id in enumerate(ids):
        assert client.follow(prompt_id).end == "success", index
        if index % 20 == 19:
            rss.append(server.rss() / 2**20)
    print("resident memory after each 20 prompts:", [f"{value:.0f} MB" for value in rss])
    assert rss[-1] - rss[0] < 30, rss
    assert len(list((server.base / "output/many").glob("many_v*.1001.png"))) == 100
