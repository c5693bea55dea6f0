# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a file of weights holds, told by the names and shapes in its header, and remembered until the file changes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from rushes._version import __version__
from rushes.folders import user_folder
from rushes.model.bundle import METADATA_KEY
from rushes.model.checkpoint import split_parts
from rushes.model.clip import infer_clip_config
from rushes.model.config import Shapes, TransformerConfig, infer_transformer_config, infer_vae_config
from rushes.model.experts import level
from rushes.model.files import KINDS
from rushes.model.forms import reads_pictures
from rushes.model.reading import Header, files_of, read_header
from rushes.model.spelling import has_tokenizer
from rushes.model.text import infer_text_config
from rushes.replacing import replacing
from rushes.shot import ShotError

VERSION = 1  # of what is remembered
PRECISIONS = {"F32": "fp32", "BF16": "bf16", "F16": "fp16", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}
# What a transformer is for, by KINDS' tensors; others are told by their channels.
FORMS = {
    "control_adapter.conv.weight": "camera",
    "casual_audio_encoder.encoder.final_linear.weight": "s2v",
    "audio_proj.audio_proj_glob_1.layer.bias": "humo",
    "face_adapter.fuser_blocks.0.k_norm.weight": "animate",
    "ref_conv.weight": "control",
    "patch_embedding_pose.weight": "scail",
    "patch_embedding_mask.weight": "scail",
    "patch_embedding_global.weight": "dancer",
}
SIZES = {1536: "1.3b", 3072: "5b", 5120: "14b"}  # width -> how the published size is called


@dataclass(frozen=True)
class Sighting:
    """A file of weights, or a set of shards by their index.

    parts: for "transformer", "text", "vae", "clip", or "bundle" for a whole model of ours, what pairing needs to know.
    reason: why nothing can be said of it, "" where something is; a file of another program has neither.
    """

    path: Path
    bytes: int
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""


class Memory:
    """Sightings by path, size and time of change, kept in the user's cache over processes."""

    def __init__(self, file: Path | None = None) -> None:
        """file: instead of the usual one. One that is damaged or of another version counts as empty."""
        self._file = file or user_folder("cache") / "weights.json"
        self._version = [VERSION, __version__]
        self._known: dict[str, Any] = {}
        self._changed = False
        try:
            stored = json.loads(self._file.read_text(encoding="utf-8"))
            if stored["version"] == self._version:
                self._known = dict(stored["known"])
        except (OSError, ValueError, LookupError, TypeError):
            pass  # it is made anew

    def recall(self, key: str, stamp: list[list[int]]) -> Any:
        """What was remembered under the key, if the stamp is the same; None else."""
        found = self._known.get(key)
        return found["value"] if isinstance(found, dict) and found.get("stamp") == stamp else None

    def remember(self, key: str, stamp: list[list[int]], value: Any) -> None:
        self._known[key] = {"stamp": stamp, "value": value}
        self._changed = True

    def forget_missing(self) -> None:
        """Drop what is known of files that are gone, where the keys are their paths."""
        self._known = {key: value for key, value in self._known.items() if Path(key).exists()}

    def save(self) -> None:
        """Write what is new. A cache that cannot be written costs the next listing its time and nothing else."""
        if not self._changed:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._file) as temporary:
                temporary.write_text(json.dumps({"version": self._version, "known": self._known}), encoding="utf-8")
        except OSError:
            return
        self._changed = False


def stamp(paths: Iterable[Path]) -> list[list[int]]:
    """Size and time of change of each file. Raises OSError."""
    statuses = [path.stat() for path in paths]
    return [[status.st_size, status.st_mtime_ns] for status in statuses]


def sight(path: Path, memory: Memory) -> Sighting:
    """What a file holds, remembered or read now; never an exception for what is in it."""
    key = str(path)
    try:
        now = stamp([path, *files_of(path)])
    except (OSError, ShotError) as error:
        return Sighting(path, 0, reason=_reason(path, error))
    total = sum(size for size, _ in now[1:])
    found = memory.recall(key, now)
    if found is None:
        found = _look(path)
        memory.remember(key, now, found)
    return Sighting(path, total, found["parts"], found["reason"])


def _look(path: Path) -> dict[str, Any]:
    try:
        header = read_header(path)
        if METADATA_KEY in header.metadata:
            return {"parts": {"bundle": {}}, "reason": ""}
        try:
            parts = split_parts(header.shapes)
        except ShotError:  # another program's
            return {"parts": {}, "reason": ""}
        return {"parts": _facts(path, header, parts), "reason": ""}
    except (OSError, ShotError, ValueError) as error:
        return {"parts": {}, "reason": _reason(path, error)}


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, ShotError):
        return str(error).removeprefix("model: ")
    why = error.strerror if isinstance(error, OSError) else error
    return f"{path} cannot be read ({why or type(error).__name__}); an intact file is expected"


def _facts(path: Path, header: Header, parts: dict[Any, dict[str, str]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for part, names in parts.items():
        shapes = {ours: header.shapes[theirs] for theirs, ours in names.items()}
        facts = _READERS[part](shapes, path)
        if facts is not None:
            found[part] = {**facts, "precision": _precision(header, names)}
    if "text" in found:
        found["text"]["has_tokenizer"] = has_tokenizer(header)
    return found


def _precision(header: Header, names: Iterable[str]) -> str:
    """What most of the numbers are stored in."""
    sizes: Counter[str] = Counter()
    for name in names:
        sizes[header.dtypes[name]] += prod(header.shapes[name])
    most = max(sizes, key=lambda name: sizes[name])
    return PRECISIONS.get(most, most.lower())


def _transformer_facts(shapes: Shapes, path: Path) -> dict[str, Any]:
    config = infer_transformer_config(shapes, heads=1)  # heads change no shape
    form = next((FORMS.get(name, "special") for name in KINDS if name in shapes), None)
    values = sum(prod(shape) for shape in shapes.values())
    return {
        "form": form or _plain_form(config), "expert": _expert(path, config), "layers": config.layers,
        "channels": config.out_channels, "in_channels": config.in_channels, "width": config.text_dim,
        "image_width": config.image_dim or 0, "size": SIZES.get(config.dim, f"{values / 1e9:.2g}b"),
    }  # fmt: skip


def _plain_form(config: TransformerConfig) -> str:
    if config.vace_layers:
        return "vace"
    if config.image_positions:
        return "flf2v"
    if config.out_channels == 48:
        return "ti2v"
    if config.in_channels == config.out_channels:
        return "t2v"
    return "i2v" if reads_pictures(config) else "control"


def _expert(path: Path, config: TransformerConfig) -> str:
    """high, low, or "" for a model that is whole: only names tell, of files and folders."""
    if config.out_channels == 48:
        return ""
    is_first = path.parent.name == "transformer" and (path.parent.parent / "transformer_2").is_dir()
    return level(path) or ("high" if is_first else "")


def _text_facts(shapes: Shapes, path: Path) -> dict[str, Any] | None:
    config = infer_text_config(shapes)
    last = f"encoder.block.{config.layers - 1}.layer.0.SelfAttention.relative_attention_bias.weight"
    return {"width": config.dim} if last in shapes else None  # a T5 of another kind


def _vae_facts(shapes: Shapes, path: Path) -> dict[str, Any] | None:
    config = infer_vae_config(shapes)
    planes = shapes["encoder.conv1.weight"][1]
    return {"channels": config.latent_channels} if planes == 3 * config.patch_size**2 else None  # no alpha


def _clip_facts(shapes: Shapes, path: Path) -> dict[str, Any]:
    return {"width": infer_clip_config(shapes, heads=1).dim}


_READERS = {"transformer": _transformer_facts, "text": _text_facts, "vae": _vae_facts, "clip": _clip_facts}
