# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""SHA-256 of weight files, read whole once and then remembered while the file stays what it was."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rushes.model import bundle
from rushes.model.places import INDEX
from rushes.model.reading import files_of


def digest(path: Path) -> str:
    """SHA-256 of one file; of an index of shards, that of itself and its shards together. Raises OSError."""
    if not path.name.endswith(INDEX):
        return _remembered(path)
    return bundle.joint_digest([_remembered(file) for file in (path, *files_of(path))])


def _remembered(path: Path) -> str:
    status = path.stat()
    return _read(path.absolute(), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=64)
def _read(path: Path, size: int, changed: int, inode: int) -> str:
    return bundle.digest(path)
