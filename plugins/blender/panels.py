# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The tab "Rushes" in the sidebars of the sequencer and of the 3D viewport. Drawing changes nothing in the file."""

from typing import Any

import bpy

from . import compat, places, properties, strips, timer
from .guides import TAKING
from .vendor.controller import Job, Quote
from .vendor.plan import clip_rate, describe_bytes, describe_rate, describe_time

TRUE_VIEWS = ("Standard", "Raw")  # view transforms that leave a finished picture as it is
WIDTH = 46  # characters of a line in a sidebar of usual width


def _lines(layout: Any, text: str, icon: str = "NONE") -> None:
    """A sentence over several lines: Blender cuts what does not fit."""
    line, rest = "", text.split()
    for word in rest:
        if line and len(line) + 1 + len(word) > WIDTH:
            layout.label(text=line, icon=icon)
            line, icon = word, "BLANK1" if icon != "NONE" else "NONE"
        else:
            line = f"{line} {word}".strip()
    if line:
        layout.label(text=line, icon=icon)


def _draw_request(layout: Any, scene: Any) -> None:
    values = properties.settings(scene)
    column = layout.column()
    row = column.row(align=True)
    row.enabled = values.text is None
    row.prop(values, "prompt", text="", placeholder="a red ball rolls to the right")
    column.prop(values, "text", text="Text block")
    column.prop(values, "negative")
    column.prop(values, "model")
    column.prop(values, "size_mode")
    if values.size_mode == "CUSTOM":
        row = column.row(align=True)
        row.prop(values, "width")
        row.prop(values, "height")
    column.prop(values, "length_mode")
    if values.length_mode == "FRAMES":
        column.prop(values, "frames")
    elif values.length_mode == "STRIP" and properties.range_of(scene)[1] == 0:
        _lines(column, "no strip is active: the clip starts at the playhead", "INFO")
    column.prop(values, "fps")
    row = column.row(align=True)
    row.prop(values, "seed")
    row.prop(values, "is_seed_locked", text="", icon="LOCKED" if values.is_seed_locked else "UNLOCKED")
    column.prop(values, "is_custom")
    if values.is_custom:
        row = column.row(align=True)
        row.prop(values, "steps")
        row.prop(values, "guidance")


def _draw_speed(layout: Any, scene: Any) -> None:
    values, controller = properties.settings(scene), timer.controller()
    column = layout.column()
    column.prop(values, "reuse", slider=True)
    column.prop(values, "guided", slider=True)
    column.prop(values, "attention", slider=True)
    row = column.row()
    row.enabled = controller.is_on_cuda or values.fp8_products  # set elsewhere, it can be taken back here
    row.prop(values, "fp8_products")
    if controller.is_ready and not controller.is_on_cuda:
        _lines(column, "fp8 products are for a worker with a CUDA card", "INFO")


def _draw_keyframes(layout: Any, scene: Any) -> None:
    values = properties.settings(scene)
    _draw_pictures(layout, values, is_reference=False)
    row = layout.row(align=True)
    row.prop(values, "keyframe_place", text="")
    row.operator_menu_enum("rushes.keyframe", "source", text="From", icon="IMAGE_DATA")


def _draw_pictures(layout: Any, values: Any, is_reference: bool) -> None:
    for index, key in enumerate(values.keyframes):
        if (key.place == properties.REFERENCE) != is_reference:
            continue
        row = layout.row(align=True)
        if not is_reference:
            row.prop(key, "place", text="")
        row.prop(key, "image", text="")
        row.operator("rushes.remove_keyframe", text="", icon="X").index = index


def _draw_control(layout: Any, scene: Any) -> None:
    values = properties.settings(scene)
    limits = timer.controller().limits.get(properties.wish_of(scene)["model"])
    if limits is not None and limits["kind"] != TAKING:
        _lines(layout, f"{limits['name']} takes no control passes and no references", "ERROR")
    column = layout.column()
    column.prop(values, "guide")
    if values.guide != "NONE":
        column.prop(values, "guide_strength")
        column.prop(values, "guide_mask")
        _lines(column, "rendered through the scene's camera before the clip is asked for")
    _draw_pictures(layout, values, is_reference=True)
    layout.operator_menu_enum(
        "rushes.keyframe", "source", text="Reference from", icon="IMAGE_DATA"
    ).place = properties.REFERENCE


def _draw_price(layout: Any, scene: Any) -> None:
    """What the shot will be and take, before the button."""
    session = timer.session()
    session.shown_scene = scene.name  # whose price is asked for
    controller = session.controller
    box = layout.box().column(align=True)
    wish, quote = properties.wish_of(scene), controller.quote
    if session.message:
        _lines(box, session.message, "INFO")
    if not controller.is_running:
        _lines(box, controller.worker or "no worker runs; the first change or clip starts it")
        box.operator("rushes.connect", icon="PLAY")
    elif quote is None or quote.wish != wish:
        _lines(box, "asking …" if controller.is_ready else controller.worker)
    elif quote.message:
        _lines(box, quote.message, "ERROR")
    elif quote.shot is not None:
        _draw_quote(box, quote)
    limits = controller.limits.get(wish["model"])
    if limits is not None:
        _lines(box, describe_rate(clip_rate(wish, limits), properties.scene_fps(scene)))


def _draw_quote(box: Any, quote: Quote) -> None:
    width, height = quote.shot["size"]
    box.label(text=f"{width} x {height}, {quote.shot['frames']} frames, {quote.length} scene frames")
    guess = "" if quote.is_measured else " (a first guess)"
    box.label(text=f"about {describe_time(quote.seconds)}, {describe_bytes(quote.bytes)}{guess}", icon="TIME")
    for note in quote.notes:
        _lines(box, note)


def _draw_buttons(layout: Any, scene: Any) -> None:
    column = layout.column(align=True)
    row = column.row()
    row.scale_y = 1.4
    row.operator("rushes.generate", icon="RENDER_ANIMATION")
    row = column.row(align=True)
    row.operator("rushes.variations")
    row.prop(properties.settings(scene), "variations", text="")
    if not places.is_saved():
        _lines(layout, f"not saved yet: frames go to {places.root()}", "INFO")
    if timer.session().has_strays:
        _lines(layout, "some clips lie in the user folder, not beside this file", "INFO")
        layout.operator("rushes.collect", icon="FILE_FOLDER")
    if scene.view_settings.view_transform not in TRUE_VIEWS:
        _lines(layout, f"{scene.view_settings.view_transform} greys finished pictures such as clips", "ERROR")
        layout.operator("rushes.standard_view", icon="COLOR")


def _draw_strip(layout: Any, context: Any) -> None:
    item = strips.active(context)
    if item is None:
        layout.label(text="select a clip of Rushes for its takes")
        return
    takes, shown = item.data["takes"], item.data["take"]
    row = layout.row(align=True)
    row.operator("rushes.choose_take", text="", icon="TRIA_LEFT").step = -1
    row.label(text=f"Take {shown + 1} of {len(takes)}, seed {item.take['wish']['seed']}")
    row.operator("rushes.choose_take", text="", icon="TRIA_RIGHT").step = 1
    row = layout.row(align=True)
    row.operator("rushes.take", icon="ADD")
    row.operator("rushes.contact_sheet", icon="IMAGE_REFERENCE")
    row = layout.row(align=True)
    row.operator("rushes.restore_settings", icon="FILE_REFRESH")
    row.operator_menu_enum("rushes.backdrop", "kind", text="Into the Scene", icon="SCENE_DATA")
    if item.take["model"]:
        layout.label(text=f"{item.take['model']['name']} {item.take['model']['sha256'][:8]}, job {item.take['job']}")


def _draw_job(layout: Any, job: Job, is_unplaced: bool) -> None:
    box = layout.box()
    row = box.row(align=True)
    row.label(text=f"{job.wish['prompt'][:28]} · {job.wish['seed']}")
    if job.is_active:
        row.operator("rushes.cancel", text="", icon="X").key = job.key
    else:
        if job.state != "done":
            row.operator("rushes.retry", text="", icon="FILE_REFRESH").key = job.key
        if job.id:
            row.operator("rushes.place", text="", icon="ADD").key = job.key
        row.operator("rushes.forget", text="", icon="TRASH").key = job.key
    if job.id:
        row.operator("rushes.reveal", text="", icon="FILE_FOLDER").key = job.key
    if job.state == "running":
        left = f", {describe_time(job.remaining)} left" if job.remaining else ""
        box.progress(factor=job.done_share, text=f"{job.phase} {job.step} of {job.steps}{left}")
    else:
        box.label(text=f"{job.state}, {job.frames} frames" if job.frames else job.state)
    for line in (job.message, *job.notes):
        _lines(box, line)
    if is_unplaced and job.id:
        _lines(box, "no strip shows it", "INFO")
        box.operator("rushes.place", icon="ADD").key = job.key


def _draw_queue(layout: Any) -> None:
    session = timer.session()
    jobs = list(session.controller.jobs.values())
    for job in reversed(jobs):
        _draw_job(layout, job, job.key in session.unplaced)
    if not jobs:
        layout.label(text="nothing has been asked for yet")
    if session.controller.trouble:
        _lines(layout, session.controller.trouble, "ERROR")
    row = layout.row(align=True)
    row.operator("rushes.reattach", icon="LINKED")
    row.operator("rushes.free_memory")
    row.operator("rushes.end_worker")


class _Sidebar:
    bl_region_type = "UI"
    bl_category = "Rushes"


class _Sequencer(_Sidebar):
    bl_space_type = "SEQUENCE_EDITOR"


class _Viewport(_Sidebar):
    bl_space_type = "VIEW_3D"


class _Make:
    bl_label = "Clip from a Sentence"

    def draw(self, context: Any) -> None:
        scene = compat.editor_scene(context)
        _draw_request(self.layout, scene)
        _draw_price(self.layout, scene)
        _draw_buttons(self.layout, scene)


class _Speed:
    bl_label = "Speed"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: Any) -> None:
        _draw_speed(self.layout, compat.editor_scene(context))


class _Keyframes:
    bl_label = "First and Last Frame"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: Any) -> None:
        _draw_keyframes(self.layout, compat.editor_scene(context))


class _Control:
    bl_label = "Control"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context: Any) -> bool:
        return properties.takes_control(compat.editor_scene(context), timer.controller().limits)

    def draw(self, context: Any) -> None:
        _draw_control(self.layout, compat.editor_scene(context))


class _Strip:
    bl_label = "Takes"

    def draw(self, context: Any) -> None:
        _draw_strip(self.layout, context)


class _Queue:
    bl_label = "Queue"

    def draw(self, context: Any) -> None:
        _draw_queue(self.layout)


def _panel(part: type, place: type, name: str) -> type:
    """A panel class: Blender wants one for each place that a part is shown in."""
    return type(name, (part, place, bpy.types.Panel), {"bl_idname": name})


CLASSES = tuple(
    _panel(part, place, f"RUSHES_PT_{where}_{part.__name__.strip('_').lower()}")
    for where, place in (("sequencer", _Sequencer), ("viewport", _Viewport))
    for part in (_Make, _Speed, _Keyframes, _Control, _Strip, _Queue)
)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)


def unregister() -> None:
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
