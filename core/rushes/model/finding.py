# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A model by the name or path that somebody gives, and what is put on the shelf."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from rushes.model import added
from rushes.model.bundle import SHIPPED, bundle_path
from rushes.model.files import ModelFiles
from rushes.model.places import Place, comfyui_place, is_comfyui, is_weights, usual_places, weights_in
from rushes.model.shelf import Entry, Found, added_place, distinct, look, named_entry
from rushes.model.sightings import Memory, sight
from rushes.shot import ShotError

_PARENTS = 4  # folders above a file in which its model may be


def find_model(model: str | Path) -> Path | ModelFiles:
    """The bundle, or the files, of a model given by name or path. Raises ShotError when there is none."""
    name = str(model)
    if name in SHIPPED:
        return bundle_path(name)
    path = Path(model)
    is_path = isinstance(model, Path) or any(mark in name for mark in (os.sep, os.altsep) if mark) or is_weights(path)
    if is_path or path.is_dir():
        return _at(path)
    shelf = look()
    entry = shelf.find(name)
    if entry is None:
        near = difflib.get_close_matches(name, [one.name for one in shelf.entries], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ShotError(
            f"model: got {name!r}; {', '.join(one.name for one in shelf.entries[:8])}, another name that "
            f"`rushes models` lists, or a folder or file of a model, is allowed{hint}"
        )
    return _usable(entry)


def _usable(entry: Entry) -> Path | ModelFiles:
    if entry.missing:
        raise ShotError(f"model: got {entry.name!r}, which is not whole: {'; '.join(entry.missing)}")
    if entry.files is None:
        return entry.paths["model"]
    if entry.refusal:
        raise ShotError(entry.refusal)
    return entry.files


def _at(path: Path) -> Path | ModelFiles:
    """A model by its folder, by its bundle, or by the file of its transformer."""
    if path.is_dir() and (path / "model.safetensors").is_file():
        inside = sight(path / "model.safetensors", memory := Memory())
        if "bundle" in inside.parts:
            return inside.path
    if not path.exists():
        return bundle_path(path)  # which says what is allowed
    memory, notes = Memory(), list[str]()
    place = Place("added", path.name, (path,))
    found = [Found(sight(file, memory), "added", 0, group=0) for file in weights_in(place, notes)]
    if not any(one.sighting.parts for one in found):
        reason = next((one.sighting.reason for one in found if one.sighting.reason), "")
        why = reason or f"got {str(path)!r}, in which no part of a model is; a folder or file of a model is allowed"
        raise ShotError(f"model: {why}")
    if path.is_file() and "bundle" in found[0].sighting.parts:
        return path
    found += [
        Found(sight(file, memory), "added", 1)
        for near in _surroundings(path, notes)
        for file in weights_in(near, notes)
    ]
    entry = named_entry(str(path), 0, distinct(found), memory)
    if entry.missing:  # the rest of the machine may have it
        others = [
            Found(sight(file, memory), near.origin, 2)
            for near in usual_places(notes)
            for file in weights_in(near, notes)
        ]
        entry = named_entry(str(path), 0, distinct([*found, *others]), memory)
    memory.save()
    return _usable(entry)


def _surroundings(path: Path, notes: list[str]) -> list[Place]:
    """The folders that a file's model may be in: its own, a diffusers folder above it, ComfyUI's around it."""
    found = []
    for above in list(path.absolute().parents)[:_PARENTS]:
        if above == path.parent and path.is_file():
            found.append(Place("added", above.name, (above,)))
        if (above / "model_index.json").is_file():
            found.append(Place("added", above.name, (above,)))
        if (above.parent / "models") == above and is_comfyui(above):
            found.append(comfyui_place(above, notes))
    return found


def put(new: added.Added) -> list[Entry]:
    """Add files or folders to the shelf, and say which models came of it.

    Raises ShotError, and adds nothing, where no part of a model is in them or they are too wide to look through.
    """
    notes: list[str] = []
    for path in new.paths:
        if not path.exists():
            raise ShotError(f"path: got {path}; an existing file or folder is allowed")
        if path in (Path(path.anchor), Path.home()):
            raise ShotError(f"path: got {path}; a folder of weights, not the whole of a disk, is allowed")
    memory = Memory()
    sightings = [sight(file, memory) for file in weights_in(added_place(new, notes), notes)]
    memory.save()
    if not any(one.parts for one in sightings):
        reasons = [*notes, *(one.reason for one in sightings if one.reason)]
        why = f" ({reasons[0]})" if reasons else ""
        raise ShotError(f"path: got {new.paths[0]}, in which no part of a Wan or Rushes model is{why}")
    added.add(new)
    files = {one.path for one in sightings}
    if new.name:
        return [entry for entry in look().entries if entry.name == new.name]
    return [entry for entry in look().entries if files & set(entry.paths.values())]
