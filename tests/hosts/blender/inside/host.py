# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What bodies share: the extension installed from its zip, a scene, ticks by hand."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import bpy

MODULE = "bl_ext.user_default.rushes"
PROMPT = "a red ball rolls to the right"


class Host:
    """One bpy process."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.folder = Path(config["folder"])

    # --- the extension --------------------------------------------------------------------------------------------

    def install(self) -> None:
        bpy.ops.extensions.package_install_files(
            filepath=self.config["zip"], repo="user_default", enable_on_install=True, overwrite=True
        )
        bpy.context.preferences.addons[MODULE].preferences.worker = self.config["worker"]

    def enable(self) -> None:
        """In a later process of the same user: what was installed is still there."""
        bpy.ops.preferences.addon_enable(module=MODULE)
        bpy.context.preferences.addons[MODULE].preferences.worker = self.config["worker"]

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{MODULE}.{name}")

    @property
    def session(self) -> Any:
        return self.module("timer").session()

    @property
    def controller(self) -> Any:
        return self.session.controller

    def close(self) -> None:
        if MODULE in bpy.context.preferences.addons:
            self.controller.kill()
            self.module("timer")._stop_timer()

    # --- time -----------------------------------------------------------------------------------------------------

    def until(self, is_true: Callable[[], Any], seconds: float = 90) -> Any:
        """Tick, as the timer would, until it is true; its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.session.tick()
            if value := is_true():
                return value
            time.sleep(0.01)
        jobs = [(job.state, job.frames, job.message) for job in self.controller.jobs.values()]
        raise AssertionError(f"not true in {seconds} s; {self.session.message!r}, {self.controller.worker!r}, {jobs}")

    def ended(self) -> bool:
        jobs = self.controller.jobs.values()
        return bool(jobs) and not any(job.is_active for job in jobs)

    def finish(self, seconds: float = 90) -> None:
        """Until all jobs are done; fails when one is not."""
        self.until(self.ended, seconds)
        self.session.tick()
        states = {(job.state, job.message) for job in self.controller.jobs.values()}
        assert states == {("done", "")}, states

    # --- scenes ---------------------------------------------------------------------------------------------------

    def new_file(self, name: str = "film.blend", fps: int = 24) -> Any:
        """An empty saved file; returns its scene."""
        bpy.ops.wm.read_homefile(use_empty=True)
        if name:
            path = self.folder / "project ü" / name
            path.parent.mkdir(exist_ok=True)
            bpy.ops.wm.save_as_mainfile(filepath=str(path))
        scene = bpy.context.scene
        scene.render.fps = fps
        scene.render.resolution_x, scene.render.resolution_y = 640, 400
        scene.sequence_editor_create()
        self.session.tick()
        return scene

    def ask(self, scene: Any, **fields: Any) -> Any:
        """Fill in the panel for the tiny model."""
        values = scene.rushes
        values.prompt, values.model, values.size_mode = PROMPT, self.config["model"], "MODEL"
        values.seed, values.is_seed_locked = 7, True
        for name, value in fields.items():
            setattr(values, name, value)
        return values

    def strips(self, scene: Any) -> list[Any]:
        return list(self.module("compat").all_strips(scene))

    def strip(self, scene: Any) -> Any:
        (strip,) = self.strips(scene)
        return strip

    def names(self, strip: Any) -> list[str]:
        return [element.filename for element in strip.elements]

    def take(self, strip: Any) -> dict[str, Any]:
        data = self.module("strips").read(strip)
        return data["takes"][data["take"]]

    def frames(self, strip: Any) -> dict[str, bytes]:
        """The files that the strip shows, by name, with their bytes."""
        folder = Path(bpy.path.abspath(strip.directory))
        return {name: (folder / name).read_bytes() for name in dict.fromkeys(self.names(strip))}

    def folder_of(self, job: Any) -> list[bytes]:
        return [path.read_bytes() for path in sorted((Path(job.home) / job.id / "frames").glob("*.png"))]


def expected(frames: int, clip_fps: str, scene_fps: str, length: int) -> list[str]:
    """Which frame is seen at each scene frame, written down from the definition: at time t, the frame begun last."""
    clip, scene = Fraction(clip_fps), Fraction(scene_fps)
    names = []
    for element in range(length):
        seconds = Fraction(element) / scene
        begun = [number for number in range(frames) if Fraction(number) / clip <= seconds]
        names.append(f"{begun[-1] + 1:04d}.png")
    return names


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
