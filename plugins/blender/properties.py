# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What the panel holds for a scene, and the wish that it stands for. Annotations here are Blender's, not types."""

import secrets
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

from . import compat
from .elements import scene_rate
from .guides import KINDS, TAKING
from .places import real_path, stored_path
from .vendor.plan import Wish

MAX_SEED = 2**31 - 1  # of Blender's integers
NAME = "rushes"  # of the pointer on every scene
REFERENCE = "REFERENCE"  # of the pictures, the one that is at no frame


_listeners: dict[str, Callable[[], Any]] = {}  # the timer, which reads this module, is told through these


def listen(changed: Callable[[], None], models: Callable[[], Iterable[str]]) -> None:
    """changed: called when the artist sets something. models: names that are known by now."""
    _listeners.update(changed=changed, models=models)


def _touched(self: Any, context: Any) -> None:
    if "changed" in _listeners:
        _listeners["changed"]()


def _models(self: Any, context: Any, text: str) -> list[str]:
    known = _listeners["models"]() if "models" in _listeners else ()
    return sorted({"starter", *known})


class RushesKeyframe(bpy.types.PropertyGroup):
    """A picture that the clip begins or ends with, or that it refers to."""

    place: EnumProperty(
        name="Place",
        items=[
            ("FIRST", "First", "The clip begins with it"),
            ("LAST", "Last", "The clip ends with it"),
            ("REFERENCE", "Reference", "What it shows shall be seen; for a VACE model"),
        ],
        update=_touched,
    )
    image: StringProperty(name="Picture", subtype="FILE_PATH", options=compat.BLEND_RELATIVE, update=_touched)


class RushesSettings(bpy.types.PropertyGroup):
    """One scene's panel."""

    prompt: StringProperty(name="Prompt", description="One sentence that says what is seen", update=_touched)
    text: PointerProperty(
        name="Text", type=bpy.types.Text, description="Take the prompt from a text block instead", update=_touched
    )
    negative: StringProperty(name="Negative", description="What must not be seen", update=_touched)
    model: StringProperty(
        name="Model",
        default="starter",
        description="A model's name, or the path of its folder or .safetensors file",
        search=_models,
        search_options={"SUGGESTION"},
        update=_touched,
    )
    size_mode: EnumProperty(
        name="Size",
        items=[
            ("SCENE", "Scene", "The scene's shape, at the number of pixels that the model was trained on"),
            ("MODEL", "Model", "The model's own size"),
            ("CUSTOM", "Custom", "A size of your own, snapped to what the model takes"),
        ],
        update=_touched,
    )
    width: IntProperty(name="Width", default=128, min=8, max=16384, subtype="PIXEL", update=_touched)
    height: IntProperty(name="Height", default=80, min=8, max=16384, subtype="PIXEL", update=_touched)
    length_mode: EnumProperty(
        name="Length",
        items=[
            ("FRAMES", "Frames", "A number of clip frames, from the playhead"),
            ("PREVIEW", "Preview range", "The preview range; the scene's range when there is none"),
            ("STRIP", "Active strip", "From the start of the active strip to its end"),
        ],
        update=_touched,
    )
    frames: IntProperty(
        name="Frames", min=0, max=100_000, description="Clip frames; 0: as the model likes best", update=_touched
    )
    fps: IntProperty(name="Clip fps", min=0, max=240, description="0: the model's own frame rate", update=_touched)
    seed: IntProperty(name="Seed", min=0, max=MAX_SEED, description="The same seed makes the same clip")
    is_seed_locked: BoolProperty(name="Lock seed", description="Off: each clip gets a new random seed")
    is_custom: BoolProperty(
        name="Own steps and guidance", description="Off: those that the model works best with", update=_touched
    )
    steps: IntProperty(name="Steps", default=16, min=1, max=1000, update=_touched)
    guidance: FloatProperty(
        name="Guidance", default=4.0, min=0.0, max=100.0, update=_touched,
        description="How strictly the prompt is followed; 1 or less turns it off",
    )  # fmt: skip
    reuse: FloatProperty(
        name="Reuse blocks", default=0.0, min=0.0, max=1.0, precision=2, update=_touched,
        description="Faster, with an error: steps that change by less than this share take most of their work from the "
        "step before. 0.1 is a fifth faster with 3 % of error on the starter; 0 is off",
    )  # fmt: skip
    guided: FloatProperty(
        name="Guided share of steps", default=1.0, min=0.0, max=1.0, precision=2, update=_touched,
        description="Faster, with an error: after this share of the steps, guidance is left out, which halves what "
        "they cost. 0.8 is a tenth faster with 7 % of error on the starter; 1 guides all steps",
    )  # fmt: skip
    attention: FloatProperty(
        name="Attention density", default=1.0, min=0.01, max=1.0, precision=2, update=_touched,
        description="Faster, with an error: the share of self-attention that is computed, the parts that matter most. "
        "0.2 gives large clips in a third of the time, with 3 % of error on random weights; less blurs. 1 is all of it",
    )  # fmt: skip
    fp8_products: BoolProperty(
        name="fp8 products", update=_touched,
        description="Faster, with an error: multiply in fp8 where the model's file is in it, on a CUDA card from sm_89 "
        "on. About 4 % off in one layer",
    )  # fmt: skip
    guide: EnumProperty(
        name="Control", items=KINDS, description="What the camera sees steers the clip", update=_touched
    )
    guide_strength: FloatProperty(
        name="Strength",
        default=1.0,
        min=0.0,
        max=10.0,
        description="How strictly the pass is followed",
        update=_touched,
    )
    guide_mask: PointerProperty(
        name="Mask", type=bpy.types.Collection, update=_touched,
        description="The pass holds where these objects are seen, and the model is free elsewhere",
    )  # fmt: skip
    variations: IntProperty(name="Variations", default=4, min=2, max=32, description="Takes at once")
    keyframes: CollectionProperty(type=RushesKeyframe)
    keyframe_place: EnumProperty(
        name="As",
        items=[("FIRST", "First frame", "The clip begins with it"), ("LAST", "Last frame", "The clip ends with it")],
    )


def random_seed() -> int:
    return secrets.randbelow(MAX_SEED)


def settings(scene: Any) -> Any:
    return getattr(scene, NAME)


def prompt_of(scene: Any) -> str:
    """The text block's words as one line, or the field's."""
    values = settings(scene)
    return " ".join((values.text.as_string() if values.text else values.prompt).split())


def range_of(scene: Any) -> tuple[int, int]:
    """(first scene frame, number of scene frames) that a new clip covers; 0 frames: as long as it comes out."""
    mode = settings(scene).length_mode
    strip = scene.sequence_editor.active_strip if scene.sequence_editor else None
    if mode == "STRIP" and strip is not None:
        return strip.frame_final_start, strip.frame_final_duration
    if mode == "PREVIEW":
        is_set = scene.use_preview_range
        first, last = (
            (scene.frame_preview_start, scene.frame_preview_end) if is_set else (scene.frame_start, scene.frame_end)
        )
        return first, last - first + 1
    return scene.frame_current, 0


def scene_fps(scene: Any) -> Fraction:
    return scene_rate(scene.render.fps, scene.render.fps_base)


def wish_of(scene: Any) -> Wish:
    """What the panel asks for, with what the scene says. Plain JSON."""
    values, render = settings(scene), scene.render
    _, covered = range_of(scene)
    part = render.resolution_percentage / 100
    return {
        "prompt": prompt_of(scene), "negative": values.negative or None, "model": _model_of(values),
        "size": {
            "mode": values.size_mode, "custom": [values.width, values.height],
            "scene": [max(1, round(render.resolution_x * part)), max(1, round(render.resolution_y * part))],
        },
        "length": {
            "mode": "RANGE" if covered else "FRAMES", "frames": values.frames, "scene_frames": covered,
            "from": values.length_mode,
        },
        "fps": str(values.fps) if values.fps else "",
        "scene_fps": str(scene_fps(scene)),
        "seed": values.seed,
        "steps": values.steps if values.is_custom else 0,
        "guidance": round(values.guidance, 4) if values.is_custom else None,
        "keyframes": [
            {"frame": 0 if key.place == "FIRST" else -1, "image": real_path(key.image)}
            for key in values.keyframes if key.place != REFERENCE
        ],
        "reuse": round(values.reuse, 4), "guided": round(values.guided, 4),
        "attention": None if values.attention == 1 else round(values.attention, 4),
        "fp8_products": values.fp8_products,
        "guide": _guide_of(values), "control": _references_of(values),
    }  # fmt: skip


def _guide_of(values: Any) -> dict[str, Any] | None:
    """The pass that is still to be rendered."""
    if values.guide == "NONE":
        return None
    mask = values.guide_mask.name if values.guide_mask else ""
    return {"kind": values.guide.lower(), "strength": round(values.guide_strength, 4), "mask": mask}


def _references_of(values: Any) -> list[dict[str, Any]]:
    pictures = [real_path(key.image) for key in values.keyframes if key.place == REFERENCE]
    return [{"kind": "reference", "references": pictures}] if pictures else []


def takes_control(scene: Any, models: Mapping[str, Any]) -> bool:
    """Whether the panel offers control: the model takes it, or something is set that has to be seen."""
    values = settings(scene)
    limits = models.get(_model_of(values))
    is_set = values.guide != "NONE" or any(key.place == REFERENCE for key in values.keyframes)
    return is_set or (limits is not None and limits["kind"] == TAKING)


def _model_of(values: Any) -> str:
    name = values.model.strip() or "starter"
    return real_path(name) if name.startswith("//") else name


def restore(scene: Any, wish: Wish) -> None:
    """Set the panel as it was for a wish."""
    values = settings(scene)
    values.text = None
    values.prompt, values.negative, values.model = wish["prompt"], wish["negative"] or "", wish["model"]
    values.size_mode, (values.width, values.height) = wish["size"]["mode"], wish["size"]["custom"]
    values.length_mode, values.frames = wish["length"]["from"], wish["length"]["frames"]
    values.fps = int(wish["fps"] or 0)
    values.seed, values.is_seed_locked = wish["seed"], True
    values.is_custom = bool(wish["steps"]) or wish["guidance"] is not None
    if values.is_custom:
        values.steps, values.guidance = wish["steps"], wish["guidance"]
    values.reuse, values.guided = wish.get("reuse", 0.0), wish.get("guided", 1.0)
    values.attention, values.fp8_products = wish.get("attention") or 1.0, wish.get("fp8_products", False)
    values.keyframes.clear()
    for key in wish["keyframes"]:
        add_keyframe(scene, key["image"], "FIRST" if key["frame"] == 0 else "LAST")
    for image in (image for control in wish.get("control", []) for image in control.get("references", [])):
        add_keyframe(scene, image, REFERENCE)
    guide = wish.get("guide") or {"kind": "NONE", "strength": 1.0, "mask": ""}
    values.guide, values.guide_strength = guide["kind"].upper(), guide["strength"]
    values.guide_mask = bpy.data.collections.get(guide["mask"])


def add_keyframe(scene: Any, image: str, place: str) -> None:
    """One picture as first or last frame, where the one that had this place goes, or one more to refer to."""
    keyframes = settings(scene).keyframes
    for index in reversed(range(len(keyframes))):
        if keyframes[index].place == place != REFERENCE:
            keyframes.remove(index)
    key = keyframes.add()
    key.place, key.image = place, stored_path(image)


CLASSES = (RushesKeyframe, RushesSettings)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    setattr(bpy.types.Scene, NAME, PointerProperty(type=RushesSettings))


def unregister() -> None:
    _listeners.clear()
    delattr(bpy.types.Scene, NAME)
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
