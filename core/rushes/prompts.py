# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Prompts to features: by the text encoder, or from what was kept of a run before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rushes.model.bundle import Card
from rushes.model.digests import digest
from rushes.model.embeddings import TextCache, text_cache_folder
from rushes.model.files import FilesCard
from rushes.model.loading import Modules, text_dtype
from rushes.model.memory import text_bytes


class PromptReader:
    """ready: called before the encoder works, with the bytes that it will need. hosted: a host moves the weights."""

    def __init__(
        self,
        card: Card,
        modules: Modules,
        ready: Callable[[str, int], None],
        device: torch.device,
        dtype: torch.dtype,
        hosted: bool,
    ) -> None:
        self._card, self._modules, self._ready = card, modules, ready
        self._device, self._dtype, self._hosted = device, dtype, hosted

    def read(self, prompts: Sequence[list[int]]) -> list[Tensor]:
        """Features [1, text_len, text_dim] of each prompt's tokens; the encoder is read only for what was not kept."""
        rows, cache = self._card.transformer.text_len, self._cache()
        found = [cache.find(ids, rows) if cache is not None else None for ids in prompts]
        if any(features is None for features in found):
            self._ready("text", text_bytes(self._card.text, rows, text_dtype(self._dtype).itemsize))
        return [
            (self._encoded(ids, rows, cache) if features is None else features).to(self._device, self._dtype)
            for ids, features in zip(prompts, found, strict=True)
        ]

    def _encoded(self, ids: list[int], rows: int, cache: TextCache | None) -> Tensor:
        place = self._device if self._hosted else None  # a host's weights may rest elsewhere
        features = self._modules.text.encode([ids], rows, place)
        if cache is not None:
            cache.keep(ids, features)
        return features

    def _cache(self) -> TextCache | None:
        """None for our own bundles, whose encoders are small, and in a host, which may patch the encoder."""
        folder = text_cache_folder()
        if not isinstance(self._card, FilesCard) or self._hosted or folder is None:
            return None
        return TextCache(folder, digest(self._card.files.text), self._device, text_dtype(self._dtype))
