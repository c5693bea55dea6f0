# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Clips into the scene: behind the camera, on a plane, or as a movie strip."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bpy

from . import compat, places, strips
from .elements import conform, element_names
from .vendor.client import clean_environment

KINDS = (
    ("CAMERA", "Camera background", "Behind what the scene's camera sees, as an image sequence"),
    ("PLANE", "Image plane", "On a plane at the 3D cursor, as wide as the picture"),
    ("MOVIE", "Movie strip", "As an MP4 on a channel of its own; needs one frame rate for clip and scene"),
)
PLANE_HEIGHT = 2.0  # metres


class BackdropError(RuntimeError):
    """It cannot be placed so. One sentence for the artist."""


def image_sequence(item: strips.Tagged, take: strips.Take) -> tuple[Any, int]:
    """(image, its frames) of a finished take, one file a scene frame: an image sequence cannot repeat a frame."""
    clip_fps, scene_fps = strips.rates(take)
    frames = strips.frames_folder(take)
    names = element_names(take["frames"], clip_fps, scene_fps, take["length"])
    if clip_fps != scene_fps:
        target = frames.parent / f"frames_at_{str(scene_fps).replace('/', '_')}_fps"
        names, frames = conform(frames, target, names), target
    image = bpy.data.images.load(places.stored_path(str(frames / names[0])), check_existing=False)
    image.name, image.source = item.strip.name, "SEQUENCE"
    image.colorspace_settings.name = "sRGB"
    return image, len(names)


def _play(user: Any, item: strips.Tagged, frames: int) -> None:
    """At the strip's time: a strip that was cut at its head still shows each frame where it did."""
    user.frame_start, user.frame_duration, user.frame_offset = round(item.strip.frame_start), frames, 0
    user.use_cyclic, user.use_auto_refresh = False, True


def behind_camera(scene: Any, item: strips.Tagged) -> Any:
    """A background of the scene's camera. Returns it. Raises BackdropError."""
    if scene.camera is None:
        raise BackdropError("camera: the scene has none; add one")
    image, frames = image_sequence(item, item.take)
    camera = scene.camera.data
    camera.show_background_images = True
    background = camera.background_images.new()
    background.source, background.image = "IMAGE", image
    background.alpha, background.display_depth, background.frame_method = 1.0, "BACK", "FIT"
    _play(background.image_user, item, frames)
    return background


def on_plane(scene: Any, item: strips.Tagged) -> Any:
    """A plane that shows the clip as it is, unlit. Returns the object."""
    image, frames = image_sequence(item, item.take)
    width, height = item.take["shot"]["size"]
    x, y = PLANE_HEIGHT / 2 * width / height, PLANE_HEIGHT / 2
    mesh = bpy.data.meshes.new(item.strip.name)
    mesh.from_pydata([(-x, 0, -y), (x, 0, -y), (x, 0, y), (-x, 0, y)], [], [(0, 1, 2, 3)])
    layer = mesh.uv_layers.new(name="UVMap")
    for corner, at in enumerate(((0, 0), (1, 0), (1, 1), (0, 1))):
        layer.data[corner].uv = at
    material = bpy.data.materials.new(item.strip.name)
    tree = compat.material_nodes(material)
    texture, light, output = (
        tree.nodes.new(kind) for kind in ("ShaderNodeTexImage", "ShaderNodeEmission", "ShaderNodeOutputMaterial")
    )
    texture.image, texture.extension = image, "EXTEND"
    _play(texture.image_user, item, frames)
    tree.links.new(texture.outputs["Color"], light.inputs["Color"])
    tree.links.new(light.outputs["Emission"], output.inputs["Surface"])
    mesh.materials.append(material)
    plane = bpy.data.objects.new(item.strip.name, mesh)
    plane.location = scene.cursor.location
    scene.collection.objects.link(plane)
    return plane


class Movie:
    """An MP4 that the worker's command line makes from a job's latents, in a process of its own."""

    def __init__(self, command: Sequence[str], item: strips.Tagged) -> None:
        clip_fps, scene_fps = strips.rates(item.take)
        if clip_fps != scene_fps:
            raise BackdropError(
                f"movie: the clip has {clip_fps} fps and the scene {scene_fps}; a movie strip cannot repeat frames, "
                "so set one to the other or keep the image strip"
            )
        folder = strips.frames_folder(item.take).parent
        if not (folder / "latents.safetensors").is_file():
            raise BackdropError(f"movie: {folder} has no latents any more")
        self.path = folder / "clip.mp4"
        self.scene, self.name = item.scene.name, item.strip.name
        self.begin, self.length = round(item.strip.frame_start), item.take["length"]  # of the whole clip
        self.first, self.end = item.strip.frame_final_start, item.strip.frame_final_end  # of what is seen
        self._process = subprocess.Popen(
            [*command, "decode", str(folder / "latents.safetensors"), "-o", str(self.path), "--overwrite"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=clean_environment(),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # of Windows, which would show a console
        )

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def place(self) -> str:
        """Put the finished movie on the timeline. Returns a sentence for the panel."""
        assert self._process.stderr is not None
        said = self._process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        scene = bpy.data.scenes.get(self.scene)
        if self._process.returncode or not Path(self.path).is_file():
            return f"movie: it was not made ({said[-1] if said else 'no reason given'})"
        if scene is None:
            return f"movie: its scene is gone; the file is {self.path}"
        collection = compat.strips(scene)
        channel = strips.free_channel(scene, min(self.begin, self.first), max(self.begin + self.length, self.end))
        strip = collection.new_movie(
            name=self.name, filepath=places.stored_path(str(self.path)), channel=channel, frame_start=self.begin,
            fit_method="FIT",
        )  # fmt: skip
        strip.frame_final_end, strip.frame_final_start = min(self.end, self.begin + self.length), self.first
        bpy.ops.ed.undo_push(message="Insert movie")
        return f"movie strip: {self.path}"
