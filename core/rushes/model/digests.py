# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""SHA-256 of weight files, read whole once and then remembered, over processes, while the file stays what it was.

28 GB take half a minute from a fast disk. What is remembered holds for a path with a size, a time of change and an
inode. A file that was changed just now is not remembered: the same tick of the clock could see it change again.
"""

from __future__ import annotations

import time
from pathlib import Path

from rushes.folders import user_folder
from rushes.hashing import joint_digest
from rushes.model import bundle
from rushes.model.places import INDEX
from rushes.model.reading import files_of
from rushes.model.sightings import Memory

SETTLED = 2 * 10**9  # nanoseconds; the coarsest clock of a file system in use (FAT) ticks every two seconds


def digest(path: Path) -> str:
    """SHA-256 of one file; of an index of shards, that of itself and its shards together. Raises OSError."""
    files = [path, *files_of(path)] if path.name.endswith(INDEX) else [path]
    memory = Memory(user_folder("cache") / "digests.json")
    found = joint_digest([_remembered(file.absolute(), memory) for file in files])
    memory.save()
    return found


def _remembered(path: Path, memory: Memory) -> str:
    before = _stamp(path)
    known = memory.recall(str(path), before)
    if isinstance(known, str):
        return known
    found = bundle.digest(path)
    if _stamp(path) == before and time.time_ns() - before[0][1] > SETTLED:
        memory.forget_missing()
        memory.remember(str(path), before, found)
    return found


def _stamp(path: Path) -> list[list[int]]:
    status = path.stat()
    return [[status.st_size, status.st_mtime_ns, status.st_ino]]
