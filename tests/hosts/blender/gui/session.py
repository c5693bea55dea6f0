# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Inside a Blender with a window: installs the extension, shows its tab in the sequencer, and keeps telling how it is.

Environment: RUSHES_ZIP, RUSHES_COMMAND (the worker), RUSHES_OUT: a folder. A file `render` in it renders for RENDERED
seconds, `viewport` takes a picture of the viewport, `quit` ends Blender. Clicks come from outside, as an artist's do.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import bpy

MODULE = "bl_ext.user_default.rushes"
OUT = Path(os.environ["RUSHES_OUT"])
TELL = 0.2  # seconds
RENDERED = 40  # seconds

# seconds between visits of Blender's main loop, and of those what its own thread computed; the extension's own ticks
gaps: dict[str, list[tuple[float, float]]] = {"idle": [], "generating": [], "own ticks": []}
viewport: dict[str, Any] = {}  # the picture that the 3D viewport gave
last = {"tick": 0.0, "own": 0.0, "told": 0.0}


def prepare() -> None:
    """The extension, a saved file, and the sequencer with its sidebar in the largest area."""
    bpy.ops.extensions.package_install_files(
        filepath=os.environ["RUSHES_ZIP"], repo="user_default", enable_on_install=True, overwrite=True
    )
    bpy.context.preferences.addons[MODULE].preferences.worker = os.environ["RUSHES_COMMAND"]
    (OUT / "project").mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(OUT / "project" / "film.blend"))
    scene = bpy.context.scene
    scene.render.resolution_x, scene.render.resolution_y = 1280, 800
    scene.sequence_editor_create()
    area = max(bpy.context.window.screen.areas, key=lambda area: area.width * area.height)
    area.type = "SEQUENCE_EDITOR"
    area.spaces.active.view_type = "SEQUENCER"
    area.spaces.active.show_region_ui = True
    values = scene.rushes
    values.prompt, values.seed, values.is_seed_locked = "a red ball rolls to the right", 7, True
    values.frames = int(os.environ.get("RUSHES_FRAMES", "33"))


def session() -> Any:
    import importlib

    return importlib.import_module(f"{MODULE}.timer").session()


def state() -> dict[str, Any]:
    """What an artist sees, as data."""
    scene, controller = bpy.context.scene, session().controller
    strips = scene.sequence_editor.sequences if hasattr(scene.sequence_editor, "sequences") else ()
    sidebars = [
        {"area": area.type, "x": region.x, "y": region.y, "width": region.width, "height": region.height,
         "tab": getattr(region, "active_panel_category", "")}
        for area in bpy.context.window_manager.windows[0].screen.areas
        for region in area.regions if region.type == "UI" and area.type == "SEQUENCE_EDITOR"
    ]  # fmt: skip
    return {
        "jobs": [{"state": job.state, "frames": job.frames, "phase": job.phase} for job in controller.jobs.values()],
        "elements": [len(strip.elements) for strip in strips],
        "quote": bool(controller.quote and not controller.quote.message),
        "viewport": viewport, "rendering": bpy.app.is_job_running("RENDER"),
        "worker": controller.worker, "message": session().message, "sidebars": sidebars,
        "gaps": {
            name: {"count": len(found), "largest": [f"{gap:.3f} ({own:.3f})" for gap, own in sorted(found)[:-6:-1]]}
            for name, found in gaps.items()
        },
    }  # fmt: skip


def tell() -> None:
    temporary = OUT / "state.tmp"
    temporary.write_text(json.dumps({**state(), "version": bpy.app.version_string}))
    temporary.replace(OUT / "state.json")


def render() -> None:
    """In the background, as F12 does, with one processor left to the worker."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.samples, scene.cycles.time_limit = 1_000_000, RENDERED
    scene.cycles.use_adaptive_sampling = False  # which would end it sooner
    scene.cycles.use_denoising = False  # which not every build has
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    scene.render.use_sequencer = False
    bpy.context.preferences.view.render_display_type = "NONE"
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0]):
        bpy.ops.render.render("INVOKE_DEFAULT")


def look_through_viewport() -> None:
    """The largest area a 3D viewport again, and from it the first frame of a clip, by OpenGL."""
    window = bpy.context.window_manager.windows[0]
    area = max(window.screen.areas, key=lambda area: area.width * area.height)
    if area.type != "VIEW_3D":
        area.type = "VIEW_3D"
        return  # and once more, when it has been drawn
    with bpy.context.temp_override(window=window):
        bpy.ops.rushes.keyframe(source="VIEWPORT", place="FIRST")
    image = bpy.data.images.load(bpy.path.abspath(bpy.context.scene.rushes.keyframes[0].image))
    levels = {round(level, 2) for level in image.pixels[:]}
    viewport.update(size=list(image.size), levels=len(levels), output=bpy.context.scene.render.filepath)


def watch() -> float:
    """As often as Blender comes round: the time between two visits is how long the window stood still."""
    now = time.perf_counter()
    is_busy = any(job.is_active for job in session().controller.jobs.values())
    if last["tick"]:
        gaps["generating" if is_busy else "idle"].append((now - last["tick"], time.thread_time() - last["own"]))
    if time.monotonic() - last["told"] > TELL:
        last["told"] = time.monotonic()
        tell()
        if (OUT / "render").exists():
            (OUT / "render").unlink()
            render()
        if (OUT / "viewport").exists() and not viewport:
            look_through_viewport()
        if (OUT / "quit").exists():
            session().controller.kill()
            bpy.app.timers.unregister(watch)
            bpy.ops.wm.quit_blender()
    last["own"] = time.thread_time()
    last["tick"] = time.perf_counter()  # what telling took is this script's, not the extension's
    return 0.001


def begin() -> None:
    prepare()
    running = session()
    tick = running.tick

    def timed() -> float:
        began, own = time.perf_counter(), time.thread_time()
        try:
            return float(tick())
        finally:
            gaps["own ticks"].append((time.perf_counter() - began, time.thread_time() - own))

    running.tick = timed
    session().want_quote()
    bpy.app.timers.register(watch, persistent=True)


bpy.context.preferences.view.show_splash = False
bpy.app.timers.register(begin, first_interval=1.0)
