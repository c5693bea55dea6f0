# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""GGUF, the container of llama.cpp and of ComfyUI-GGUF: where its tensors lie, and the few notes that we need.

magic, version, counts; then notes (name, type, value); then tensors (name, dimensions, type, offset); then the data.
Read here and not by the `gguf` package, which trusts what a file says: a count in a header of 100 bytes makes it build
lists until memory ends, and it brings three packages of the network with it. The tests read the same files with both.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from rushes.model.blocks import FORMATS

VERSIONS = (2, 3)
MAX_NOTES, MAX_TENSORS, MAX_LIST, MAX_NAME = 4096, 65_536, 2**20, 1024
SHAPE_NOTE = "comfy.gguf.orig_shape."  # + name: the shape of a tensor that was flattened to be written

# ggml's numbers of types. Those that are not named here, the i-quants among them, are refused by number.
_KINDS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16",
}  # fmt: skip
_REFUSED = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
# Types of notes, as struct has them; 8 is a text and 9 a list
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


class Entry(NamedTuple):
    """One tensor: its kind, its shape as torch has it, where its bytes lie in the file, and in how many rows."""

    kind: str
    shape: tuple[int, ...]
    start: int
    end: int
    rows: int


@dataclass(frozen=True)
class Contents:
    """notes: by name, numbers and texts as they are, lists as tuples. metadata: the texts among them."""

    notes: dict[str, Any]
    tensors: dict[str, Entry]

    @property
    def metadata(self) -> dict[str, str]:
        return {name: value for name, value in self.notes.items() if isinstance(value, str)}


def read(path: Path) -> Contents:
    """What is in a GGUF file. ValueError for one that is damaged, of another version, or in a type we do not read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        reader = _Reader(content)
        if reader.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = reader.number("I")
        if version not in VERSIONS:
            raise ValueError(f"GGUF version {version}; {VERSIONS[0]} and {VERSIONS[1]} in little-endian are read")
        tensors = reader.count("tensors", MAX_TENSORS)
        notes = {name: value for name, value in reader.notes(reader.count("notes", MAX_NOTES))}
        alignment = notes.get("general.alignment", 32)
        if type(alignment) is not int or alignment.bit_count() != 1 or not 8 <= alignment <= 2**20:
            raise ValueError(f"an alignment of {alignment!r}")
        found = list(reader.tensors(tensors))
        base = -(-reader.at // alignment) * alignment
        entries = {name: _placed(name, entry, base, len(content), notes) for name, entry in found}
        if len(entries) != tensors:
            raise ValueError("a tensor is there twice")
    return Contents(notes, entries)


def _placed(name: str, entry: Entry, base: int, size: int, notes: dict[str, Any]) -> Entry:
    """The entry counted from the file's start, in the shape that it had before it was flattened."""
    kind, shape, start, _, rows = entry
    values = prod(shape)
    if kind in FORMATS:
        each, block, _ = FORMATS[kind]
        if shape[-1] % each:
            raise ValueError(f"{name!r} has rows of {shape[-1]}, no whole blocks of {kind}")
        length = values // each * block
    else:
        length = values * _SIZES[kind]
    if start % 8 or base + start + length > size:
        raise ValueError(f"{name!r} lies outside the file")
    wanted = notes.get(SHAPE_NOTE + name)
    if isinstance(wanted, tuple) and all(type(n) is int and n > 0 for n in wanted) and prod(wanted) == values:
        shape = wanted
    return Entry(kind, shape, base + start, base + start + length, rows)


class _Reader:
    """Steps through a mapped header; nothing is taken that the file has not."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self.at = content, 0

    def take(self, size: int) -> bytes:
        if size > len(self._content) - self.at:
            raise ValueError("it ends in the middle of its header")
        self.at += size
        return self._content[self.at - size : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0]

    def count(self, what: str, most: int) -> int:
        found = self.number("Q")
        if found > most:
            raise ValueError(f"{found} {what}; up to {most} are read")
        return int(found)

    def text(self, most: int = 2**24) -> str:
        return self.take(self.count("bytes of a text", most)).decode("utf-8", "replace")

    def notes(self, count: int) -> Iterator[tuple[str, Any]]:
        for _ in range(count):
            name, kind = self.text(MAX_NAME), self.number("I")
            yield name, self._list() if kind == _LIST else self._value(kind)

    def _list(self) -> tuple[Any, ...]:
        kind, count = self.number("I"), self.count("values in a list", MAX_LIST)
        if kind not in _SCALARS:
            return tuple(self._value(kind) for _ in range(count))
        form = f"<{count}{_SCALARS[kind]}"
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind not in _SCALARS:
            raise ValueError(f"a note of type {kind}")
        return self.number(_SCALARS[kind])

    def tensors(self, count: int) -> Iterator[tuple[str, Entry]]:
        """Entries whose start is counted from the data's, and whose end is not known yet."""
        for _ in range(count):
            name, dimensions = self.text(MAX_NAME), self.number("I")
            if not 1 <= dimensions <= 8:
                raise ValueError(f"{name!r} has {dimensions} dimensions")
            shape = tuple(int(self.number("Q")) for _ in range(dimensions))[::-1]  # the fastest comes first in the file
            kind, start = self.number("I"), self.number("Q")
            if kind not in _KINDS:
                raise ValueError(f"{name!r} is in {_REFUSED.get(kind, f'ggml type {kind}')}, which is not read here")
            if 0 in shape:
                raise ValueError(f"{name!r} has no values")
            yield name, Entry(_KINDS[kind], shape, start, 0, prod(shape[:-1]))
