# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Bodies about strips. Each gets a Host, asserts, and returns what its test looks at."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import bpy
from host import MODULE, PROMPT, Host, expected
from layout import draw_all

# What any extension leaves of Blender's own in the user's folder
BLENDERS_OWN = ("extensions", ".cache", "compat.dat", ".user", "user_default", ".blender_ext", "cache")


def life(host: Host) -> dict[str, Any]:
    """Install, enable, draw, disable, uninstall."""
    home = Path(bpy.utils.resource_path("USER"))
    places = [Path(os.environ["HOME"]), home, host.folder]
    before = {path for place in places for path in place.rglob("*")}
    handlers = {name: len(getattr(bpy.app.handlers, name)) for name in ("load_post", "undo_post", "save_pre")}
    host.install()
    assert MODULE in bpy.context.preferences.addons and hasattr(bpy.types.Scene, "rushes")
    assert bpy.app.timers.is_registered(host.module("timer")._tick)
    assert bpy.ops.rushes.generate.get_rna_type().name == "Generate"
    scene = host.new_file()
    host.ask(scene)
    labels = draw_all(host)
    scene = host.new_file(name="")  # so that clips lie in the extension's own folder
    host.ask(scene, frames=9)
    bpy.ops.rushes.generate()
    host.finish()
    client = host.controller._client
    installed = sorted(path.name for path in home.rglob("blender_manifest.toml"))
    tick = host.module("timer")._tick
    bpy.ops.preferences.addon_disable(module=MODULE)
    assert not hasattr(bpy.types.Scene, "rushes") and not bpy.app.timers.is_registered(tick)
    assert not hasattr(bpy.types, "RUSHES_OT_generate") and "generate" not in dir(bpy.ops.rushes)
    assert {name: len(getattr(bpy.app.handlers, name)) for name in handlers} == handlers
    repos = bpy.context.preferences.extensions.repos
    index = next(index for index, repo in enumerate(repos) if repo.module == "user_default")
    bpy.ops.extensions.package_uninstall(repo_index=index, pkg_id="rushes")
    client._process.wait(30)  # without its host, and with nothing to make, it ends by itself
    new = {path for place in places for path in place.rglob("*")} - before
    new = {path for path in new if ".cache" not in path.parts}  # what the worker keeps for all hosts is not Blender's
    left = sorted(str(path) for path in new if path.name not in BLENDERS_OWN and "project ü" not in path.parts)
    return {"labels": labels, "installed": installed, "left": left, "version": bpy.app.version_string}


def clip(host: Host) -> dict[str, Any]:
    """The starter's clip on the timeline: placeholder, growth, mapping, colour, what is written, undo, save, reload."""
    host.install()
    scene = host.new_file()
    scene.frame_set(10)
    host.ask(scene, model="starter", prompt=PROMPT)
    bpy.ops.rushes.connect()
    host.until(lambda: host.controller.quote is not None)
    quote = host.controller.quote
    assert not quote.message and quote.shot["frames"] == 33 and quote.length == 66, quote
    labels = draw_all(host)
    bpy.ops.ed.undo_push(message="before")
    assert bpy.ops.rushes.generate("EXEC_DEFAULT", True) == {"FINISHED"}  # True: with its undo step, as from a button
    strip = host.strip(scene)
    assert len(strip.elements) == 1 and "placeholder" in strip.elements[0].filename
    assert (strip.frame_final_start, strip.frame_final_duration, strip.channel) == (10, 66, 1)
    grown = []

    def watch() -> bool:
        now = len(host.strip(scene).elements)
        if not grown or now != grown[-1]:
            grown.append(now)
        assert host.strip(scene).frame_final_duration == 66, host.strip(scene).frame_final_duration
        return host.ended()

    host.until(watch)
    host.finish()
    strip, take = host.strip(scene), host.take(host.strip(scene))
    assert grown == sorted(grown) and grown[-1] == 66, grown
    assert host.names(strip) == expected(33, "12", "24", 66)
    assert (strip.frame_final_start, strip.frame_final_duration) == (10, 66)
    assert strip.colorspace_settings.name == "sRGB"
    assert strip.name.startswith(PROMPT) and strip.name.endswith("seed 7")
    assert strip.directory.startswith("//rushes/jobs/"), strip.directory
    assert (strip.transform.scale_x, strip.transform.scale_y) == (5.0, 5.0)  # 128x80 in 640x400
    assert take["job"] and len(take["model"]["sha256"]) == 64 and take["shot"]["seed"] == 7 and take["is_done"]
    frames = host.frames(strip)
    assert len(frames) == 33
    bpy.ops.ed.undo()
    scene = bpy.context.scene
    assert host.strips(scene) == []
    bpy.ops.ed.redo()
    host.session.tick()
    scene = bpy.context.scene
    assert host.names(host.strip(scene)) == expected(33, "12", "24", 66)
    path = bpy.data.filepath
    bpy.ops.wm.save_mainfile()
    bpy.ops.wm.open_mainfile(filepath=path)
    host.session.tick()
    strip = host.strip(bpy.context.scene)
    assert host.frames(strip) == frames and host.take(strip) == take
    job = next(iter(host.controller.jobs.values()))
    return {
        "grown": grown, "labels": labels, "latents": str(job.folder / "latents.safetensors"),
        "first": str(job.folder / "frames" / "0001.png"), "sha256": take["model"]["sha256"],
    }  # fmt: skip


def mapping(host: Host) -> dict[str, Any]:
    """Several rates and ranges, each strip as the definition says."""
    host.install()
    scene = host.new_file()
    values = host.ask(scene)
    seen = {}
    for fps, clip_fps, frames, cover in (
        (24, 12, 5, 0),
        (24, 16, 9, 0),
        (25, 24, 9, 0),
        (12, 24, 9, 0),
        (24, 12, 0, 15),
    ):
        for strip in host.strips(scene):
            host.module("compat").strips(scene).remove(strip)
        scene.render.fps = fps
        values.fps, values.frames, values.length_mode = clip_fps, frames, "PREVIEW" if cover else "FRAMES"
        scene.use_preview_range, scene.frame_preview_start = bool(cover), 101
        scene.frame_preview_end = 100 + (cover or 1)
        bpy.ops.rushes.generate()
        host.finish()
        strip = host.strip(scene)
        made = host.take(strip)["frames"]
        length = cover or math.ceil(Fraction(made * fps, clip_fps))
        assert strip.frame_final_duration == length, (strip.frame_final_duration, length)
        assert host.names(strip) == expected(made, str(clip_fps), str(fps), length)
        if cover:
            assert strip.frame_final_start == 101 and made == 9
        seen[f"{clip_fps} in {fps}"] = len(strip.elements)
    scene.render.fps, scene.render.fps_base = 24, 1.001
    assert str(host.module("properties").scene_fps(scene)) == "24000/1001"
    return seen


def channels(host: Host) -> None:
    """A free and unlocked channel, wherever other strips are; over the active strip when the length is its length."""
    host.install()
    scene = host.new_file()
    host.ask(scene, frames=5, fps=24)
    scene.sequence_editor.channels[2].lock = True
    for channel in (1, 3, 4):
        bpy.ops.rushes.generate()
        assert scene.sequence_editor.active_strip.channel == channel, scene.sequence_editor.active_strip.channel
    host.finish()
    first = next(strip for strip in host.strips(scene) if strip.channel == 1)
    first.frame_start = 50
    scene.sequence_editor.active_strip = first
    scene.rushes.length_mode = "STRIP"
    bpy.ops.rushes.generate()
    host.finish()
    over = scene.sequence_editor.active_strip
    assert (over.frame_final_start, over.frame_final_duration, over.channel) == (50, 5, 3)
    assert len({(strip.channel, strip.frame_final_start) for strip in host.strips(scene)}) == 4
    _other_scene(host, scene)


def _other_scene(host: Host, scene: Any) -> None:
    """From 5.0 the sequencer may show another scene than the window: clip, price and panel are that one's."""
    if not hasattr(bpy.context, "sequencer_scene"):
        return
    other = bpy.data.scenes.new("Edit")
    bpy.context.workspace.sequencer_scene = other
    before = len(host.strips(scene))
    host.ask(other, frames=13)
    draw_all(host)
    host.until(lambda: host.controller.quote and host.controller.quote.shot["frames"] == 13)
    bpy.ops.rushes.generate()
    host.finish()
    assert len(host.strips(scene)) == before and len(host.frames(host.strip(other))) == 13


def takes(host: Host) -> dict[str, Any]:
    """Another seed on the same strip, there and back, trimmed in between; variations and their sheet; settings."""
    host.install()
    scene = host.new_file()
    host.ask(scene, frames=9, fps=12)
    bpy.ops.rushes.generate()
    host.finish()
    strip = host.strip(scene)
    strip.frame_offset_start, strip.channel = 3, 5
    place = (strip.frame_final_start, strip.frame_final_end, strip.channel)
    first = host.frames(strip)
    assert bpy.ops.rushes.take(seed=8) == {"FINISHED"}
    assert host.frames(host.strip(scene)) == first, "the old take stays until the new one has a frame"
    host.finish()
    strip = host.strip(scene)
    second = host.frames(strip)
    assert second.keys() == first.keys() and second != first and strip.name.endswith("seed 8")
    assert (strip.frame_final_start, strip.frame_final_end, strip.channel) == place
    bpy.ops.rushes.choose_take(step=-1)
    assert host.frames(strip) == first and strip.name.endswith("seed 7")
    bpy.ops.rushes.choose_take(step=-1)
    assert host.frames(strip) == second
    assert (strip.frame_final_start, strip.frame_final_end, strip.channel) == place
    scene.rushes.prompt, scene.rushes.seed, scene.rushes.frames = "a ball", 99, 5
    bpy.ops.rushes.restore_settings()
    assert (scene.rushes.prompt, scene.rushes.seed, scene.rushes.frames) == (PROMPT, 8, 9)
    bpy.ops.rushes.variations(count=3)
    host.finish()
    host.session.tick()
    strip = scene.sequence_editor.active_strip
    seeds = [take["wish"]["seed"] for take in host.module("strips").read(strip)["takes"]]
    assert seeds == [8, 9, 10], seeds
    (sheet,) = (Path(bpy.data.filepath).parent / "rushes" / "sheets").glob("variations_*.png")
    image = bpy.data.images.load(str(sheet))
    width, height = image.size
    assert (width, height) == (2 * 20 + 4, 2 * 20 + 4)  # three thumbs of 16x16 with gaps of 4, two by two
    job = host.controller.jobs[host.module("strips").read(strip)["takes"][0]["key"]]
    middle = bpy.data.images.load(str(job.folder / "frames" / "0005.png"))
    for x, y in ((0, 0), (7, 3), (15, 15)):  # the first thumb stands at the top left
        at = 4 * ((24 + y) * width + 4 + x)
        for a, b in zip(image.pixels[at : at + 3], middle.pixels[4 * (16 * y + x) : 4 * (16 * y + x) + 3], strict=True):
            assert abs(a - b) < 1 / 255, (x, y, a, b)
    return {"sheet": [width, height]}
