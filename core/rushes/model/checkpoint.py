# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Weight files: reading them, telling which part of a model they hold, and turning their names into ours.

Our names are the original ones for the transformer and the video VAE, and transformers' for the text encoder
and the CLIP tower. The rules below are tables of whole module paths, read in both directions.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rushes.shot import ShotError

Part = Literal["transformer", "vae", "text", "clip"]
Names = Literal["original", "diffusers", "transformers"]

PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "vae.",
    "text_encoders.umt5xxl.transformer.",
    "vision_model.",  # CLIP files written before transformers 5
)
# Tensors that come along in files and are no weights of ours: tokenizer, projection head, constants.
EXTRAS = ("spiece_model", "visual_projection.weight", "embeddings.position_ids")


@dataclass(frozen=True)
class Layout:
    """Which part of a model a set of names belongs to, and whose names they are."""

    part: Part
    names: Names


@dataclass(frozen=True)
class Header:
    """What a file says of its tensors, by their names in it, and of itself, before any weight is read.

    dtypes: as safetensors writes them, "F32", "BF16", "F8_E4M3" ...
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


# One tensor that each layout is told by.
_MARKERS: dict[str, Layout] = {
    "blocks.0.self_attn.q.weight": Layout("transformer", "original"),
    "blocks.0.attn1.to_q.weight": Layout("transformer", "diffusers"),
    "decoder.middle.0.residual.0.gamma": Layout("vae", "original"),
    "decoder.mid_block.resnets.0.norm1.gamma": Layout("vae", "diffusers"),
    "blocks.0.attn.q.weight": Layout("text", "original"),
    "encoder.block.0.layer.0.SelfAttention.q.weight": Layout("text", "transformers"),
    "encoder.layers.0.self_attn.k_proj.weight": Layout("clip", "transformers"),
}

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}

Pairs = Sequence[tuple[str, str]]

_BLOCK: Pairs = (
    ("self_attn.q", "attn1.to_q"),
    ("self_attn.k", "attn1.to_k"),
    ("self_attn.v", "attn1.to_v"),
    ("self_attn.o", "attn1.to_out.0"),
    ("self_attn", "attn1"),  # norm_q, norm_k
    ("cross_attn.q", "attn2.to_q"),
    ("cross_attn.k", "attn2.to_k"),
    ("cross_attn.v", "attn2.to_v"),
    ("cross_attn.o", "attn2.to_out.0"),
    ("cross_attn.k_img", "attn2.add_k_proj"),
    ("cross_attn.v_img", "attn2.add_v_proj"),
    ("cross_attn.norm_k_img", "attn2.norm_added_k"),
    ("cross_attn", "attn2"),
    ("norm2", "norm3"),  # the numbers of these two are swapped
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("modulation", "scale_shift_table"),
    ("before_proj", "proj_in"),  # VACE
    ("after_proj", "proj_out"),
)
_TRANSFORMER: Pairs = (
    *(
        (f"{blocks}.#.{ours}", f"{blocks}.#.{theirs}")
        for blocks in ("blocks", "vace_blocks")
        for ours, theirs in _BLOCK
    ),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
    ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    ("head.modulation", "scale_shift_table"),
    ("head.head", "proj_out"),
)
_TEXT: Pairs = (
    ("token_embedding", "shared"),
    ("blocks.#.norm1", "encoder.block.#.layer.0.layer_norm"),
    ("blocks.#.attn", "encoder.block.#.layer.0.SelfAttention"),
    ("blocks.#.pos_embedding.embedding", "encoder.block.#.layer.0.SelfAttention.relative_attention_bias"),
    ("blocks.#.norm2", "encoder.block.#.layer.1.layer_norm"),
    ("blocks.#.ffn.gate.0", "encoder.block.#.layer.1.DenseReluDense.wi_0"),
    ("blocks.#.ffn.fc1", "encoder.block.#.layer.1.DenseReluDense.wi_1"),
    ("blocks.#.ffn.fc2", "encoder.block.#.layer.1.DenseReluDense.wo"),
    ("norm", "encoder.final_layer_norm"),
)
_RESIDUAL: Pairs = (
    ("residual.0", "norm1"),
    ("residual.2", "conv1"),
    ("residual.3", "norm2"),
    ("residual.6", "conv2"),
    ("shortcut", "conv_shortcut"),
    ("", ""),  # attention and resampling keep the names inside
)
_HALVES = ("encoder", "decoder")
_STAGES = range(4)
_UP = 3  # residual blocks of a decoder stage, where an encoder stage has one fewer; then comes the resampler


def _joined(outer: Pairs, inner: Pairs) -> Pairs:
    """Every outer path followed by every inner one."""
    return tuple((f"{a}.{c}".rstrip("."), f"{b}.{d}".rstrip(".")) for a, b in outer for c, d in inner)


_VAE_ENDS: Pairs = (
    ("conv1", "quant_conv"),
    ("conv2", "post_quant_conv"),
    *_joined(
        [(half, half) for half in _HALVES],
        [("conv1", "conv_in"), ("head.0", "norm_out"), ("head.2", "conv_out")],
    ),
)
_VAE_MIDDLE: Pairs = _joined(
    [(f"{half}.middle", f"{half}.mid_block") for half in _HALVES],
    [("0", "resnets.0"), ("1", "attentions.0"), ("2", "resnets.1")],
)
_VAE21: Pairs = (
    *_VAE_ENDS,
    *_joined(
        (
            *_VAE_MIDDLE,
            ("encoder.downsamples.#", "encoder.down_blocks.#"),
            *(
                (f"decoder.upsamples.{stage * (_UP + 1) + index}", f"decoder.up_blocks.{stage}.{theirs}")
                for stage in _STAGES
                for index, theirs in enumerate((*(f"resnets.{block}" for block in range(_UP)), "upsamplers.0"))
            ),
        ),
        _RESIDUAL,
    ),
)
_VAE22: Pairs = (
    *_VAE_ENDS,
    *_joined(
        (
            *_VAE_MIDDLE,
            (f"encoder.downsamples.#.downsamples.{_UP - 1}", "encoder.down_blocks.#.downsampler"),
            ("encoder.downsamples.#.downsamples.#", "encoder.down_blocks.#.resnets.#"),
            (f"decoder.upsamples.#.upsamples.{_UP}", "decoder.up_blocks.#.upsampler"),
            ("decoder.upsamples.#.upsamples.#", "decoder.up_blocks.#.resnets.#"),
        ),
        _RESIDUAL,
    ),
)


def load_state(path: str | Path, device: str = "cpu") -> dict[str, Tensor]:
    """Tensors by their names in the file; on the CPU they are mapped, not read, until they are used.

    path: a .safetensors file, a folder with one such file or with shards and their index, or a .pth file, of
    which only plain weights are loaded. Raises ShotError for a file that is missing, damaged or of another
    kind.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, device)
    if path.name.endswith(".safetensors.index.json"):
        return _read_shards(path, device)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, device)
    if path.suffix in (".pth", ".pt"):
        return _read_pickle(path, device)
    raise ShotError(f"model: got {path}; a folder, a .safetensors file or a .pth file is allowed")


def read_header(path: str | Path) -> Header:
    """The header of one .safetensors or .pth file. Raises ShotError as `load_state` does."""
    path = Path(path)
    if path.suffix != ".safetensors":
        state = load_state(path)
        return Header(
            {name: tuple(t.shape) for name, t in state.items()},
            {name: _DTYPES.get(t.dtype, str(t.dtype)) for name, t in state.items()},
            {},
        )
    try:
        # "np", because torch's own mapping of a file is refused where it is larger than the memory, used or not
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (safe_open is not a dict)
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            return Header(shapes, {name: part.get_dtype() for name, part in slices.items()}, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    except RuntimeError as error:  # torch could not map it
        size = f"{path.stat().st_size / 1e9:.1f} GB"
        raise ShotError(f"model: {path} has {size}, more than this machine's memory and swap can hold") from error


def _read_folder(folder: Path, device: str) -> dict[str, Tensor]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = indices or sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:3]) or "no .safetensors file"
        raise ShotError(f"model: {folder} holds {names}; one .safetensors file or index of shards is allowed")
    return _read_shards(files[0], device) if indices else _read_safetensors(files[0], device)


def _read_shards(index: Path, device: str) -> dict[str, Tensor]:
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(files.values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _unreadable(index, error) from error
    if outside:  # an index from elsewhere must not reach other folders
        raise ShotError(f"model: {index} names {outside[0]!r}; shards beside the index are allowed")
    state: dict[str, Tensor] = {}
    for shard in shards:
        state |= _read_safetensors(index.parent / shard, device)
    if missing := sorted(files.keys() - state.keys()):
        raise ShotError(f"model: {index} promises {missing[0]!r}, but no shard has it; download the model again")
    return state


def _read_pickle(path: Path, device: str) -> dict[str, Tensor]:
    try:
        # files older than torch 1.6 are not zip archives and cannot be mapped
        state = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle fails in any way: UnpicklingError, EOFError, KeyError, ...
        raise _unreadable(path, error) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ShotError(f"model: {path} holds more than named tensors; a plain state dict is allowed")
    return dict(state)


def _unreadable(path: Path, error: Exception) -> ShotError:
    if isinstance(error, FileNotFoundError):
        return ShotError(f"model: {path} does not exist; an existing file is allowed")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return ShotError(f"model: {path} is damaged or not a file of plain weights ({reason}); download it again")


def strip_prefix(keys: Iterable[str]) -> dict[str, str]:
    """File name -> the same without the prefix that ComfyUI's and bundled files put before a part's names."""
    return {key: key.removeprefix(_prefix(key)) for key in keys}


def detect_layout(keys: Iterable[str]) -> Layout:
    """Which part the names (with or without prefix) belong to. ShotError for none, or for more than one."""
    bare = set(strip_prefix(keys).values())
    found = [layout for marker, layout in _MARKERS.items() if marker in bare]
    if len(found) == 1:
        return found[0]
    if not found:
        some = f"it starts with {min(bare)!r}" if bare else "it is empty"
        raise ShotError(f"model: no Wan transformer, Wan VAE, UMT5 or CLIP is in this file ({some}); choose another")
    raise ShotError(f"model: the file holds {' and '.join(layout.part for layout in found)}; one part is allowed here")


def split_parts(keys: Iterable[str]) -> dict[Part, dict[str, str]]:
    """Part -> {file name -> our name}, for a file of one part or a bundle of several.

    Raises ShotError for names of no part, or for two of the same. EXTRAS are left out.
    """
    groups: dict[str, dict[str, str]] = {}
    for key in keys:
        prefix = _prefix(key)
        bare = key.removeprefix(prefix)
        if bare not in EXTRAS:
            groups.setdefault(prefix, {})[key] = bare
    parts: dict[Part, dict[str, str]] = {}
    for names in groups.values() or [{}]:
        layout = detect_layout(names.values())
        if layout.part in parts:
            raise ShotError(f"model: the file holds the {layout.part} twice; one of each part is allowed")
        ours = _TO_OURS[layout](names.values())
        parts[layout.part] = {key: ours[bare] for key, bare in names.items()}
    return parts


def transformer_names_from_diffusers(keys: Iterable[str]) -> dict[str, str]:
    """diffusers' name -> ours, of `WanTransformer3DModel`, VACE too. An unknown name stays as it is."""
    return _renamed(keys, _TRANSFORMER, to_ours=True)


def transformer_names_to_diffusers(keys: Iterable[str]) -> dict[str, str]:
    """Our name -> diffusers', of `WanTransformer3DModel`, VACE too. An unknown name stays as it is."""
    return _renamed(keys, _TRANSFORMER, to_ours=False)


def vae_names_from_diffusers(keys: Iterable[str]) -> dict[str, str]:
    """diffusers' name -> ours, of `AutoencoderKLWan`, 2.1 or 2.2. An unknown name stays as it is."""
    keys = list(keys)
    is_22 = any(".down_blocks.0.resnets." in key or ".upsampler." in key for key in keys)
    return _renamed(keys, _VAE22 if is_22 else _VAE21, to_ours=True)


def vae_names_to_diffusers(keys: Iterable[str]) -> dict[str, str]:
    """Our name -> diffusers', of `AutoencoderKLWan`, 2.1 or 2.2. An unknown name stays as it is."""
    keys = list(keys)
    is_22 = any(".0.downsamples." in key or ".0.upsamples." in key for key in keys)
    return _renamed(keys, _VAE22 if is_22 else _VAE21, to_ours=False)


def text_names_from_original(keys: Iterable[str]) -> dict[str, str]:
    """Wan's own T5 name -> ours (transformers'). An unknown name stays as it is."""
    return _renamed(keys, _TEXT, to_ours=False)


def text_names_to_original(keys: Iterable[str]) -> dict[str, str]:
    """Our name -> Wan's own T5 name. An unknown name stays as it is."""
    return _renamed(keys, _TEXT, to_ours=True)


def _unchanged(keys: Iterable[str]) -> dict[str, str]:
    return {key: key for key in keys}


_TO_OURS: dict[Layout, Callable[[Iterable[str]], dict[str, str]]] = {
    Layout("transformer", "original"): _unchanged,
    Layout("transformer", "diffusers"): transformer_names_from_diffusers,
    Layout("vae", "original"): _unchanged,
    Layout("vae", "diffusers"): vae_names_from_diffusers,
    Layout("text", "original"): text_names_from_original,
    Layout("text", "transformers"): _unchanged,
    Layout("clip", "transformers"): _unchanged,
}


def _prefix(key: str) -> str:
    return next((prefix for prefix in PREFIXES if key.startswith(prefix)), "")


def _renamed(keys: Iterable[str], pairs: Pairs, *, to_ours: bool) -> dict[str, str]:
    """Name -> new name by the rule that matches most of it; `#` is any number, the rest is kept."""
    rules = [
        (re.compile(re.escape(source).replace(r"\#", r"(\d+)") + r"(?=\.|$)"), target)
        for source, target in ((pair[::-1] if to_ours else pair) for pair in pairs)
    ]
    renamed = {}
    for key in keys:
        matches = [(match, target) for rule, target in rules if (match := rule.match(key))]
        renamed[key] = key
        if matches:
            match, target = max(matches, key=lambda found: found[0].end())
            numbers = iter(match.groups())
            renamed[key] = re.sub("#", lambda _: next(numbers), target) + key[match.end() :]  # noqa: B023
    return renamed
