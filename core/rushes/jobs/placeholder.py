# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The picture that a host shows before a clip's first frame is there: grey, with bands that say "not yet".

Standard library only, Python 3.9 to 3.14: hosts vendor this file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

DARK, LIGHT, BAND = 44, 52, 16  # grey levels in sRGB, pixels


def write_placeholder(folder: Path, size: Sequence[int]) -> Path:
    """A PNG of this size (width, height) in `folder`; one that is there already is taken."""
    width, height = size
    path = folder / f"placeholder_{width}x{height}.png"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    period = bytes([DARK] * BAND + [LIGHT] * BAND)
    row = period * (width // len(period) + 2)
    # each row begins with its filter, none; bands lean by one pixel a row
    rows = b"".join(b"\0" + row[y % len(period) : y % len(period) + width] for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8-bit grey
    chunks = ((b"IHDR", head), (b"sRGB", b"\0"), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
    return path
