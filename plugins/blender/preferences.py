# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Preferences: which worker, and what happens when a file is opened. Annotations here are Blender's, not types."""

from typing import Any

import bpy
from bpy.props import BoolProperty, StringProperty

from .vendor.client import WorkerMissing


class RushesPreferences(bpy.types.AddonPreferences):
    """Of the whole Blender, not of a file."""

    bl_idname = __package__

    worker: StringProperty(
        name="Worker",
        subtype="FILE_PATH",
        description="The `rushes` executable; empty: RUSHES_WORKER, PATH, and where virtual environments usually are",
    )
    paths: StringProperty(
        name="Path map",
        description="For a worker that sees other mount points: its prefix=Blender's prefix; several after semicolons",
    )
    memory: StringProperty(
        name="Memory",
        description="Gigabytes of the graphics card that the worker keeps to, such as 8; empty: most of what it has. "
        "It counts from the worker's next start",
    )
    resume_on_load: BoolProperty(
        name="Go on with a file's clips when it is opened",
        default=True,
        description="Off: the button Reattach does it",
    )

    def path_table(self) -> list[tuple[str, str]]:
        """(the worker's prefix, Blender's prefix) pairs. Raises WorkerMissing, since without them it finds no file."""
        pairs = [[part.strip() for part in pair.split("=")] for pair in self.paths.split(";") if pair.strip()]
        for pair in pairs:
            if len(pair) != 2 or not all(pair):
                raise WorkerMissing(
                    f"path map: got {'='.join(pair)!r}; the worker's prefix=Blender's prefix is allowed, several after "
                    "semicolons"
                )
        return [(theirs, ours) for theirs, ours in pairs]

    def draw(self, context: Any) -> None:
        from . import timer

        layout, session = self.layout, timer.session()
        layout.prop(self, "worker")
        layout.prop(self, "paths")
        layout.prop(self, "memory")
        layout.prop(self, "resume_on_load")
        row = layout.row()
        row.operator("rushes.connect")
        row.operator("rushes.free_memory")
        row.operator("rushes.end_worker")
        for line in (session.message, session.controller.worker, *session.controller.log[-6:]):
            if line:
                layout.label(text=line)


def get() -> Any:
    """Our preferences."""
    return bpy.context.preferences.addons[__package__].preferences


def register() -> None:
    bpy.utils.register_class(RushesPreferences)


def unregister() -> None:
    bpy.utils.unregister_class(RushesPreferences)
