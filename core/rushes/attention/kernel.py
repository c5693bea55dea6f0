# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The compiled kernel: what it supports, in sentences, and the call."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from rushes.attention.arrays import DTYPES, empty_like_queries, is_torch, obstacle, view
from rushes.attention.extension import load_extension
from rushes.attention.patterns import TileLists
from rushes.attention.threads import share_torch_threads

PRECISIONS = {None: 0, "fp32": 1, "bf16": 2, "int8": 3}
# 0: the best that the processor has. The others are for tests and measurements.
ISAS = {None: 0, "portable": 1, "avx2": 2, "avx512": 3, "avx512_bf16": 4, "amx_bf16": 5, "amx_int8": 6}


class Cancelled(Exception):
    """The caller's `cancel` was set while the kernel ran."""


def obstacles(q: Any, k: Any, v: Any, precision: str | None) -> Iterator[str]:
    """Why the kernel cannot compute this, one sentence each, for arguments that fit each other."""
    extension = load_extension()
    if extension.module is None:
        yield f"the compiled module is missing: {extension.reason}"
    named = [found for name, array in (("q", q), ("k", k), ("v", v)) if (found := obstacle(name, array))]
    yield from named
    head_dim = q.shape[-1]
    if head_dim % 8 or not 8 <= head_dim <= 256:
        yield f"q: its head_dim is {head_dim}; 8 to 256 in steps of 8 is allowed"
    elif extension.module is not None and not named and backend_name(head_dim, view(q).dtype, precision) is None:
        lacks = "has no tiles of int8 (AMX-INT8)" if precision == "int8" else "multiplies float32 only"
        yield f"precision: got {precision!r}; this processor or build {lacks}"


@functools.cache
def backend_name(head_dim: int, dtype: str, precision: str | None, isa: str | None = None) -> str | None:
    """The code that serves, such as "avx512"; None where the module is missing or cannot."""
    module = load_extension().module
    if module is None:
        return None
    name: str | None = module.attention_backend(
        shape=(1, 1, 1, 1, head_dim), dtype=DTYPES[dtype], precision=PRECISIONS[precision], isa=ISAS[isa]
    )
    return name


def served_by(q: Any, precision: str | None) -> str:
    """What last_backend() says after the kernel has served."""
    return f"rushes {backend_name(q.shape[-1], view(q).dtype, precision)}"


def default_threads() -> int:
    """As many as torch uses, if it is loaded; otherwise the processors that this process may use."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compute(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float,
    lists: TileLists | None = None,
    precision: str | None = None,
    threads: int | None = None,
    cancel: threading.Event | None = None,
    isa: str | None = None,
) -> Any:
    """Run the kernel on arguments without obstacles; see `dispatch.attention`. Raises Cancelled."""
    module = load_extension().module
    assert module is not None
    share_torch_threads(module)
    out = empty_like_queries(q)
    seen = view(q)
    batch, heads, length, head_dim = seen.shape
    try:
        module.attention(
            shape=(batch, heads, length, k.shape[2], head_dim),
            q=seen.place,
            k=view(k).place,
            v=view(v).place,
            out=view(out).place,
            scale=scale,
            dtype=DTYPES[seen.dtype],
            precision=PRECISIONS[precision],
            isa=ISAS[isa],
            threads=threads or default_threads(),
            lists=lists.arrays if lists is not None else None,
            cancelled=cancel.is_set if cancel is not None else None,
        )
    except module.Cancelled:
        raise Cancelled("the attention was cancelled") from None
    return out


def needs_gradients(*arrays: Any) -> bool:
    """Whether torch would record this call, which the kernel cannot answer for."""
    return (
        is_torch(arrays[0]) and sys.modules["torch"].is_grad_enabled() and any(array.requires_grad for array in arrays)
    )
