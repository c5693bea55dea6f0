# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Folders that weights usually lie in: ComfyUI's, and the Hugging Face cache. No disk is ever searched as a whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMFYUI_VARIABLE = "RUSHES_COMFYUI"  # ComfyUI's folders, separated as PATH is
# ComfyUI's names of the folders that hold what a model is made of; the older ones still count.
CATEGORIES = ("diffusion_models", "unet", "text_encoders", "clip", "vae", "clip_vision", "checkpoints")
EXTRA_PATHS = "extra_model_paths.yaml"
INDEX = ".safetensors.index.json"
SUFFIXES = (".safetensors", ".gguf", ".pth", ".pt", INDEX)  # of files of weights
MAX_DEPTH = 6
MAX_ENTRIES = 20_000  # of one place; a folder with more is no folder of models
_MAX_YAML = 2**20  # bytes
_SKIPPED = {"node_modules", "__pycache__", "custom_nodes", "site-packages"}


@dataclass(frozen=True)
class Place:
    """Folders or files that belong together. origin: "added", "comfyui" or "hub"; label: what it is, for people."""

    origin: str
    label: str
    paths: tuple[Path, ...]


def usual_places(notes: list[str]) -> list[Place]:
    """ComfyUI's folders and the Hugging Face cache of this user. notes: gets a sentence for what cannot be read."""
    return [*_comfyui_places(notes), *hub_places(hub_cache())]


def is_comfyui(folder: Path) -> bool:
    """Whether a folder is ComfyUI's own, or its folder of models."""
    return any((folder / name).exists() for name in (EXTRA_PATHS, "models")) or bool(_categories(folder))


def comfyui_place(root: Path, notes: list[str]) -> Place:
    """What ComfyUI in `root` reads weights from: its models/ and what its extra_model_paths.yaml adds."""
    extra = extra_paths(root / EXTRA_PATHS, notes)
    models = root / "models"
    return Place("comfyui", str(root), (*extra, *_categories(models if models.is_dir() else root)))


def extra_paths(file: Path, notes: list[str]) -> list[Path]:
    """Folders that a file in the form of ComfyUI's extra_model_paths.yaml names, those marked is_default first."""
    import yaml

    try:
        if not file.is_file():
            return []
        if file.stat().st_size > _MAX_YAML:
            raise ValueError(f"it has more than {_MAX_YAML} bytes")
        sections = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        if not isinstance(sections, dict):
            raise ValueError("it holds no sections")
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"{file} cannot be read ({' '.join(str(error).split())}); ComfyUI's own form is expected")
        return []
    first: list[Path] = []
    others: list[Path] = []
    for section in sections.values():
        if isinstance(section, dict):
            (first if section.get("is_default") else others).extend(_section_paths(section, file.parent))
    return [*first, *others]


def _section_paths(section: dict[Any, Any], beside: Path) -> Iterator[Path]:
    base = section.get("base_path")
    root = beside / _expanded(base) if isinstance(base, str) else beside
    for category in CATEGORIES:
        given = section.get(category)
        lines = given.split("\n") if isinstance(given, str) else given if isinstance(given, list) else []
        for line in lines:
            if isinstance(line, str) and line.strip():
                yield Path(os.path.normpath(root / _expanded(line.strip())))


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))


def _categories(models: Path) -> tuple[Path, ...]:
    return tuple(folder for name in CATEGORIES if (folder := models / name).is_dir())


def _comfyui_places(notes: list[str]) -> list[Place]:
    asked = [Path(part).expanduser() for part in os.environ.get(COMFYUI_VARIABLE, "").split(os.pathsep) if part]
    for root in asked:
        if not is_comfyui(root):
            notes.append(f"{COMFYUI_VARIABLE}: got {root}; ComfyUI's folder, with models or {EXTRA_PATHS}, is expected")
    home = Path.home()
    usual = [home / "ComfyUI", home / "Documents" / "ComfyUI", home / "comfy" / "ComfyUI"]
    usual.append(home / "ComfyUI_windows_portable" / "ComfyUI")
    found = [comfyui_place(root, notes) for root in dict.fromkeys([*asked, *usual]) if is_comfyui(root)]
    for file in _desktop_files(home):
        if paths := extra_paths(file, notes):
            found.append(Place("comfyui", str(file), tuple(paths)))
    return found


def _desktop_files(home: Path) -> Iterator[Path]:
    """Where ComfyUI's desktop program keeps its list of folders."""
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    yield base / "ComfyUI" / "extra_models_config.yaml"


def hub_cache() -> Path:
    """The folder of the Hugging Face cache, by its own variables, read now and not when a library was imported."""
    for variable, inside in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if given := os.environ.get(variable):
            return Path(_expanded(given)) / inside
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface" / "hub"


def hub_places(cache: Path) -> list[Place]:
    """The current snapshot of each model in a Hugging Face cache."""
    found = []
    for folder in _listed(cache):
        kind, _, name = folder.name.partition("--")
        if kind == "models" and name and (snapshot := current_snapshot(folder)) is not None:
            found.append(Place("hub", name.replace("--", "/"), (snapshot,)))
    return found


def current_snapshot(repository: Path) -> Path | None:
    """What `main` points to, or else the newest snapshot of a cached repository."""
    try:
        named = repository / "snapshots" / (repository / "refs" / "main").read_text(encoding="utf-8").strip()
        if named.is_dir():
            return named
    except (OSError, ValueError):
        pass  # a snapshot that was asked for by its commit has no such note
    snapshots = [path for path in _listed(repository / "snapshots") if path.is_dir()]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def weights_in(place: Place, notes: list[str]) -> list[Path]:
    """Files of weights below a place, in order; the shards of one model are told by their index file.

    Links are followed, each folder once, MAX_DEPTH deep and MAX_ENTRIES in all.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [(path, 0) for path in reversed(place.paths)]
    entries = 0
    while waiting:
        path, depth = waiting.pop()
        try:
            status = path.stat()
        except OSError:  # a link to nowhere, or one in a circle
            continue
        if not path.is_dir():
            found.extend([path] if is_weights(path) else [])
            continue
        if (key := (status.st_dev, status.st_ino)) in seen or depth > MAX_DEPTH:
            continue
        seen.add(key)
        inside = _listed(path)
        entries += len(inside)
        if entries > MAX_ENTRIES:
            notes.append(f"{path} is not looked at: {place.label} has more than {MAX_ENTRIES} entries")
            break
        folders = [entry for entry in inside if entry.is_dir() and entry.name not in _SKIPPED]
        found.extend(_without_shards([entry for entry in inside if is_weights(entry) and entry.is_file()]))
        waiting.extend((entry, depth + 1) for entry in reversed(folders))
    return list(dict.fromkeys(found))


def is_weights(path: Path) -> bool:
    return path.name.endswith(SUFFIXES)


def _without_shards(files: Sequence[Path]) -> list[Path]:
    """Without those that an index beside them stands for: model.safetensors.index.json for model-00001-of-00002."""
    stems = tuple(f"{file.name.removesuffix(INDEX)}-" for file in files if file.name.endswith(INDEX))
    return [file for file in files if not (stems and file.name.startswith(stems) and "-of-" in file.name)]


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, in order, without hidden ones; nothing where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
