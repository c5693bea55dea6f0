# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Text features kept on disk, so that a prompt that was read before needs no text encoder: 11 GB for Wan's.

An entry is the features of one prompt, under a hash of the encoder's file, of the prompt's tokens and of how the work
was done, since another device or type gives other bits. The oldest used entries go when there are too many.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rushes.folders import user_folder
from rushes.replacing import FOR_ALL, replacing

SWITCH = "RUSHES_TEXT_CACHE"  # the environment's: "off", or a folder instead of the usual one
VERSION = 1  # of what is kept
MAX_BYTES = 512 * 2**20  # some thousand prompts of Wan's


class TextCache:
    """Features of prompts by their tokens. encoder: SHA-256 of its file. device, dtype: of the work."""

    def __init__(self, folder: Path, encoder: str, device: torch.device, dtype: torch.dtype) -> None:
        self._folder = folder
        self._about = [VERSION, torch.__version__, encoder, device.type, str(dtype)]

    def find(self, ids: Sequence[int], rows: int) -> Tensor | None:
        """Features [1, rows, dim] on the CPU, zero behind the last token; None where they are not kept."""
        path = self._path(ids)
        try:
            found = load_file(path)["features"]
            os.utime(path)  # it has been used
        except (OSError, KeyError, SafetensorError):
            return None  # not there, or a file that was cut short: it is made anew
        if found.ndim != 3 or found.shape[:2] != (1, len(ids)) or len(ids) > rows:
            return None
        return torch.nn.functional.pad(found, (0, 0, 0, rows - len(ids)))

    def keep(self, ids: Sequence[int], features: Tensor) -> None:
        """features: [1, rows, dim]. A disk that takes nothing costs the next run its time and nothing else."""
        path = self._path(ids)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(path, FOR_ALL) as temporary:
                save_file({"features": features[:, : len(ids)].contiguous().cpu()}, temporary)
            self._trim()
        except (OSError, SafetensorError):
            return

    def _path(self, ids: Sequence[int]) -> Path:
        key = hashlib.sha256(json.dumps([*self._about, list(ids)]).encode()).hexdigest()
        return self._folder / f"{key}.safetensors"

    def _trim(self) -> None:
        entries = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in _entries(self._folder))
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= MAX_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= size


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix == ".safetensors" and not path.name.startswith(".")]


def text_cache_folder() -> Path | None:
    """Where features are kept; None where RUSHES_TEXT_CACHE says "off"."""
    chosen = os.environ.get(SWITCH, "")
    if chosen.lower() in ("off", "0", "no"):
        return None
    return Path(chosen) if chosen else user_folder("cache") / "text"
