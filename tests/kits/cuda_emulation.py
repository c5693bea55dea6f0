# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The CUDA kernels' source compiled for the host (cuda_host/), as functions on NumPy arrays."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from rushes.attention import TileLists

ROOT = Path(__file__).parents[2]
MODES = {"early": 0, "late": 1, "random": 2}  # when copies and products happen that nobody has waited for
_FIELDS = ("batch", "heads", "length_q", "length_k", "head_dim")
_Strides = ctypes.c_int64 * 16


class _Request(ctypes.Structure):
    """cuda_host/run.cpp, Request."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _FIELDS),
        ("strides", _Strides),
        ("data", ctypes.c_void_p * 4),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("query_tiles", "key_tiles", "sets")),
        *((name, ctypes.c_void_p) for name in ("query_start", "key_start", "offsets", "tiles")),
        ("mode", ctypes.c_int64),
        ("seed", ctypes.c_int64),
    )


def build(folder: Path) -> ctypes.CDLL | str:
    """The library, or why there is none."""
    compiler = shutil.which("g++")
    if compiler is None:
        return "no g++ here"
    kernels = ROOT / "cpp_ext"
    host = ROOT / "tests" / "attention" / "cuda_host"
    library = folder / "cuda_host.so"
    includes = [f"-I{path}" for path in (kernels / "src" / "cuda", kernels / "include", host)]
    sources = [str(host / "run.cpp"), str(host / "indices.cpp")]
    command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-DRUSHES_CUDA_EMULATION", *includes, *sources]
    probe = "#include <ucontext.h>\nint main() { return static_cast<int>(_Float16(0.0f)); }"
    checked = subprocess.run([compiler, "-x", "c++", "-fsyntax-only", "-"], input=probe, capture_output=True, text=True)
    if checked.returncode:
        return "this compiler or system has no _Float16 or no ucontext.h"
    subprocess.run([*command, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def encode(x: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> the bits of bfloat16 or float16, to nearest even."""
    if dtype == "float16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def decode(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The bits -> float64."""
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _request(
    arrays: tuple[np.ndarray, ...], scale: float, lists: TileLists | None, mode: str, seed: int
) -> tuple[_Request, object]:
    q, k = arrays[:2]
    request = _Request()
    for name, value in zip(_FIELDS, (*q.shape[:2], q.shape[2], k.shape[2], q.shape[3]), strict=True):
        setattr(request, name, value)
    request.strides = _Strides(*(step // 2 for array in arrays for step in array.strides))
    request.data = (ctypes.c_void_p * 4)(*(array.ctypes.data for array in arrays))
    request.scale, request.mode, request.seed = scale, MODES[mode], seed
    if lists is None:
        return request, arrays
    kept = tuple(np.ascontiguousarray(array) for array in lists.arrays)
    request.query_tiles, request.key_tiles, request.sets = len(kept[0]) - 1, len(kept[1]) - 1, lists.sets
    for name, array in zip(("query_start", "key_start", "offsets", "tiles"), kept, strict=True):
        setattr(request, name, array.ctypes.data)
    return request, (arrays, kept)


def run(
    library: ctypes.CDLL,
    kernel: str,
    arrays: tuple[np.ndarray, ...],
    dtype: str,
    scale: float,
    lists: TileLists | None = None,
    mode: str = "random",
    seed: int = 0,
) -> None:
    """arrays: bits of q, k, v and out, [batch, heads, length, head_dim]. Raises RuntimeError for a broken rule."""
    request, kept = _request(arrays, scale, lists, mode, seed)
    message = ctypes.create_string_buffer(256)
    status = library.run_kernel(kernel.encode(), int(dtype == "bfloat16"), ctypes.byref(request), message)
    del kept
    if status:
        raise RuntimeError(message.value.decode() or f"no kernel is called {kernel}")


def plan(library: ctypes.CDLL, lists: TileLists, batch: int, heads: int, rows: int) -> np.ndarray:
    """int32 [items, 4]: group, token, rows, list, in the order in which blocks take them."""
    lengths = int(lists.query_start[-1]), int(lists.key_start[-1])
    arrays = tuple(np.empty((batch, heads, n, 8), dtype=np.uint16) for n in (lengths[0], lengths[1], lengths[1], 1))
    request, kept = _request(arrays, 1.0, lists, "random", 0)
    room = batch * heads * (len(lists.query_start) + lengths[0] // rows)
    out = np.empty((room, 4), dtype=np.int32)
    library.run_plan.restype = ctypes.c_int64
    count = library.run_plan(ctypes.byref(request), ctypes.c_int64(rows), out.ctypes.data_as(ctypes.c_void_p))
    del kept
    return out[:count]
