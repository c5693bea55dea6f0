# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The knobs of the node: made, read as a wish, and set again. Menus come from the worker, never from here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import nuke

from . import colour, controls, host, places, speed
from .ranges import asked_range
from .refusal import Refusal
from .takes import KNOB
from .vendor.plan import Wish

DEFAULT = "default"
COLORIMETRIC = "colorimetric"
SIZES = ("script format", "model", "own")
RANGES = ("script range", "own range", "number of frames")
RETIMES = ("frame for frame", "keep the speed")
MAX_SEED = 2**63 - 1
_MISSING = "Rushes is not installed here. The plate renders without it."


def button(name: str) -> str:
    """What a button runs. It is saved in the script, so it says something useful where the plug-in is missing."""
    return (
        "try:\n    from rushes_nuke import buttons\n"
        f"except ImportError:\n    nuke.message({_MISSING!r})\n"
        f"else:\n    buttons.{name}(nuke.thisNode())"
    )


def add_all(node: Any) -> None:
    """Give a new Group its knobs."""
    first, last = host.script_range()
    tab = [
        nuke.Tab_Knob("rushes_tab", "Rushes"),
        nuke.Multiline_Eval_String_Knob("prompt", "prompt"),
        nuke.Multiline_Eval_String_Knob("negative", "negative"),
        _told(nuke.Boolean_Knob("own_negative", "also when empty", False), "off: an empty negative is the model's own"),
        nuke.Enumeration_Knob("model", "model", [DEFAULT]),
        nuke.File_Knob("model_file", "model file"),
        nuke.String_Knob("seed", "seed", "0"),
        _valued(nuke.Int_Knob("steps", "steps"), 0, "0: as the model was made for"),
        _told(
            nuke.String_Knob("guidance", "guidance", ""),
            "empty: as the model was made for; 1 or less turns it off; 4,3 for a model with two experts",
        ),
        _told(
            nuke.Multiline_Eval_String_Knob("loras", "LoRAs"),
            "FILE or FILE:STRENGTH, one a line; high= or low= before it for one of two experts",
        ),
        nuke.Text_Knob("range_line", ""),
        nuke.Enumeration_Knob("size", "size", list(SIZES)),
        _valued(nuke.Int_Knob("width", "width"), 0, "with size: own"),
        _valued(nuke.Int_Knob("height", "height"), 0, "with size: own"),
        nuke.Enumeration_Knob("range", "frames", list(RANGES)),
        _valued(nuke.Int_Knob("first_frame", "first"), first, "with own range, and the first with number of frames"),
        _valued(nuke.Int_Knob("last_frame", "last"), last, "with own range"),
        _valued(nuke.Int_Knob("handles", "handles"), 0, "frames more on either side of a range"),
        _valued(nuke.Int_Knob("clip_frames", "number"), 0, "with number of frames; 0: the model's own"),
        nuke.Enumeration_Knob("retime", "time", list(RETIMES)),
        _told(nuke.String_Knob("fps", "clip fps", ""), "empty: the script's with frame for frame, else the model's"),
        _told(
            nuke.Multiline_Eval_String_Knob("keyframes", "keyframes"),
            "FRAME=IMAGE, one a line; -1 is the last. The inputs are frames 0 and -1",
        ),
        nuke.Text_Knob("control_line", ""),
        _told(
            nuke.Enumeration_Knob(controls.INPUT, "control", list(controls.KINDS)),
            "what the input shows, for a VACE model, over the clip's frames. A distance is what red holds, 0 where "
            "nothing is; normals are -1 to 1; source: frames that are kept",
        ),
        _valued(nuke.Double_Knob("control_strength", "strength"), 1.0, "how strictly the input is followed, 0 to 10"),
        _told(
            nuke.Multiline_Eval_String_Knob("control_files", "control files"),
            "KIND:STRENGTH@FRAME=FILE, one a line, such as depth:1@0=/passes/z.%04d.exr; ' within MASK' behind it is "
            "where it holds",
        ),
        _told(
            nuke.Multiline_Eval_String_Knob("references", "references"), "pictures of what shall be seen, one a line"
        ),
        *speed.knobs(),
        nuke.Text_Knob("plate_line", ""),
        _told(nuke.File_Knob("plate", "plate"), "empty: rushes/plates beside the script. The version is put in"),
        nuke.Enumeration_Knob("plate_colorspace", "colorspace", [colour.WORKING]),
        _told(
            nuke.Enumeration_Knob("look", "look", [COLORIMETRIC]),
            "colorimetric: display white is 1.0. A view: the plate looks like the clip when it is seen through it, and "
            "small steps near white become large ones",
        ),
        nuke.Enumeration_Knob("depth", "depth", [DEFAULT]),
        nuke.Enumeration_Knob("compression", "compression", [DEFAULT]),
        _told(nuke.Boolean_Knob("solid_alpha", "solid alpha", True), "the plate has no alpha: 1 instead of 0"),
    ]
    for knob in (*tab, *_actions()):
        node.addKnob(knob)


def _actions() -> list[Any]:
    hidden = nuke.String_Knob(KNOB, KNOB, "")
    hidden.setFlag(nuke.INVISIBLE)
    return [
        nuke.Text_Knob("action_line", ""),
        nuke.Text_Knob("plan", "plan", " "),
        nuke.PyScript_Knob("generate", "Generate", button("generate")),
        nuke.PyScript_Knob("new_version", "New Version", button("new_version")),
        nuke.PyScript_Knob("cancel", "Cancel", button("cancel")),
        nuke.PyScript_Knob("reattach", "Re-attach", button("reattach")),
        nuke.Text_Knob("status", "status", " "),
        nuke.PyScript_Knob("version_down", "Version Down", button("version_down")),
        nuke.PyScript_Knob("version_up", "Version Up", button("version_up")),
        nuke.PyScript_Knob("contact_sheet", "Contact Sheet", button("contact_sheet")),
        nuke.File_Knob("restore_from", "restore from"),
        nuke.PyScript_Knob("restore", "Restore from Plate", button("restore")),
        nuke.File_Knob("publish_to", "publish to"),
        nuke.PyScript_Knob("review", "Review", button("review")),
        nuke.PyScript_Knob("publish", "Publish", button("publish")),
        hidden,
    ]


def _told(knob: Any, tooltip: str) -> Any:
    knob.setTooltip(tooltip)
    return knob


def _valued(knob: Any, value: Any, tooltip: str) -> Any:
    knob.setValue(value)
    return _told(knob, tooltip)


# --- menus ------------------------------------------------------------------------------------------------------------


def fill(node: Any, models: Sequence[str], answer: Mapping[str, Any] | None) -> None:
    """Put what the worker has into the menus; what was chosen stays chosen, and stays in the menu."""
    _menu(node["model"], [DEFAULT, *models])
    if answer is not None:
        linear = [space["name"] for space in answer["colorspaces"] if space["is_linear"]]
        _menu(node["plate_colorspace"], [colour.WORKING, *linear])
        _menu(node["look"], [COLORIMETRIC, *answer["views"]])
        _menu(node["depth"], [DEFAULT, *answer["depths"]])
        _menu(node["compression"], [DEFAULT, *answer["compressions"]])


def _menu(knob: Any, items: list[str]) -> None:
    chosen = knob.value()
    items = items if chosen in items else [*items, chosen]
    if list(knob.values()) != items:
        knob.setValues(items)
        host.set_if_other(knob, chosen)


def _choose(knob: Any, item: str) -> None:
    if item not in knob.values():
        knob.setValues([*knob.values(), item])
    host.set_if_other(knob, item)


# --- read -------------------------------------------------------------------------------------------------------------


def model(node: Any) -> str:
    """The name or file of the model; "" while the worker has to say which is its own."""
    path = _path(node["model_file"])
    name = str(node["model"].value())
    return path or ("" if name == DEFAULT else name)


def wish(node: Any, model_name: str) -> Wish:
    """What the knobs say. Raises Refusal for what no model could make; the rest the worker refuses."""
    length, (fps, script_fps) = _length(node), (_fps(node), host.script_rate())
    is_frame_for_frame = node["retime"].value() == RETIMES[0]
    if is_frame_for_frame:
        fps = fps or str(script_fps)
    negative = _text(node["negative"])
    own = [int(node["width"].value()), int(node["height"].value())]
    mode = {SIZES[0]: "SCENE", SIZES[1]: "MODEL", SIZES[2]: "CUSTOM"}[node["size"].value()]
    if mode == "CUSTOM" and min(own) < 1:
        raise Refusal(f"size: got {own[0]}x{own[1]}; a width and height in pixels, or the script's format, is allowed")
    return {
        "prompt": _text(node["prompt"]), "negative": negative if negative or node["own_negative"].value() else None,
        "model": model_name, "seed": _seed(node), "steps": _whole(node["steps"], "steps", 0),
        "guidance": _guidance(node), "loras": [_lora(line) for line in _lines(node["loras"])],
        "fps": fps, "scene_fps": fps if is_frame_for_frame else str(script_fps), "keyframes": _keyframes(node),
        "control": controls.typed(_lines(node["control_files"]), _lines(node["references"])),
        "size": {"mode": mode, "scene": list(host.script_size()), "custom": own}, "length": length,
        **speed.wish(node),
    }  # fmt: skip


def start(node: Any) -> int:
    """The number of the plate's first frame. Raises Refusal."""
    return _range(node)[0]


def delivery(node: Any, start_frame: int, colorspace: str, frames: int = 0) -> dict[str, Any]:
    """What the worker writes besides its own frames. frames: of the clip; handles are tagged if it fills the range."""
    plate: dict[str, Any] = {"start_frame": start_frame, "next_version": True}
    handles, length = int(node["handles"].value()), _range(node)[1]
    if handles and frames == length:
        plate["handles"] = handles
    if (look := node["look"].value()) != COLORIMETRIC:
        plate["inverse_view"] = look
    for name in ("depth", "compression"):
        if (value := node[name].value()) != DEFAULT:
            plate[name] = value
    pattern = _path(node["plate"]) or places.plate_pattern(node.name())
    if not pattern.lower().endswith(".exr"):
        raise Refusal(f"plate: got {pattern!r}; a name such as {places.plate_pattern(node.name())} is allowed")
    if not os.path.isabs(pattern):
        raise Refusal(f"plate: got {pattern!r}; a whole path, from the root of the disk, is allowed")
    for name, path in (("plate", pattern), ("script", places.jobs_home())):
        if any(mark in path for mark in "[]$"):
            raise Refusal(f"{name}: got {path!r}, in which Nuke would evaluate TCL; a path without [ ] $ is allowed")
    return {"outputs": [pattern], "colorspace": colorspace, "plate": plate}


def _text(knob: Any) -> str:
    return str(knob.getText())  # as typed: value() would have TCL evaluate brackets and dollars


def _path(knob: Any) -> str:
    return str(knob.getEvaluatedValue() or "").strip()


def _whole(knob: Any, name: str, low: int) -> int:
    value = int(knob.value())
    if value < low:
        raise Refusal(f"{name}: got {value}; {low} or more is allowed")
    return value


def _seed(node: Any) -> int:
    text = _text(node["seed"]).strip()
    if not (text.isascii() and text.isdigit()) or int(text) > MAX_SEED:
        raise Refusal(f"seed: got {text!r}; a whole number from 0 to {MAX_SEED} is allowed")
    return int(text)


def _fps(node: Any) -> str:
    text = _text(node["fps"]).strip()
    try:
        if text and Fraction(text) <= 0:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise Refusal(f"clip fps: got {text!r}; a rate such as 24 or 24000/1001, or nothing, is allowed") from None
    return text


def _range(node: Any) -> tuple[int, int]:
    """(number of the plate's first frame, frames of the script; 0 for a number of frames)."""
    mode = node["range"].value()
    own = int(node["first_frame"].value()), int(node["last_frame"].value())
    if mode == RANGES[2]:
        return asked_range(own[0], own[0], 0).first, 0
    first, last = host.script_range() if mode == RANGES[0] else own
    asked = asked_range(first, last, int(node["handles"].value()))
    return asked.first, asked.length


def _length(node: Any) -> dict[str, Any]:
    _, length = _range(node)
    frames = _whole(node["clip_frames"], "number", 0)
    mode = "RANGE" if length else "FRAMES"
    return {"mode": mode, "frames": frames, "scene_frames": length, "from": mode}


def _guidance(node: Any) -> Any:
    text = _text(node["guidance"]).strip()
    try:
        numbers = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [0.0] * 3
    if len(numbers) > 2:
        raise Refusal(f"guidance: got {text!r}; a number, two as in 4,3, or nothing is allowed")
    return (numbers[0] if len(numbers) == 1 else numbers) if numbers else None


def _lora(line: str) -> dict[str, Any]:
    """As the command line reads it: FILE, FILE:STRENGTH, high=FILE …"""
    expert, equals, rest = line.partition("=")
    if not equals or expert not in ("high", "low"):
        expert, rest = "", line
    path, _, number = rest.rpartition(":")
    try:
        return {"path": path, "strength": float(number), "expert": expert} if path else {"path": rest, "expert": expert}
    except ValueError:  # a colon in the name, such as that behind a drive's letter
        return {"path": rest, "expert": expert}


def _lora_line(lora: Mapping[str, Any]) -> str:
    expert = f"{lora['expert']}=" if lora["expert"] else ""
    return f"{expert}{lora['path']}:{lora['strength']!r}"


def _lines(knob: Any) -> list[str]:
    return [line for line in map(str.strip, _text(knob).splitlines()) if line]


def _keyframes(node: Any) -> list[dict[str, Any]]:
    found = []
    for line in _lines(node["keyframes"]):
        frame, equals, image = line.partition("=")
        try:
            found.append({"frame": int(frame), "image": image.strip()})
        except ValueError:
            equals = ""
        if not equals or not image.strip():
            raise Refusal(f"keyframes: got {line!r}; FRAME=IMAGE such as 0=/plates/first.png is allowed")
    return found


# --- set again --------------------------------------------------------------------------------------------------------


def restore(node: Any, found: Mapping[str, Any]) -> list[str]:
    """Set the knobs so that Generate makes the clip of a plate again. found: the worker's answer to `record`. Sentences
    for what no knob can say."""
    shot = found["shot"]
    _set_model(node, shot["model"])
    start_frame = found["first"] if found["first"] is not None else node["first_frame"].value()
    lines = [f"{keyframe['frame']}={keyframe['image']}" for keyframe in shot["keyframes"]]
    footage, references = controls.lines_of(shot.get("control", ()))
    values = {
        "control": controls.NONE, "control_files": "\n".join(footage), "references": "\n".join(references),
        "prompt": shot["prompt"], "negative": shot["negative"] or "", "own_negative": shot["negative"] is not None,
        "seed": str(shot["seed"]), "steps": shot["steps"], "guidance": _guidance_text(shot["guidance"]),
        "loras": "\n".join(map(_lora_line, shot.get("loras", ()))),
        "size": SIZES[2], "width": shot["size"][0], "height": shot["size"][1],
        "range": RANGES[2], "first_frame": start_frame, "clip_frames": shot["frames"], "retime": RETIMES[0],
        "fps": shot["fps"], "keyframes": "\n".join(lines),
    }  # fmt: skip
    for name, value in values.items():
        node[name].setValue(value)
    if found["colorspace"]:
        _choose(node["plate_colorspace"], found["colorspace"])
        _choose(node["look"], found["plate"].get("inverse_view", COLORIMETRIC))
    return speed.restore(node, found)


def _guidance_text(guidance: Any) -> str:
    return ",".join(repr(float(one)) for one in (guidance if isinstance(guidance, (list, tuple)) else [guidance]))


def _set_model(node: Any, name: str) -> None:
    is_file = "/" in name or "\\" in name
    node["model_file"].setValue(name if is_file else "")
    _choose(node["model"], DEFAULT if is_file else name)
