# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Matrix products on the processor, by whichever of torch's two libraries is the faster one there.

torch's Linear calls MKL in float32. MKL keeps its AVX-512 code for Intel's processors; on others that have AVX-512,
oneDNN, which torch brings too, takes 1/2.2 of the time from about 100 rows on.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_ROWS = 32  # with fewer, what a call costs by itself decides
# Rows of a feed-forward at a time. Its hidden values are the widest of a block, up to six times the tokens' own, and
# are never all in memory. On the processor so many of them stay in the cache from one product to the next; a card wants
# large calls.
ROWS, ROWS_ON_CARDS = 1024, 4096


class _Linear(nn.Linear):
    """torch's, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


# This module is the `Operations` of models that no host supplies layers for
Linear: type[nn.Linear] = _Linear
Conv3d: type[nn.Conv3d] = nn.Conv3d
Embedding: type[nn.Embedding] = nn.Embedding


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] @ weight [out, in]^T + bias, in the dtype of all three."""
    if _is_for_onednn(x) and weight.dtype is torch.float32:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def by_rows(layers: nn.Sequential, x: Tensor) -> Tensor:
    """layers(x [B, L, dim]) for layers that treat each token by itself, so many rows at a time. Not for training."""
    # a rehearsal of the work, on "meta", is of the processor: on a card more than this is the peak elsewhere
    rows = ROWS if x.device.type in ("cpu", "meta") else ROWS_ON_CARDS
    if torch.is_grad_enabled() or x.shape[1] <= rows:
        return layers(x)
    # packed weights are opened once, not for each part
    steps = [open_it(x) if (open_it := getattr(layer, "opened", None)) else layer for layer in layers]
    out = None
    for start in range(0, x.shape[1], rows):
        part = x[:, start : start + rows]
        for step in steps:
            part = step(part)
        if out is None:
            out = part.new_empty(*x.shape[:2], part.shape[2])
        out[:, start : start + rows] = part
    assert out is not None
    return out


def _is_for_onednn(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # torch.compile chooses for itself
        and x.device.type == "cpu"
        and x.dtype is torch.float32
        and x.numel() >= MIN_ROWS * x.shape[-1]
        and not torch.is_grad_enabled()  # the operator has no gradients
        and not torch.is_autocast_enabled("cpu")
        and _mkl_holds_back()
    )


@functools.cache
def _mkl_holds_back() -> bool:
    """Whether this processor has AVX-512 and MKL does not use it."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in _processor()
    )


def _processor() -> str:
    """What the system says of the processor's maker; empty where it does not."""
    if os.name == "nt":
        return os.environ.get("PROCESSOR_IDENTIFIER", "")
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:  # macOS, whose torch has no MKL on today's machines
        return ""
