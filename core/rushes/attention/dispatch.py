# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Which code computes the attention, and the checks that hold for all of it."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F

# Per thread: two engines in one process must not read each other's answer.
_last = threading.local()


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None) -> torch.Tensor:
    """softmax(q k^T * scale) v, dense and without a mask (Vaswani et al. 2017, equation 1).

    q: [batch, heads, length_q, head_dim]; k, v: [batch, heads, length_k, head_dim]; any strides, any
    floating dtype, any device, the same for all three. scale: default head_dim ** -0.5.
    Returns q's shape and dtype.
    Raises ValueError that names the argument, what was got and what is allowed.
    """
    _check(q, k, v)
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)  # [batch, heads, length_q, head_dim]
    _last.backend = "torch"
    return out


def last_backend() -> str | None:
    """What computed this thread's latest attention: "torch" (its own implementation); None before any."""
    backend: str | None = getattr(_last, "backend", None)
    return backend


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        shape = list(tensor.shape)
        if tensor.ndim != 4:
            raise ValueError(f"{name}: its shape is {shape}; [batch, heads, length, head_dim] is allowed")
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: its dtype is {tensor.dtype}; a floating point type is allowed")
        if 0 in shape:
            # softmax over nothing is undefined: torch answers it with zeros or NaN, by backend
            raise ValueError(f"{name}: its shape is {shape}; one element or more in each dimension is allowed")
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name}: its dtype is {tensor.dtype}; that of q, {q.dtype}, is allowed")
        if tensor.device != q.device:
            raise ValueError(f"{name}: it is on {tensor.device}; the device of q, {q.device}, is allowed")
    batch, heads, _, head_dim = q.shape
    if k.shape[:2] != (batch, heads) or k.shape[3] != head_dim:
        allowed = f"[{batch}, {heads}, any length, {head_dim}]"
        raise ValueError(f"k: its shape is {list(k.shape)}; {allowed}, to fit q, is allowed")
    if v.shape != k.shape:
        raise ValueError(f"v: its shape is {list(v.shape)}; the shape of k, {list(k.shape)}, is allowed")
