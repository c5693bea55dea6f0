# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Pictures out of the scene, as first or last frame of a clip: from sequencer, strip, camera or viewport."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bpy

from . import compat, places

SAMPLES = 64  # at most, of a camera render: it is a guide, not a final picture
SOURCES = (
    ("SEQUENCER", "Sequencer frame", "What the sequencer shows at the playhead"),
    ("STRIP", "Active strip", "The picture of the active image strip at the playhead"),
    ("CAMERA", "Camera render", "A render through the scene's camera"),
    ("VIEWPORT", "Viewport", "What the 3D viewport shows; needs a window"),
)


class PictureError(RuntimeError):
    """There is no such picture. One sentence for the artist."""


def take_picture(context: Any, source: str) -> str:
    """A PNG of a source under rushes/keyframes, or the strip's own file. Returns its path. Raises PictureError."""
    scene = compat.editor_scene(context)
    if source == "STRIP":
        return strip_picture(scene)
    path = _new_path(source.lower())
    if source == "SEQUENCER":
        _render_sequencer(scene, path)
    elif source == "CAMERA":
        _render_camera(context.scene, path)
    else:
        _render_viewport(context, path)
    if not Path(path).is_file():
        raise PictureError(f"{source.lower()}: Blender has rendered nothing")
    return path


def strip_picture(scene: Any) -> str:
    """The file that the active image strip shows at the playhead, or its nearest one."""
    strip = scene.sequence_editor.active_strip if scene.sequence_editor else None
    if strip is None or strip.type != "IMAGE":
        raise PictureError("strip: the active strip is no image strip; select one")
    at = int(scene.frame_current - strip.frame_start)
    element = strip.elements[max(0, min(len(strip.elements) - 1, at))]
    path = Path(places.real_path(strip.directory)) / element.filename
    if not path.is_file():
        raise PictureError(f"strip: {path} is not there")
    return str(path)


def _new_path(source: str) -> str:
    folder = places.root() / "keyframes"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{source}_{secrets.token_hex(4)}.png")


@contextmanager
def copied(scene: Any, path: str) -> Iterator[Any]:
    """A copy of the scene that renders to path; the artist's own settings are not touched."""
    copy = scene.copy()
    try:
        compat.still_output(copy, path)
        yield copy
    finally:
        bpy.data.scenes.remove(copy)


def _render_sequencer(scene: Any, path: str) -> None:
    if not compat.all_strips(scene):
        raise PictureError("sequencer: it holds no strips")
    with copied(scene, path) as copy:
        copy.frame_set(scene.frame_current)
        copy.render.use_sequencer, copy.render.use_compositing = True, False
        # Strips are sRGB already; another view transform would shift them, and a clip made from them once more
        copy.view_settings.view_transform = "Standard"
        bpy.ops.render.render(write_still=True, scene=copy.name)


def _render_camera(scene: Any, path: str) -> None:
    if scene.camera is None:
        raise PictureError("camera: the scene has none")
    with copied(scene, path) as copy:
        copy.frame_set(scene.frame_current)
        copy.render.use_sequencer = False
        if not compat.has_window():
            copy.render.engine = "CYCLES"  # the one that needs no OpenGL: without a driver, the others end Blender
        if copy.render.engine == "CYCLES":
            copy.cycles.samples = min(copy.cycles.samples, SAMPLES)
        bpy.ops.render.render(write_still=True, scene=copy.name)


def _render_viewport(context: Any, path: str) -> None:
    if not compat.has_window():
        raise PictureError("viewport: Blender runs without a window; a camera render is allowed")
    for area in context.window.screen.areas:
        if area.type == "VIEW_3D":
            break
    else:
        raise PictureError("viewport: no 3D viewport is open in this window")
    scene, kept = context.scene, compat.output_settings(context.scene)
    try:
        compat.still_output(scene, path)
        region = next(region for region in area.regions if region.type == "WINDOW")
        with context.temp_override(area=area, region=region):
            bpy.ops.render.opengl(write_still=True, view_context=True)
    finally:
        compat.restore_output(scene, kept)
