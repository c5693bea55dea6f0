# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What is tried inside bpy. Each body gets a Host, asserts, and returns what its test looks at."""

from __future__ import annotations

import json
import math
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import bpy
from host import MODULE, PROMPT, Host
from layout import Layout


def _expected(frames: int, clip_fps: str, scene_fps: str, length: int) -> list[str]:
    """Which frame is seen at each scene frame, written down from the definition: at time t, the frame begun last."""
    clip, scene = Fraction(clip_fps), Fraction(scene_fps)
    names = []
    for element in range(length):
        seconds = Fraction(element) / scene
        begun = [number for number in range(frames) if Fraction(number) / clip <= seconds]
        names.append(f"{begun[-1] + 1:04d}.png")
    return names


def _draw_all(host: Host) -> list[str]:
    """Every panel drawn on a layout that checks what it is asked for; the labels."""
    labels: list[str] = []
    for cls in host.module("panels").CLASSES:
        panel = type("Drawn", (cls.__mro__[1],), {})()
        panel.layout = Layout(labels)
        panel.draw(bpy.context)
    preferences = host.module("preferences")
    preferences.RushesPreferences.draw(_Preferences(preferences.get(), Layout(labels)), bpy.context)
    return labels


class _Preferences:
    """The preferences with a layout of ours."""

    def __init__(self, real: Any, layout: Layout) -> None:
        self._real, self.layout = real, layout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def life(host: Host) -> dict[str, Any]:
    """Install, enable, draw, disable, uninstall."""
    home = Path(bpy.utils.resource_path("USER"))
    handlers = {name: len(getattr(bpy.app.handlers, name)) for name in ("load_post", "undo_post", "save_pre")}
    host.install()
    assert MODULE in bpy.context.preferences.addons and hasattr(bpy.types.Scene, "rushes")
    assert bpy.app.timers.is_registered(host.module("timer")._tick)
    assert bpy.ops.rushes.generate.get_rna_type().name == "Generate"
    scene = host.new_file()
    host.ask(scene)
    labels = _draw_all(host)
    installed = sorted(path.name for path in home.rglob("blender_manifest.toml"))
    tick = host.module("timer")._tick
    bpy.ops.preferences.addon_disable(module=MODULE)
    assert not hasattr(bpy.types.Scene, "rushes") and not bpy.app.timers.is_registered(tick)
    assert not hasattr(bpy.types, "RUSHES_OT_generate") and "generate" not in dir(bpy.ops.rushes)
    assert {name: len(getattr(bpy.app.handlers, name)) for name in handlers} == handlers
    repos = bpy.context.preferences.extensions.repos
    index = next(index for index, repo in enumerate(repos) if repo.module == "user_default")
    bpy.ops.extensions.package_uninstall(repo_index=index, pkg_id="rushes")
    left = [str(path.relative_to(home)) for path in home.rglob("*") if "rushes" in path.name]
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
    labels = _draw_all(host)
    bpy.ops.ed.undo_push(message="before")
    assert bpy.ops.rushes.generate() == {"FINISHED"}
    bpy.ops.ed.undo_push(message="Generate")  # from a script an operator pushes none itself
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
    assert host.names(strip) == _expected(33, "12", "24", 66)
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
    assert host.names(host.strip(scene)) == _expected(33, "12", "24", 66)
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
        assert host.names(strip) == _expected(made, str(clip_fps), str(fps), length)
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
    for expected in (1, 3, 4):
        bpy.ops.rushes.generate()
        assert scene.sequence_editor.active_strip.channel == expected, scene.sequence_editor.active_strip.channel
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
    assert host.names(host.strip(scene)) == _expected(33, "12", "24", 66)
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
    host.finish()
    scene = bpy.context.scene
    assert host.names(host.strip(scene)) == _expected(129, "12", "24", 258)
    bpy.ops.rushes.restore_settings()
    bpy.ops.rushes.generate()
    host.finish()
    one, two = host.controller.jobs.values()
    assert one.id != two.id and len(host.folder_of(one)) == 129 and host.folder_of(one) == host.folder_of(two)
    return {"was_elsewhere": was_elsewhere}


def pictures(host: Host) -> dict[str, Any]:
    """First and last frames from strip, sequencer and camera; the clip begins with them; then into the scene."""
    host.install()
    scene = host.new_file(fps=12)
    scene.render.resolution_x = scene.render.resolution_y = 16
    values = host.ask(scene, frames=9)
    bpy.ops.rushes.generate()
    host.finish()
    strip = host.strip(scene)
    scene.frame_set(3)
    before = (scene.render.filepath, scene.render.image_settings.file_format, scene.view_settings.view_transform)
    bpy.ops.rushes.keyframe(source="STRIP", place="FIRST")
    shown = Path(bpy.path.abspath(values.keyframes[0].image))
    assert shown == Path(bpy.path.abspath(strip.directory)) / host.names(strip)[3 - int(strip.frame_start)]
    bpy.ops.rushes.keyframe(source="SEQUENCER", place="LAST")
    rendered = bpy.data.images.load(bpy.path.abspath(values.keyframes[1].image))
    original = bpy.data.images.load(str(shown))
    assert tuple(rendered.size) == (16, 16)
    off = max(abs(a - b) for a, b in zip(rendered.pixels[:], original.pixels[:], strict=True))
    assert off <= 2 / 255, f"the sequencer's frame is {off * 255:.1f} levels off its file: the view transform is in it"
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    scene.collection.objects.link(camera)
    scene.camera = camera
    bpy.ops.rushes.keyframe(source="CAMERA", place="LAST")
    assert len(values.keyframes) == 2 and "camera_" in values.keyframes[1].image
    assert values.keyframes[1].image.startswith("//rushes/keyframes/")
    now = (scene.render.filepath, scene.render.image_settings.file_format, scene.view_settings.view_transform)
    assert before == now and len(bpy.data.scenes) == 1
    try:
        bpy.ops.rushes.keyframe(source="VIEWPORT")
        raise AssertionError("a viewport without a window")
    except RuntimeError as error:
        assert "without a window" in str(error)
    scene.frame_set(40)
    bpy.ops.rushes.generate()
    host.finish()
    shot = host.take(scene.sequence_editor.active_strip)["shot"]
    assert [key["frame"] for key in shot["keyframes"]] == [0, 8] and all(key["sha256"] for key in shot["keyframes"])
    return {"off": off, **_backdrops(host, scene)}


def _backdrops(host: Host, scene: Any) -> dict[str, Any]:
    strip = scene.sequence_editor.active_strip
    bpy.ops.rushes.backdrop(kind="CAMERA")
    (background,) = scene.camera.data.background_images
    assert background.image.source == "SEQUENCE" and background.image.filepath.startswith("//rushes/jobs/")
    user = background.image_user
    assert (user.frame_start, user.frame_duration) == (40, 9) and scene.camera.data.show_background_images
    bpy.ops.rushes.backdrop(kind="PLANE")
    plane = next(item for item in bpy.data.objects if item.type == "MESH")
    texture = next(node for node in plane.active_material.node_tree.nodes if node.type == "TEX_IMAGE")
    played = texture.image_user
    assert (played.frame_start, played.frame_duration) == (40, 9)
    assert Path(bpy.path.abspath(texture.image.filepath)).is_file() and texture.image.source == "SEQUENCE"
    bpy.ops.rushes.backdrop(kind="MOVIE")
    host.until(lambda: not host.session.movies)
    assert "movie strip" in host.session.message, host.session.message
    movie = next(item for item in host.strips(scene) if item.type == "MOVIE")
    assert (movie.frame_final_start, movie.frame_final_duration) == (40, 9) and movie.channel != strip.channel
    scene.render.fps = 24
    scene.frame_set(80)
    scene.rushes.keyframes.clear()
    bpy.ops.rushes.generate()
    host.finish()
    bpy.ops.rushes.backdrop(kind="CAMERA")
    image = scene.camera.data.background_images[1].image
    folder = Path(bpy.path.abspath(image.filepath)).parent
    shown = scene.sequence_editor.active_strip
    bytes_of = host.frames(shown)
    files = [path.read_bytes() for path in sorted(folder.glob("*.png"))]
    assert files == [bytes_of[name] for name in host.names(shown)], "a file for each scene frame"
    try:
        bpy.ops.rushes.backdrop(kind="MOVIE")
        raise AssertionError("a movie that would run at twice its speed")
    except RuntimeError as error:
        assert "cannot repeat frames" in str(error)
    return {"view": _standard_view(host, scene)}


def _standard_view(host: Host, scene: Any) -> str:
    scene.view_settings.view_transform = "AgX"
    assert "greys finished pictures" in " ".join(_draw_all(host))
    bpy.ops.rushes.standard_view()
    assert "greys finished pictures" not in " ".join(_draw_all(host))
    return str(scene.view_settings.view_transform)


def files(host: Host) -> dict[str, Any]:
    """Not saved: the user folder. Saved: an offer to move, which is done. Saved elsewhere: the strips still show."""
    host.install()
    scene = host.new_file(name="")
    host.ask(scene, frames=9)
    assert "not saved yet" in " ".join(_draw_all(host))
    bpy.ops.rushes.generate()
    host.finish()
    user = host.module("places").user_folder()
    strip = host.strip(scene)
    assert str(user) in strip.directory
    frames = host.frames(strip)
    saved = host.folder / "later" / "film.blend"
    saved.parent.mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(saved))
    assert host.session.has_strays and "user folder" in " ".join(_draw_all(host))
    assert host.frames(host.strip(scene)) == frames
    bpy.ops.rushes.collect()
    strip = host.strip(scene)
    assert strip.directory.startswith("//rushes/jobs/") and host.frames(strip) == frames
    assert not host.session.has_strays and not list((user / "jobs").glob("*/frames"))
    assert host.take(strip)["home"] == "//rushes/jobs"
    bpy.ops.wm.save_mainfile()
    elsewhere = host.folder / "elsewhere" / "deep" / "film.blend"
    elsewhere.parent.mkdir(parents=True)
    bpy.ops.wm.save_as_mainfile(filepath=str(elsewhere))
    bpy.ops.wm.open_mainfile(filepath=str(elsewhere))
    host.session.tick()
    strip = host.strip(bpy.context.scene)
    assert host.frames(strip) == frames
    home = host.module("places").real_path(host.take(strip)["home"])
    assert home == str(saved.parent / "rushes" / "jobs"), home
    return {}


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
        assert "Insert on Timeline" in _draw_all(host)
        bpy.ops.rushes.place(key=key)
        assert len(host.frames(host.strip(scene))) == 33, what


def queue(host: Host) -> dict[str, Any]:
    """Cancel the running and the waiting one, retry, forget; nothing is inserted while Blender renders."""
    host.install()
    scene = host.new_file()
    host.ask(scene, frames=33, is_custom=True, steps=250)
    bpy.ops.rushes.generate()
    bpy.ops.rushes.take(seed=8)
    one, two = host.controller.jobs.values()
    host.until(lambda: one.phase == "denoise" and one.step > 5 and two.state == "queued")
    labels = _draw_all(host)
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
    assert one.state == "done" and len(strip.elements) == 1, "the strip waits while Blender renders"
    compat.is_rendering = really
    host.session.tick()
    data["take"] = 0
    host.module("strips").write(strip, data)
    host.session.mark_all()
    host.session.tick()
    assert len(host.frames(host.strip(scene))) == 33
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
    assert "nothing" in " ".join(_draw_all(host))
    return {"sentence": sentence}


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
    from host import memory

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
