# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Attention: one function for every model, whatever computes it underneath."""

from rushes.attention.dispatch import attention, last_backend

__all__ = ["attention", "last_backend"]
