# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""RushesModel: an engine whose weights ComfyUI's memory manager moves, and the patches that go on them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch

from rushes.engine import Engine
from rushes.model import products
from rushes.model.bundle import Card, digest
from rushes.model.files import ModelFiles
from rushes.model.lora import trainer_names
from rushes.shot import Shot, ShotError

from .host import Interrupt

# Older releases have the second one only
Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)

PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Operations(comfy.ops.disable_weight_init):
    """ComfyUI's layers, which cast by themselves where a weight stays behind, with the core's own products."""

    class Linear(comfy.ops.disable_weight_init.Linear, products.Linear):
        """Where nothing is cast, ComfyUI's goes on to the next class, which has the command line's bits."""


@dataclass(frozen=True)
class Lora:
    """A LoRA on a model, as the record names it."""

    name: str
    sha256: str
    strength: float


class _Stage:
    """Which patchers the engine's `prepare` asks for: one engine serves all copies of a model, with other patches."""

    def __init__(self) -> None:
        self.patchers: Mapping[str, Any] = {}

    def prepare(self, part: str, memory: int) -> None:
        comfy.model_management.load_models_gpu([self.patchers[part]], memory_required=memory)


class RushesModel:
    """A loaded model. Copies with other LoRAs share its weights, which ComfyUI patches and restores."""

    def __init__(
        self, engine: Engine, stage: _Stage, patchers: Mapping[str, Any], loras: tuple[Lora, ...] = ()
    ) -> None:
        self._engine, self._stage, self._patchers, self.loras = engine, stage, dict(patchers), loras

    @classmethod
    def load(cls, source: ModelFiles | str, precision: str = "auto") -> RushesModel:
        """source: the name of a shipped model, or files. Raises ShotError."""
        device = comfy.model_management.get_torch_device()
        stage = _Stage()
        engine = Engine.load(
            source,
            device=device,
            dtype=PRECISIONS[precision] or _dtype(source, device),
            operations=_Operations,
            prepare=stage.prepare,
        )
        offload = {
            "text": comfy.model_management.text_encoder_offload_device,
            "transformer": comfy.model_management.unet_offload_device,
            "vae": comfy.model_management.vae_offload_device,
        }
        patchers = {
            part: Patcher(module, load_device=device, offload_device=offload[part]())
            for part, module in engine.parts.items()
        }
        _listen(engine.parts["vae"])
        return cls(engine, stage, patchers)

    @property
    def card(self) -> Card:
        return self._engine.card

    @contextmanager
    def running(self) -> Iterator[Engine]:
        """The engine, with this copy's patches. One at a time, as ComfyUI runs its nodes."""
        before, self._stage.patchers = self._stage.patchers, self._patchers
        try:
            yield self._engine
        finally:
            self._stage.patchers = before

    def record(self, shot: Shot) -> dict[str, Any]:
        """What every output carries; LoRAs are named where there are any."""
        record = self._engine.record(shot)
        if self.loras:
            record["model"] = {**record["model"], "loras": [vars(lora) for lora in self.loras]}
        return record

    def with_lora(self, path: str, strength: float) -> RushesModel:
        """A copy with a LoRA on its transformer; this one stays as it is. Raises ShotError for another model's file."""
        patcher = self._patchers["transformer"].clone()
        weights = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
        patches = comfy.lora.load_lora(weights, trainer_names(patcher.model.state_dict()))
        if not patcher.add_patches(patches, strength):
            some = min(weights, default="nothing")
            raise ShotError(
                f"lora: {os.path.basename(path)} changes nothing in {self.card.name} (it holds {some!r}); "
                "a LoRA for this model is allowed"
            )
        lora = Lora(os.path.basename(path), digest(Path(path)), strength)
        patchers = {**self._patchers, "transformer": patcher}
        return RushesModel(self._engine, self._stage, patchers, (*self.loras, lora))


def _listen(vae: torch.nn.Module) -> None:
    """Look for an interrupt before every convolution: the engine does only between chunks, which may take seconds."""
    for module in vae.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
            module.register_forward_pre_hook(lambda *_: Interrupt().check())


def _dtype(source: ModelFiles | str, device: torch.device) -> torch.dtype | None:
    """By ComfyUI's own rule for files. None, as the command line has it, for what is shipped and on the processor."""
    if isinstance(source, str) or comfy.model_management.is_device_cpu(device):
        return None
    parameters = source.transformer.stat().st_size // 2
    chosen = comfy.model_management.unet_dtype(
        device=device, model_params=parameters, supported_dtypes=[torch.bfloat16, torch.float32]
    )
    return chosen if chosen in PRECISIONS.values() else torch.bfloat16  # an option of ComfyUI's may ask for fp8
