# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Which code computes the attention, and the checks that hold for all of it."""

from __future__ import annotations

import math
import os
import sys
import threading
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from rushes.attention import kernel, latest
from rushes.attention.arrays import dtype_name, is_floating, is_torch
from rushes.attention.patterns import TileLists, TilePattern, TopK

Array = TypeVar("Array")
Pattern = TilePattern | TopK | TileLists
Precision = Literal["fp32", "bf16", "int8"]
Backend = Literal["torch", "flex", "rushes"]

_VARIABLE = "RUSHES_ATTENTION"

# What tests/benchmarks/attention.py found: the kernel is faster than torch's dense attention for these (dtype, engine)
# from so many queries on; with fewer, packing the keys does not pay. bfloat16 on AVX-512 is left to torch where the
# processor has no products of it: ours widen there and take three times as long. Where it has them, "avx512_bf16",
# ours take a quarter of torch's time.
FASTER = {
    ("float32", "avx2"), ("float32", "avx512"), ("float16", "avx2"), ("float16", "avx512"),
    ("bfloat16", "avx2"), ("bfloat16", "avx512_bf16"), ("bfloat16", "amx_bf16"),
}  # fmt: skip
MIN_QUERIES = 128
# Products of each thread, where there are several. With fewer, what a call costs by itself decides, and that is more
# here than in torch. One thread alone needs none.
MIN_PRODUCTS = {"float32": 3e6, "float16": 3e6, "bfloat16": 1e6}

if sys.modules.get("torch") is not None:
    # Whoever loads torch first may compile its model with torch.compile, which cannot register an operator while it
    # traces. Everybody else gets no torch from here.
    from rushes.attention import torch_backend  # noqa: F401


@dataclass(frozen=True)
class Support:
    """True when the kernel can compute it; otherwise `reasons` has one sentence for each obstacle."""

    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.reasons


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float | None = None,
    pattern: Pattern | None = None,
    precision: Precision | None = None,
    backend: Backend | None = None,
    threads: int | None = None,
    cancel: threading.Event | None = None,
) -> Array:
    """softmax(q k^T * scale) v (Vaswani et al. 2017, equation 1), dense, or over the tiles that `pattern` keeps.

    q: [batch, heads, length_q, head_dim]; k, v: [batch, heads, length_k, head_dim]; torch tensors or NumPy arrays, any
    strides, any floating dtype and device, the same for all three. scale: default head_dim ** -0.5. pattern: tokens
    are then in its tile order. precision: what the kernel multiplies in, "fp32" or "bf16"; default that of the inputs,
    and fp32 for float16. backend: "rushes", "torch", or, for patterns, "flex" (FlexAttention); default the
    environment's RUSHES_ATTENTION, and without it the kernel for patterns, for NumPy arrays and where it is the faster
    one, torch for all else. threads: default torch's. cancel: stops the kernel within milliseconds; torch's own code
    does not look at it.
    Returns q's shape and dtype.
    Raises ValueError that names the argument, what was got and what is allowed; Cancelled.
    """
    out: Array = _compute(q, k, v, scale, pattern, precision, backend, threads, cancel)
    return out


def _compute(
    q: Any,
    k: Any,
    v: Any,
    scale: float | None,
    pattern: Pattern | None,
    precision: Precision | None,
    backend: Backend | None,
    threads: int | None,
    cancel: threading.Event | None,
) -> Any:
    _check(q, k, v, pattern, precision)
    used = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if not math.isfinite(used):
        raise ValueError(f"scale: got {scale}; a finite number is allowed")
    if is_torch(q):
        from rushes.attention import torch_backend

        if torch_backend.is_traced(q, k, v):
            return torch_backend.operator(q, k, v, used, pattern, precision, backend)
    return serve(q, k, v, used, pattern, precision, backend, threads, cancel)


def serve(
    q: Any,
    k: Any,
    v: Any,
    scale: float,
    pattern: Pattern | None,
    precision: Precision | None,
    backend: Backend | None,
    threads: int | None = None,
    cancel: threading.Event | None = None,
) -> Any:
    """attention() for arguments that have been checked, computed here and now."""
    chosen = _choose(q, k, v, pattern, precision, backend, threads)
    if chosen != "rushes":
        from rushes.attention import torch_backend

        if is_torch(q) and q.device.type == "meta":  # shapes alone, of a plan
            latest.note_backend("torch")
            return q.new_empty(q.shape)
        lists = _resolve(pattern, q, k, scale)
        return torch_backend.torch_attention(q, k, v, scale, lists, by_flex=chosen == "flex")
    if _on_card(q):
        from rushes.attention import cuda, routing

        on_card: cuda.Lists | None
        if isinstance(pattern, TopK):
            on_card = routing.device_top_k(pattern, q, k, scale)
        else:
            on_card = _resolve(pattern, q, k, scale)
        out = cuda.compute(q, k, v, scale=scale, lists=on_card)
        latest.note_backend(cuda.served_by(q, k, v, on_card))
        return out
    lists = _resolve(pattern, q, k, scale)
    out = kernel.compute(q, k, v, scale=scale, lists=lists, precision=precision, threads=threads, cancel=cancel)
    latest.note_backend(kernel.served_by(q, precision))
    return out


def supports(q: Any, k: Any, v: Any, pattern: Pattern | None = None, *, precision: Precision | None = None) -> Support:
    """Whether the kernel can compute this, with the sentences that the call would refuse with under backend="rushes".

    Raises ValueError, as the call does, for arguments that nothing could compute.
    """
    _check(q, k, v, pattern, precision)
    return Support(_reasons(q, k, v, precision))


def _on_card(q: Any) -> bool:
    return is_torch(q) and q.device.type == "cuda"


def _reasons(q: Any, k: Any, v: Any, precision: str | None) -> tuple[str, ...]:
    if _on_card(q):
        from rushes.attention import cuda

        reasons = list(cuda.obstacles(q, k, v, precision))
    else:
        reasons = list(kernel.obstacles(q, k, v, precision))
    if kernel.needs_gradients(q, k, v):
        reasons.append("q, k, v: gradients are wanted; the kernel computes none")
    return tuple(reasons)


def last_backend() -> str | None:
    """What computed this thread's latest attention: "torch", "torch by tiles", "rushes avx512" ...; None before any."""
    return latest.backend()


def forced_backend() -> Backend | None:
    """What the environment's RUSHES_ATTENTION asks for. Raises ValueError for a word that it does not know."""
    asked = os.environ.get(_VARIABLE) or None
    if asked not in (None, "torch", "flex", "rushes"):
        raise ValueError(f"{_VARIABLE}: got {asked!r}; torch, flex or rushes is allowed")
    return asked  # type: ignore[return-value]


def _choose(
    q: Any,
    k: Any,
    v: Any,
    pattern: Pattern | None,
    precision: Precision | None,
    backend: Backend | None,
    threads: int | None,
) -> Backend:
    if backend not in (None, "torch", "flex", "rushes"):
        raise ValueError(f"backend: got {backend!r}; torch, flex or rushes is allowed")
    asked = backend or forced_backend()
    if asked in ("torch", "flex"):
        return _choose_torch(q, pattern, precision, asked)
    reasons = _reasons(q, k, v, precision)
    if asked == "rushes" or precision is not None or not is_torch(q):
        if reasons:
            raise ValueError("; ".join(reasons))
        return "rushes"
    if not reasons and (pattern is not None or _is_faster(q, k, threads)):
        return "rushes"
    return "flex" if pattern is not None and _on_card(q) and _flex_obstacle() is None else "torch"


def _choose_torch(q: Any, pattern: Pattern | None, precision: Precision | None, asked: Backend) -> Backend:
    if not is_torch(q):
        raise ValueError(f"backend: got {asked!r} for NumPy arrays; 'rushes' is allowed for them")
    if precision is not None:
        raise ValueError(f"precision: got {precision!r} with torch's attention; only the kernel has a choice of it")
    if asked == "flex" and pattern is not None and (reason := _flex_obstacle()):
        raise ValueError(reason)
    return asked if pattern is not None else "torch"  # dense, FlexAttention has nothing to add


def _flex_obstacle() -> str | None:
    from rushes.attention import flex

    return flex.obstacle()


def _is_faster(q: Any, k: Any, threads: int | None) -> bool:
    """Whether dense attention of these takes the kernel less time than torch. Not measured on any card yet."""
    return not _on_card(q) and slower(q, k, threads) is None


def slower(q: Any, k: Any, threads: int | None = None) -> str | None:
    """Why the processor's kernel would take longer than torch for dense attention of these; None where it would not."""
    if q.shape[2] < MIN_QUERIES:
        return f"{q.shape[2]} queries; the kernel is the faster one from {MIN_QUERIES} on"
    dtype, engine = dtype_name(q.dtype), kernel.served_by(q, None).rpartition(" ")[2]
    if (dtype, engine) not in FASTER:
        return f"{dtype} on {engine}: torch's attention is the faster one"
    count = threads or kernel.default_threads()
    if count > 1 and 2 * math.prod(q.shape) * k.shape[2] < MIN_PRODUCTS[dtype] * count:
        return f"too little for {count} threads: torch's attention is the faster one"
    return None


def _resolve(pattern: Pattern | None, q: Any, k: Any, scale: float) -> TileLists | None:
    if isinstance(pattern, TilePattern):
        return pattern.lists()
    return pattern.lists(q, k, scale) if isinstance(pattern, TopK) else pattern


def _check(q: Any, k: Any, v: Any, pattern: Pattern | None, precision: str | None) -> None:
    for name, array in (("q", q), ("k", k), ("v", v)):
        _check_one(name, array, q)
    batch, heads, _, head_dim = q.shape
    if k.shape[:2] != (batch, heads) or k.shape[3] != head_dim:
        allowed = f"[{batch}, {heads}, any length, {head_dim}]"
        raise ValueError(f"k: its shape is {list(k.shape)}; {allowed}, to fit q, is allowed")
    if v.shape != k.shape:
        raise ValueError(f"v: its shape is {list(v.shape)}; the shape of k, {list(k.shape)}, is allowed")
    if precision not in kernel.PRECISIONS:
        raise ValueError(f"precision: got {precision!r}; fp32, bf16 or int8 is allowed")
    if pattern is not None:
        _check_pattern(pattern, q, k)


def _check_one(name: str, array: Any, q: Any) -> None:
    tensor = is_torch(array)
    if not tensor and not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: it is a {type(array).__name__}; a torch tensor or a NumPy array is allowed")
    if array is not q and tensor != is_torch(q):
        raise ValueError(f"{name}: it is a {type(array).__name__}; that of q, {type(q).__name__}, is allowed")
    shape = array.shape
    if len(shape) != 4:
        raise ValueError(f"{name}: its shape is {list(shape)}; [batch, heads, length, head_dim] is allowed")
    if not is_floating(array):
        raise ValueError(f"{name}: its dtype is {array.dtype}; a floating point type is allowed")
    if 0 in shape:
        # softmax over nothing is undefined: torch answers it with zeros or NaN, by backend
        raise ValueError(f"{name}: its shape is {list(shape)}; one element or more in each dimension is allowed")
    if array.dtype != q.dtype:
        raise ValueError(f"{name}: its dtype is {array.dtype}; that of q, {q.dtype}, is allowed")
    if tensor and array.device != q.device:
        raise ValueError(f"{name}: it is on {array.device}; the device of q, {q.device}, is allowed")


def _check_pattern(pattern: Pattern, q: Any, k: Any) -> None:
    if isinstance(pattern, TileLists):
        needed = (int(pattern.query_start[-1]), int(pattern.key_start[-1]))
        if pattern.sets not in (1, q.shape[1], q.shape[0] * q.shape[1]):
            raise ValueError(
                f"pattern: it has {pattern.sets} sets of lists; one for all, a head, or a batch and head is allowed"
            )
    else:
        needed = (pattern.length, pattern.length)
    if (q.shape[2], k.shape[2]) != needed:
        raise ValueError(
            f"pattern: it covers {needed[0]} queries and {needed[1]} keys, q and k have {q.shape[2]} and {k.shape[2]}; "
            "the same numbers are allowed"
        )
