# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Buttons between clips and the scene: keyframes, backdrops, view transform, files. Annotations are Blender's."""

import shutil
from pathlib import Path
from typing import Any

import bpy
from bpy.props import EnumProperty, IntProperty

from . import backdrops, compat, places, preferences, properties, scene_io, strips, timer
from .guided import REFUSALS, refuse
from .operators import OnOurStrip, is_still
from .vendor.client import find_worker


class RUSHES_OT_keyframe(bpy.types.Operator):
    """Take a picture as the clip's first or last frame, or as one to refer to"""

    bl_idname = "rushes.keyframe"
    bl_label = "Add Keyframe"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context: Any) -> bool:
        return is_still(cls)

    source: EnumProperty(name="From", items=scene_io.SOURCES)
    place: EnumProperty(
        name="As",
        items=[
            ("PANEL", "As the panel says", ""),
            ("FIRST", "First frame", "The clip begins with it"),
            ("LAST", "Last frame", "The clip ends with it"),
            (properties.REFERENCE, "Reference", "What it shows shall be seen; for a VACE model"),
        ],
    )

    def execute(self, context: Any) -> set[str]:
        scene = compat.editor_scene(context)
        place = properties.settings(scene).keyframe_place if self.place == "PANEL" else self.place
        try:
            path = scene_io.take_picture(context, self.source)
        except REFUSALS as error:
            return refuse(self, error)
        properties.add_keyframe(scene, path, place)
        return {"FINISHED"}


class RUSHES_OT_remove_keyframe(bpy.types.Operator):
    """Take this keyframe away; its picture stays on disk"""

    bl_idname = "rushes.remove_keyframe"
    bl_label = "Remove Keyframe"
    bl_options = {"UNDO"}

    index: IntProperty(name="Index", min=0)

    def execute(self, context: Any) -> set[str]:
        properties.settings(compat.editor_scene(context)).keyframes.remove(self.index)
        timer.session().want_quote()
        return {"FINISHED"}


class RUSHES_OT_backdrop(OnOurStrip, bpy.types.Operator):
    """Bring the active strip's clip into the scene"""

    bl_idname = "rushes.backdrop"
    bl_label = "Into the Scene"
    bl_options = {"UNDO"}

    kind: EnumProperty(name="As", items=backdrops.KINDS)

    def execute(self, context: Any) -> set[str]:
        item = strips.active(context)
        try:
            if not item.take["is_done"]:
                raise backdrops.BackdropError("clip: it is not finished; wait for it, or press Retry")
            if self.kind == "CAMERA":
                backdrops.behind_camera(context.scene, item)
            elif self.kind == "PLANE":
                backdrops.on_plane(context.scene, item)
            else:
                command = [find_worker(preferences.get().worker)]
                timer.session().movies.append(backdrops.Movie(command, item))
        except REFUSALS as error:
            return refuse(self, error)
        return {"FINISHED"}


class RUSHES_OT_standard_view(bpy.types.Operator):
    """Show colours as they are in the files. AgX and Filmic are made for rendered light, and grey a finished picture"""

    bl_idname = "rushes.standard_view"
    bl_label = "View Transform: Standard"
    bl_options = {"UNDO"}

    def execute(self, context: Any) -> set[str]:
        compat.editor_scene(context).view_settings.view_transform = "Standard"
        return {"FINISHED"}


class RUSHES_OT_collect(bpy.types.Operator):
    """Move the clips that were made before the .blend was saved from the user folder to beside it"""

    bl_idname = "rushes.collect"
    bl_label = "Move Clips beside the File"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context: Any) -> bool:
        if not places.is_saved():
            cls.poll_message_set("the .blend is not saved; save it first")
            return False
        return is_still(cls)

    def execute(self, context: Any) -> set[str]:
        session = timer.session()
        waiting = 0
        try:
            for item in list(strips.tagged()):
                for index, take in enumerate(item.data["takes"]):
                    waiting += not self._collect(item, take, is_shown=index == item.data["take"])
            _collect_pictures()
        except REFUSALS as error:
            return refuse(self, error)
        finally:
            session.find_strays()
        if waiting:
            self.report({"WARNING"}, f"{waiting} clips are being made and stay for now; press again when they are done")
        return {"FINISHED"}

    @staticmethod
    def _collect(item: strips.Tagged, take: strips.Take, is_shown: bool) -> bool:
        """Move one take's folder; False when its job is active."""
        if not places.is_in_user_folder(take["home"]):
            return True
        job = timer.controller().jobs.get(take["key"])
        if job is not None and job.is_active:
            return False
        before, home = Path(places.real_path(take["home"])), places.jobs_home()
        if take["job"] and (before / take["job"]).is_dir():
            Path(home).mkdir(parents=True, exist_ok=True)
            shutil.move(str(before / take["job"]), home)
        if take["job"]:
            _repoint(before / take["job"], Path(home) / take["job"])
        take["home"] = places.stored_path(home)
        strips.bring_pictures(take)
        if job is not None:
            job.home = home
        strips.write(item.strip, item.data)
        if is_shown:
            strips.show(item, take["frames"])
        return True


def _collect_pictures() -> None:
    """Pictures that panels and contact sheets show. Raises OSError."""
    for scene in bpy.data.scenes:
        for key in properties.settings(scene).keyframes:
            key.image = places.stored_path(places.beside(key.image))
    for image in bpy.data.images:
        if image.filepath and places.is_in_user_folder(image.filepath):
            image.filepath = places.stored_path(places.beside(image.filepath))


def _repoint(before: Path, after: Path) -> None:
    """Images of backdrops go with their folder."""
    for image in bpy.data.images:
        path = Path(places.real_path(image.filepath)) if image.filepath else None
        if path is not None and before in path.parents:
            image.filepath = places.stored_path(str(after / path.relative_to(before)))


CLASSES = (
    RUSHES_OT_keyframe,
    RUSHES_OT_remove_keyframe,
    RUSHES_OT_backdrop,
    RUSHES_OT_standard_view,
    RUSHES_OT_collect,
)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)


def unregister() -> None:
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
