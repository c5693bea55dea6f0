# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A bundle: one safetensors file with a whole model in it, and the card that says what it is.

Tensors are named `transformer.…`, `vae.…` and `text.…`; the card is JSON under the metadata key `rushes`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rushes.model.config import TransformerConfig, VAEConfig
from rushes.model.text import TextConfig
from rushes.shot import ShotError

CARD_VERSION = 1
METADATA_KEY = "rushes"
SHIPPED = {"starter": "starter/weights/starter.safetensors"}  # name -> file inside the package


@dataclass(frozen=True)
class Defaults:
    """What a shot gets where it does not say. size: (width, height); shift: see `sampling.schedules`."""

    size: tuple[int, int]
    frames: int
    fps: str
    steps: int
    guidance: float
    shift: float
    schedule: str = "simple"
    solver: str = "unipc"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))

    @property
    def rate(self) -> Fraction:
        return Fraction(self.fps)


@dataclass(frozen=True)
class Card:
    """What a bundle is.

    vocabulary: the words it knows. preview: linear map [channels + 1][3] of latents to sRGB, the last row added.
    trained_frames: longest clip it has seen. training: how it was made, for people.
    """

    name: str
    transformer: TransformerConfig
    vae: VAEConfig
    text: TextConfig
    vocabulary: tuple[str, ...]
    defaults: Defaults
    preview: tuple[tuple[float, ...], ...]
    trained_frames: int
    max_frames: int
    max_pixels: int
    training: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"version": CARD_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Raises KeyError, TypeError or ValueError for text that is not a card of this version."""
        values = json.loads(text)
        if values.pop("version") > CARD_VERSION:
            raise ValueError("it was made by a newer Rushes")
        return cls(
            **{
                **values,
                "transformer": TransformerConfig(**values["transformer"]),
                "vae": VAEConfig(**values["vae"]),
                "text": TextConfig(**values["text"]),
                "defaults": Defaults(**values["defaults"]),
                "vocabulary": tuple(values["vocabulary"]),
                "preview": tuple(tuple(row) for row in values["preview"]),
            }
        )

    @property
    def pixel_step(self) -> int:
        """Width and height are multiples of this."""
        return self.vae.spatial_factor * self.transformer.patch_size


def bundle_path(model: str | Path) -> Path:
    """The file of a model given by name or path. Raises ShotError when there is none."""
    if (name := str(model)) in SHIPPED:
        return Path(str(files("rushes").joinpath(SHIPPED[name])))
    path = Path(model)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise ShotError(
            f"model: got {str(model)!r}; {', '.join(SHIPPED)}, or a .safetensors file of a Rushes model, is allowed"
        )
    return path


def read_card(path: Path) -> Card:
    """The card of a bundle, without its weights. Raises ShotError for a missing, corrupt or other file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ShotError(f"model: {path} cannot be read ({error}); an intact .safetensors file is allowed") from error
    if METADATA_KEY not in metadata:
        raise ShotError(f"model: {path} has no Rushes card in it; a bundle written by `rushes train` is allowed")
    try:
        return Card.from_json(metadata[METADATA_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise ShotError(f"model: the card in {path} cannot be read ({error}); update Rushes or the file") from error


def read_weights(path: Path) -> dict[str, dict[str, Tensor]]:
    """State dicts of a bundle by part: transformer, vae, text. Raises ShotError for a corrupt file."""
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (safe_open is not a dict)
                part, _, rest = name.partition(".")
                parts.setdefault(part, {})[rest] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ShotError(f"model: {path} cannot be read ({error}); an intact .safetensors file is allowed") from error
    return parts


def write_bundle(path: Path, card: Card, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a bundle, whole or not at all."""
    tensors = {f"{part}.{name}": t.contiguous() for part, state in parts.items() for name, t in state.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, temporary, metadata={METADATA_KEY: card.to_json()})
    temporary.chmod(0o644)  # safetensors makes files that only their owner reads; a model is for everyone
    os.replace(temporary, path)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
