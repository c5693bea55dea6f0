# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""LoRA files as trainers write them, through the engine and through diffusers' own loader: whole routes compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import wan_kit as kit
from rushes.model.checkpoint import transformer_names_to_diffusers
from rushes.shot import Lora

Make = Callable[..., Any]
RANK = 3
LAYERS = (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k", "cross_attn.v",
    "cross_attn.o", "ffn.0", "ffn.2",
)  # fmt: skip
ENDS = {"A": ("lora_A.weight", "lora_B.weight"), "down": ("lora_down.weight", "lora_up.weight")}


def write_lora(path: Path, state: dict[str, Tensor], style: str, ends: str, alpha: float | None, seed: int) -> Path:
    """Every linear layer of every block, at random. style: original, diffusers or flat (lora_unet_ and underscores)."""
    draw = torch.Generator().manual_seed(seed)
    theirs = transformer_names_to_diffusers(list(state))
    tensors: dict[str, Tensor] = {}
    for weight in (name for name in state if any(name.endswith(f".{layer}.weight") for layer in LAYERS)):
        stem = (theirs[weight] if style == "diffusers" else weight).removesuffix(".weight")
        name = {
            "original": f"diffusion_model.{stem}", "diffusers": f"transformer.{stem}",
            "flat": f"lora_unet_{stem.replace('.', '_')}",
        }[style]  # fmt: skip
        rows, columns = state[weight].shape
        down, up = ENDS[ends]
        tensors[f"{name}.{down}"] = 0.2 * torch.randn(RANK, columns, generator=draw)
        tensors[f"{name}.{up}"] = 0.2 * torch.randn(rows, RANK, generator=draw)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


@pytest.mark.parity
@pytest.mark.parametrize(
    ("style", "ends", "alpha"),
    [
        ("original", "A", None), ("original", "down", None), ("original", "down", 1.5),
        ("diffusers", "A", None), ("flat", "down", 6.0),
    ],
)  # fmt: skip
def test_a_lora_is_what_diffusers_makes_of_it(
    tiny_wan: Make,
    wan_pipeline: Make,
    trained_spiece: bytes,
    tmp_path: Path,
    style: str,
    ends: str,
    alpha: float | None,
) -> None:
    wan = tiny_wan(spiece=trained_spiece)
    path = write_lora(tmp_path / "one.safetensors", wan.states["transformer"], style, ends, alpha, seed=1)
    plain, with_lora = kit.shot(), kit.shot(loras=(Lora(str(path), 0.7),))
    engine, pipeline = kit.engine_of(wan), wan_pipeline(wan, "WanPipeline")
    pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="one")
    pipeline.set_adapters(["one"], [0.7])
    ours = engine.denoise(with_lora)
    kit.assert_close(ours, pipeline(**kit.asked(plain)).frames)
    assert (engine.denoise(plain) - ours).abs().max() > 1e-2


@pytest.mark.parity
def test_several_loras_are_what_diffusers_makes_of_them(
    tiny_wan: Make, wan_pipeline: Make, trained_spiece: bytes, tmp_path: Path
) -> None:
    wan = tiny_wan(spiece=trained_spiece)
    state, strengths = wan.states["transformer"], (0.8, -0.4)
    paths = [
        write_lora(tmp_path / "first.safetensors", state, "original", "A", None, seed=2),
        write_lora(tmp_path / "second.safetensors", state, "flat", "down", 2.0, seed=3),
    ]
    pipeline = wan_pipeline(wan, "WanPipeline")
    for path in paths:
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)
    pipeline.set_adapters([path.stem for path in paths], list(strengths))
    loras = tuple(Lora(str(path), strength) for path, strength in zip(paths, strengths, strict=True))
    kit.assert_close(kit.engine_of(wan).denoise(kit.shot(loras=loras)), pipeline(**kit.asked(kit.shot())).frames)


@pytest.mark.parity
def test_each_experts_lora_is_what_diffusers_makes_of_it(
    tiny_wan: Make, wan_pipeline: Make, trained_spiece: bytes, tmp_path: Path
) -> None:
    wan = tiny_wan(spiece=trained_spiece, names=("wan2.2_t2v_high_noise_14B", "wan2.2_t2v_low_noise_14B"))
    high, low = (
        write_lora(tmp_path / f"{name}.safetensors", wan.states[part], "original", "down", 2.0, seed)
        for name, part, seed in (("high", "transformer", 4), ("low", "transformer_low", 5))
    )
    plain = kit.shot(guidance=(4.0, 3.0))
    pipeline = wan_pipeline(wan, "WanPipeline", boundary_ratio=0.875)
    pipeline.load_lora_weights(high.parent, weight_name=high.name, adapter_name="high")
    pipeline.load_lora_weights(low.parent, weight_name=low.name, adapter_name="low", load_into_transformer_2=True)
    loras = (Lora(str(high), 1.0, "high"), Lora(str(low), 1.0, "low"))
    ours = kit.engine_of(wan).denoise(plain.replace(loras=loras))
    kit.assert_close(ours, pipeline(**kit.asked(plain)).frames)
