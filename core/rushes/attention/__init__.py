# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Attention: one function for every model, whatever computes it underneath. Loads torch only for torch's tensors."""

from rushes.attention.dispatch import attention, last_backend, supports
from rushes.attention.kernel import Cancelled
from rushes.attention.patterns import TileLists, TilePattern, TopK

__all__ = ["Cancelled", "TileLists", "TilePattern", "TopK", "attention", "last_backend", "supports"]
