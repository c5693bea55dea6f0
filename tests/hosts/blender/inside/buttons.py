# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Bodies about the queue, the worker, and what an artist does wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import bpy
from host import MODULE, PROMPT, Host
from layout import draw_all


def queue(host: Host) -> dict[str, Any]:
    """Cancel the running and the waiting one, retry, forget; nothing is inserted while Blender renders."""
    host.install()
    scene = host.new_file()
    host.ask(scene, frames=33, is_custom=True, steps=250)
    bpy.ops.rushes.generate()
    bpy.ops.rushes.take(seed=8)
    one, two = host.controller.jobs.values()
    host.until(lambda: one.phase == "denoise" and one.step > 5 and two.state == "queued")
    labels = draw_all(host)
    bpy.ops.rushes.cancel(key=two.key)
    host.until(lambda: two.state == "cancelled", 10)
    assert one.state == "running"
    began = time.monotonic()
    bpy.ops.rushes.cancel(key=one.key, free=True)
    host.until(lambda: one.state == "cancelled", 10)
    seconds = time.monotonic() - began
    compat = host.module("compat")
    really, compat.is_rendering = compat.is_rendering, lambda: True
    bpy.ops.rushes.retry(key=one.key)
    host.until(host.ended)
    for _ in range(3):
        host.session.tick()
    strip = host.strip(scene)
    data = host.module("strips").read(strip)
    assert one.state == "done", (one.state, one.message)
    assert len(strip.elements) == 1, "the strip waits while Blender renders"
    compat.is_rendering = really
    host.session.tick()
    data["take"] = 0
    host.module("strips").write(strip, data)
    host.session.mark_all()
    host.session.tick()
    assert len(host.frames(host.strip(scene))) == 33
    opener, kept = host.folder / "xdg-open", os.environ["PATH"]
    opener.write_text('#!/bin/sh\nprintf %s "$1" > "$0.opened"\n')
    opener.chmod(0o755)
    os.environ["PATH"] = f"{host.folder}:{kept}"
    assert bpy.ops.rushes.reveal(key=one.key) == {"FINISHED"}
    os.environ["PATH"] = kept
    assert opener.with_name("xdg-open.opened").read_text() == str(one.folder)
    bpy.ops.rushes.forget(key=two.key)
    assert list(host.controller.jobs) == [one.key]
    try:
        bpy.ops.rushes.retry(key=two.key)
        raise AssertionError("a job that has left the list")
    except RuntimeError as error:
        assert "not in the list" in str(error)
    return {"labels": labels, "cancel": seconds}


def no_worker(host: Host) -> dict[str, Any]:
    """Without a worker: a sentence, no strip, no entry in the list. A wrong model: the sentence stands in the queue."""
    host.install()
    scene = host.new_file()
    host.ask(scene)
    preferences = bpy.context.preferences.addons[MODULE].preferences
    preferences.worker = "/nowhere/rushes"
    try:
        bpy.ops.rushes.generate()
        raise AssertionError("it was generated without a worker")
    except RuntimeError as error:
        sentence = str(error)
    assert host.strips(scene) == [] and not host.controller.jobs
    preferences.worker = host.config["worker"]
    scene.rushes.model = "nothing"
    bpy.ops.rushes.generate()
    host.until(host.ended)
    (job,) = host.controller.jobs.values()
    assert job.state == "failed" and "model: got 'nothing'" in job.message
    assert "nothing" in " ".join(draw_all(host))
    return {"sentence": sentence}


def _said(call: Callable[[], Any]) -> str:
    """What a refused button says in the status bar, or in its tooltip."""
    try:
        call()
    except RuntimeError as error:
        return str(error).removeprefix("Error: ").strip()
    raise AssertionError("it was not refused")


def typed(host: Host) -> dict[str, Any]:
    """What artists get wrong: each time one sentence, which names what is wrong, and Blender and the worker go on."""
    host.install()
    scene = host.new_file()
    values = host.ask(scene, prompt=" ")
    said = {
        "an empty prompt": _said(bpy.ops.rushes.generate),
        "variations of it": _said(bpy.ops.rushes.variations),
        "takes without a strip": _said(bpy.ops.rushes.take),
        "a frame of an empty sequencer": _said(lambda: bpy.ops.rushes.keyframe(source="SEQUENCER")),
        "a frame of no strip": _said(lambda: bpy.ops.rushes.keyframe(source="STRIP")),
        "a frame of no camera": _said(lambda: bpy.ops.rushes.keyframe(source="CAMERA")),
        "a strip to reattach": _said(lambda: bpy.ops.rushes.reattach(only_active=True)),
    }
    for name in ("cancel", "retry", "forget", "reveal", "place"):
        said[f"{name} of a job that is gone"] = _said(lambda name=name: getattr(bpy.ops.rushes, name)(key="gone"))
    values.prompt = PROMPT
    said |= _wrong_preferences(host) | _wrong_fields(host, scene)
    (host.folder / "project ü" / "deep").mkdir()
    (host.folder / "project ü" / "deep" / "rushes").write_text("a file, where the folder should be")
    bpy.ops.wm.save_as_mainfile(filepath=str(host.folder / "project ü" / "deep" / "film.blend"))
    said["a file in the folder's place"] = _said(bpy.ops.rushes.generate)
    assert not host.strips(scene)
    for what, sentence in said.items():
        assert sentence and "\n" not in sentence and "Traceback" not in sentence and len(sentence) < 500, (
            what,
            sentence,
        )
    return said


def _wrong_preferences(host: Host) -> dict[str, str]:
    """The worker and the path map."""
    values = bpy.context.preferences.addons[MODULE].preferences
    good, picture = values.worker, host.folder / "picture.png"
    picture.write_bytes(b"\x89PNG")
    said = {}
    for worker in ("/nowhere/rushes", str(host.folder), str(picture)):
        values.worker = worker
        said[f"the worker {worker}"] = _said(bpy.ops.rushes.connect)
    picture.chmod(0o755)
    said["the worker is a picture"] = _said(bpy.ops.rushes.connect)
    values.worker = "/bin/false"
    bpy.ops.rushes.connect()
    host.until(lambda: "has ended" in host.controller.worker)
    said["the worker is another program"] = host.controller.worker
    assert host.controller.worker in draw_all(host, is_whole=True), "the panel says it"
    values.worker = good
    for paths in ("/mnt/show", "/a=/b=/c", "=", "/a=/b; /c"):
        values.paths = paths
        said[f"the path map {paths}"] = _said(bpy.ops.rushes.connect)
    values.paths = ""
    return said


def _wrong_fields(host: Host, scene: Any) -> dict[str, str]:
    """What the model has to say, in the box above the button."""
    values, model = scene.rushes, scene.rushes.model
    broken = host.folder / "project ü" / "broken.safetensors"
    broken.write_bytes(b"no weights")
    said = {}

    def ask(what: str) -> None:
        host.controller.quote = None
        host.session.want_quote()
        host.until(lambda: host.controller.quote)
        said[what] = host.controller.quote.message
        assert said[what] in draw_all(host, is_whole=True), (what, said[what])

    bpy.ops.rushes.connect()
    for name in ("nothing", "/nowhere/x.safetensors", "//broken.safetensors", str(host.folder)):
        values.model = name
        ask(f"the model {name}")
    assert str(broken) in said["the model //broken.safetensors"], "the path that it stands for"
    values.model = model
    values.text = bpy.data.texts.new("long")
    values.text.write("word " * 5000)
    ask("a prompt of 25000 characters")
    values.text = None
    for image in ("//missing.png", "//"):
        values.keyframes.clear()
        values.keyframes.add().image = image
        ask(f"the keyframe {image}")
    values.keyframes[0].image = "//broken.safetensors"
    bpy.ops.rushes.generate()
    host.until(host.ended)
    (job,) = host.controller.jobs.values()
    assert job.state == "failed" and job.message in draw_all(host, is_whole=True)
    said["a keyframe that is no picture"] = job.message
    values.keyframes.clear()
    host.module("compat").strips(scene).remove(host.strip(scene))
    return said


def rendering(host: Host) -> None:
    """While Blender renders, whatever changes strips is refused with a sentence, and cancelling is not."""
    host.install()
    scene = host.new_file()
    host.ask(scene, frames=33, is_custom=True, steps=900)
    bpy.ops.rushes.generate()
    (key,) = host.controller.jobs
    compat = host.module("compat")
    really, compat.is_rendering = compat.is_rendering, lambda: True
    calls = [getattr(bpy.ops.rushes, name) for name in ("generate", "variations", "take", "choose_take", "collect")]
    calls += [lambda: bpy.ops.rushes.place(key=key), lambda: bpy.ops.rushes.backdrop(kind="PLANE")]
    calls += [lambda: bpy.ops.rushes.keyframe(source="SEQUENCER")]
    for call in calls:
        assert "Blender renders just now; wait until it is done" in _said(call)
    bpy.ops.rushes.cancel(key=key)
    host.until(host.ended)
    compat.is_rendering = really
    assert len(host.strips(scene)) == 1 and list(host.controller.jobs) == [key]


def stuck(host: Host) -> dict[str, Any]:
    """A worker that says nothing any more is told in the panel; End Worker and Retry go on."""
    host.install()
    scene = host.new_file()
    host.ask(scene, frames=33, is_custom=True, steps=600)
    bpy.ops.rushes.generate()
    (job,) = host.controller.jobs.values()
    host.until(lambda: job.phase == "denoise" and job.step > 5)
    client = host.controller._client
    client._silent = 3.0
    os.kill(client._process.pid, signal.SIGSTOP)
    host.until(lambda: host.controller.trouble)
    assert host.controller.trouble in draw_all(host, is_whole=True)
    os.kill(client._process.pid, signal.SIGCONT)
    host.until(lambda: not host.controller.trouble)
    os.kill(client._process.pid, signal.SIGSTOP)
    host.until(lambda: host.controller.trouble)
    bpy.ops.rushes.end_worker()
    host.until(lambda: job.state == "interrupted")
    bpy.ops.rushes.retry(key=job.key)
    host.until(lambda: job.state == "running")
    bpy.ops.rushes.generate()
    host.finish()
    one, two = host.controller.jobs.values()
    assert len(host.folder_of(one)) == 33 and host.folder_of(one) == host.folder_of(two)
    return {"restarted": client is not host.controller._client}
