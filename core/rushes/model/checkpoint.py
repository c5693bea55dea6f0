# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Names in weight files: telling which part of a model they belong to, and turning them into ours.

Our names are the original ones for the transformer and the video VAE, and transformers' for the text encoder
and the CLIP tower. The rules below are tables of whole module paths, read in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rushes.shot import ShotError

Part = Literal["transformer", "vae", "text", "clip"]
Names = Literal["original", "diffusers", "transformers", "llama.cpp"]

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


# One tensor that each layout is told by.
_MARKERS: dict[str, Layout] = {
    "blocks.0.self_attn.q.weight": Layout("transformer", "original"),
    "blocks.0.attn1.to_q.weight": Layout("transformer", "diffusers"),
    "decoder.middle.0.residual.0.gamma": Layout("vae", "original"),
    "decoder.mid_block.resnets.0.norm1.gamma": Layout("vae", "diffusers"),
    "blocks.0.attn.q.weight": Layout("text", "original"),
    "encoder.block.0.layer.0.SelfAttention.q.weight": Layout("text", "transformers"),
    "enc.blk.0.attn_q.weight": Layout("text", "llama.cpp"),
    "encoder.layers.0.self_attn.k_proj.weight": Layout("clip", "transformers"),
}

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
_LLAMA: Pairs = (  # theirs are those of GGUF files of text encoders
    ("shared", "token_embd"),
    ("encoder.block.#.layer.0.layer_norm", "enc.blk.#.attn_norm"),
    *((f"encoder.block.#.layer.0.SelfAttention.{name}", f"enc.blk.#.attn_{name}") for name in "qkvo"),
    ("encoder.block.#.layer.0.SelfAttention.relative_attention_bias", "enc.blk.#.attn_rel_b"),
    ("encoder.block.#.layer.1.layer_norm", "enc.blk.#.ffn_norm"),
    ("encoder.block.#.layer.1.DenseReluDense.wi_0", "enc.blk.#.ffn_gate"),
    ("encoder.block.#.layer.1.DenseReluDense.wi_1", "enc.blk.#.ffn_up"),
    ("encoder.block.#.layer.1.DenseReluDense.wo", "enc.blk.#.ffn_down"),
    ("encoder.final_layer_norm", "enc.output_norm"),
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


def text_names_from_llama(keys: Iterable[str]) -> dict[str, str]:
    """llama.cpp's T5 name -> ours (transformers'). An unknown name stays as it is."""
    return _renamed(keys, _LLAMA, to_ours=True)


def text_names_to_llama(keys: Iterable[str]) -> dict[str, str]:
    """Our name -> llama.cpp's T5 name. An unknown name stays as it is."""
    return _renamed(keys, _LLAMA, to_ours=False)


def _unchanged(keys: Iterable[str]) -> dict[str, str]:
    return {key: key for key in keys}


_TO_OURS: dict[Layout, Callable[[Iterable[str]], dict[str, str]]] = {
    Layout("transformer", "original"): _unchanged,
    Layout("transformer", "diffusers"): transformer_names_from_diffusers,
    Layout("vae", "original"): _unchanged,
    Layout("vae", "diffusers"): vae_names_from_diffusers,
    Layout("text", "original"): text_names_from_original,
    Layout("text", "transformers"): _unchanged,
    Layout("text", "llama.cpp"): text_names_from_llama,
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
