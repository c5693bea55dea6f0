# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The body about clips that are made faster with an error."""

from __future__ import annotations

from typing import Any

import bpy
from host import MODULE, Host
from layout import draw_all

FAST = {"reuse": 0.1, "guided": 0.5, "attention": 0.3}
OFF = {"reuse": 0.0, "guided": 1.0, "attention": 1.0, "fp8_products": False}


def speed(host: Host) -> dict[str, Any]:
    """Off at first; set, in the wish, the scene, the price and the clip; told; saved, restored, and made once more."""
    host.install()
    bpy.context.preferences.addons[MODULE].preferences.memory = " 1.5 "
    scene = host.new_file()
    values, wish_of = host.ask(scene, frames=33), host.module("properties").wish_of
    assert {name: getattr(values, name) for name in OFF} == OFF and wish_of(scene)["attention"] is None
    values.size_mode, (values.width, values.height), values.is_custom, values.steps = "CUSTOM", (128, 128), True, 8
    for name, value in FAST.items():
        setattr(values, name, value)
    wish = wish_of(scene)
    assert {name: wish[name] for name in FAST} == FAST and wish["fp8_products"] is False
    host.until(lambda: host.controller.quote is not None and host.controller.quote.wish == wish)
    assert not host.controller.quote.message, host.controller.quote.message
    prices: list[Any] = []
    host.controller.ask("estimate", {"shot": host.controller.quote.shot}, prices.append, prices.append)
    host.until(lambda: prices)
    assert prices[0]["memory"]["budget"] == 1_500_000_000, "the worker was started with the preference"
    labels = draw_all(host)
    assert "fp8_products is grey" in labels and not host.controller.is_on_cuda, "this worker has no card"
    values.fp8_products = True
    assert "fp8_products is grey" not in draw_all(host), "what was set elsewhere can be taken back"
    values.fp8_products = False
    bpy.ops.rushes.generate()
    host.finish()
    (job,) = host.controller.jobs.values()
    notes = " ".join(job.notes)
    assert "attention: 3" in notes and "of the scores" in notes and "reuse: " in notes, job.notes
    values.fp8_products = True
    bpy.ops.wm.save_mainfile()
    bpy.ops.wm.open_mainfile(filepath=bpy.data.filepath)
    host.session.tick()
    scene = bpy.context.scene
    values = scene.rushes
    assert wish_of(scene) == {**wish, "fp8_products": True}
    for name, value in OFF.items():
        setattr(values, name, value)
    scene.sequence_editor.active_strip = host.strip(scene)
    bpy.ops.rushes.restore_settings()
    assert wish_of(scene) == wish
    first = host.frames(host.strip(scene))
    bpy.ops.rushes.take(seed=7)
    host.finish()
    assert host.frames(host.strip(scene)) == first, "the same bits"
    old = {name: value for name, value in wish.items() if name not in OFF}  # of a Rushes that had none of it
    host.module("properties").restore(scene, old)
    assert {name: getattr(values, name) for name in OFF} == OFF
    return {"latents": str(job.folder / "latents.safetensors")}
