# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Buttons of the queue and of the worker. Annotations in operators are Blender's, not types."""

from typing import Any

import bpy
from bpy.props import BoolProperty, StringProperty

from . import compat, places, strips, timer
from .guided import REFUSALS, refuse
from .operators import is_still
from .vendor.placeholder import write_placeholder


class _OnJob:
    """For operators on one job of the queue."""

    key: StringProperty(name="Job", options={"HIDDEN"})

    def job(self) -> Any:
        """The job. Raises RuntimeError when it has left the list."""
        job = timer.controller().jobs.get(self.key)
        if job is None:
            raise RuntimeError(f"job: {self.key!r} is not in the list any more")
        return job


class RUSHES_OT_cancel(_OnJob, bpy.types.Operator):
    """Stop this clip. What is made is kept, and Retry goes on from there"""

    bl_idname = "rushes.cancel"
    bl_label = "Cancel"

    free: BoolProperty(name="Free memory", description="Give the model's memory back too")

    def execute(self, context: Any) -> set[str]:
        try:
            timer.controller().cancel(self.job().key, self.free)
        except REFUSALS as error:
            return refuse(self, error)
        return {"FINISHED"}


class RUSHES_OT_retry(_OnJob, bpy.types.Operator):
    """Go on with this clip from where it stopped, or begin it anew when its folder is gone"""

    bl_idname = "rushes.retry"
    bl_label = "Retry"

    def execute(self, context: Any) -> set[str]:
        try:
            timer.controller().retry(self.job().key)
        except REFUSALS as error:
            return refuse(self, error)
        return {"FINISHED"}


class RUSHES_OT_forget(_OnJob, bpy.types.Operator):
    """Take this clip out of the list; its files and strip stay"""

    bl_idname = "rushes.forget"
    bl_label = "Remove from List"

    def execute(self, context: Any) -> set[str]:
        try:
            timer.controller().forget(self.job().key)
        except REFUSALS as error:
            return refuse(self, error)
        return {"FINISHED"}


class RUSHES_OT_reveal(_OnJob, bpy.types.Operator):
    """Open this clip's folder"""

    bl_idname = "rushes.reveal"
    bl_label = "Reveal Folder"

    def execute(self, context: Any) -> set[str]:
        try:
            folder = self.job().folder
            if not folder.is_dir():
                raise RuntimeError(f"folder: {folder} is not there")
        except REFUSALS as error:
            return refuse(self, error)
        bpy.ops.wm.path_open(filepath=str(folder))
        self.report({"INFO"}, str(folder))  # where nothing opens folders, Blender says so in its console only
        return {"FINISHED"}


class RUSHES_OT_place(_OnJob, bpy.types.Operator):
    """Put this clip on the timeline again, at the playhead; its strip or scene was deleted"""

    bl_idname = "rushes.place"
    bl_label = "Insert on Timeline"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context: Any) -> bool:
        return is_still(cls)

    def execute(self, context: Any) -> set[str]:
        scene, session = compat.editor_scene(context), timer.session()
        try:
            job = self.job()
            take = strips.new_take(job.key, job.wish, job.home)
            take["job"], take["shot"] = job.id, job.shot
            size = job.shot["size"] if job.shot else job.wish["size"]["scene"]
            length = job.length or strips.expected_length(job.wish)
            strips.insert(scene, scene.frame_current, length, take, write_placeholder(places.root(), size))
        except REFUSALS as error:
            return refuse(self, error)
        session.unplaced.discard(job.key)
        strips.sync(job)
        return {"FINISHED"}


class RUSHES_OT_connect(bpy.types.Operator):
    """Start the worker, so that the panel can say what a clip would take"""

    bl_idname = "rushes.connect"
    bl_label = "Start Worker"

    def execute(self, context: Any) -> set[str]:
        session = timer.session()
        try:
            session.controller.start()
        except REFUSALS as error:
            session.message = str(error)
            return refuse(self, error)
        session.message = ""
        session.want_quote()
        return {"FINISHED"}


class RUSHES_OT_free_memory(bpy.types.Operator):
    """Give the model's memory back. A clip that is being made is cancelled for it; Retry goes on with it"""

    bl_idname = "rushes.free_memory"
    bl_label = "Free Memory"

    @classmethod
    def poll(cls, context: Any) -> bool:
        return timer.controller().is_running

    def execute(self, context: Any) -> set[str]:
        timer.controller().free()
        return {"FINISHED"}


class RUSHES_OT_end_worker(bpy.types.Operator):
    """End the worker now. Its clips are kept as far as they are, and Retry goes on with them"""

    bl_idname = "rushes.end_worker"
    bl_label = "End Worker"

    @classmethod
    def poll(cls, context: Any) -> bool:
        return timer.controller().is_running

    def execute(self, context: Any) -> set[str]:
        timer.controller().kill()
        return {"FINISHED"}


CLASSES = (
    RUSHES_OT_cancel,
    RUSHES_OT_retry,
    RUSHES_OT_forget,
    RUSHES_OT_reveal,
    RUSHES_OT_place,
    RUSHES_OT_connect,
    RUSHES_OT_free_memory,
    RUSHES_OT_end_worker,
)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)


def unregister() -> None:
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
