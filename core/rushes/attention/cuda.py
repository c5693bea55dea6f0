# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The compiled kernel for NVIDIA cards: what it supports, in sentences, and the call. Torch's CUDA tensors only.

Compiled and checked, and its source run thread by thread on the host; not run on a card. Hence it serves a card only
after it has proved itself there (cuda_proof.py).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rushes._version import __version__
from rushes.attention.arrays import DTYPES, dtype_name, empty_like_queries
from rushes.attention.extension import Extension
from rushes.attention.patterns import TileLists

_NAME = "rushes.attention._kernel_cuda"


class DeviceLists(NamedTuple):
    """counts: query tiles, key tiles, sets, tokens of the largest query tile. arrays: as TileLists.arrays, on the card.

    Made by device_lists(), which checks, or by the card itself (routing.py); tiles may be longer than offsets say.
    """

    counts: tuple[int, int, int, int]
    arrays: tuple[Tensor, ...]


Lists = TileLists | DeviceLists


@functools.cache
def load_cuda() -> Extension:
    """The compiled module. The first answer is kept, a failure too."""
    if importlib.util.find_spec(_NAME) is None:
        return Extension(
            None,
            "it was not built for NVIDIA cards; with a CUDA toolkit, "
            "`pip install --force-reinstall --no-cache-dir -C cmake.define.RUSHES_CUDA=ON` builds it",
        )
    try:
        module = importlib.import_module(_NAME)
    except (ImportError, OSError) as error:
        return Extension(None, f"it was built for NVIDIA cards but does not load: {error}; install Rushes again")
    built_for = module.build_info()["version"]
    if built_for != __version__:
        return Extension(None, f"it is of version {built_for} and Rushes is {__version__}; install Rushes again")
    return Extension(module)


def obstacles(
    q: Tensor, k: Tensor, v: Tensor, precision: str | None, lists: Lists | None = None, *, proof: bool = True
) -> Iterator[str]:
    """Why the kernel cannot compute this, one sentence each, for CUDA tensors that fit each other.

    proof: also whether it has proved itself on the card; the first time, that takes a moment there.
    """
    extension = load_cuda()
    if extension.module is None:
        yield f"the compiled module for NVIDIA cards is missing: {extension.reason}"
    named = [found for name, tensor in (("q", q), ("k", k), ("v", v)) if (found := _obstacle(name, tensor))]
    yield from named
    if precision == "fp32":
        yield "precision: got 'fp32'; on a card the kernel multiplies bfloat16 and float16 as they are"
    if extension.module is None or named:
        return
    problem = _Problem(q, k, v, 1.0, lists)
    refused = extension.module.cuda_obstacle(**problem.arguments)
    if refused is not None:
        yield refused
    elif proof:
        from rushes.attention.cuda_proof import failure

        if (failed := failure(q.device)) is not None:
            yield failed


def _obstacle(name: str, tensor: Tensor) -> str | None:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return f"{name}: it is a {type(tensor).__name__}, {tensor.layout}; a plain strided tensor is allowed"
    if tensor.dtype not in (torch.bfloat16, torch.float16):
        return f"{name}: its dtype is {dtype_name(tensor.dtype)}; bfloat16 or float16 is allowed on a card"
    if tensor.is_neg():
        return f"{name}: it is a lazy negative; its memory holds other numbers"
    return None


def compute(q: Tensor, k: Tensor, v: Tensor, *, scale: float, lists: Lists | None = None) -> Tensor:
    """Ask for the kernel on the current stream, on arguments without obstacles. Waits for nothing; may be captured into
    a graph once TileLists have been used on the card before. Raises RuntimeError for what the card refuses."""
    module = load_cuda().module
    assert module is not None
    problem = _Problem(q, k, v, scale, lists)
    size = module.cuda_workspace_bytes(**problem.arguments)
    workspace = q.new_empty(size, dtype=torch.uint8)  # torch's allocator aligns to 512 bytes
    module.cuda_run(**problem.arguments, workspace=(workspace.data_ptr(), size))
    return problem.out


def served_by(q: Tensor, k: Tensor, v: Tensor, lists: Lists | None = None) -> str:
    """What last_backend() says after compute(): "rushes cuda wgmma 128x128" """
    module = load_cuda().module
    assert module is not None
    return f"rushes {module.cuda_backend(**_Problem(q, k, v, 1.0, lists).arguments)}"


class _Problem:
    """The arguments of the module's functions, and the tensors that must live as long as they."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, scale: float, lists: Lists | None) -> None:
        q, k, v = (_native(x) for x in (q, k, v))
        self.out: Tensor = empty_like_queries(q)
        self._kept = (q, k, v)
        batch, heads, length, head_dim = q.shape
        stream = torch.cuda.current_stream(q.device)
        self.arguments: dict[str, Any] = {
            "shape": (batch, heads, length, k.shape[2], head_dim),
            "places": tuple((x.data_ptr(), x.stride()) for x in (q, k, v, self.out)),
            "scale": scale,
            "dtype": DTYPES[dtype_name(q.dtype)],
            "card": (q.device.index, stream.cuda_stream),
            "lists": None,
        }
        if lists is not None:
            self.arguments["lists"] = list_arguments(lists, q.device, stream)


def list_arguments(
    lists: Lists, device: torch.device, stream: torch.cuda.Stream | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Counts and addresses. stream: that of the kernel, which may read the lists when they are gone here."""
    moved = lists if isinstance(lists, DeviceLists) else device_lists(lists, device)
    if stream is not None:
        for array in moved.arrays:
            array.record_stream(stream)
    return moved.counts, tuple(array.data_ptr() for array in moved.arrays)


def _native(x: Tensor) -> Tensor:
    """The tensor, or a copy where the kernel cannot read its rows as they lie."""
    steps = [step for step, size in zip(x.stride()[:3], x.shape[:3], strict=True) if size > 1]
    fits = x.stride(3) == 1 and x.data_ptr() % 16 == 0 and all(step > 0 and step % 8 == 0 for step in steps)
    return x if fits else x.clone(memory_format=torch.contiguous_format)


_moved: weakref.WeakKeyDictionary[TileLists, dict[torch.device, DeviceLists]] = weakref.WeakKeyDictionary()


def device_lists(lists: TileLists, device: torch.device) -> DeviceLists:
    """The lists on a card. Checked and moved once: what lies on the card nobody checks again."""
    places = _moved.setdefault(lists, {})
    if device not in places:
        _check_lists(lists)
        largest = int(np.diff(lists.query_start).max())
        counts = (len(lists.query_start) - 1, len(lists.key_start) - 1, lists.sets, largest)
        wanted = (np.int64, np.int64, np.int64, np.int32)
        arrays = (np.ascontiguousarray(a, dtype=t) for a, t in zip(lists.arrays, wanted, strict=True))
        places[device] = DeviceLists(counts, tuple(torch.from_numpy(a.copy()).to(device) for a in arrays))
    return places[device]


def _check_lists(lists: TileLists) -> None:
    """Raises ValueError as the kernel for processors does for the same lists."""
    for starts in (lists.query_start, lists.key_start):
        if len(starts) < 2 or starts[0] != 0 or (np.diff(starts) < 1).any():
            raise ValueError("pattern: its tiles must cover the tokens of q and k in order")
    offsets, tiles = lists.offsets, lists.tiles
    sound = offsets[0] == 0 and offsets[-1] == len(tiles) and (np.diff(offsets) >= 1).all()
    sound = sound and tiles.min() >= 0 and tiles.max() < len(lists.key_start) - 1
    if sound:
        rises = np.diff(tiles) > 0
        rises[offsets[1:-1] - 1] = True  # from one list to the next it may fall
        sound = bool(rises.all())
    if not sound:
        raise ValueError("pattern: each list must name one key tile or more, in rising order")
