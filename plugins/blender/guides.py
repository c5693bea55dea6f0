# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Control passes out of the scene: depth, normals or grey shapes through its camera, one picture for each clip frame.

Each pass is a material over everything, which emits what is measured, rendered with Cycles at one sample in the middle
of each pixel. So there is no noise, no lamp, no compositor and no OpenGL in it, and it is the same in every Blender.
"""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import bpy

from . import compat, places
from .scene_io import PictureError, copied
from .vendor.plan import Wish, clip_rate, plan

KINDS = (
    ("NONE", "None", "The words alone"),
    ("DEPTH", "Depth", "How far everything is from the camera; near is white, over the whole clip"),
    ("NORMAL", "Normal", "Which way surfaces face, as the camera sees them"),
    ("GREY", "Grey", "The shapes in grey clay, lit from beside the camera"),
)
TAKING = "control"  # the kind of a model that takes control passes, in its limits
MASK = "mask"
_EXR = ("depth",)  # distances; all else is between 0 and 1
_BEHIND = {"normal": 0.5, "grey": 0.25}  # what is seen where nothing is; 0 for the others
_SMOOTH = 8  # samples of the grey pass, whose edges are to be seen; measures are not to be mixed at edges
_LIGHT = (-0.4, 0.6, -0.7)  # towards the clay's lamp; of the camera's axes the third goes away from it
_DARK, _LIT = 0.15, 0.65  # the clay's shade, and what its lamp adds


class Guide:
    """The footage of one wish, rendered frame by frame with `step`. Nothing in it points into Blender's data."""

    def __init__(self, context: Any, start: int, wish: Wish, limits: Any) -> None:
        """start: scene frame of the clip's first. limits: of the wish's model, None where not known. Raises
        PictureError for what cannot be rendered.
        """
        guide = wish["guide"]
        if limits is None:
            raise PictureError("control: the model has not said yet what it takes; wait for the price in the panel")
        if limits["kind"] != TAKING:
            raise PictureError(
                f"control: {limits['name']} takes no control passes; None is allowed, or a VACE model with it"
            )
        if context.scene.camera is None:
            raise PictureError("control: the scene has no camera; a pass is what one sees")
        if guide["mask"] and guide["mask"] not in bpy.data.collections:
            raise PictureError(f"mask: the collection {guide['mask']!r} is gone; another one, or none, is allowed")
        self._guide, self._wish = guide, wish
        self._scene, self._layer = context.scene.name, context.view_layer.name
        shot = plan(wish, limits).shot
        self._size, self.frames = shot["size"], shot["frames"]
        self._start, self._pace = start, Fraction(wish["scene_fps"]) / clip_rate(wish, limits)
        self._folder = places.root() / "control" / secrets.token_hex(4)
        self.done = 0

    @property
    def is_done(self) -> bool:
        return self.done == self.frames

    def step(self) -> None:
        """Render the next frame. Raises PictureError and what Blender raises; then, and once done, nothing is left of
        it in the scene.
        """
        scene = bpy.data.scenes.get(self._scene)
        if scene is None:
            raise PictureError(f"control: the scene {self._scene!r} is gone")
        at = self._start + self.done * self._pace
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            for kind in self._kinds:
                self._render(scene, kind, at, Path(self._pattern(kind) % (self.done + 1)))
        finally:
            # What is animated has followed the copy's frame
            scene.frame_set(scene.frame_current, subframe=scene.frame_subframe)
        self.done += 1

    def discard(self) -> None:
        """Take away what has been rendered."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def wish(self) -> Wish:
        """The wish with the footage, once that is done."""
        kind, strength = self._guide["kind"], self._guide["strength"]
        mask = self._pattern(MASK) if self._guide["mask"] else ""
        footage = {"kind": kind, "path": self._pattern(kind), "strength": strength, "mask": mask}
        return {**self._wish, "control": [*self._wish["control"], footage]}

    @property
    def _kinds(self) -> list[str]:
        return [self._guide["kind"], *([MASK] if self._guide["mask"] else [])]

    def _pattern(self, kind: str) -> str:
        return str(self._folder / f"{kind}.%04d.{'exr' if kind in _EXR else 'png'}")

    def _render(self, scene: Any, kind: str, at: Fraction, path: Path) -> None:
        with copied(scene, str(path)) as copy, _emitting(kind) as (material, world), self._touched(kind):
            _only_measures(copy, kind, self._size)
            copy.frame_current, copy.frame_subframe = math.floor(at), float(at % 1)
            copy.world = world
            for layer in copy.view_layers:
                layer.use = layer.name == self._layer
                layer.material_override, layer.samples = material, 0
            with bpy.context.temp_override(scene=copy):  # by its name, it would be rendered at this scene's frame
                bpy.ops.render.render(write_still=True)
        if not path.is_file():
            raise PictureError(f"{kind}: Blender has rendered nothing")

    @contextmanager
    def _touched(self, kind: str) -> Iterator[None]:
        """Inside, cameras have all in focus; for a mask, the pass index of what it shows is 1, of all else 0."""
        blurred = [camera.dof for camera in bpy.data.cameras if camera.dof.use_dof]
        before = {item: item.pass_index for item in bpy.data.objects} if kind == MASK else {}
        shown = set(bpy.data.collections[self._guide["mask"]].all_objects) if before else set()
        try:
            for focus in blurred:
                focus.use_dof = False
            for item in before:
                item.pass_index = int(item in shown)
            yield
        finally:
            for focus in blurred:
                focus.use_dof = True
            for item, index in before.items():
                item.pass_index = index


def _only_measures(scene: Any, kind: str, size: list[int]) -> None:
    """Set a copy up so that what the material emits comes out as it is."""
    if not hasattr(scene, "cycles"):
        raise PictureError("control: Cycles renders the passes and is switched off; switch its add-on on")
    render, cycles, view = scene.render, scene.cycles, scene.view_settings
    compat.still_output(scene, render.filepath, is_float=kind in _EXR)
    render.engine, cycles.device = "CYCLES", "CPU"
    render.resolution_x, render.resolution_y, render.resolution_percentage = *size, 100
    render.pixel_aspect_x = render.pixel_aspect_y = 1
    render.use_sequencer = render.use_compositing = render.use_border = render.use_multiview = False
    render.use_motion_blur = render.use_freestyle = render.use_stamp = render.film_transparent = False
    render.dither_intensity = 0
    cycles.samples, cycles.pixel_filter_type = (_SMOOTH if kind == "grey" else 1), "BOX"
    cycles.filter_width = 1.0 if kind == "grey" else 0.01
    cycles.use_denoising = cycles.use_adaptive_sampling = False
    cycles.max_bounces, cycles.film_exposure, cycles.sample_clamp_direct = 0, 1.0, 0.0
    try:
        scene.display_settings.display_device, view.view_transform, view.look = "sRGB", "Raw", "None"
    except TypeError as error:  # a studio's own colour management
        raise PictureError(
            "control: this colour management has no sRGB and Raw, which passes are written by"
        ) from error
    view.exposure, view.gamma, view.use_curve_mapping = 0.0, 1.0, False


@contextmanager
def _emitting(kind: str) -> Iterator[tuple[Any, Any]]:
    """The material of a pass, and its world."""
    material, world = bpy.data.materials.new(f"rushes {kind}"), bpy.data.worlds.new(f"rushes {kind}")
    try:
        nodes = compat.material_nodes(material)
        emission, output = nodes.nodes.new("ShaderNodeEmission"), nodes.nodes.new("ShaderNodeOutputMaterial")
        nodes.links.new(emission.outputs[0], output.inputs["Surface"])
        nodes.links.new(_measured(nodes, kind), emission.inputs["Color"])
        material.cycles.emission_sampling = "NONE"  # nothing is lit by it
        material.use_backface_culling = False
        background = compat.world_background(world)
        background.inputs["Color"].default_value = (*3 * (_BEHIND.get(kind, 0.0),), 1.0)
        yield material, world
    finally:
        bpy.data.materials.remove(material)
        bpy.data.worlds.remove(world)


def _measured(nodes: Any, kind: str) -> Any:
    """The socket of what a pass shows."""
    if kind == "depth":
        return nodes.nodes.new("ShaderNodeCameraData").outputs["View Z Depth"]
    if kind == MASK:
        return nodes.nodes.new("ShaderNodeObjectInfo").outputs["Object Index"]
    turned = nodes.nodes.new("ShaderNodeVectorTransform")
    turned.vector_type, turned.convert_from, turned.convert_to = "NORMAL", "WORLD", "CAMERA"
    nodes.links.new(nodes.nodes.new("ShaderNodeNewGeometry").outputs["Normal"], turned.inputs[0])
    if kind == "normal":  # red to the right, green up, blue towards the camera
        return _scaled(nodes, turned.outputs[0], (0.5, 0.5, -0.5), (0.5, 0.5, 0.5))
    lamp = nodes.nodes.new("ShaderNodeVectorMath")
    lamp.operation = "DOT_PRODUCT"
    lamp.inputs[1].default_value = [part / math.hypot(*_LIGHT) for part in _LIGHT]
    nodes.links.new(turned.outputs[0], lamp.inputs[0])
    lit = nodes.nodes.new("ShaderNodeMath")
    lit.operation, lit.inputs[1].default_value = "MAXIMUM", 0.0
    nodes.links.new(lamp.outputs["Value"], lit.inputs[0])
    return _scaled(nodes, lit.outputs[0], 3 * (_LIT,), 3 * (_DARK,))


def _scaled(nodes: Any, value: Any, by: tuple[float, ...], plus: tuple[float, ...]) -> Any:
    scaled = nodes.nodes.new("ShaderNodeVectorMath")
    scaled.operation = "MULTIPLY_ADD"
    scaled.inputs[1].default_value, scaled.inputs[2].default_value = by, plus
    nodes.links.new(value, scaled.inputs[0])
    return scaled.outputs[0]
