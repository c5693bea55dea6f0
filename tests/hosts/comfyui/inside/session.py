# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Inside a ComfyUI process without its server: our pack as a package, a small Wan in ComfyUI's own layout, sampling.

Runs with ComfyUI's folder as the working folder. To be imported before anything of ComfyUI's, which reads its arguments
while it is imported.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, os.getcwd())
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402

PACK = "rushes_pack"
WORDS = 20  # tokens of a prompt
PATCH = (1, 2, 2)  # Wan's


def pack_module(folder: Path, name: str) -> Any:
    """A module of our nodes, whose folder ComfyUI would import under a name of its own."""
    if PACK not in sys.modules:
        package = types.ModuleType(PACK)
        package.__path__ = [str(folder)]
        sys.modules[PACK] = package
    return importlib.import_module(f"{PACK}.{name}")


def wan_weights(dim: int = 256, layers: int = 4, ffn: int = 128, channels: int = 16, seed: int = 1) -> dict[str, Any]:
    """Random, under the names of the original Wan repository, from which ComfyUI tells the model. Heads have 128."""
    generator = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.08

    def linear(name: str, out: int, wide: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": made(out, wide), f"{name}.bias": made(out)}

    weights = {
        "patch_embedding.weight": made(dim, channels, *PATCH),
        "patch_embedding.bias": made(dim),
        "head.modulation": made(1, 2, dim),
        **linear("text_embedding.0", dim, 4096),
        **linear("text_embedding.2", dim, dim),
        **linear("time_embedding.0", dim, 256),
        **linear("time_embedding.2", dim, dim),
        **linear("time_projection.1", 6 * dim, dim),
        **linear("head.head", channels * 4, dim),
    }
    for layer in range(layers):
        block = f"blocks.{layer}"
        weights |= {f"{block}.modulation": made(1, 6, dim)}
        weights |= {f"{block}.norm3.weight": 1 + made(dim), f"{block}.norm3.bias": made(dim)}
        weights |= linear(f"{block}.ffn.0", ffn, dim) | linear(f"{block}.ffn.2", dim, ffn)
        for kind in ("self_attn", "cross_attn"):
            for part in "qkvo":
                weights |= linear(f"{block}.{kind}.{part}", dim, dim)
            for part in ("norm_q", "norm_k"):
                weights[f"{block}.{kind}.{part}.weight"] = 2 + made(dim)  # so that softmax prefers some keys
    return weights


def wan(**options: int) -> Any:
    """A MODEL."""
    return comfy.sd.load_diffusion_model_state_dict(wan_weights(**options))


def prompt(seed: int) -> list[Any]:
    """A CONDITIONING of random words."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, WORDS, 4096, generator=generator), {}]]


def sample(model: Any, latent: tuple[int, ...], steps: int = 4, sampler: str = "euler") -> torch.Tensor:
    """What ComfyUI's own KSampler makes; latent: [batch, channels, T, H, W]."""
    empty = {"samples": torch.zeros(latent)}
    with torch.inference_mode():
        made = nodes.KSampler().sample(model, 7, steps, 3.0, sampler, "simple", prompt(2), prompt(3), empty, 1.0)
    return made[0]["samples"]
