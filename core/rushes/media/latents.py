# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Latents on disk: safetensors, key `latents`, float32 [1, channels, latent_frames, h, w] in model space.

A denoising that is not finished has `denoising` in its record, {"step": done, "steps": of all}, and its history under
further keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save

from rushes.media.record import from_text, to_text, unreadable
from rushes.replacing import replacing
from rushes.shot import ShotError

KEY = "latents"
HISTORY = "history"
RECORD = "rushes"  # key of the metadata


def as_latents(latents: Any) -> np.ndarray:
    """Latents as a float32 array, from an array or a torch tensor on any device. Raises ValueError."""
    if hasattr(latents, "detach"):
        latents = latents.detach().cpu()
    array = np.ascontiguousarray(latents)
    if array.ndim != 5 or array.shape[0] != 1 or array.dtype != np.float32:
        raise ValueError(
            f"latents: got {array.dtype} {list(array.shape)}; float32 [1, channels, latent_frames, h, w] is allowed"
        )
    return array


def write_latents(
    path: str | os.PathLike[str], latents: Any, record: Mapping[str, Any], history: Sequence[Any] = ()
) -> None:
    """Write latents and their record; the file appears whole or not at all, in the place of an older one.

    latents: float32 [1, c, t, h, w], array or torch tensor; history: more of them, for `read_history`. Raises
    ValueError for another shape, OSError.
    """
    path = Path(path)
    arrays = {KEY: as_latents(latents), **{f"{HISTORY}.{i}": as_latents(part) for i, part in enumerate(history)}}
    with replacing(path) as temporary:
        # not save_file, which gives the file a private mode that a farm's other users cannot read
        temporary.write_bytes(save(arrays, metadata={RECORD: to_text(record)}))


def read_latents(path: str | os.PathLike[str], unfinished: bool = False) -> tuple[np.ndarray, dict[str, Any]]:
    """Latents float32 [1, c, t, h, w] and their record. Raises ShotError for a missing or foreign file.

    unfinished: also those of a denoising that has not ended, which are still noisy; otherwise they are refused.
    """
    path = Path(path)
    record = from_text(read_text(path), path)
    if not unfinished and (at := record.get("denoising")):
        raise ShotError(
            f"{path}: its denoising stands at step {at['step']} of {at['steps']}; finished latents are allowed, and "
            "`rushes resume` finishes them"
        )
    with safetensors.safe_open(path, framework="numpy") as file:
        if KEY not in file.keys():  # noqa: SIM118 - the file is no mapping
            raise ShotError(f"{path}: it holds no tensor {KEY!r}; latents that Rushes has written are allowed")
        array = file.get_tensor(KEY)
    try:
        return as_latents(array), record
    except ValueError as error:
        raise ShotError(f"{path}: {error}") from error


def read_history(path: str | os.PathLike[str]) -> list[np.ndarray]:
    """What stands beside unfinished latents, oldest first; empty for others."""
    with safetensors.safe_open(path, framework="numpy") as file:
        names = sorted(name for name in file.keys() if name.startswith(f"{HISTORY}."))  # noqa: SIM118 - no mapping
        return [as_latents(file.get_tensor(name)) for name in names]


def read_text(path: Path) -> str | None:
    """The record text in a safetensors file, None when it has none. Raises ShotError for a damaged file."""
    if not path.is_file():
        raise ShotError(f"{path}: there is no such file; latents that Rushes has written are allowed")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get(RECORD)
    except (safetensors.SafetensorError, OSError) as error:
        raise unreadable(path, "safetensors", error) from error
