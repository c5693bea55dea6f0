# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Weight files as bytes: what is in them, mapped into memory and not read, and nothing believed that they say.

A file may come from anywhere. So every length and offset is checked against the size of the file before it is used, and
what a header may take is bounded: no small file can ask for much memory, and no pickle runs code.
"""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rushes.model import ggufs, pickles
from rushes.model.packed import Packed
from rushes.model.places import INDEX, SUFFIXES
from rushes.shot import ShotError

Weight = Tensor | Packed

MAX_HEADER = 16 * 2**20  # bytes; Wan's largest safetensors header has 0.2 MB
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# Others that safetensors knows and no model of ours has, with their bits: their files are sound, their weights refused
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "U16": 16, "U32": 32, "U64": 64, "C64": 64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python names from 3.13 on


@dataclass(frozen=True)
class Header:
    """What a file says of its tensors, by their names in it, and of itself, before any weight is read.

    dtypes: as safetensors writes them, "F32", "BF16", "F8_E4M3" ...; GGUF's quantised ones by their names, "Q4_K" ...
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


def read_header(path: str | Path) -> Header:
    """The header of one file, or of an index with its shards. Raises ShotError as `load_state` does."""
    path = _found(path)
    if path.name.endswith(INDEX):
        whole = Header({}, {}, {})
        for shard in _shards(path):
            part = _safetensors(shard)[0]
            whole.shapes.update(part.shapes)
            whole.dtypes.update(part.dtypes)
            whole.metadata.update(part.metadata)
        return whole
    if path.suffix == ".safetensors":
        return _safetensors(path)[0]
    state, metadata = (_gguf if path.suffix == ".gguf" else _pickle)(path)
    dtypes = {name: t.kind if isinstance(t, Packed) else _NAMES.get(t.dtype, str(t.dtype)) for name, t in state.items()}
    return Header({name: tuple(t.shape) for name, t in state.items()}, dtypes, metadata)


def load_state(path: str | Path) -> dict[str, Weight]:
    """Weights by their names in the file, on the CPU, mapped and not read until they are used.

    path: a .safetensors, .gguf or .pth file, an index of shards, or a folder with one of them. Of a .pth file only
    plain tensors are loaded. Raises ShotError for a file that is missing, damaged or of another kind.
    """
    path = _found(path)
    if not path.name.endswith(INDEX):
        if path.suffix == ".safetensors":
            return _tensors(path)
        return (_gguf if path.suffix == ".gguf" else _pickle)(path)[0]
    state: dict[str, Weight] = {}
    for shard in _shards(path):
        state |= _tensors(shard)
    return state


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of a GGUF file: numbers, texts, and lists of them. Raises ShotError."""
    try:
        return ggufs.read(path).notes
    except (OSError, ValueError, LookupError) as error:
        raise unreadable(path, error) from error


def files_of(path: Path) -> list[Path]:
    """The files that hold the weights: the shards of an index, else the one file. Raises ShotError."""
    path = _found(path)
    return _shards(path) if path.name.endswith(INDEX) else [path]


def size_of(path: Path) -> int:
    """Bytes of the files that hold the weights. Raises ShotError."""
    return sum(file.stat().st_size for file in files_of(path))


def _found(path: str | Path) -> Path:
    """The file itself, of a folder the one in it; its kind is what its name says."""
    path = Path(path)
    if path.is_dir():
        indices = sorted(path.glob(f"*{INDEX}"))
        files = indices or sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".gguf"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files[:3]) or "no .safetensors or .gguf file"
            raise ShotError(f"model: {path} holds {names}; one such file or index of shards is allowed")
        path = files[0]
    if not path.name.endswith(SUFFIXES):
        raise ShotError(f"model: got {path}; a folder, a .safetensors, .gguf or .pth file is allowed")
    if not path.is_file():
        raise ShotError(f"model: {path} does not exist; an existing file is allowed")
    if not path.name.endswith(INDEX):
        _check_kind(path)
    return path


def _check_kind(path: Path) -> None:
    """Refuse a file of one of our kinds under the name of another. Any other content is for its reader to refuse."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise unreadable(path, error) from error
    if head.startswith(b"GGUF"):
        kind, suffix = "a GGUF", ".gguf"
    elif head.startswith((b"PK\x03\x04", b"\x80\x02")):
        kind, suffix = "a torch", ".pth"
    elif head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        kind, suffix = "a safetensors", ".safetensors"
    else:
        return
    if path.suffix != suffix and (path.suffix, suffix) != (".pt", ".pth"):
        raise ShotError(f"model: {path} is {kind} file by what is in it; the name {path.stem}{suffix} is allowed")


def _shards(index: Path) -> list[Path]:
    """The shards of an index that is whole. Raises ShotError."""
    try:
        if index.stat().st_size > MAX_HEADER:
            raise ValueError(f"an index of more than {MAX_HEADER >> 20} MB")
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(files.values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(index, error) from error
    if outside:  # an index from elsewhere must not reach other folders
        raise ShotError(f"model: {index} names {outside[0]!r}; shards beside the index are allowed")
    paths = [index.parent / shard for shard in shards]
    names = {name for path in paths for name in _safetensors(path)[0].shapes}
    if missing := sorted(files.keys() - names):
        raise ShotError(f"model: {index} promises {missing[0]!r}, but no shard has it; download the model again")
    return paths


def _safetensors(path: Path) -> tuple[Header, dict[str, tuple[int, int]]]:
    """The header and where in the file the bytes of each tensor begin and end."""
    if not path.is_file():
        raise ShotError(f"model: {path} does not exist; an existing file is allowed")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            entries = json.loads(file.read(length).decode("utf-8"))
        if not isinstance(entries, dict):
            raise ValueError("no header")
        notes = entries.pop("__metadata__", None) or {}
        metadata = {str(key): str(value) for key, value in notes.items()}
        shapes, dtypes, places = {}, {}, {}
        for name, entry in entries.items():
            shape, dtype = tuple(entry["shape"]), entry["dtype"]
            start, end = _place(name, shape, dtype, entry["data_offsets"], size - 8 - length)
            shapes[name], dtypes[name], places[name] = shape, dtype, (8 + length + start, 8 + length + end)
        check_apart(places)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, error) from error
    return Header(shapes, dtypes, metadata), places


def _place(name: str, shape: tuple[Any, ...], dtype: Any, offsets: Any, size: int) -> tuple[int, int]:
    """Where a tensor lies behind the header, if what is said of it is possible. ValueError."""
    numbers = (*shape, *offsets)
    if len(offsets) != 2 or not all(type(number) is int and number >= 0 for number in numbers) or len(shape) > 8:
        raise ValueError(f"impossible numbers for {name!r}")
    bits = DTYPES[dtype].itemsize * 8 if dtype in DTYPES else _BITS[dtype]
    start, end = offsets
    if not start <= end <= size or (end - start) * 8 != prod(shape) * bits:
        raise ValueError(f"{name!r} has not the bytes of {list(shape)} in {dtype}, or lies outside the file")
    return start, end


def check_apart(places: dict[str, tuple[int, int]]) -> None:
    """ValueError where tensors share bytes: then one of them is not what it says."""
    reached, before = 0, ""
    for name, (start, end) in sorted(places.items(), key=lambda item: item[1]):
        if start < reached and end > start:
            raise ValueError(f"{before!r} and {name!r} overlap")
        reached, before = max(reached, end), name


def _tensors(path: Path) -> dict[str, Weight]:
    header, places = _safetensors(path)
    if foreign := next((name for name, dtype in header.dtypes.items() if dtype not in DTYPES), None):
        raise ShotError(f"model: {path} holds {header.dtypes[foreign]} ({foreign!r}); fp8 to fp32 is allowed")
    whole = map_file(path)
    return {
        name: view(whole, *place, DTYPES[header.dtypes[name]], header.shapes[name]) for name, place in places.items()
    }


def _gguf(path: Path) -> tuple[dict[str, Weight], dict[str, str]]:
    try:
        found = ggufs.read(path)
        check_apart({name: (entry.start, entry.end) for name, entry in found.tensors.items()})
    except (OSError, ValueError, LookupError) as error:
        raise unreadable(path, error) from error
    whole = map_file(path)
    state: dict[str, Weight] = {}
    for name, entry in found.tensors.items():
        if entry.kind in DTYPES:
            state[name] = view(whole, entry.start, entry.end, DTYPES[entry.kind], entry.shape)
        else:
            data = whole[entry.start : entry.end].view(entry.rows, -1)
            state[name] = Packed(entry.kind, data, entry.shape)
    return state, found.metadata


def _pickle(path: Path) -> tuple[dict[str, Weight], dict[str, str]]:
    try:
        pickles.check(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=pickles.is_zip(path))
    except Exception as error:  # a damaged pickle fails in any way: UnpicklingError, EOFError, KeyError, ...
        if "unable to mmap" in str(error):
            size = f"{path.stat().st_size / 1e9:.1f} GB"
            raise ShotError(
                f"model: {path} has {size}, more than torch maps on this machine; the same as .safetensors is allowed"
            ) from error
        raise unreadable(path, error) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ShotError(f"model: {path} holds more than named tensors; a plain state dict is allowed")
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise unreadable(path, ValueError(f"{name!r} is larger than what the file has of it"))
    return dict(state), {}


def map_file(path: Path) -> Tensor:
    """The bytes of a file, uint8 [size], mapped: pages are read when they are used, and may be dropped again.

    Private, so that no write reaches the file; on Linux without a claim on memory, which the system would refuse for a
    file larger than memory and swap, used or not.
    """
    try:
        with path.open("rb") as file:
            if sys.platform == "linux":
                kind, access = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
                mapped = mmap.mmap(file.fileno(), 0, flags=kind, prot=access)
            else:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        size = f"{path.stat().st_size / 1e9:.1f} GB"
        raise ShotError(f"model: {path} has {size}, which this machine cannot map ({error}); free memory") from error
    return torch.frombuffer(mapped, dtype=torch.uint8)


def view(whole: Tensor, start: int, end: int, dtype: torch.dtype, shape: Iterable[int]) -> Tensor:
    """A tensor of the bytes from start to end, copied only where they do not lie as its type must."""
    part = whole[start:end]
    if start % dtype.itemsize:
        part = part.clone()
    return part.view(dtype).view(tuple(shape))


def unreadable(path: Path, error: Exception) -> ShotError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return ShotError(f"model: {path} is damaged or not a file of plain weights ({reason}); download it again")
