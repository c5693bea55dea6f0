# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A bundle: one safetensors file with a whole model in it, and the card that says what it is.

Tensors are named `transformer.…`, `vae.…` and `text.…`; the card is JSON under the metadata key `rushes`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rushes.hashing import file_digest
from rushes.model.clip import ClipVisionConfig
from rushes.model.config import TransformerConfig, VAEConfig
from rushes.model.loading import Modules, load_modules
from rushes.model.operations import Operations
from rushes.model.text import TextConfig
from rushes.model.tokenizer import Tokenizer, WordTokenizer
from rushes.replacing import FOR_ALL, replacing
from rushes.shot import ShotError

CARD_VERSION = 1
METADATA_KEY = "rushes"
SHIPPED = {"starter": "starter/weights/starter.safetensors"}  # name -> file inside the package


@dataclass(frozen=True)
class Defaults:
    """What a shot gets where it does not say. size: (width, height); shift: see `sampling.schedules`.

    guidance: one number, or those of the high-noise and the low-noise expert. negative: the negative prompt.
    """

    size: tuple[int, int]
    frames: int
    fps: str
    steps: int
    guidance: float | tuple[float, float]
    shift: float
    schedule: str = "simple"
    solver: str = "unipc"
    negative: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))

    @property
    def rate(self) -> Fraction:
        return Fraction(self.fps)


@dataclass(frozen=True)
class Card:
    """What a bundle is.

    vocabulary: the words it knows. preview: linear map [channels + 1][3] of latents to sRGB, the last row added; empty
    where it is fitted when it is needed. trained_frames: longest clip it has seen. training: how it was made, for
    people.
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
        guidance = values["defaults"]["guidance"]
        values["defaults"]["guidance"] = tuple(guidance) if isinstance(guidance, list) else guidance
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

    def tokenizer(self) -> Tokenizer:
        """What turns this model's prompts into the ids that its text encoder reads."""
        return WordTokenizer(self.vocabulary, self.transformer.text_len)

    def paths(self, path: Path) -> dict[str, Path]:
        """The files that its weights are in, by part; path: that of the bundle."""
        return {"model": path}

    def details(self, digests: Mapping[str, str], size: tuple[int, int]) -> dict[str, Any]:
        """What a record says of the model beside its name and digest. digests: SHA-256 of each of `paths`."""
        return {}

    def limits(self) -> dict[str, Any]:
        """What a host's panel shows and offers, JSON-ready. Sizes are (width, height)."""
        defaults = self.defaults
        return {
            "name": self.name, "size": list(defaults.size), "size_step": self.pixel_step, "max_pixels": self.max_pixels,
            "frames": defaults.frames, "frames_step": self.vae.temporal_factor, "max_frames": self.max_frames,
            "trained_frames": self.trained_frames, "fps": defaults.fps, "steps": defaults.steps,
            "guidance": defaults.guidance, "negative": defaults.negative, "form": self.form_name,
            "kind": self.kind, "takes": self.takes,
        }  # fmt: skip

    @property
    def form_name(self) -> str:
        """Which published model it has the shape of; "" for one of our own."""
        return ""

    @property
    def kind(self) -> str:
        """What it is given beside words, see `forms.Kind`."""
        return "frames"

    @property
    def takes(self) -> str:
        """The same in words."""
        return "words, and keyframes at any frame"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its modules, see `loading.Modules`."""
        return ("text", "transformer", "vae")

    @property
    def vision(self) -> ClipVisionConfig | None:
        """Shape of the tower that reads pictures for the transformer; None without one."""
        return None

    @property
    def boundary(self) -> float | None:
        """The sigma from which on the high-noise expert works, the low-noise one below; None for one transformer."""
        return None

    def shift(self, size: tuple[int, int]) -> float:
        """The shift of the schedule for clips of (width, height)."""
        return self.defaults.shift

    @property
    def trained_sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of the pictures that it has seen."""
        return (self.defaults.size,)

    @property
    def keeps_keyframes(self) -> bool:
        """Whether it was trained to go through pictures that are given."""
        return True

    @property
    def pixel_step(self) -> int:
        """Width and height are multiples of this."""
        return self.vae.spatial_factor * self.transformer.patch_size

    def allowed_size(self, size: tuple[int, int], fit: bool) -> tuple[int, int]:
        """(width, height) that the model takes; with fit, the nearest one. Raises ShotError that says which."""
        step = self.pixel_step
        fitted = (max(step, round(size[0] / step) * step), max(step, round(size[1] / step) * step))
        if size != fitted and not fit:
            low = (max(step, size[0] // step * step), max(step, size[1] // step * step))
            high = (-(-size[0] // step) * step, -(-size[1] // step) * step)
            raise ShotError(
                f"size: got {size[0]}x{size[1]}; {self.name} takes multiples of {step}, such as "
                f"{low[0]}x{low[1]} or {high[0]}x{high[1]} (--fit takes the nearest)"
            )
        if fitted[0] * fitted[1] > self.max_pixels:
            side = int(self.max_pixels**0.5)
            raise ShotError(f"size: got {size[0]}x{size[1]}; {self.name} takes up to {side}x{side} pixels in area")
        return fitted

    def allowed_frames(self, frames: int, fit: bool) -> int:
        """A number of frames that the model takes; with fit, the nearest one. Raises ShotError with the neighbours."""
        n = self.vae.temporal_factor
        if frames > self.max_frames:
            raise ShotError(f"frames: got {frames}; {self.name} takes up to {self.max_frames}")
        if (frames - 1) % n == 0:
            return frames
        low = (frames - 1) // n * n + 1
        high = low + n
        if not fit:
            raise ShotError(
                f"frames: got {frames}; {self.name} takes {n}n+1, the neighbours are {low} and {high} "
                "(--fit takes the nearest)"
            )
        return low if frames - low <= high - frames else high


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


def read_modules(
    path: Path, card: Card, device: torch.device, dtype: torch.dtype, operations: Operations = nn
) -> Modules:
    """The models of a bundle, for inference. Raises ShotError for a corrupt file and for one that is not its card's."""
    weights = read_weights(path)

    def read(part: str) -> dict[str, Tensor]:
        return weights.pop(part) if part in weights else read_weights(path).get(part, {})

    def refuse(part: str, reason: str) -> ShotError:
        return ShotError(f"model: the {part} in {path} does not fit its card ({reason}); get the file again")

    modules = load_modules(card, read, refuse, device, dtype, operations)
    for part in modules:
        modules[part]  # all of it now: the file is small, and its tensors are held in `weights` until then
    return modules


def write_bundle(path: Path, card: Card, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a bundle, whole or not at all."""
    tensors = {f"{part}.{name}": t.contiguous() for part, state in parts.items() for name, t in state.items()}
    with replacing(path, FOR_ALL) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: card.to_json()})


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return file_digest(path)[1]
