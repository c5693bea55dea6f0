# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What Rushes Load Model offers, in the words of its inputs, and the model that a choice among it means."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from rushes.engine import Model, look
from rushes.model.added import read_added
from rushes.model.files import FilesCard, ModelFiles, files_card
from rushes.shot import ShotError

from .model import PRECISIONS

STARTER = "starter"
INSIDE = "none (the starter has its own)"
NONE = "none"
SOLVERS = ("from the model", "unipc", "euler")
OPTIONAL = ("transformer_low", "clip")  # parts that only some models have
PLAIN, GGUF = (".safetensors", ".pth", ".pt"), ".gguf"
# Where ComfyUI's own lists do not show GGUF: the names of the lists that packs make for it, if they are there
GGUF_LISTS = {"diffusion_models": "unet_gguf", "text_encoders": "clip_gguf"}
# The core's names of arguments -> the node's
NAMES = {
    "transformer": "model", "transformer_low": "second_expert", "text": "text_encoder", "clip": "image_encoder",
    "fp8-products": "fp8_products",
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The values of the node's inputs, in its order. None: not known yet."""

    model: str
    text_encoder: str
    vae: str
    precision: str
    solver: str
    shift: float
    second_expert: str = NONE
    image_encoder: str = NONE
    attention: float = 1.0
    fp8_products: bool = False

    @property
    def parts(self) -> dict[str, tuple[str, str]]:
        """Field of ModelFiles -> the input that names its file, and the folder it is in."""
        return {
            "transformer": ("model", "diffusion_models"), "text": ("text_encoder", "text_encoders"),
            "vae": ("vae", "vae"), "transformer_low": ("second_expert", "diffusion_models"),
            "clip": ("image_encoder", "clip_vision"),
        }  # fmt: skip


def files_in(folder: str) -> list[str]:
    """Weights that lie in a folder of ComfyUI's, those of extra_model_paths.yaml included, by name."""
    found = {name for name in folder_paths.get_filename_list(folder) if name.endswith(PLAIN)}
    for root in _gguf_roots(folder):
        names, _ = folder_paths.recursive_search(root, excluded_dir_names=[".git"])
        found |= {name for name in names if name.endswith(GGUF)}
    return sorted(found)


def path_in(folder: str, name: str) -> Path | None:
    """The file of that name; None for one that is not offered."""
    if name not in files_in(folder):
        return None
    path = folder_paths.get_full_path(folder, name)
    roots = [root for root in _gguf_roots(folder) if path is None and os.path.isfile(os.path.join(root, name))]
    return Path(path) if path is not None else Path(roots[0], name) if roots else None


def _gguf_roots(folder: str) -> list[str]:
    if folder not in GGUF_LISTS:
        return []
    of_a_pack, _ = folder_paths.folder_names_and_paths.get(GGUF_LISTS[folder], ([], set()))
    return list(dict.fromkeys([*folder_paths.get_folder_paths(folder), *of_a_pack]))


def on_the_shelf() -> list[str]:
    """The models that `rushes models add` was told of, as far as they are whole, by name."""
    try:
        if not read_added():
            return []
    except ShotError as error:
        logging.warning("Rushes: %s", error)
        return []
    return [entry.name for entry in look().entries if entry.origin == "added" and entry.is_ready]


def chosen(choice: Choice) -> ModelFiles | str:
    """What to load: files by full paths, or a model's name. Raises ShotError naming the input that does not fit."""
    if choice.precision not in PRECISIONS:
        raise ShotError(f"precision: got {choice.precision!r}; allowed are {', '.join(PRECISIONS)}")
    if choice.solver not in SOLVERS:
        raise ShotError(f"solver: got {choice.solver!r}; allowed are {', '.join(SOLVERS)}")
    if not 0 <= choice.shift <= 100:
        raise ShotError(f"shift: got {choice.shift}; 0 (the model's own) to 100 is allowed")
    if not 0 < choice.attention <= 1:
        raise ShotError(f"attention: got {choice.attention}; a share above 0 up to 1 (all) is allowed")
    if choice.model == STARTER or (choice.model in on_the_shelf() and choice.model not in files_in("diffusion_models")):
        return _whole(choice)
    paths = {}
    for part, (name, folder) in choice.parts.items():
        value = getattr(choice, name)
        if value == NONE and part in OPTIONAL:
            continue
        path = None if value == INSIDE else path_in(folder, value)
        if path is None:
            got, kinds = "none" if value == INSIDE else repr(value), ".safetensors"
            if folder in GGUF_LISTS:
                kinds += " or .gguf"
            raise ShotError(f"{name}: got {got}; a {kinds} file in ComfyUI's folder {folder} is allowed")
        paths[part] = path
    try:
        files = ModelFiles(**paths, **_settings(choice))
        files_card(files)
    except ShotError as error:
        raise error.renamed(NAMES) from error
    return files


def _whole(choice: Choice) -> ModelFiles | str:
    """A model that brings all its parts."""
    name = choice.model
    for part, (given, _) in choice.parts.items():
        ignored = part == "transformer" or (name == STARTER and part in ("text", "vae"))  # what saved graphs may have
        if not ignored and (value := getattr(choice, given)) not in (NONE, INSIDE):
            raise ShotError(f"{given}: got {value!r} for {name}, which has its own; none is allowed")
    card = Model.open(name).card
    if isinstance(card, FilesCard):
        return dataclasses.replace(card.files, **_settings(choice))
    for input_, value in _settings(choice).items():
        if value is not None:
            whose = "the starter" if name == STARTER else name
            raise ShotError(f"{input_}: got {value!r} for {whose}, which has its own; it is allowed with files")
    return name


def _settings(choice: Choice) -> dict[str, str | float | None]:
    return {"solver": None if choice.solver == SOLVERS[0] else choice.solver, "shift": choice.shift or None}


def files_of(choice: Choice) -> Iterator[Path]:
    """The files that a choice reads, as far as they are there."""
    if choice.model == STARTER:
        return
    if choice.model in on_the_shelf():
        entry = look().find(choice.model)
        yield from entry.paths.values() if entry is not None else ()
    for name, folder in choice.parts.values():
        if (path := path_in(folder, getattr(choice, name))) is not None:
            yield path
