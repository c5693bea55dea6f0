# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Quantised weights by the marks that files carry: which are read, and which are refused by name.

fp8 comes plain (weights are merely cast) or scaled, in three forms: with `scaled_fp8` and a `scale_weight` beside each
weight; with `_quantization_metadata` and a `weight_scale`; or with the same note in a `comfy_quant` beside each weight.
A mark that is not known here is refused: weights read without it would be noise, in silence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rushes.model import reading
from rushes.model.blocks import FORMATS
from rushes.model.checkpoint import EXTRAS, strip_prefix
from rushes.model.packed import FP8, Packed
from rushes.model.reading import Header, Weight
from rushes.shot import ShotError

PLAIN = ("F32", "BF16", "F16")
READ = (*PLAIN, *FP8, *FORMATS)
ALLOWED = "fp32, bf16, fp16, fp8 (plain or scaled) or GGUF (Q4_0 to Q8_0, Q2_K to Q6_K) is allowed"

PATCH = (1, 2, 2)  # of Wan's tokens, in latent cells
_ONE_IN_FRONT = ("modulation", "scale_shift_table", "emb_pos")  # tensors whose first dimension is 1

_NOTE = "_quantization_metadata"
_SCALES = ("scale_weight", "weight_scale")
_INPUT_SCALES = ("scale_input", "input_scale")  # not read: products in fp8 scale inputs by what they hold
_GLOBAL, _INLINE = "scaled_fp8", "comfy_quant"
MARKS = (_GLOBAL, _INLINE, *_SCALES, *_INPUT_SCALES)
_FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_NOTE_KEYS = {"format", "full_precision_matrix_mult"}
# Last part of a name -> whose it is
_FOREIGN = {
    "weight_scale_2": "nvfp4", "pre_quant_scale": "AWQ", "weight_zero_point": "int8", "qzeros": "AWQ or GPTQ",
    "g_idx": "GPTQ", "wscales": "SVDQuant", "wtscale": "SVDQuant", "smooth_factor": "SVDQuant",
    "smooth_factor_orig": "SVDQuant", "qweight": "AWQ, GPTQ or SVDQuant", "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes", "SCB": "bitsandbytes int8", "weight_format": "bitsandbytes int8",
    "bitsandbytes__nf4": "bitsandbytes nf4", "bitsandbytes__fp4": "bitsandbytes fp4",
}  # fmt: skip


@dataclass(frozen=True)
class WeightFile:
    """A file as a model sees it, its marks read and gone.

    header: of its weights; dtypes are those of READ, and any for the EXTRAS. kinds: what its weights are in, sorted.
    """

    path: Path
    header: Header

    @property
    def kinds(self) -> list[str]:
        return sorted({kind for name, kind in self.header.dtypes.items() if kind in READ})

    @property
    def is_packed(self) -> bool:
        return not set(self.kinds) <= set(PLAIN)

    def load(self) -> dict[str, Weight]:
        """The weights by their names in the file, mapped. Raises ShotError for scales that do not go with them."""
        state = reading.load_state(self.path)
        found: dict[str, Weight] = {}
        for name in self.header.shapes:
            weight = state[name]
            scales = [state[mark] for mark in _scales_of(name) if mark in state]
            if isinstance(weight, Tensor) and self.header.dtypes[name] in FP8:
                weight = _fp8(
                    weight, self.header.dtypes[name], [s for s in scales if isinstance(s, Tensor)], name, self.path
                )
            elif scales:
                raise _refused(self.path, name, f"a scale for weights in {self.header.dtypes[name]}")
            shape = self.header.shapes[name]
            found[name] = weight.view(shape) if isinstance(weight, Tensor) else replace(weight, shape=shape)
        return found


def open_weights(path: Path) -> WeightFile:
    """What is in a file, looked at before any weight is read. Raises ShotError for one that is refused."""
    header = reading.read_header(path)
    for name in header.dtypes:
        if kind := _FOREIGN.get(name.rpartition(".")[2]):
            raise _refused(path, name, f"weights quantised by {kind}")
        layer, _, last = name.rpartition(".")
        if last in MARKS and last != _GLOBAL and header.dtypes.get(f"{layer}.weight") not in FP8:
            raise _refused(path, name, "a mark of fp8 weights beside none")
    if any(name.rpartition(".")[2] == _GLOBAL for name in header.dtypes) and not FP8.keys() & header.dtypes.values():
        raise _refused(path, _GLOBAL, "a mark of fp8 weights and none of them")
    layers = _layers(path, header)
    bare = strip_prefix(header.dtypes)
    kept = [name for name in header.dtypes if name.rpartition(".")[2] not in MARKS]
    for name in kept:
        dtype, layer = header.dtypes[name], name.rpartition(".")[0]
        if dtype not in READ and bare[name] not in EXTRAS:
            raise _refused(path, name, f"weights in {dtype}")
        noted = layers.get(layer) if name.endswith(".weight") else None
        if noted is not None and noted != dtype:
            raise _refused(path, name, f"weights in {dtype} that a note says are in {noted}")
    shapes = _unflattened({name: header.shapes[name] for name in kept})
    return WeightFile(path, Header(shapes, {name: header.dtypes[name] for name in kept}, header.metadata))


def _unflattened(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """With the dimensions that ggml's writers drop: beyond the fourth, and those of 1 in front of all others."""
    found = dict(shapes)
    for name, shape in shapes.items():
        if name.endswith(_ONE_IN_FRONT) and len(shape) == 2:
            found[name] = (1, *shape)
        bias = shapes.get(f"{name.removesuffix('.weight')}.bias", ())
        if name.endswith("patch_embedding.weight") and len(shape) != 5 and len(bias) == 1 and bias[0]:
            inputs, rest = divmod(prod(shape), bias[0] * prod(PATCH))
            found[name] = shape if rest else (bias[0], inputs, *PATCH)
    return found


def _layers(path: Path, header: Header) -> dict[str, str]:
    """What notes say of layers, by their names in the file: the one in the metadata, or those beside the weights."""
    notes: dict[str, Any] = {}
    if _NOTE in header.metadata:
        try:
            layers = json.loads(header.metadata[_NOTE])["layers"]
            names = {bare: name for name, bare in strip_prefix(header.shapes).items()}
            for layer, note in layers.items():
                known = f"{layer}.weight" in header.shapes
                notes[layer if known else names[f"{layer}.weight"].rpartition(".")[0]] = note
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _refused(path, _NOTE, "a note on quantised weights that cannot be read") from error
    if marks := [name for name in header.shapes if name.rpartition(".")[2] == _INLINE]:
        state = reading.load_state(path)
        for name in marks:
            raw = state[name]
            try:
                text = bytes(raw.numpy()) if isinstance(raw, Tensor) and raw.numel() < 2**16 else b""
                notes[name.rpartition(".")[0]] = json.loads(text)
            except (ValueError, TypeError, RecursionError) as error:
                raise _refused(path, name, "a note on quantised weights that cannot be read") from error
    return {layer: _format(path, layer, note) for layer, note in notes.items()}


def _format(path: Path, layer: str, note: Any) -> str:
    """What a note says that a layer is in. Every word of it must be known: each changes what the numbers mean."""
    found = note.get("format") if isinstance(note, dict) else None
    if not isinstance(found, str) or found not in _FORMATS:
        raise _refused(path, layer, f"weights in {str(found)[:40]}")
    if unknown := sorted(str(key) for key in set(note) - _NOTE_KEYS):
        raise _refused(path, layer, f"weights in {found} with {unknown[0][:40]!r}")
    return _FORMATS[found]


def _scales_of(name: str) -> list[str]:
    layer = name.removesuffix(".weight")
    return [f"{layer}.{scale}" for scale in _SCALES] if layer != name else []


def _fp8(weight: Tensor, kind: str, scales: list[Tensor], name: str, path: Path) -> Packed:
    """fp8 as bytes [rows, the rest], with one scale for all or one for each row."""
    rows = weight.shape[0] if weight.ndim > 1 else 1
    data = weight.contiguous().view(torch.uint8).view(rows, weight.numel() // max(1, rows))
    if not scales:
        return Packed(kind, data, tuple(weight.shape))
    scale = scales[0].float().flatten()
    if len(scales) > 1 or len(scale) not in (1, rows):
        raise _refused(path, name, f"{len(scales)} scales of {list(scales[0].shape)} for weights {list(weight.shape)}")
    return Packed(kind, data, tuple(weight.shape), scale)


def _refused(path: Path, name: str, what: str) -> ShotError:
    return ShotError(f"model: {path.name} holds {what} ({name!r}); {ALLOWED}")
