# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Clips on the timeline, through the data API alone. A strip is found by what is written on it, never by a pointer.

The property `rushes` of a strip holds JSON: {"version": 1, "take": index, "takes": [take, ...], "scale": ours}; a
take has key, wish, home, job, shot, model, length, frames, is_done. Undo, loading and deletion may take a strip away at
any time; `sync` brings whatever is there to what its job has made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import bpy

from . import compat
from .elements import element_names, strip_name
from .places import beside, jobs_home, real_path, relative_to, stored_path
from .vendor.controller import Job
from .vendor.plan import Wish, element_count

PROPERTY = "rushes"
VERSION = 1
CHANNELS = 128
MODEL_FPS, MODEL_FRAMES = "24", 33  # for a placeholder's length, while the model is not known yet

Take = dict[str, Any]


class Tagged(NamedTuple):
    """A strip of ours, valid until Blender changes its data next."""

    scene: Any
    strip: Any
    data: dict[str, Any]

    @property
    def take(self) -> Take:
        return self.data["takes"][self.data["take"]]


# --- what is written on a strip -------------------------------------------------------------------------------------


def read(strip: Any) -> dict[str, Any] | None:
    """What is written on a strip; None for other people's strips and for what a later version wrote."""
    try:
        data = json.loads(strip.get(PROPERTY, ""))
    except (TypeError, ValueError):
        return None
    is_ours = isinstance(data, dict) and data.get("version") == VERSION and data.get("takes")
    return data if is_ours else None


def write(strip: Any, data: dict[str, Any]) -> None:
    strip[PROPERTY] = json.dumps(data)


def new_take(key: str, wish: Wish, home: str) -> Take:
    """A take that has been asked for and has nothing yet."""
    return {
        "key": key, "wish": _with_images(wish, stored_path), "home": stored_path(home), "job": "", "shot": None,
        "model": None, "length": 0, "frames": 0, "is_done": False,
    }  # fmt: skip


def _with_images(wish: Wish, change: Callable[[str], str]) -> Wish:
    def changed(name: str, value: Any) -> Any:
        if name == "references":
            return [change(path) for path in value]
        return change(value) if value and name in ("path", "mask") else value

    return {
        **wish,
        "keyframes": [{**key, "image": change(key["image"])} for key in wish["keyframes"]],
        "control": [{name: changed(name, one[name]) for name in one} for one in wish.get("control", [])],
    }


def wish_of(take: Take) -> Wish:
    """What was asked for; its pictures as the system knows them, and no longer from the .blend."""
    return _with_images(take["wish"], real_path)


def move(take: Take, folder: str) -> None:
    """Have a take's paths start at `folder`, where the .blend will lie."""
    take["home"] = relative_to(real_path(take["home"]), folder)
    take["wish"] = _with_images(take["wish"], lambda path: relative_to(real_path(path), folder))


def tagged() -> Iterator[Tagged]:
    """All strips of ours, in all scenes."""
    for scene in bpy.data.scenes:
        for strip in compat.all_strips(scene):
            if PROPERTY in strip and (data := read(strip)) is not None:
                yield Tagged(scene, strip, data)


def active(context: Any) -> Tagged | None:
    """The active strip, if it is one of ours."""
    scene = compat.editor_scene(context)
    editor = scene.sequence_editor
    strip = editor.active_strip if editor is not None else None
    data = read(strip) if strip is not None else None
    return Tagged(scene, strip, data) if data is not None else None


def home_of(take: Take) -> str:
    """Where the take's job lives: as written, or beside the .blend when it was moved there, which undo forgets."""
    home = real_path(take["home"])
    if take["job"] and not (Path(home) / take["job"]).is_dir() and (Path(jobs_home()) / take["job"]).is_dir():
        return jobs_home()
    return home


def frames_folder(take: Take) -> Path:
    return Path(home_of(take)) / take["job"] / "frames"


def rates(take: Take) -> tuple[Fraction, Fraction]:
    """(the clip's, the scene's) frame rate; the scene's as it was when the clip was asked for."""
    return Fraction(take["shot"]["fps"]), Fraction(take["wish"]["scene_fps"])


def bring_pictures(take: Take) -> None:
    """Keyframes and footage from the user folder to beside the .blend. Raises OSError."""
    take["wish"] = _with_images(take["wish"], lambda path: stored_path(beside(path)))


# --- placing --------------------------------------------------------------------------------------------------------


def free_channel(scene: Any, start: int, end: int, lowest: int = 1, other_than: Any = None) -> int:
    """The lowest unlocked channel that is empty from start up to end. Blender itself would lay strips on top."""
    channels = scene.sequence_editor.channels
    others = [strip for strip in compat.all_strips(scene) if strip != other_than]
    for number in range(lowest, CHANNELS + 1):
        is_taken = any(
            strip.channel == number and strip.frame_final_start < end and strip.frame_final_end > start
            for strip in others
        )
        if not is_taken and not channels[number].lock:
            return number
    raise RuntimeError(f"channel: none of {CHANNELS} is free and unlocked from frame {start} to {end}")


def insert(scene: Any, start: int, length: int, take: Take, picture: Path, lowest: int = 1) -> Any:
    """A strip that shows a placeholder for its whole length. Raises RuntimeError when no channel is free."""
    wish = take["wish"]
    collection = compat.strips(scene)
    channel = free_channel(scene, start, start + length, lowest)
    strip = collection.new_image(
        name=strip_name(wish["prompt"], wish["seed"]),
        filepath=stored_path(str(picture)),
        channel=channel,
        frame_start=start,
        fit_method="FIT",
    )
    strip.colorspace_settings.name = "sRGB"
    strip.frame_final_duration = length
    take["length"] = length
    write(strip, {"version": VERSION, "take": 0, "takes": [take], "scale": strip.transform.scale_x})
    for other in compat.all_strips(scene):
        other.select = False
    strip.select = True
    scene.sequence_editor.active_strip = strip
    return strip


# --- what a job has made, onto its strips ---------------------------------------------------------------------------


def sync(job: Job) -> int:
    """Bring all strips with this job to what it has made. Returns how many strips have it."""
    count = 0
    for item in list(tagged()):
        for index, take in enumerate(item.data["takes"]):
            if take["key"] == job.key:
                count += 1
                is_shown = index == item.data["take"]
                _update(item, take, job, is_shown)
                if is_shown:
                    show(item, job.frames)
    return count


def _update(item: Tagged, take: Take, job: Job, is_shown: bool) -> None:
    """Write on the strip what is known of the job by now."""
    before = json.dumps(take)
    take["job"], take["shot"] = job.id or take["job"], job.shot or take["shot"]
    if job.id:
        take["home"] = stored_path(job.home)
    if job.record is not None:
        take["model"] = job.record["model"]
    if job.state == "done":
        take["is_done"], take["frames"] = True, job.frames
    if job.length and job.length != take["length"]:
        if is_shown and item.strip.frame_final_duration == take["length"]:  # the artist has not cut it since
            _set_length(item, job.length)
        take["length"] = job.length
    if json.dumps(take) != before:
        write(item.strip, item.data)


def _set_length(item: Tagged, length: int) -> None:
    strip = item.strip
    start = strip.frame_final_start
    if length > strip.frame_final_duration:
        strip.channel = free_channel(item.scene, start, start + length, strip.channel, other_than=strip)
    strip.frame_final_duration = length


def show(item: Tagged, frames: int) -> None:
    """Have the strip show the first `frames` frames of its current take, the last of them held up to its end."""
    take = item.take
    if not frames or not take["job"] or take["shot"] is None:
        return
    names = element_names(frames, *rates(take), take["length"])
    strip, elements = item.strip, item.strip.elements
    folder = str(frames_folder(take))
    start, end = strip.frame_final_start, strip.frame_final_end
    if real_path(strip.directory) != os.path.normpath(folder):
        _fit(item)
        strip.directory = stored_path(folder) + "/"
    for element, name in zip(elements, names, strict=False):  # there may be more of either
        if element.filename != name:
            element.filename = name
    for name in names[len(elements) :]:
        elements.append(name)
    while len(elements) > len(names):
        elements.pop(index=-1)
    if strip.frame_final_start != start:
        strip.frame_final_start = start
    if strip.frame_final_end != end:  # elements lengthen a strip; what the artist, or the placeholder, has set stays
        strip.frame_final_end = end


def _fit(item: Tagged) -> None:
    """Scale the picture to the canvas, unless the artist has scaled it: the placeholder may have another size."""
    render, transform = item.scene.render, item.strip.transform
    if any(abs(scale - item.data["scale"]) > 1e-4 for scale in (transform.scale_x, transform.scale_y)):
        return
    canvas = [side * render.resolution_percentage / 100 for side in (render.resolution_x, render.resolution_y)]
    width, height = item.take["shot"]["size"]
    transform.scale_x = transform.scale_y = min(canvas[0] / width, canvas[1] / height)
    item.data["scale"] = transform.scale_x
    write(item.strip, item.data)


# --- takes ----------------------------------------------------------------------------------------------------------


def add_take(item: Tagged, take: Take, is_shown: bool) -> None:
    """One more take on a strip; the shown one stays on screen until the new one has a frame."""
    take["length"] = take["length"] or item.take["length"]
    item.data["takes"].append(take)
    if is_shown:
        choose_take(item, len(item.data["takes"]) - 1)
    else:
        write(item.strip, item.data)


def choose_take(item: Tagged, index: int) -> None:
    """Show another take on the same strip, at the same place and length."""
    before = strip_name(item.take["wish"]["prompt"], item.take["wish"]["seed"])
    item.data["take"] = index % len(item.data["takes"])
    write(item.strip, item.data)
    if item.strip.name.startswith(before):  # else the artist has named it
        item.strip.name = strip_name(item.take["wish"]["prompt"], item.take["wish"]["seed"])
    show(item, item.take["frames"])


def expected_length(wish: Wish) -> int:
    """Scene frames of a wish while no model's limits are known; put right when they are."""
    length = wish["length"]
    if length["mode"] != "FRAMES":
        return max(1, length["scene_frames"])
    frames = length["frames"] or MODEL_FRAMES
    return element_count(frames, Fraction(wish["fps"] or MODEL_FPS), Fraction(wish["scene_fps"]))
