# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Buttons that make clips, and that go between takes. Annotations in operators are Blender's, not types."""

import secrets
from typing import Any

import bpy
from bpy.props import BoolProperty, IntProperty

from . import compat, places, properties, strips, timer
from .guided import REFUSALS, Guided, refuse
from .sheets import Wanted
from .vendor.placeholder import write_placeholder
from .vendor.plan import Wish, plan


def is_still(operator: Any) -> bool:
    """For poll(): whether strips may be changed. While Blender renders them, another thread reads them."""
    if compat.is_rendering():
        operator.poll_message_set("Blender renders just now; wait until it is done")
        return False
    return True


def can_ask(operator: Any, context: Any) -> bool:
    """For poll(): whether there is something to be made."""
    if not properties.prompt_of(compat.editor_scene(context)):
        operator.poll_message_set("the prompt is empty; write a sentence that says what is seen")
        return False
    return is_still(operator)


def submit(wish: Wish) -> strips.Take:
    """Have a clip made. Returns its take, to be put on a strip."""
    key, home = secrets.token_hex(6), places.jobs_home()
    timer.controller().submit(key, wish, home)
    return strips.new_take(key, wish, home)


def start_clip(scene: Any, wish: Wish, start: int) -> Any:
    """A job and its strip at a scene frame, which shows a placeholder. Raises what REFUSALS names."""
    lowest = 1
    if wish["length"]["from"] == "STRIP" and wish["length"]["mode"] == "RANGE":
        lowest = scene.sequence_editor.active_strip.channel + 1
    limits = timer.controller().limits.get(wish["model"])
    length, size = strips.expected_length(wish), wish["size"]["scene"]
    if limits is not None:
        made = plan(wish, limits)
        length, size = made.length, made.shot["size"]
    picture = write_placeholder(places.root(), size)  # first: where this cannot be written, frames cannot either
    take = submit(wish)
    try:
        return strips.insert(scene, start, length, take, picture, lowest)
    except RuntimeError:
        timer.controller().cancel(take["key"])
        raise


def say_where(operator: Any) -> None:
    if not places.is_saved():
        operator.report({"INFO"}, f"the .blend is not saved, so the frames go to {places.root()}")


class RUSHES_OT_generate(Guided, bpy.types.Operator):
    """Make a clip from the prompt; a strip with a placeholder appears at once, and fills while frames come"""

    bl_idname = "rushes.generate"
    bl_label = "Generate"
    bl_options = {"UNDO"}  # no REGISTER, since a changed redo panel would make it twice

    @classmethod
    def poll(cls, context: Any) -> bool:
        return can_ask(cls, context)

    def make(self, context: Any, wish: Wish, start: int) -> None:
        start_clip(compat.editor_scene(context), wish, start)
        say_where(self)


class RUSHES_OT_variations(Guided, bpy.types.Operator):
    """Make several takes with seeds that follow each other, on one strip, and a contact sheet of them"""

    bl_idname = "rushes.variations"
    bl_label = "Variations"
    bl_options = {"UNDO"}

    count: IntProperty(name="Takes", min=0, max=32, description="0: as the panel says")

    @classmethod
    def poll(cls, context: Any) -> bool:
        return can_ask(cls, context)

    def make(self, context: Any, wish: Wish, start: int) -> None:
        scene = compat.editor_scene(context)
        strip = start_clip(scene, wish, start)
        for number in range(1, self.count or properties.settings(scene).variations):
            take = submit({**wish, "seed": (wish["seed"] + number) % properties.MAX_SEED})
            strips.add_take(strips.Tagged(scene, strip, strips.read(strip)), take, is_shown=False)
        keys = tuple(take["key"] for take in strips.read(strip)["takes"])
        timer.session().sheets.append(Wanted(f"variations_{keys[0]}", keys, str(places.root() / "sheets")))
        say_where(self)


class OnOurStrip:
    """For operators on the active strip."""

    @classmethod
    def poll(cls, context: Any) -> bool:
        if strips.active(context) is None:
            cls.poll_message_set("the active strip is no clip of Rushes; select one")
            return False
        return is_still(cls)


class RUSHES_OT_take(OnOurStrip, bpy.types.Operator):
    """Make the active strip's clip again with another seed, as one more take of the same strip"""

    bl_idname = "rushes.take"
    bl_label = "New Take"
    bl_options = {"UNDO"}

    seed: IntProperty(name="Seed", default=-1, min=-1, max=properties.MAX_SEED, description="-1: a random one")

    def execute(self, context: Any) -> set[str]:
        item = strips.active(context)
        wish = {**strips.wish_of(item.take), "seed": self.seed if self.seed >= 0 else properties.random_seed()}
        try:
            strips.add_take(item, submit(wish), is_shown=True)
        except REFUSALS as error:
            return refuse(self, error)
        return {"FINISHED"}


class RUSHES_OT_choose_take(OnOurStrip, bpy.types.Operator):
    """Show another take on the active strip; all of them are kept"""

    bl_idname = "rushes.choose_take"
    bl_label = "Choose Take"
    bl_options = {"UNDO"}

    step: IntProperty(name="Step", default=1, description="1: the next; -1: the one before")

    def execute(self, context: Any) -> set[str]:
        item = strips.active(context)
        strips.choose_take(item, item.data["take"] + self.step)
        timer.session().mark_all()
        return {"FINISHED"}


class RUSHES_OT_contact_sheet(OnOurStrip, bpy.types.Operator):
    """A picture with the middle frame of each finished take of the active strip"""

    bl_idname = "rushes.contact_sheet"
    bl_label = "Contact Sheet"

    def execute(self, context: Any) -> set[str]:
        session, item = timer.session(), strips.active(context)
        session.reattach(is_resuming=False, only=item.strip)  # the sheet needs to know how many frames each has
        keys = tuple(take["key"] for take in item.data["takes"])
        session.sheets.append(Wanted(f"takes_{keys[0]}", keys, str(places.root() / "sheets")))
        session.mark_all()
        return {"FINISHED"}


class RUSHES_OT_reattach(bpy.types.Operator):
    """Take up the clips on the strips again after a crash: show what is there, and go on with what is not finished"""

    bl_idname = "rushes.reattach"
    bl_label = "Reattach"

    only_active: BoolProperty(name="Active strip only")

    def execute(self, context: Any) -> set[str]:
        item = strips.active(context) if self.only_active else None
        if self.only_active and item is None:
            self.report({"ERROR"}, "reattach: the active strip has no clip of Rushes; select one")
            return {"CANCELLED"}
        session = timer.session()
        session.message = ""
        count = session.reattach(is_resuming=True, only=item.strip if item else None)
        if session.message:
            self.report({"ERROR"}, session.message)
            return {"CANCELLED"}
        self.report({"INFO"}, f"{count} takes found on strips")
        return {"FINISHED"}


class RUSHES_OT_restore_settings(OnOurStrip, bpy.types.Operator):
    """Set the panel as it was for the active strip's take; the seed is locked, so that Generate makes the same clip"""

    bl_idname = "rushes.restore_settings"
    bl_label = "Restore Settings"
    bl_options = {"UNDO"}

    def execute(self, context: Any) -> set[str]:
        scene = compat.editor_scene(context)
        wish = strips.wish_of(strips.active(context).take)
        properties.restore(scene, wish)
        then, now = wish["scene_fps"], properties.wish_of(scene)["scene_fps"]
        if then != now:
            self.report({"WARNING"}, f"fps: the scene had {then} when this clip was asked for, and has {now} now")
        return {"FINISHED"}


CLASSES = (
    RUSHES_OT_generate,
    RUSHES_OT_variations,
    RUSHES_OT_take,
    RUSHES_OT_choose_take,
    RUSHES_OT_contact_sheet,
    RUSHES_OT_reattach,
    RUSHES_OT_restore_settings,
)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)


def unregister() -> None:
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
