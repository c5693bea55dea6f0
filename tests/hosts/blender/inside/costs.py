# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The body of the benchmark."""

from __future__ import annotations

import sys
import time
from typing import Any

import bpy
from host import MODULE, Host, memory


def measure(host: Host) -> dict[str, Any]:
    """For the benchmark: seconds to import the extension; a clip's wall time; cancel to freed memory."""
    host.install()
    bpy.ops.preferences.addon_disable(module=MODULE)
    imports = []
    for _ in range(7):
        for name in [name for name in sys.modules if name.startswith(MODULE)]:
            del sys.modules[name]
        began = time.perf_counter()
        bpy.ops.preferences.addon_enable(module=MODULE)
        imports.append(time.perf_counter() - began)
        bpy.ops.preferences.addon_disable(module=MODULE)
    host.enable()
    scene = host.new_file()
    host.ask(scene, model="starter", prompt=host.config["prompt"], frames=host.config["frames"])
    clips = []
    for _ in range(host.config["rounds"]):
        began = time.perf_counter()
        host.controller.kill()  # a cold worker, as the command line is cold
        host.until(lambda: not host.controller.is_running)
        began = time.perf_counter()
        bpy.ops.rushes.generate()
        host.until(host.ended)
        clips.append(time.perf_counter() - began)
    return {"import": imports, "clips": clips, **_cancel(host, scene), "version": bpy.app.version_string}


def _cancel(host: Host, scene: Any) -> dict[str, Any]:
    host.ask(scene, model="starter", prompt=host.config["prompt"], frames=129)
    bpy.ops.rushes.generate()
    job = list(host.controller.jobs.values())[-1]
    host.until(lambda: job.phase == "denoise" and job.step > 0, 300)
    pid = host.controller._client._process.pid
    before = memory(pid)
    freed: list[Any] = []
    began = time.perf_counter()
    bpy.ops.rushes.cancel(key=job.key, free=True)
    host.until(lambda: job.state == "cancelled", 30)
    host.controller._client.request("free", then=freed.append, failed=freed.append)
    host.until(lambda: freed, 30)
    seconds = time.perf_counter() - began
    time.sleep(0.5)
    return {"cancel": seconds, "before": before, "after": memory(pid), "freed": freed}
