# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Work done without numbers: a model's own code on tensors that have shapes alone, and the most memory it has in use.

Nothing is guessed by a formula: what lives when is what the code keeps alive. Left out is what an allocator keeps back
and what a library takes inside a call.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rushes.model.config import TransformerConfig, VAEConfig
from rushes.model.loading import Unfilled
from rushes.model.memory import DecodePlan
from rushes.model.text import TextConfig, TextEncoder
from rushes.model.transformer import Context, Control, Transformer
from rushes.model.vae import VideoVAE

_LAYERS = 2  # of a transformer are enough: all are alike
_CHUNKS = 3  # of a decoder: the first, one after it, and one with everything kept


@lru_cache(maxsize=64)
def transformer_peak(
    config: TransformerConfig, latent: tuple[int, int, int], batch: int, dtype: torch.dtype, controls: int = 0
) -> int:
    """Bytes in use at most while latents of (T, h, w) are denoised, the kept keys and values of the text included."""
    layers = min(_LAYERS, config.layers)
    control_layers = tuple(layer for layer in config.vace_layers if layer < layers)
    small = dataclasses.replace(config, layers=layers, vace_layers=control_layers)
    kept = dtype.itemsize * batch * 2 * config.dim * (config.text_len + config.image_positions)  # of one layer

    def work() -> None:
        model = Transformer(small).to(dtype).eval().requires_grad_(False)
        with _counted() as live:
            text = torch.empty(1, config.text_len, config.text_dim, dtype=dtype)
            contexts = [model.context(text, cache=True) for _ in range(batch)]
            context: Context = contexts[0] if batch == 1 else contexts[0].join(contexts[1])
            x = torch.empty(batch, config.in_channels, *latent)
            control = [Control(torch.empty(batch, config.vace_in_channels, *latent)) for _ in range(controls)]
            model(x, torch.empty(batch, latent[0]), context, control)
            found.append(live.peak)

    found: list[int] = []
    _rehearse(work)
    hints = dtype.itemsize * batch * config.dim * _tokens(config, latent) * controls
    more = (config.layers - layers) * kept + hints * (len(config.vace_layers) - len(control_layers))
    return found[0] + more


@lru_cache(maxsize=64)
def decoder_peak(config: VAEConfig, latent: tuple[int, int, int], plan: DecodePlan, dtype: torch.dtype) -> int:
    """Bytes in use at most while latents of (T, h, w) are decoded by the plan, float32 pictures included."""
    frames = min(latent[0], 1 + (_CHUNKS - 1) * plan.chunk)

    def work() -> None:
        model = VideoVAE(config).to(dtype).eval().requires_grad_(False)
        with _counted() as live:
            latents = torch.empty(1, config.latent_channels, frames, *latent[1:], dtype=dtype)
            for part in model.stream_decode(latents, *plan):
                pictures = ((part[0].float() + 1) / 2).clamp_(0, 1).permute(1, 2, 3, 0)
                pictures.contiguous()
            found.append(live.peak)

    found: list[int] = []
    _rehearse(work)
    return found[0]


@lru_cache(maxsize=64)
def text_peak(config: TextConfig, tokens: int, dtype: torch.dtype) -> int:
    """Bytes in use at most while one prompt of so many tokens is encoded."""

    def work() -> None:
        model = TextEncoder(dataclasses.replace(config, layers=1)).to(dtype).eval().requires_grad_(False)
        with _counted() as live:
            model(torch.empty(1, tokens, dtype=torch.long), torch.empty(1, tokens, dtype=torch.bool))
            found.append(live.peak)

    found: list[int] = []
    _rehearse(work)
    return found[0]


def _tokens(config: TransformerConfig, latent: tuple[int, int, int]) -> int:
    return latent[0] * (latent[1] // config.patch_size) * (latent[2] // config.patch_size)


def _rehearse(work: Callable[[], None]) -> None:
    with torch.device("meta"), Unfilled(), torch.inference_mode():
        work()


class _counted(TorchDispatchMode):  # noqa: N801  (used as a function: `with _counted() as live`)
    """Counts the bytes of what torch makes, while it is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if (key := storage._cdata) not in self._sizes:
                    self._sizes[key] = storage.nbytes()
                    self._now += storage.nbytes()
                    self.peak = max(self.peak, self._now)
                    weakref.finalize(storage, self._gone, key)
        return out

    def _gone(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)
