# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Bodies about control passes: a blocked scene through its camera, and what a model makes of it."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from host import Host
from layout import draw_all

SIZE, FRAMES, START, FPS = (64, 32), 9, 21, 24
NEAR, FAR, RISE = 5.0, 7.0, 0.04  # distances of the two cards from the camera; how far one rises in each scene frame


def guides(host: Host) -> dict[str, Any]:
    """Each pass in its values, at the clip's own moments, with a mask and a reference; then what must not change."""
    host.install()
    scene = blocked(host)
    values = host.ask(scene, model=host.config["vace"], frames=FRAMES, length_mode="FRAMES")
    values.size_mode, (values.width, values.height), values.is_custom = "CUSTOM", SIZE, True
    values.steps, values.guide, values.guide_strength = 2, "DEPTH", 0.75
    values.guide_mask = bpy.data.collections["Held"]
    refused(host, "wait for the price")
    learn_limits(host, scene)
    assert "Control" in [cls.bl_label for cls in host.module("panels").CLASSES]
    assert host.module("properties").takes_control(scene, host.controller.limits)
    assert "rendered through the scene's camera" in draw_all(host, is_whole=True)
    scene.frame_set(START)
    picture = host.folder / "reference.png"
    save(picture, np.random.default_rng(4).random((17, 23, 3)))
    host.module("properties").add_keyframe(scene, str(picture), "REFERENCE")
    assert host.module("properties").wish_of(scene)["keyframes"] == []
    before = state(scene)
    bpy.ops.ed.undo_push(message="before")
    shots, rate = {}, Fraction(FPS) / Fraction(host.controller.limits[host.config["vace"]]["fps"])
    for kind in ("DEPTH", "NORMAL", "GREY"):
        values.guide = kind
        scene.frame_set(START)
        bpy.ops.rushes.generate()
        host.finish()
        assert state(scene) == before, "what was touched is as it was"
        shots[kind] = host.take(scene.sequence_editor.active_strip)["shot"]
        reference, pass_ = shots[kind]["control"]
        assert reference["references"] == [str(picture)] and len(reference["sha256"]) == 1
        assert pass_["kind"] == kind.lower() and pass_["strength"] == 0.75 and len(pass_["sha256"]) == 2
        check_values(kind, pass_, rate)
    own = json.loads(scene.sequence_editor.active_strip["rushes"])["takes"][0]["wish"]["control"][1]
    assert own["path"].startswith("//rushes/control/") and own["mask"].startswith("//rushes/control/")
    bpy.ops.rushes.take(seed=8)
    host.finish()
    again = host.take(scene.sequence_editor.active_strip)["shot"]
    assert again["control"] == shots["GREY"]["control"] and again["seed"] == 8, "one more take needs no new pass"
    values.guide, values.guide_mask = "NONE", None
    values.keyframes.clear()
    bpy.ops.rushes.restore_settings()
    assert (values.guide, values.guide_mask.name, values.keyframes[0].place) == ("GREY", "Held", "REFERENCE")
    return {"latents": [str(latents_of(job)) for job in host.controller.jobs.values()]}


def refusals(host: Host) -> dict[str, Any]:
    """A model that takes none, no camera, a mask that is gone: a sentence, no strip, no footage. One undo step."""
    host.install()
    scene = blocked(host)
    values = host.ask(scene, frames=5)
    learn_limits(host, scene)
    assert not host.module("properties").takes_control(scene, host.controller.limits)
    values.guide = "DEPTH"
    assert "takes no control passes" in draw_all(host, is_whole=True)
    refused(host, "takes no control passes; None is allowed")
    values.model, values.frames = host.config["vace"], 5
    values.size_mode, (values.width, values.height), values.is_custom, values.steps = "CUSTOM", SIZE, True, 1
    learn_limits(host, scene)
    camera, scene.camera = scene.camera, None
    refused(host, "no camera")
    scene.camera = camera
    folder = host.module("places").root() / "control"
    step, broken = host.module("guides").Guide.step, []

    def fails(guide: Any) -> None:
        if guide.done == 2:
            broken.append(sorted(path.name for path in folder.glob("*/*")))
            raise RuntimeError("the disk is full")
        step(guide)

    host.module("guides").Guide.step = fails
    refused(host, "the disk is full")
    host.module("guides").Guide.step = step
    assert broken == [["depth.0001.exr", "depth.0002.exr"]] and list(folder.iterdir()) == []
    bpy.ops.ed.undo_push(message="before")
    bpy.ops.rushes.generate()
    bpy.ops.ed.undo_push(message="Generate")
    host.finish()
    assert len(host.strips(scene)) == 1
    bpy.ops.ed.undo()
    scene = bpy.context.scene
    assert host.strips(scene) == [] and len(bpy.data.scenes) == 1 and "Lit" in bpy.data.objects
    return {}


def unsaved(host: Host) -> None:
    """Footage of a file that was not saved goes with its clips, and is found where the project goes."""
    host.install()
    scene = blocked(host, name="")
    values = host.ask(scene, model=host.config["vace"], frames=5)
    values.size_mode, (values.width, values.height), values.is_custom, values.steps = "CUSTOM", SIZE, True, 1
    values.guide, values.guide_mask = "GREY", bpy.data.collections["Held"]
    learn_limits(host, scene)
    bpy.ops.rushes.generate()
    host.finish()
    saved = host.folder / "first" / "film.blend"
    saved.parent.mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(saved))
    bpy.ops.rushes.collect()
    bpy.ops.wm.save_mainfile()
    saved.parent.rename(host.folder / "second ä")
    bpy.ops.wm.open_mainfile(filepath=str(host.folder / "second ä" / "film.blend"))
    host.session.tick()
    bpy.context.scene.sequence_editor.active_strip = host.strip(bpy.context.scene)
    bpy.ops.rushes.take(seed=9)
    host.finish()
    (pass_,) = host.take(host.strip(bpy.context.scene))["shot"]["control"]
    for pattern in (pass_["path"], pass_["mask"]):
        assert pattern.startswith(str(host.folder / "second ä")), pattern
        assert all(Path(pattern % number).is_file() for number in range(1, 6))


# --- the scene --------------------------------------------------------------------------------------------------------


def blocked(host: Host, name: str = "film.blend") -> Any:
    """Two cards that face the camera, the near one rising; lamps in view, depth of field, and settings that hurt."""
    scene = host.new_file(name=name, fps=FPS)
    held = bpy.data.collections.new("Held")
    scene.collection.children.link(held)
    near, far = card("Near", 0.0, -1.0, 0.0), card("Far", FAR - NEAR, 0.0, 1.0)
    held.objects.link(far)
    scene.collection.objects.link(near)
    far.rotation_euler = (0.0, 0.0, 0.0)
    camera = put(scene, "Camera", bpy.data.cameras.new("Camera"), (0.0, -NEAR, 0.0), math.pi / 2)
    camera.data.dof.use_dof, camera.data.dof.focus_distance, camera.data.dof.aperture_fstop = True, 1.0, 0.1
    scene.camera = camera
    lamp = bpy.data.lights.new("Lit", "AREA")
    lamp.size = 1.0
    put(scene, "Lit", lamp, (0.3, -2.0, 0.1), math.pi / 2)
    ball = bpy.data.lights.new("Ball", "POINT")
    ball.shadow_soft_size = 0.3
    put(scene, "Ball", ball, (-0.5, -2.0, 0.0), 0.0)
    near.location.z = 0.0
    near.keyframe_insert("location", frame=START)
    near.location.z = 100 * RISE
    near.keyframe_insert("location", frame=START + 100)
    for curve in curves(near):
        for point in curve.keyframe_points:
            point.interpolation = "LINEAR"
    near.pass_index = 7
    render = scene.render
    render.use_border, render.border_max_x, render.resolution_percentage = True, 0.5, 50
    render.use_motion_blur, render.engine, render.film_transparent = True, "BLENDER_WORKBENCH", True
    scene.view_settings.exposure, scene.world = 2.0, bpy.data.worlds.new("Sky")
    scene.view_layers.new("Other")
    scene.frame_set(START)
    return scene


def card(name: str, y: float, left: float, right: float) -> Any:
    """A rectangle of 1 m height in the plane at y."""
    mesh = bpy.data.meshes.new(name)
    corners = [(left, y, -0.5), (right, y, -0.5), (right, y, 0.5), (left, y, 0.5)]
    mesh.from_pydata(corners, [], [(0, 1, 2, 3)])
    return bpy.data.objects.new(name, mesh)


def put(scene: Any, name: str, data: Any, location: tuple[float, ...], turn: float) -> Any:
    item = bpy.data.objects.new(name, data)
    item.location, item.rotation_euler = location, (turn, 0.0, 0.0)
    scene.collection.objects.link(item)
    return item


def curves(item: Any) -> Any:
    action = item.animation_data.action
    if hasattr(action, "fcurves"):
        return action.fcurves
    return action.layers[0].strips[0].channelbags[0].fcurves


def state(scene: Any) -> dict[str, Any]:
    """What an artist has set, of all that a pass goes near."""
    render, near = scene.render, bpy.data.objects["Near"]
    return {
        "at": (scene.frame_current, scene.frame_subframe, near.location.z, near.pass_index),
        "render": (render.engine, render.filepath, render.resolution_x, render.resolution_percentage),
        "more": (render.use_border, render.use_motion_blur, render.film_transparent, render.image_settings.file_format),
        "view": (scene.view_settings.view_transform, round(scene.view_settings.exposure, 4), scene.world.name),
        "camera": (scene.camera.name, scene.camera.data.dof.use_dof),
        "layers": [(layer.name, layer.use, layer.material_override) for layer in scene.view_layers],
        "data": [len(getattr(bpy.data, name)) for name in ("scenes", "materials", "worlds", "cameras", "objects")],
    }  # fmt: skip


# --- what came out ----------------------------------------------------------------------------------------------------


def check_values(kind: str, pass_: dict[str, Any], rate: Fraction) -> None:
    """Every frame against the scene worked out by hand: where a pixel's middle is, and which card is before it."""
    for number in range(FRAMES):
        rise = RISE * float(number * rate)
        is_near, is_far = seen(rise)
        picture, mask = load(pass_["path"] % (number + 1)), load(pass_["mask"] % (number + 1))
        assert np.array_equal(mask[..., 0] > 0.5, is_far) and set(np.unique(mask)) <= {0.0, 1.0}, (kind, number)
        if kind == "DEPTH":
            expected = np.where(is_near, NEAR, np.where(is_far, FAR, 0.0))
            assert np.abs(picture - expected[..., None]).max() < 1e-3, (kind, number, np.unique(picture))
            continue
        behind = {"NORMAL": (0.5, 0.5, 0.5), "GREY": 3 * (0.25,)}[kind]
        lit = 0.15 + 0.65 * 0.7 / math.hypot(0.4, 0.6, 0.7)
        face = {"NORMAL": (0.5, 0.5, 1.0), "GREY": 3 * (lit,)}[kind]
        inside, outside = inner(is_near | is_far), inner(~(is_near | is_far))
        assert np.abs(picture[inside] - face).max() < 1 / 200 and inside.any(), (kind, number)
        assert np.abs(picture[outside] - behind).max() < 1 / 200 and outside.any(), (kind, number)


def seen(rise: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the near card is seen, and where the far one: bool [height, width], rows from the bottom."""
    lens = bpy.context.scene.camera.data
    x = (np.arange(SIZE[0]) + 0.5 - SIZE[0] / 2) / SIZE[0] * lens.sensor_width / lens.lens
    y = (np.arange(SIZE[1]) + 0.5 - SIZE[1] / 2) / SIZE[0] * lens.sensor_width / lens.lens

    def within(values: np.ndarray, distance: float, low: float, high: float) -> np.ndarray:
        return (values * distance > low) & (values * distance < high)

    near = within(y, NEAR, rise - 0.5, rise + 0.5)[:, None] & within(x, NEAR, -1.0, 0.0)[None]
    far = within(y, FAR, -0.5, 0.5)[:, None] & within(x, FAR, 0.0, 1.0)[None]
    return near, far & ~near


def inner(where: np.ndarray) -> np.ndarray:
    """Without the pixels beside an edge, which a smoothed pass mixes."""
    padded = np.pad(where, 1, mode="edge")
    height, width = where.shape
    parts = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.logical_and.reduce(parts)


def load(path: str) -> np.ndarray:
    """Float32 [height, width, 3] as stored, rows from the bottom."""
    image = bpy.data.images.load(path)
    image.colorspace_settings.name = "Non-Color"
    values = np.empty(SIZE[0] * SIZE[1] * 4, np.float32)
    assert tuple(image.size) == SIZE
    image.pixels.foreach_get(values)
    bpy.data.images.remove(image)
    return values.reshape(SIZE[1], SIZE[0], 4)[..., :3]


def save(path: Path, pixels: np.ndarray) -> None:
    height, width, _ = pixels.shape
    image = bpy.data.images.new("r", width, height)
    image.pixels.foreach_set(np.dstack([pixels, np.ones((height, width))]).astype(np.float32).ravel())
    image.filepath_raw, image.file_format = str(path), "PNG"
    image.save()
    bpy.data.images.remove(image)


# --- the panel --------------------------------------------------------------------------------------------------------


def learn_limits(host: Host, scene: Any) -> None:
    """As the panel's price does."""
    model = scene.rushes.model
    host.session.want_quote()
    host.until(lambda: model in host.controller.limits)


def refused(host: Host, words: str) -> None:
    before = len(host.strips(bpy.context.scene)), len(host.controller.jobs)
    try:
        bpy.ops.rushes.generate()
    except RuntimeError as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"not refused: {words}")
    assert before == (len(host.strips(bpy.context.scene)), len(host.controller.jobs))


def latents_of(job: Any) -> Path:
    return Path(job.home) / job.id / "latents.safetensors"
