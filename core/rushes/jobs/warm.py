# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The worker's last model, kept warm between jobs, and its memory given back."""

from __future__ import annotations

import gc
import threading
from typing import Any

from rushes.shot import Shot
from rushes.speed import Speed


class Engines:
    """The last model, kept warm. memory: bytes of the device that may be used, most of what it has when None."""

    def __init__(self, device: str | None, memory: int | None = None) -> None:
        self.device, self.memory = device, memory
        self._engine: Any = None
        self._made_of: tuple[str, bool] | None = None
        self._lock = threading.Lock()

    def load(self, shot: Shot, speed: Speed) -> Any:
        """The engine of the shot's model, which keeps of self-attention what `speed` says. Raises ShotError."""
        from rushes.engine import Engine

        wanted = (shot.model, speed.fp8_products)
        with self._lock:
            if self._engine is None or self._made_of != wanted:
                self._drop()
                self._engine = Engine.load(
                    shot.model, device=self.device, memory=self.memory, fp8_products=speed.fp8_products
                )
                self._made_of = wanted
            self._engine.attention = speed.attention
            return self._engine

    def free(self) -> bool:
        """Give the memory back; True when there was a model."""
        with self._lock:
            return self._drop()

    def _drop(self) -> bool:
        had, self._engine = self._engine is not None, None
        if had:
            import torch

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return had
