# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Digests of files, one rule for models, plates and footage. Standard library only; every room may read this module."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

_BLOCK = 1 << 20


def file_digest(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file, the latter in hexadecimal. Raises OSError."""
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
            size += len(block)
    return size, found.hexdigest()


def joint_digest(digests: Sequence[str]) -> str:
    """One digest for several files: their own where there is one, else that of all, one behind the other."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
