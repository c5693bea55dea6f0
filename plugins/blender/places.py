# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Where files lie: `//rushes/` beside the .blend, or the extension's user folder while the .blend is not saved."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import bpy

FOLDER = "rushes"
NUMBER = "%04d"  # of a frame, in a pattern


def is_saved() -> bool:
    return bool(bpy.data.filepath)


def user_folder() -> Path:
    """The extension's own folder, which outlives its updates. The worker's log lies there too."""
    return Path(bpy.utils.extension_path_user(__package__, path="clips", create=True))


def root() -> Path:
    """The folder of this .blend's clips, keyframes and contact sheets."""
    return Path(bpy.path.abspath(f"//{FOLDER}")) if is_saved() else user_folder()


def jobs_home() -> str:
    """Where job folders go. The worker writes frames there, so that they lie beside the .blend from the start."""
    return str(root() / "jobs")


def stored_path(path: str) -> str:
    """A path as it is kept in a .blend: from `//` when it lies beside it or below."""
    return relative_to(path, os.path.dirname(bpy.data.filepath))


def relative_to(path: str, folder: str) -> str:
    """A path from `//`, for a .blend that lies in `folder`; as it is when it lies elsewhere."""
    path = os.path.abspath(path)
    if folder and path.startswith(folder.rstrip(os.sep) + os.sep):
        return "//" + os.path.relpath(path, folder).replace(os.sep, "/")
    return path


def real_path(path: str) -> str:
    """A stored path as the system knows it."""
    return os.path.normpath(bpy.path.abspath(path))


def is_in_user_folder(path: str) -> bool:
    return user_folder() in Path(real_path(path)).parents


def beside(path: str) -> str:
    """A file of the user folder, or those of a pattern, copied beside the .blend; any other path as it is.

    Raises OSError.
    """
    source = Path(real_path(path))
    files = source.parent.glob(source.name.replace(NUMBER, "[0-9]*")) if NUMBER in source.name else [source]
    found = [file for file in files if file.is_file()]
    if not is_in_user_folder(path) or not found:
        return str(source)
    target = root() / source.relative_to(user_folder())
    target.parent.mkdir(parents=True, exist_ok=True)
    for file in found:
        if not (target.parent / file.name).exists():
            shutil.copyfile(file, target.parent / file.name)
    return str(target)
