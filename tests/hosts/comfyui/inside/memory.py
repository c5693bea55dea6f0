# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A small card in ComfyUI's memory manager, and two experts that do not fit on it.

The card is the processor under another name, with a memory that is counted by what the manager says is loaded. So no
byte moves, and everything else is ComfyUI's: what it loads whole or partly, what it drives out, which layers cast.
Arguments: the pack's folder, the model's files as JSON, a LoRA. Prints JSON: for each budget what was seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PACK, FILES, LORA = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]

from session import pack_module, torch  # noqa: E402, I001 - first, for it readies ComfyUI

import comfy.model_management as management  # noqa: E402

from rushes import Shot  # noqa: E402
from rushes.model.files import ModelFiles  # noqa: E402
from rushes.model.packed import PackedLinear  # noqa: E402

CARD = torch.device("cpu:0")  # to ComfyUI not "cpu"
SHOT = Shot("a red ball rolls", "the ball", (64, 32), 5, seed=7, steps=4, guidance=4.0)
budget = 0


def loaded() -> dict[int, int]:
    """Bytes on the card by module, as ComfyUI counts them."""
    return {id(one.model.model): one.model_loaded_memory() for one in management.current_loaded_models}


def free(device: Any = None, torch_free_too: bool = False) -> Any:
    left = budget - sum(loaded().values())
    return (left, 0) if torch_free_too else left


management.get_torch_device = lambda: CARD
management.is_device_cpu = lambda device: False
management.vram_state = management.VRAMState.NORMAL_VRAM
management.get_free_memory = free
management.minimum_inference_memory = lambda: 0
management.EXTRA_RESERVED_VRAM = 0
management.unet_dtype = lambda **options: torch.float32

rushes_model = pack_module(PACK, "model")
model = rushes_model.RushesModel.load(ModelFiles(**FILES), "float32")
experts = {part: model.engine.parts[part] for part in ("transformer", "transformer_low")}
sizes = {part: management.module_size(module) for part, module in experts.items()}
bytes_of = {
    part: sum(t.numel() * t.itemsize for t in [*module.parameters(), *module.buffers()])
    for part, module in experts.items()
}
prepare = model.engine._prepare
seen: list[dict[str, Any]] = []


def prepared(part: str, memory: int) -> None:
    assert memory > 0
    prepare(part, 0)  # of so small a model activations are most: here weights alone count


def look(part: str) -> Any:
    def hook(*_: Any) -> None:
        there = loaded()
        layers = [m for m in experts[part].modules() if isinstance(m, PackedLinear)]
        seen.append(
            {
                "part": part,
                "loaded": {name: there.get(id(module), 0) for name, module in experts.items()},
                "behind": sum(layer.comfy_cast_weights for layer in layers),
                "layers": len(layers),
            }
        )

    return hook


model.engine._prepare = prepared
for part, module in experts.items():
    module.register_forward_pre_hook(look(part))


def decoded(latents: torch.Tensor) -> list[int]:
    """Bytes of the VAE on the card after its work, and of the VAE."""
    vae = model.engine.parts["vae"]
    list(model.engine.decode(latents))
    return [loaded()[id(vae)], management.module_size(vae)]


found = []
one = sizes["transformer"]
with torch.inference_mode():
    for name, weights in (("both", 3.0), ("one", 1.6), ("half", 0.6), ("little", 0.1)):
        results = []
        for wears in (model, model.with_lora(LORA, 0.5), model):
            management.free_memory(10**12, CARD)  # an empty card
            seen.clear()
            budget = int(weights * one)
            results.append(model.engine.denoise(wears.resolve(SHOT)))
        found.append(
            {
                "name": name,
                "budget": budget,
                "seen": list(seen),
                "same_again": torch.equal(results[0], results[2]),
                "sums": [float(x.double().sum()) for x in results],
                "vae": decoded(results[-1]),
                "changed": bool((results[0] - results[1]).abs().max() > 1e-3),
            }
        )
print(json.dumps({"sizes": sizes, "bytes": bytes_of, "found": found}))
