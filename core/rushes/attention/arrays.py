# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""NumPy arrays and torch tensors as an address, a shape and strides. Imports neither torch nor its headers."""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import numpy as np

# The kernel's codes, cpp_ext/include/rushes/attention.h. NumPy has no bfloat16 of its own; ml_dtypes' is known by name.
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}


class View(NamedTuple):
    """strides: in elements. dtype: without its library's name."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @property
    def place(self) -> tuple[int, tuple[int, ...]]:
        return self.address, self.strides


@functools.cache
def dtype_name(dtype: Any) -> str:
    """Without the library's name: "float32"."""
    return str(dtype).removeprefix("torch.")


def is_torch(array: object) -> bool:
    """Whether it is a torch tensor. Whoever made one has imported torch, so that nothing is imported here."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def view(array: Any) -> View:
    """Of an array that `obstacle` has no objection to."""
    if is_torch(array):
        return View(array.data_ptr(), array.shape, array.stride(), dtype_name(array.dtype))
    strides = tuple(step // array.itemsize for step in array.strides)
    return View(array.ctypes.data, array.shape, strides, dtype_name(array.dtype))


def obstacle(name: str, array: Any) -> str | None:
    """Why the kernel cannot read this array, as one sentence; None when it can."""
    if is_torch(array):
        torch = sys.modules["torch"]
        if array.device.type != "cpu":
            return f"{name}: it is on {array.device}; the kernel computes on cpu"
        if type(array) not in (torch.Tensor, torch.nn.Parameter) or array.layout != torch.strided:
            return f"{name}: it is a {type(array).__name__}, {array.layout}; a plain strided tensor is allowed"
        if array.is_conj() or array.is_neg():
            return f"{name}: it is a lazy conjugate or negative; its memory holds other numbers"
    else:
        if not array.dtype.isnative or any(step % array.itemsize for step in array.strides):
            return f"{name}: its bytes are swapped or its elements not aligned; a native, aligned array is allowed"
    if dtype_name(array.dtype) not in DTYPES:
        return f"{name}: its dtype is {dtype_name(array.dtype)}; float32, bfloat16 or float16 is allowed"
    return None


def is_floating(array: Any) -> bool:
    if is_torch(array):
        return bool(array.is_floating_point())
    return bool(np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16")


def empty_like_queries(q: Any) -> Any:
    """Where the answer goes. Tensors lie as [batch, length, heads, head_dim], as torch's own attention leaves them.

    There the model's `transpose(1, 2).flatten(2)` copies nothing.
    """
    if not is_torch(q):
        return np.empty(q.shape, q.dtype)
    batch, heads, length, head_dim = q.shape
    return q.new_empty((batch, length, heads, head_dim)).transpose(1, 2)


def to_float32(array: Any) -> np.ndarray:
    """As a NumPy array of the same shape, float32."""
    if is_torch(array):
        return np.asarray(array.detach().float().numpy())
    return np.asarray(array, dtype=np.float32)
