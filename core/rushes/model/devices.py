# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The device that a model works on, and what it can do there."""

from __future__ import annotations

import torch

from rushes.model.bundle import Card
from rushes.model.files import FilesCard
from rushes.model.packed import fp8_obstacle
from rushes.shot import ShotError


def find_device(name: str | torch.device | None) -> torch.device:
    """The device of that name; the fastest there is for None. Raises ShotError."""
    if name is None:
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        place = torch.device(name)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ShotError(f"device: got {name!r}; cpu, or an accelerator that this torch has, is allowed") from error
    return place


def check_fp8_products(place: torch.device) -> None:
    """Raise ShotError for a device that multiplies no fp8."""
    if reason := fp8_obstacle(place):
        raise ShotError(f"fp8-products: got {place}; {reason}")


def usual_dtype(card: Card, device: str) -> torch.dtype:
    """What a model works in where nobody says."""
    return torch.bfloat16 if device == "cuda" and isinstance(card, FilesCard) else torch.float32
