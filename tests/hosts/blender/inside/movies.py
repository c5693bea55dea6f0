# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A body about movies of ours in Blender's sequencer: what colours it shows."""

from __future__ import annotations

from typing import Any

import bpy
from host import Host


def movie_colours(host: Host) -> dict[str, Any]:
    """For each of config["movies"], the 8-bit colours that its sequencer renders at config["points"] of a frame."""
    host.install()
    width, height = host.config["size"]
    told = {}
    for name, path in host.config["movies"].items():
        scene = host.new_file(name="", fps=24)
        scene.render.resolution_x, scene.render.resolution_y = width, height
        scene.render.resolution_percentage = 100
        scene.view_settings.view_transform = "Standard"  # as for any finished picture
        editor = scene.sequence_editor
        strips = editor.strips if hasattr(editor, "strips") else editor.sequences
        strip = strips.new_movie("movie", path, channel=1, frame_start=1)
        scene.frame_set(3)
        scene.render.filepath = str(host.folder / f"{name}.png")
        scene.render.image_settings.file_format = "PNG"
        bpy.ops.render.render(write_still=True)
        picture = bpy.data.images.load(scene.render.filepath)
        assert tuple(picture.size) == (width, height)
        pixels, channels = picture.pixels[:], picture.channels
        told[name] = {
            "frames": strip.frame_duration,
            "colours": [_colour(pixels, channels, width, height, x, y) for x, y in host.config["points"]],
        }
    return told


def _colour(pixels: Any, channels: int, width: int, height: int, x: int, y: int) -> list[int]:
    start = ((height - 1 - y) * width + x) * channels  # Blender counts rows from below
    return [round(value * 255) for value in pixels[start : start + 3]]
