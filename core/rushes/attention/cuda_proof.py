# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Before the kernel serves a card, it has to compute a small problem there as torch does. Asked once a card."""

from __future__ import annotations

import functools
import time
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from rushes.attention import cuda
from rushes.attention.patterns import TileLists, TilePattern

_SECONDS = 20.0  # a kernel that takes longer hangs; these problems take under a millisecond


def failure(device: torch.device) -> str | None:
    """None when the kernel has proved itself on this card; otherwise the sentence that says what went wrong."""
    if torch.cuda.is_current_stream_capturing() and device.index not in _proved:
        return "the kernel has not proved itself on this card yet, and cannot while a graph is captured; call it before"
    return _failure(device.index)


_proved: set[int] = set()


@functools.cache
def _failure(index: int) -> str | None:
    device = torch.device("cuda", index)
    try:
        found = _prove(device)
    except RuntimeError as error:  # the launch was refused, or CUDA says that the kernel did wrong
        found = str(error)
    _proved.add(index)
    if found is None:
        return None
    text = f"the kernel failed its proof on {torch.cuda.get_device_name(device)}: {found}"
    warnings.warn(f"{text}; torch's attention serves instead", RuntimeWarning, stacklevel=2)
    return text


def _prove(device: torch.device) -> str | None:
    pattern = TilePattern((3, 5, 9), (4, 4, 4), text=17, window=(1, 2, 2))
    wide = TilePattern((4, 9, 16), (4, 8, 8), text=5, window=(1, 1, 2))
    problems = [
        (200, 333, 128, torch.bfloat16, None),
        (50, 130, 80, torch.float16, None),
        (pattern.length, pattern.length, 128, torch.bfloat16, pattern.lists()),
        (wide.length, wide.length, 64, torch.bfloat16, wide.lists()),
    ]
    generator = torch.Generator(device).manual_seed(20)  # the program's own random numbers stay as they are
    side = torch.cuda.Stream(device)  # should a kernel hang, the program's stream does not
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(side), torch.no_grad():
        for length_q, length_k, head_dim, dtype, lists in problems:
            q = torch.randn(1, 2, length_q, head_dim, generator=generator, device=device).to(dtype)
            k, v = torch.randn(2, 1, 2, length_k, head_dim, generator=generator, device=device).to(dtype)
            if (refused := next(cuda.obstacles(q, k, v, None, lists, proof=False), None)) is not None:
                return refused
            scale = head_dim**-0.5
            out, again = (cuda.compute(q, k, v, scale=scale, lists=lists) for _ in range(2))
            if not _ends(side):
                return f"it does not end (head_dim {head_dim}, {dtype}); restart this program"
            if not torch.equal(out, again):
                return f"it computed two answers for one question (head_dim {head_dim}, {dtype})"
            if (wrong := _error(out, q, k, v, scale, lists)) is not None:
                return f"{wrong} (head_dim {head_dim}, {dtype})"
    return None


def _ends(stream: torch.cuda.Stream) -> bool:
    done = stream.record_event()
    until = time.monotonic() + _SECONDS
    while not done.query():
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


def _error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, lists: TileLists | None) -> str | None:
    """Against double precision: at most twice the root mean square error of torch in the same dtype, plus rounding."""
    mask = None if lists is None else _mask(lists).to(q.device)
    scores = q.double() @ k.double().transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    expected = torch.softmax(scores, -1) @ v.double()
    peer = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    ours, theirs = (float((x.double() - expected).square().mean().sqrt()) for x in (out, peer))
    allowed = 2 * theirs + torch.finfo(q.dtype).eps * float(expected.square().mean().sqrt())
    return None if ours <= allowed else f"its error is {ours:.2e}; {allowed:.2e} is allowed"


def _mask(lists: TileLists) -> Tensor:
    """bool [length_q, length_k] of one set of lists."""
    kept = torch.zeros(int(lists.query_start[-1]), int(lists.key_start[-1]), dtype=torch.bool)
    for i in range(len(lists.query_start) - 1):
        for tile in lists.tiles[lists.offsets[i] : lists.offsets[i + 1]]:
            rows = slice(int(lists.query_start[i]), int(lists.query_start[i + 1]))
            kept[rows, int(lists.key_start[tile]) : int(lists.key_start[tile + 1])] = True
    return kept
