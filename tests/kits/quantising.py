# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Quantised weight files, written for the tests in every form that is found, and what they are when opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rushes.model.blocks import FORMATS
from rushes.model.checkpoint import strip_prefix

State = dict[str, Tensor]
HALVES = {"Q2_K": (80, 84), "Q3_K": (108, 110), "Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210)}  # of the scales


def read(path: Path) -> State:
    """Copies, for a file that is written over while it is mapped changes what was read from it."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and name.endswith(".weight") and "relative_attention" not in name


def write_fp8(path: Path, form: str, dtype: torch.dtype) -> State:
    """Rewrite a file's matrices in fp8 in one of the forms; what they are, opened, comes back."""
    tensors, opened, metadata, notes = read(path), dict[str, Tensor](), {}, {}
    name_of = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}[dtype]
    with_config = {"config": '{"num_heads": 2}'} if "transformer" in path.name else {}
    for name, tensor in list(tensors.items()):
        if not is_matrix(name, tensor):
            if form == "plain" and tensor.is_floating_point():  # then all of the file is
                tensors[name] = tensor.to(dtype)
                opened[name] = tensors[name].float()
            continue
        layer = name.removesuffix(".weight")
        scale = torch.ones(()) if form == "plain" else tensor.abs().max() / 100
        tensors[name] = (tensor / scale).to(dtype)
        opened[name] = tensors[name].float() * scale
        if form == "marked":
            tensors[f"{layer}.scale_weight"], tensors[f"{layer}.scale_input"] = scale.clone(), torch.ones(())
        elif form in ("noted", "inline"):
            tensors[f"{layer}.weight_scale"] = scale[None].clone()
            note = {"format": name_of, "full_precision_matrix_mult": True}
            if form == "noted":
                notes[layer] = note
            else:
                tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
    if form == "marked":
        prefix = next(iter(tensors)).removesuffix(strip_prefix(tensors)[next(iter(tensors))])
        tensors[f"{prefix}scaled_fp8"] = torch.zeros(2, dtype=dtype)
    if form == "noted":
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": notes})
    save_file(tensors, path, metadata={**metadata, **with_config})
    return opened


def quantised(tensor: Tensor, kind: str) -> Any:
    """Bytes of a matrix. gguf quantises the simple formats; of K-quants, random ones with scales of the right size."""
    if kind not in HALVES:
        return gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType[kind])
    values, size, _ = FORMATS[kind]
    generator = np.random.default_rng(tensor.numel())
    raw = generator.integers(0, 256, (tensor.numel() // values, size), dtype=np.uint8)
    start, end = HALVES[kind]
    halves = (generator.random((len(raw), (end - start) // 2)) * 4e-4).astype(np.float16)
    raw[:, start:end] = halves.view(np.uint8)
    return raw.reshape(tensor.shape[0], -1)


def same(state: State) -> dict[str, str]:
    return {name: name for name in state}


def write_pieces(writer: gguf.GGUFWriter, spiece: bytes) -> None:
    """The pieces of a sentencepiece model as llama.cpp's converter writes them."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    kinds = [
        gguf.TokenType.CONTROL if model.is_control(i) else gguf.TokenType.UNKNOWN if model.is_unknown(i) else 1
        for i in range(model.vocab_size())
    ]
    writer.add_tokenizer_model("t5")
    writer.add_token_list([model.id_to_piece(i).encode() for i in range(model.vocab_size())])
    writer.add_token_scores([model.get_score(i) for i in range(model.vocab_size())])
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)


def write_gguf(
    source: Path, kind: str, names: Callable[[State], dict[str, str]] = same, has_note: bool = True
) -> tuple[Path, State]:
    """A GGUF beside a file, as ComfyUI-GGUF writes it: matrices in `kind`, the rest in F32 and F16.

    has_note: on the shape that a flattened convolution had. Text encoders bring their tokenizer.
    """
    path, opened = source.with_suffix(".gguf"), dict[str, Tensor]()
    is_text = "text" in source.name
    writer = gguf.GGUFWriter(path, "t5encoder" if is_text else "wan")
    bare = {strip_prefix([key])[key]: (key, t) for key, t in read(source).items()}
    renamed = names({name: t for name, (_, t) in bare.items()})
    for name, (key, tensor) in bare.items():
        if tensor.dtype is torch.uint8:
            write_pieces(writer, bytes(tensor.numpy()))
            continue
        if is_matrix(name, tensor) and tensor.shape[1] % FORMATS[kind].values == 0:
            raw, type_ = quantised(tensor, kind), gguf.GGMLQuantizationType[kind]
            opened[key] = torch.from_numpy(gguf.quants.dequantize(raw, type_))
            writer.add_tensor(renamed[name], raw, raw_dtype=type_)
        else:
            half = tensor.half() if tensor.ndim == 2 else tensor
            opened[key] = half.float()
            flat = half.numpy()
            if flat.ndim > 4:  # a convolution's five dimensions are one too many for ggml
                if has_note:
                    writer.add_array(f"comfy.gguf.orig_shape.{name}", list(flat.shape))
                flat = flat.reshape(flat.shape[0], -1)
            elif not has_note and flat.shape[0] == 1:  # as llama.cpp's own quantiser writes it
                flat = flat[0]
            writer.add_tensor(renamed[name], flat)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path, opened
