# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The knobs that make a clip faster at the cost of an error, in the double, with real workers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import nuke_kit as kit
from nuke_kit import EVERYWHERE
from rushes import Engine
from rushes.attention.layers import SparseAttention
from rushes.media import open_outputs, read_latents
from rushes.shot import Shot

OFF = {"reuse": 0.0, "guided": 1.0, "attention": 1.0, "fp8_products": False}
FAST = {"reuse": 0.1, "guided": 0.5, "attention": 0.3}


session, plugin = kit.session, kit.plugin  # fixtures


@pytest.fixture
def make(plugin: ModuleType, tiny_model: Path) -> Callable[[], Any]:
    """make(): a node that asks for 33 frames of 128x128, which are 576 tokens: fewer than 512 are always dense."""

    def build() -> Any:
        node = plugin.node.create()
        for name, value in {
            "prompt": "a red ball", "model_file": str(tiny_model), "size": "own", "width": 128, "height": 128,
            "steps": 8, "range": "own range", "first_frame": 1001, "last_frame": 1033,
        }.items():  # fmt: skip
            node[name].setValue(value)
        return node

    return build


def _values(node: Any) -> dict[str, Any]:
    return {name: node[name].value() for name in OFF}


def _made(session: Any, plugin: ModuleType, node: Any) -> dict[str, Any]:
    def take() -> Any:
        return plugin.takes.read(node).take or {}

    session.threads.pump_until(lambda: take().get("state") in ("done", "failed"), 120)
    assert take()["state"] == "done", take()
    return dict(take())


def _latents(take: dict[str, Any]) -> bytes:
    return read_latents(Path(take["home"]) / take["job"] / "latents.safetensors")[0].tobytes()


@EVERYWHERE
@pytest.mark.usefixtures("one_thread")
def test_a_faster_clip_and_its_plate(
    session: Any, plugin: ModuleType, make: Callable[[], Any], tiny_model: Path
) -> None:
    """Off at first. What is set is the engine's, bit for bit, and told; a plate brings the knobs back, and the clip."""
    node = make()
    assert _values(node) == OFF
    for name, value in FAST.items():
        node[name].setValue(value)
    node["generate"].execute()
    take = _made(session, plugin, node)
    assert "attention: 3" in node["status"].value() and "reuse: " in node["status"].value()
    engine = Engine.load(tiny_model, device="cpu", attention=SparseAttention(density=0.3))
    shot = Shot.from_dict(take["shot"])
    assert (shot.reuse, shot.guided) == (0.1, 0.5)
    assert _latents(take) == engine.denoise(shot).numpy().tobytes()
    again = make()
    again["fp8_products"].setValue(True)
    again["restore_from"].setValue(take["pattern"] % 1004)
    again["restore"].execute()
    session.threads.pump_until(lambda: "restored from" in again["status"].value(), 120)
    assert _values(again) == {**OFF, **FAST} and "attention" not in again["status"].value()
    again["generate"].execute()
    assert _latents(_made(session, plugin, again)) == _latents(take)


def test_what_a_density_cannot_say_is_said(
    session: Any, plugin: ModuleType, make: Callable[[], Any], tiny_model: Path, tmp_path: Path
) -> None:
    """A plate of the command line's may have a window, dense steps, and products in fp8; the last a knob has."""
    plain = Engine.load(tiny_model, device="cpu").generate(Shot("a red ball", model=str(tiny_model), reuse=0.2))
    node = make()
    for number, (settings, density, is_said) in enumerate(
        [
            (SparseAttention(density=0.3, first_steps=2), 0.3, False),
            (SparseAttention(mode="window"), 1.0, False),
            (SparseAttention(density=0.4, tile=(2, 4, 4)), 0.4, False),
            (SparseAttention(density=0.5), 0.5, True),
        ]
    ):
        engine = Engine.load(tiny_model, device="cpu", attention=settings, fp8_products=True)
        pattern = str(tmp_path / f"{number}.%04d.exr")
        with open_outputs([pattern], engine.record(plain.shot)) as outputs:
            outputs.write(plain.frames)
        node["restore_from"].setValue(pattern % 1001)
        node["restore"].execute()
        session.threads.pump_until(lambda p=pattern: f"restored from {p % 1001}" in node["status"].value(), 120)
        assert _values(node) == {"reuse": 0.2, "guided": 1.0, "attention": density, "fp8_products": True}
        assert ("more settings than a density" not in node["status"].value()) is is_said


def test_fp8_is_offered_where_there_is_a_card(session: Any, plugin: ModuleType, make: Callable[[], Any]) -> None:
    """Grey on this machine's processor, unless it is set; a worker that says it has a card brings it back."""
    node, now = make(), plugin.session.session()
    now.when_ready(lambda: None, lambda sentence: pytest.fail(sentence))
    session.threads.pump_until(lambda: now.answer is not None, 120)
    assert not node["fp8_products"].enabled()
    for device, is_set, is_offered in (("cpu", True, True), ("cuda:0", False, True), ("cpu", False, False)):
        now.controller.client.hello["device"] = device
        node["fp8_products"].setValue(is_set)
        now.fill(node)
        assert node["fp8_products"].enabled() is is_offered


@pytest.mark.parametrize(
    ("knob", "value", "words"),
    [
        ("reuse", 1.5, "reuse: got 1.5; a share from 0 to 1 is allowed"),
        ("guided", -0.5, "guided: got -0.5; a share from 0 to 1 is allowed"),
        ("attention", 0.0, "attention: density: got 0.0; above 0 and up to 1 is allowed"),
        ("attention", 2.0, "attention: density: got 2.0; above 0 and up to 1 is allowed"),
    ],
)
def test_wrong_shares_are_sentences(
    session: Any, plugin: ModuleType, make: Callable[[], Any], knob: str, value: float, words: str
) -> None:
    node = make()
    node[knob].setValue(value)
    node["generate"].execute()
    session.threads.pump_until(lambda: words in node["status"].value(), 60)


def test_a_node_of_an_older_rushes_goes_on(session: Any, plugin: ModuleType, make: Callable[[], Any]) -> None:
    """It has none of the knobs: its wish has none of the fields, and its clip is made as before."""
    node = make()
    for name in (*OFF, "speed_line"):
        node.removeKnob(node[name])
    assert not set(OFF) & plugin.knobs.wish(node, "starter").keys()
    node["generate"].execute()
    take = _made(session, plugin, node)
    assert (take["shot"]["reuse"], take["shot"]["guided"]) == (0.0, 1.0)


def test_the_worker_is_started_with_the_memory_of_the_settings(session: Any, plugin: ModuleType) -> None:
    """settings.json beside the name of the worker, which another name leaves as it is."""
    file, worker = plugin.preferences.file(), os.environ["RUSHES_WORKER"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"memory": "8", "paths": [["/theirs", "/ours"]]}))
    plugin.preferences.put(worker)
    assert plugin.preferences.get() == (worker, (("/theirs", "/ours"),), "8")
    now = plugin.session.session()
    now.when_ready(lambda: None, lambda sentence: pytest.fail(sentence))
    session.threads.pump_until(lambda: now.answer is not None, 120)
    prices: list[Any] = []
    now.controller.ask("estimate", {"shot": {"prompt": "a ball"}}, prices.append, prices.append)
    session.threads.pump_until(lambda: prices, 60)
    assert prices[0]["memory"]["budget"] == 8_000_000_000, prices
