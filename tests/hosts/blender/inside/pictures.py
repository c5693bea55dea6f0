# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Bodies about pictures out of the scene and clips into it, and about where files lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy
from host import Host
from layout import draw_all


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
    strip.frame_offset_start = 2  # its head cut off: what is left must show what it showed there
    assert strip.frame_final_start == 42
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
    assert (movie.frame_start, movie.frame_final_start, movie.frame_final_duration) == (40, 42, 7)
    assert movie.channel != strip.channel
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
    assert "greys finished pictures" in " ".join(draw_all(host))
    bpy.ops.rushes.standard_view()
    assert "greys finished pictures" not in " ".join(draw_all(host))
    return str(scene.view_settings.view_transform)


def files(host: Host) -> dict[str, Any]:
    """Not saved: the user folder. Saved: an offer to move, which is done. Saved elsewhere: the strips still show."""
    host.install()
    scene = host.new_file(name="")
    host.ask(scene, frames=9)
    assert "not saved yet" in " ".join(draw_all(host))
    bpy.ops.rushes.generate()
    host.finish()
    user = host.module("places").user_folder()
    strip = host.strip(scene)
    assert str(user) in strip.directory
    frames = host.frames(strip)
    saved = host.folder / "later" / "film.blend"
    saved.parent.mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(saved))
    assert host.session.has_strays and "user folder" in " ".join(draw_all(host))
    assert host.frames(host.strip(scene)) == frames
    bpy.ops.rushes.collect()
    strip = host.strip(scene)
    assert strip.directory.startswith("//rushes/jobs/") and host.frames(strip) == frames
    assert not host.session.has_strays and not list((user / "jobs").glob("*/frames"))
    assert host.take(strip)["home"] == "//rushes/jobs"
    bpy.ops.rushes.keyframe(source="STRIP", place="FIRST")
    bpy.ops.rushes.keyframe(source="SEQUENCER", place="LAST")
    pictures = [host.module("places").real_path(key.image) for key in scene.rushes.keyframes]
    assert all(key.image.startswith("//rushes/") for key in scene.rushes.keyframes)
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
    keyframes = bpy.context.scene.rushes.keyframes
    assert [host.module("places").real_path(key.image) for key in keyframes] == pictures
    return {}


def moving(host: Host) -> None:
    """Keyframes and sheets of a file that was not saved go with its clips; then a whole project goes somewhere else."""
    host.install()
    scene = host.new_file(name="")
    host.ask(scene, frames=9, fps=24)
    bpy.ops.rushes.generate()
    host.finish()
    bpy.ops.rushes.keyframe(source="SEQUENCER", place="FIRST")
    scene.frame_set(100)
    bpy.ops.rushes.generate()
    host.finish()
    bpy.ops.rushes.contact_sheet()
    host.until(lambda: not host.session.sheets)
    saved, moved = host.folder / "first" / "film.blend", host.folder / "second ä"
    saved.parent.mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(saved))
    bpy.ops.rushes.collect()
    assert not host.session.has_strays
    assert scene.rushes.keyframes[0].image.startswith("//rushes/keyframes/")
    assert any(image.filepath.startswith("//rushes/sheets/") for image in bpy.data.images)
    bpy.ops.wm.save_mainfile()
    saved.parent.rename(moved)
    bpy.ops.wm.open_mainfile(filepath=str(moved / "film.blend"))
    host.session.tick()
    scene = bpy.context.scene
    strip = scene.sequence_editor.active_strip
    first = host.frames(strip)
    assert len(first) == 9 and strip.frame_final_start == 100
    (key,) = host.take(strip)["wish"]["keyframes"]
    assert key["image"].startswith("//rushes/keyframes/")
    bpy.ops.rushes.take(seed=9)
    host.finish()
    made = host.take(scene.sequence_editor.active_strip)["shot"]["keyframes"][0]["image"]
    assert made.startswith(str(moved)) and host.frames(scene.sequence_editor.active_strip) != first
