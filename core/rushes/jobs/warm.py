# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The worker's last model, kept warm between jobs, and its memory given back."""

from __future__ import annotations

import gc
import threading
from typing import Any

from rushes.shot import Shot


class Engines:
    """The last model, kept warm."""

    def __init__(self, device: str | None) -> None:
        self.device, self._model = device, ""
        self._engine: Any = None
        self._lock = threading.Lock()

    def load(self, shot: Shot) -> Any:
        from rushes.engine import Engine

        with self._lock:
            if self._engine is None or self._model != shot.model:
                self._drop()
                self._engine, self._model = Engine.load(shot.model, device=self.device), shot.model
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
