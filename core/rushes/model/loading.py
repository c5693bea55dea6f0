# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Weights into modules, for inference: each tensor once, mapped where its type and place are already right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rushes.model.config import Shapes
from rushes.model.operations import Operations
from rushes.model.packed import Packed, pack
from rushes.model.reading import Weight
from rushes.model.text import EMBEDDING, TIED_EMBEDDING, TextEncoder
from rushes.model.transformer import Transformer
from rushes.model.vae import VideoVAE
from rushes.shot import ShotError

if TYPE_CHECKING:
    from rushes.model.bundle import Card

Read = Callable[[str], Mapping[str, Weight]]  # a part's weights by our names
Refuse = Callable[[str, str], ShotError]  # the refusal of a part, for a reason


class Modules(NamedTuple):
    """The parts of a model."""

    transformer: Transformer
    vae: VideoVAE
    text: TextEncoder


def load_modules(
    card: Card, read: Read, refuse: Refuse, device: torch.device, dtype: torch.dtype, operations: Operations = nn
) -> Modules:
    """The modules of a card, filled by what `read` gives for "transformer", "vae" and "text", one after the other.

    dtype: of all weights, but for the text's under float16, see `text_dtype`. Raises ShotError, made by `refuse`.
    """
    with torch.device("meta"), _Unfilled():
        modules = Modules(
            Transformer(card.transformer, operations), VideoVAE(card.vae), TextEncoder(card.text, operations)
        )
    for name, module in modules._asdict().items():
        kind = text_dtype(dtype) if name == "text" else dtype
        fill(module, read(name), device, kind, partial(refuse, name))
        module.eval().requires_grad_(False)
    return modules


def fill(
    module: nn.Module,
    weights: Mapping[str, Weight],
    device: torch.device,
    dtype: torch.dtype,
    refuse: Callable[[str], ShotError],
) -> None:
    """Give a module its weights: packed ones to layers of their own, all others as `dtype`.

    Raises ShotError, made by `refuse`, for weights that are missing, too many or of another shape.
    """
    if reason := _misfit(module, {name: tuple(weight.shape) for name, weight in weights.items()}):
        raise refuse(reason)
    state = {}
    for name, weight in weights.items():
        if not isinstance(weight, Packed):
            state[name] = weight.to(device, dtype)
        elif not pack(module, name, weight.to(device), dtype):
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


class _Unfilled(TorchFunctionMode):
    """Leaves new weights unfilled: a file fills them. torch would load its whole compiler to draw numbers on "meta"."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
