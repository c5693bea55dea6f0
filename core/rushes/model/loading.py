# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Weights into modules, for inference: each tensor once, mapped where its type and place are already right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rushes.model import products
from rushes.model.clip import ClipVision
from rushes.model.config import Shapes
from rushes.model.lora import Adapted, Lora
from rushes.model.operations import Operations
from rushes.model.packed import Packed, PackedLayers, pack, packed_layers
from rushes.model.reading import Weight
from rushes.model.text import EMBEDDING, TIED_EMBEDDING, TextEncoder
from rushes.model.transformer import Transformer
from rushes.model.vae import VideoVAE
from rushes.shot import ShotError

if TYPE_CHECKING:
    from rushes.model.bundle import Card

Read = Callable[[str], Mapping[str, Weight]]  # a part's weights by our names
Refuse = Callable[[str, str], ShotError]  # the refusal of a part, for a reason


class Modules(Mapping[str, nn.Module]):
    """The parts of a model: "transformer", "vae", "text", and where it has them "clip" and "transformer_low".

    Each is read when it is first asked for, and kept until it is let go of.
    """

    def __init__(
        self, names: tuple[str, ...], load: Callable[[str, torch.device], nn.Module], read: Read, device: torch.device
    ) -> None:
        self._names, self._load, self._read = names, load, read
        self._device, self._devices = device, dict[str, torch.device]()
        self._loaded: dict[str, nn.Module] = {}
        self._adapted: dict[str, Adapted] = {}

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._loaded:
            self._loaded[name] = self._load(name, self._devices.get(name, self._device))
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def loaded(self) -> frozenset[str]:
        """The parts that are in memory, or mapped."""
        return frozenset(self._loaded)

    def release(self, name: str) -> None:
        """Let go of a part; asked for again, it is read again."""
        self._loaded.pop(name, None)
        self._adapted.pop(name, None)

    def settle(self, name: str, device: torch.device) -> None:
        """Have a part on this device: read there when it is asked for, and read again where it is on another."""
        if self._devices.get(name, self._device) != device:
            self.release(name)
        self._devices[name] = device

    def adapt(self, name: str, loras: Sequence[tuple[Lora, float]]) -> None:
        """Have these LoRAs, with these strengths, on a transformer, and no others."""
        if name not in self._adapted:
            if not loras:
                return
            self._adapted[name] = Adapted(self[name], partial(self._read, name))
        self._adapted[name].use(loras)

    def transformer(self, name: str = "transformer") -> Transformer:
        module = self[name]
        assert isinstance(module, Transformer)
        return module

    @property
    def vae(self) -> VideoVAE:
        module = self["vae"]
        assert isinstance(module, VideoVAE)
        return module

    @property
    def text(self) -> TextEncoder:
        module = self["text"]
        assert isinstance(module, TextEncoder)
        return module

    @property
    def clip(self) -> ClipVision:
        module = self["clip"]
        assert isinstance(module, ClipVision)
        return module


def load_modules(
    card: Card, read: Read, refuse: Refuse, device: torch.device, dtype: torch.dtype, operations: Operations = nn
) -> Modules:
    """The modules of a card, each filled, when it is asked for, by what `read` gives for its name.

    dtype: of all weights, but for the text's under float16, see `text_dtype`. Asking for a part raises ShotError, made
    by `refuse`, where its tensors are not the card's.
    """

    def load(name: str, place: torch.device) -> nn.Module:
        module = _empty(card, name, operations)
        kind = text_dtype(dtype) if name == "text" else dtype
        fill(module, read(name), place, kind, partial(refuse, name), packed_layers(operations))
        return module.eval().requires_grad_(False)

    return Modules(card.parts, load, read, device)


def part_shapes(card: Card, name: str) -> Shapes:
    """The shapes of a part's tensors by our names, as the card has them."""
    return {key: tuple(t.shape) for key, t in _empty(card, name, nn).state_dict().items()}


def check_shapes(card: Card, name: str, shapes: Shapes, refuse: Refuse) -> None:
    """Raise ShotError, made by `refuse`, where a part's tensors by our names are not all and only those of the card."""
    if reason := _misfit(_empty(card, name, nn), shapes):
        raise refuse(name, reason)


def _empty(card: Card, name: str, operations: Operations) -> nn.Module:
    layers: Operations = products
    if operations is not nn:
        layers = operations
    with torch.device("meta"), Unfilled():
        return _MAKERS[name](card, layers)


def _clip(card: Card, operations: Operations) -> nn.Module:
    assert card.vision is not None
    return ClipVision(card.vision)


_MAKERS: dict[str, Callable[[Card, Operations], nn.Module]] = {
    "transformer": lambda card, operations: Transformer(card.transformer, operations),
    "transformer_low": lambda card, operations: Transformer(card.transformer, operations),
    "vae": lambda card, operations: VideoVAE(card.vae),
    "text": lambda card, operations: TextEncoder(card.text, operations),
    "clip": _clip,
}


def fill(
    module: nn.Module,
    weights: Mapping[str, Weight],
    device: torch.device,
    dtype: torch.dtype,
    refuse: Callable[[str], ShotError],
    layers: PackedLayers | None,
) -> None:
    """Give a module its weights: packed ones to these layers, None where there are none of them; all others as `dtype`.

    Raises ShotError, made by `refuse`, for weights that are missing, too many or of another shape.
    """
    if reason := _misfit(module, {name: tuple(weight.shape) for name, weight in weights.items()}):
        raise refuse(reason)
    state = {}
    for name, weight in weights.items():
        if not isinstance(weight, Packed):
            state[name] = weight.to(device, dtype)
        elif layers is None or not pack(module, name, weight.to(device), dtype, layers):
            state[name] = weight.to(device).unpack(dtype)
    module.load_state_dict(state, assign=True)


def text_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the text encoder works in. T5's activations leave float16's range; its weights were made in bfloat16."""
    return torch.bfloat16 if dtype is torch.float16 else dtype


def _misfit(module: nn.Module, shapes: Shapes) -> str:
    """How tensors of these shapes do not fit a module; empty where they do."""
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    tied = {EMBEDDING, TIED_EMBEDDING}  # one of the two is enough
    if missing := expected.keys() - shapes.keys() - tied:
        return f"it lacks {min(missing)!r}"
    if extra := shapes.keys() - expected.keys():
        return f"it has {min(extra)!r}, which another kind of model has"
    wrong = [name for name, shape in shapes.items() if shape != expected[name]]
    return "; ".join(f"{name!r} is {list(shapes[name])}, not {list(expected[name])}" for name in wrong[:1])


class Unfilled(TorchFunctionMode):
    """Leaves new weights unfilled: a file fills them. torch would load its whole compiler to draw numbers on "meta"."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
