# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Full-size models, on the meta device, against the names and shapes of every published checkpoint.

tests/fixtures/wan_keys holds them: `original.*` are Wan's own files, `diffusers.*` and `transformers.*` the
converted ones, `map.original_to_diffusers` pairs their names.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rushes.model import checkpoint
from rushes.model.clip import VIT_H14, ClipVision, infer_clip_config
from rushes.model.config import (
    WAN21_FLF2V_14B,
    WAN21_I2V_14B,
    WAN21_T2V_1_3B,
    WAN21_T2V_14B,
    WAN21_VACE_1_3B,
    WAN21_VACE_14B,
    WAN21_VAE,
    WAN22_I2V_A14B,
    WAN22_T2V_A14B,
    WAN22_TI2V_5B,
    WAN22_VAE,
    infer_transformer_config,
    infer_vae_config,
)
from rushes.model.text import EMBEDDING, TIED_EMBEDDING, UMT5_XXL, TextEncoder, infer_text_config
from rushes.model.transformer import Transformer
from rushes.model.vae import VideoVAE

FIXTURES = Path(__file__).parent.parent / "fixtures" / "wan_keys"
Shapes = dict[str, tuple[int, ...]]

CONFIGS: dict[str, Any] = {
    "wan21_t2v_1.3b": WAN21_T2V_1_3B,
    "wan21_t2v_14b": WAN21_T2V_14B,
    "wan21_i2v_14b": WAN21_I2V_14B,
    "wan21_flf2v_14b": WAN21_FLF2V_14B,
    "wan21_vace_1.3b": WAN21_VACE_1_3B,
    "wan21_vace_14b": WAN21_VACE_14B,
    "wan22_t2v_a14b": WAN22_T2V_A14B,
    "wan22_i2v_a14b": WAN22_I2V_A14B,
    "wan22_ti2v_5b": WAN22_TI2V_5B,
    "wan21_vae": WAN21_VAE,
    "wan22_vae": WAN22_VAE,
    "umt5_xxl_encoder": UMT5_XXL,
    "clip_vit_h14_vision": VIT_H14,
}
FILES = sorted(path.name.removesuffix(".json.gz") for path in FIXTURES.glob("*.gz") if not path.name.startswith("map."))
# part of the name pairs -> (to the converted names, back)
RENAMES = {
    "dit": (checkpoint.transformer_names_to_diffusers, checkpoint.transformer_names_from_diffusers),
    "vae21": (checkpoint.vae_names_to_diffusers, checkpoint.vae_names_from_diffusers),
    "vae22": (checkpoint.vae_names_to_diffusers, checkpoint.vae_names_from_diffusers),
    "umt5": (checkpoint.text_names_from_original, checkpoint.text_names_to_original),
}


def read(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((FIXTURES / f"{name}.json.gz").read_bytes()))


def tensors(file: str) -> Shapes:
    return {name: tuple(shape) for name, shape in read(file)["tensors"].items()}


@functools.cache
def model_shapes(model: str) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of our full-size model."""
    config = CONFIGS[model]
    kind: Any = VideoVAE if model.endswith("vae") else Transformer
    kind = {"umt5_xxl_encoder": TextEncoder, "clip_vit_h14_vision": ClipVision}.get(model, kind)
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in kind(config).state_dict().items()}


def renamed(shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str]) -> Shapes:
    assert len(set(names.values())) == len(names), "two names fell together"
    return {names[name]: shape for name, shape in shapes.items()}


def ours(file: str) -> Shapes:
    """A file's shapes under our names, as the loader finds them without being told what the file is."""
    shapes = tensors(file)
    (names,) = checkpoint.split_parts(shapes).values()
    return renamed(shapes, names)


def test_all_24_maps_are_here() -> None:
    """A fixture that got lost must not look like a test that passed."""
    assert len(FILES) == 24
    assert sum(len(tensors(file)) for file in FILES) == sum(read(file)["keys"] for file in FILES) == 20_963


@pytest.mark.parametrize("file", FILES)
def test_full_size_models_have_the_files_names_and_shapes(file: str) -> None:
    """Every name and every shape, none more and none less."""
    expected = dict(model_shapes(file.split(".", 1)[1]))
    if file.startswith("original.umt5"):
        del expected[TIED_EMBEDDING]  # Wan's own file holds the embedding once
    assert ours(file) == expected


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("diffusers.")])
def test_our_names_turn_back_into_diffusers(file: str) -> None:
    """The way out, from the model to the file."""
    shapes = model_shapes(file.split(".", 1)[1])
    back = checkpoint.vae_names_to_diffusers if file.endswith("vae") else checkpoint.transformer_names_to_diffusers
    assert renamed(shapes, back(shapes)) == tensors(file)


def test_text_names_turn_back_into_wans_own() -> None:
    """The way out for UMT5."""
    shapes = {name: shape for name, shape in model_shapes("umt5_xxl_encoder").items() if name != TIED_EMBEDDING}
    assert renamed(shapes, checkpoint.text_names_to_original(shapes)) == tensors("original.umt5_xxl_encoder")
    assert EMBEDDING in shapes


@pytest.mark.parametrize("part", RENAMES)
def test_rename_rules_equal_the_recorded_pairs(part: str) -> None:
    """Each pair of names that was found by running the conversion scripts, both ways."""
    pairs = read("map.original_to_diffusers")[part]
    there, back = RENAMES[part]
    assert there(pairs) == pairs
    assert back(pairs.values()) == {converted: original for original, converted in pairs.items()}


@pytest.mark.parametrize("file", FILES)
def test_configurations_are_read_from_the_shapes(file: str) -> None:
    """The presets, from shapes alone."""
    model = file.split(".", 1)[1]
    infer: Any = infer_vae_config if model.endswith("vae") else infer_transformer_config
    infer = {"umt5_xxl_encoder": infer_text_config, "clip_vit_h14_vision": infer_clip_config}.get(model, infer)
    assert infer(ours(file)) == CONFIGS[model]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("prefix", ["", *checkpoint.PREFIXES])
def test_the_part_is_told_with_any_prefix(file: str, prefix: str) -> None:
    """ComfyUI's single files carry one of these prefixes or none."""
    names = tensors(file)
    kind, model = file.split(".", 1)
    part = {"umt5_xxl_encoder": "text", "clip_vit_h14_vision": "clip"}.get(model, "transformer")
    layout = checkpoint.Layout("vae" if model.endswith("vae") else part, kind)  # type: ignore[arg-type]
    assert checkpoint.detect_layout(prefix + name for name in names) == layout
    assert checkpoint.strip_prefix(prefix + name for name in names) == {prefix + name: name for name in names}
