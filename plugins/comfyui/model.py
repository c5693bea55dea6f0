# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""RushesModel: an engine whose weights ComfyUI's memory manager moves, and the LoRAs that go on them."""

from __future__ import annotations

from math import prod
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch

from rushes.attention.layers import SparseAttention
from rushes.engine import Engine, Model
from rushes.model import products
from rushes.model.bundle import Card
from rushes.model.files import FilesCard, ModelFiles
from rushes.model.loading import part_shapes
from rushes.model.lora import Lora, adapt_packed, packed_names
from rushes.shot import Lora as AskedLora
from rushes.shot import Shot, ShotError

from . import packed_layers
from .host import Interrupt

# Older releases have the second one only
Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)

PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BOTH = "both"
EXPERTS = {BOTH: "", "high": "high", "low": "low"}  # the node's words: ours
WHOLE = ("vae", "clip")  # made of torch's layers, which work only where their weights are

Worn = tuple[tuple[Lora, float], ...]  # LoRAs with their strengths


class _Operations(comfy.ops.disable_weight_init):
    """ComfyUI's layers, which cast by themselves where a weight stays behind, with the core's own products."""

    class Linear(comfy.ops.disable_weight_init.Linear, products.Linear):
        """Where nothing is cast, ComfyUI's goes on to the next class, which has the command line's bits."""

    PackedLinear, PackedEmbedding = packed_layers.PackedLinear, packed_layers.PackedEmbedding


class _Stage:
    """ComfyUI's side of one engine: a patcher for each part, so that each comes and goes by itself, and their LoRAs."""

    def __init__(self) -> None:
        self._patchers: dict[str, Any] = {}
        self._packed: dict[str, frozenset[str]] = {}  # part -> its packed weights, which ComfyUI cannot patch
        self._wanted: dict[str, Worn] = {}
        self._patched: dict[str, tuple[Worn, Any]] = {}  # LoRAs, and the patcher with them: of the latest run
        self._adapted: dict[str, Worn] = {}

    def add(self, part: str, module: torch.nn.Module, device: torch.device) -> None:
        management = comfy.model_management
        rests = {"text": management.text_encoder_offload_device, "clip": management.text_encoder_offload_device}
        rest = rests.get(part, management.vae_offload_device if part == "vae" else management.unet_offload_device)()
        self._packed[part] = packed_names(module)
        # newer releases' own one takes all buffers, and so all packed weights, to the device
        kind = comfy.model_patcher.ModelPatcher if self._packed[part] else Patcher
        self._patchers[part] = kind(module, load_device=device, offload_device=rest)

    def wear(self, part: str, loras: Any) -> None:
        """The engine's: with which LoRAs the part works next."""
        self._wanted[part] = tuple((lora, strength) for lora, strength in loras if strength)

    def prepare(self, part: str, memory: int) -> None:
        """The engine's: have the part on the device, as far as there is room, and so many bytes beside it."""
        patcher, wanted, packed = self._patcher(part), self._wanted.get(part, ()), self._packed[part]
        comfy.model_management.load_models_gpu(
            [patcher], memory_required=memory + _added(wanted, packed), force_full_load=part in WHOLE
        )
        if packed and self._adapted.get(part, ()) != wanted:
            adapt_packed(patcher.model, wanted)  # now, that they lie where their layers do
            self._adapted[part] = wanted

    def _patcher(self, part: str) -> Any:
        """With ComfyUI's patches of the LoRAs that are wanted; the same one as long as they are."""
        wanted = self._wanted.get(part, ())
        if not wanted:
            return self._patchers[part]
        worn, patcher = self._patched.get(part, ((), None))
        if worn != wanted:
            patcher = self._patchers[part].clone()
            for lora, strength in wanted:
                _patch(patcher, lora, strength, self._packed[part])
            self._patched[part] = wanted, patcher
        return patcher


def _patch(patcher: Any, lora: Lora, strength: float, packed: frozenset[str]) -> None:
    """Have ComfyUI change a transformer's plain weights as a LoRA says."""
    pairs: dict[str, torch.Tensor] = {}
    diffs: dict[str, torch.Tensor] = {}
    changes = {name: change for name, change in lora.changes.items() if name not in packed}
    for name, change in changes.items():
        if change.up is not None and change.down is not None:
            alpha = torch.tensor(change.scale * change.down.shape[0], dtype=torch.float64)
            pairs |= {f"{name}.lora_up.weight": change.up, f"{name}.lora_down.weight": change.down}
            pairs[f"{name}.alpha"] = alpha
        if change.diff is not None:
            diffs[f"{name}.diff"] = change.diff
    for weights in (pairs, diffs):
        patcher.add_patches(comfy.lora.load_lora(weights, {name: name for name in changes}), strength)


def _added(loras: Worn, packed: frozenset[str]) -> int:
    """Bytes at most that LoRAs add to packed weights."""
    changes = [change for lora, _ in loras for name, change in lora.changes.items() if name in packed]
    parts = [t for change in changes for t in (change.up, change.down, change.diff) if t is not None]
    return sum(4 * t.numel() for t in parts)


class RushesModel:
    """A loaded model. Copies with LoRAs share its engine and its weights, which are changed and restored for each."""

    def __init__(self, engine: Engine, name: str, loras: tuple[AskedLora, ...] = ()) -> None:
        """name: by which it is found again, unless its files say."""
        self.engine, self.name, self.loras = engine, name, loras

    @classmethod
    def load(
        cls, source: ModelFiles | str, precision: str = "auto", density: float = 1.0, fp8_products: bool = False
    ) -> RushesModel:
        """source: a model's name, or files. density: of self-attention, above 0; 1 is all of it. Raises ShotError."""
        device = comfy.model_management.get_torch_device()
        stage = _Stage()
        engine = Engine.load(
            source,
            device=device,
            dtype=PRECISIONS[precision] or _dtype(Model.open(source).card, device),
            operations=_Operations,
            prepare=stage.prepare,
            wear=stage.wear,
            attention=None if density == 1 else SparseAttention(density=density),
            fp8_products=fp8_products,
        )
        for part, module in engine.parts.items():
            stage.add(part, module, device)
        _listen(engine.parts["vae"])
        return cls(engine, source if isinstance(source, str) else engine.card.name)

    @property
    def card(self) -> Card:
        return self.engine.card

    def with_lora(self, path: str, strength: float, on: str = BOTH) -> RushesModel:
        """A copy with a LoRA; this one stays as it is. on: of EXPERTS. Raises ShotError for another model's file."""
        if on != BOTH and self.card.boundary is None:
            raise ShotError(f"on: got {on!r}; {self.card.name} has one transformer, {BOTH!r} is allowed")
        asked = AskedLora(path, strength, EXPERTS[on])
        found = self.engine.loras(Shot("a LoRA", loras=(asked,)))
        return RushesModel(self.engine, self.name, (*self.loras, *found))

    def resolve(self, shot: Shot) -> Shot:
        """The shot as this model makes it, with its LoRAs. Raises ShotError for what the model does not allow."""
        if shot.loras and self.loras and self.engine.loras(shot) != self.loras:
            raise ShotError(
                f"lora: the shot has {_names(shot.loras)} of its own and the model {_names(self.loras)}; "
                "one of the two is allowed"
            )
        return self.engine.resolve(shot.replace(model=self.name, loras=self.loras or shot.loras))


def _names(loras: tuple[AskedLora, ...]) -> str:
    return " and ".join(lora.path.replace("\\", "/").rpartition("/")[2] for lora in loras)


def _listen(vae: torch.nn.Module) -> None:
    """Look for an interrupt before every convolution: the engine does only between chunks, which may take seconds."""
    for module in vae.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
            module.register_forward_pre_hook(lambda *_: Interrupt().check())


def _dtype(card: Card, device: torch.device) -> torch.dtype | None:
    """By ComfyUI's own rule for files. None, as the command line has it, for what is shipped and on the processor."""
    if not isinstance(card, FilesCard) or comfy.model_management.is_device_cpu(device):
        return None
    chosen = comfy.model_management.unet_dtype(
        device=device,
        model_params=sum(map(prod, part_shapes(card, "transformer").values())),
        supported_dtypes=[torch.bfloat16, torch.float32],
    )
    return chosen if chosen in PRECISIONS.values() else torch.bfloat16  # an option of ComfyUI's may ask for fp8
