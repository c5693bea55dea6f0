# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Published files by their names and shapes alone."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KEYS = Path(__file__).parents[1] / "fixtures" / "wan_keys"


@pytest.fixture
def hollow() -> Callable[..., Path]:
    """hollow(path, "original.wan21_t2v_1.3b", dtype="BF16", prefix=""): a file with the names and shapes of a published
    one, all of it a hole in the disk; extra: further tensors, name -> (dtype, shape)."""
    if sys.platform == "win32":
        pytest.skip("files with holes are written in full on Windows: tens of gigabytes")

    def write(
        path: Path, name: str, dtype: str = "BF16", prefix: str = "", part: slice = slice(None), **extra: Any
    ) -> Path:
        with gzip.open(KEYS / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            shapes = list(json.load(file)["tensors"].items())[part]
        header: dict[str, Any] = {}
        end = 0
        tensors = [*((prefix + key, (dtype, shape)) for key, shape in shapes), *extra.items()]
        for key, (kind, shape) in tensors:
            size = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1}[kind]
            for side in shape:
                size *= side
            header[key] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # as writers do: tensors that lie askew would be copied
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
        return path

    return write
