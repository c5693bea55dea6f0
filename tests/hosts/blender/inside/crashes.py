# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Bodies about what dies, or goes, while a clip is made."""

from __future__ import annotations

import atexit
import json
from typing import Any

import bpy
from host import Host, expected
from layout import draw_all


def worker_killed(host: Host) -> None:
    """kill -9 of the worker in the middle; Reattach ends with every frame, and the bits of an unbroken run."""
    host.install()
    scene = host.new_file()
    host.ask(scene, frames=33, is_custom=True, steps=250)
    bpy.ops.rushes.generate()
    job = next(iter(host.controller.jobs.values()))
    host.until(lambda: job.phase == "denoise" and job.step > 20)
    host.controller.kill()
    host.until(lambda: job.state == "interrupted")
    assert "SIGKILL" in job.message and job.frames == 0
    bpy.ops.rushes.reattach()
    host.finish()
    assert host.names(host.strip(scene)) == expected(33, "12", "24", 66)
    assert len(host.folder_of(job)) == 33
    bpy.ops.rushes.generate()
    host.finish()
    one, two = host.controller.jobs.values()
    assert one.id != two.id and host.folder_of(one) == host.folder_of(two)


def begin(host: Host) -> None:
    """A long clip in a saved file; says when it is in the middle, then waits to be killed."""
    host.install()
    bpy.ops.wm.save_userpref()
    scene = host.new_file()
    # seconds of work: the next bpy has to be there before the worker has finished it alone
    host.ask(scene, frames=129, is_custom=True, steps=1000, size_mode="CUSTOM", width=96, height=96)
    bpy.ops.rushes.generate()
    job = next(iter(host.controller.jobs.values()))
    host.until(lambda: job.id)
    host.session.tick()
    bpy.ops.wm.save_mainfile()
    host.until(lambda: job.phase == "denoise" and job.step > 20)
    worker = host.controller._client._process.pid
    (host.folder / "now.json").write_text(json.dumps({"worker": worker, "file": bpy.data.filepath}))
    host.until(lambda: False)


def after_crash(host: Host) -> dict[str, Any]:
    """Opening the file is enough: the clip is followed, or gone on with, to its end."""
    host.enable()
    bpy.ops.wm.open_mainfile(filepath=host.config["file"])
    host.session.tick()
    job = next(iter(host.controller.jobs.values()))
    host.until(lambda: job.state == "running")
    was_elsewhere = job.is_elsewhere
    host.finish(300)
    scene = bpy.context.scene
    assert host.names(host.strip(scene)) == expected(129, "12", "24", 258)
    bpy.ops.rushes.restore_settings()
    bpy.ops.rushes.generate()
    host.finish(300)
    one, two = host.controller.jobs.values()
    assert one.id != two.id and len(host.folder_of(one)) == 129 and host.folder_of(one) == host.folder_of(two)
    return {"was_elsewhere": was_elsewhere}


def losses(host: Host) -> None:
    """The strip, its scene, or the file goes while the job runs: the job ends well, and can be put back."""
    host.install()
    for what in ("strip", "scene", "file", "undo"):
        scene = host.new_file(name=f"{what}.blend")
        other = bpy.data.scenes.new("Other")
        bpy.ops.ed.undo_push(message="before")
        host.ask(scene, frames=33, is_custom=True, steps=120)
        bpy.ops.rushes.generate()
        bpy.ops.ed.undo_push(message="Generate")
        key, job = list(host.controller.jobs.items())[-1]
        host.until(lambda job=job: job.phase == "denoise" and job.step > 5)
        if what == "strip":
            host.module("compat").strips(scene).remove(host.strip(scene))
        elif what == "scene":
            bpy.context.window.scene = other
            bpy.data.scenes.remove(scene)
        elif what == "file":
            bpy.ops.wm.read_homefile(use_empty=True)
        else:
            bpy.ops.ed.undo()
        host.finish()
        scene = bpy.context.scene
        assert host.strips(scene) == [] and key in host.session.unplaced and job.frames == 33, what
        assert "Insert on Timeline" in draw_all(host)
        bpy.ops.rushes.place(key=key)
        assert len(host.frames(host.strip(scene))) == 33, what


def leave(host: Host) -> dict[str, Any]:
    """Ends as Blender does when it is closed: nothing is disabled, and the worker has a clip to finish."""
    ticks: list[Any] = []

    def look() -> None:
        (host.folder / "pending.json").write_text(json.dumps([bpy.app.timers.is_registered(tick) for tick in ticks]))

    atexit.register(look)  # before the extension is there, and so run after what it has registered
    host.install()
    scene = host.new_file()
    host.ask(scene)
    bpy.ops.rushes.generate()
    job = next(iter(host.controller.jobs.values()))
    host.until(lambda: job.state == "running")
    ticks.append(host.module("timer")._tick)
    assert bpy.app.timers.is_registered(ticks[0])
    return {"is_leaving": True}
