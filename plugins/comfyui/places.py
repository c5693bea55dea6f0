# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Files to read, by the names that artists type: below ComfyUI's input or output folder, or absolute."""

from __future__ import annotations

import os
import re

import folder_paths

from rushes.media.paths import Target
from rushes.shot import ShotError

_ANNOTATION = re.compile(r"\s*\[(input|output|temp)\]$")  # as ComfyUI marks a file of its folders


def found(text: str) -> str:
    """The absolute name of what is there: a file, or a sequence with its pattern. Raises ShotError."""
    name = text.strip().strip('"')
    if not name:
        raise ShotError("path: it is empty; a file or a sequence such as rushes/plate_v001.%04d.exr is allowed")
    roots = [folder_paths.get_input_directory(), folder_paths.get_output_directory()]
    if mark := _ANNOTATION.search(name):
        name, roots = name[: mark.start()], [folder_paths.get_directory_by_type(mark[1])]
    candidates = [os.path.abspath(os.path.join(root, os.path.expanduser(name))) for root in roots]
    for candidate in candidates:
        if _existing(candidate):
            return candidate
    where = "it is not there" if os.path.isabs(name) else f"it is in neither {' nor '.join(roots)}"
    raise ShotError(f"path: got {text!r}; {where}; an existing file or sequence is allowed")


def files_of(text: str | None) -> list[tuple[str, int, int]]:
    """Name, size and time of the files: what tells whether they have changed. Empty for a name that leads nowhere."""
    try:
        names = _existing(found(text or ""))
    except ShotError:
        return []
    status = [(name, os.stat(name)) for name in names]
    return [(name, there.st_size, there.st_mtime_ns) for name, there in status]


def _existing(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    try:
        return [str(file) for _, file in Target.parse(path, argument="").existing() if file.is_file()]
    except ShotError:  # a name that no file of ours has
        return []
