# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Weights into modules, for inference: each tensor once, mapped where its type and place are already right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rushes.model.operations import Operations
from rushes.model.text import EMBEDDING, TIED_EMBEDDING, TextEncoder
from rushes.model.transformer import Transformer
from rushes.model.vae import VideoVAE
from rushes.shot import ShotError

if TYPE_CHECKING:
    from rushes.model.bundle import Card

Read = Callable[[str], Mapping[str, Tensor]]  # a part's tensors by our names
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
        state = {key: t.to(device, kind) for key, t in read(name).items()}
        try:
            module.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise refuse(name, _misfit(module, state)) from error
        module.eval().requires_grad_(False)
    return modules


def text_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the text encoder works in. T5's activations leave float16's range; its weights were made in bfloat16."""
    return torch.bfloat16 if dtype is torch.float16 else dtype


def _misfit(module: nn.Module, state: Mapping[str, Tensor]) -> str:
    expected = module.state_dict()
    tied = {EMBEDDING, TIED_EMBEDDING}  # one of the two is enough
    if missing := expected.keys() - state.keys() - tied:
        return f"it lacks {min(missing)!r}"
    if extra := state.keys() - expected.keys():
        return f"it has {min(extra)!r}, which another kind of model has"
    wrong = [name for name, t in state.items() if t.shape != expected[name].shape]
    return "; ".join(f"{name!r} is {list(state[name].shape)}, not {list(expected[name].shape)}" for name in wrong[:1])


class _Unfilled(TorchFunctionMode):
    """Leaves new weights unfilled: a file fills them. torch would load its whole compiler to draw numbers on "meta"."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
