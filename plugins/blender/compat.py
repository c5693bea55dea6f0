# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Every difference between Blender 4.2, 4.5 and 5.0 that the extension meets; the other files know none of them."""

from __future__ import annotations

from typing import Any

import bpy

# Fields that may hold a `//` path have to say so from 4.5 on; 4.2 does not know the word
BLEND_RELATIVE = {"PATH_SUPPORTS_BLEND_RELATIVE"} if bpy.app.version >= (4, 5, 0) else set()


def editor_scene(context: Any) -> Any:
    """The scene whose sequencer is shown: 5.0 lets it differ from the window's scene, and has none in a fresh file."""
    return getattr(context, "sequencer_scene", None) or context.scene


def strips(scene: Any) -> Any:
    """The editor's top strips, with new_image and remove; makes the editor when there is none."""
    editor = scene.sequence_editor or scene.sequence_editor_create()
    return editor.strips if hasattr(editor, "strips") else editor.sequences  # `sequences` until 4.3, only that in 4.2


def all_strips(scene: Any) -> Any:
    """All strips, those inside meta strips too; an empty list without an editor."""
    editor = scene.sequence_editor
    if editor is None:
        return []
    return editor.strips_all if hasattr(editor, "strips_all") else editor.sequences_all


def still_output(scene: Any, path: str, is_float: bool = False) -> None:
    """Set a scene up to render one 8-bit PNG, or one EXR of 32-bit floats."""
    settings = scene.render.image_settings
    if hasattr(settings, "media_type"):  # from 5.0; file formats depend on it
        settings.media_type = "IMAGE"
    settings.file_format, depth = ("OPEN_EXR", "32") if is_float else ("PNG", "8")
    settings.color_mode, settings.color_depth = "RGB", depth
    scene.render.filepath = path
    scene.render.use_file_extension = False


def output_settings(scene: Any) -> dict[str, Any]:
    """What `still_output` changes, for `restore_output`."""
    settings = scene.render.image_settings
    names = ("media_type", "file_format", "color_mode", "color_depth")  # in an order that can be set again
    values = {name: getattr(settings, name) for name in names if hasattr(settings, name)}
    render = scene.render
    return {"image": values, "filepath": render.filepath, "use_file_extension": render.use_file_extension}


def restore_output(scene: Any, kept: dict[str, Any]) -> None:
    for name, value in kept["image"].items():
        setattr(scene.render.image_settings, name, value)
    scene.render.filepath, scene.render.use_file_extension = kept["filepath"], kept["use_file_extension"]


def material_nodes(material: Any) -> Any:
    """The node tree of a material, empty; from 5.0 every material has one."""
    if material.node_tree is None:
        material.use_nodes = True
    material.node_tree.nodes.clear()
    return material.node_tree


def world_background(world: Any) -> Any:
    """The background node of a new world; from 5.0 every world has one."""
    if world.node_tree is None:
        world.use_nodes = True
    return next(node for node in world.node_tree.nodes if node.type == "BACKGROUND")


def is_rendering() -> bool:
    """Whether Blender renders just now, when strips must stay as they are."""
    return bool(bpy.app.is_job_running("RENDER"))


def has_window() -> bool:
    """Whether there is a window, and with it OpenGL."""
    return not bpy.app.background
