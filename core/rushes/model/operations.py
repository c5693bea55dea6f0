# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Where the layers that hold most of a model's weights come from: torch.nn, or a host's namespace of the same names.

A host's layers may keep their weights in another place or type, and bring them to the input on every call. So a model
reaches these weights only by calling the layer, and moves the few that are its own (norms, modulations) itself.
"""

from __future__ import annotations

from typing import Protocol

from torch import nn


class Operations(Protocol):
    """Classes that are made and called as torch.nn's."""

    Linear: type[nn.Linear]
    Conv3d: type[nn.Conv3d]
    Embedding: type[nn.Embedding]
