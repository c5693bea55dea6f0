# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Where Rushes Write Plate writes: names inside ComfyUI's output folder, the sidecar, and what the UI shows."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import numpy.typing as npt

from rushes.replacing import replacing
from rushes.shot import Shot, ShotError

from .records import without_shot

KINDS = {"EXR": ".%04d.exr", "ProRes MOV": ".mov", "MP4": ".mp4", "PNG": ".%04d.png"}
PROXY_SIDE = 320  # pixels of the longer side of what the UI shows, at most
_BAD_IN_NAMES = re.compile(r'[\x00-\x1f<>:"|?*%#\\/]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows keeps for itself


def place(folder: str, name: str, kind: str) -> str:
    """The output's name without a version, absolute. Raises ShotError for one outside ComfyUI's output folder."""
    if kind not in KINDS:
        raise ShotError(f"format: got {kind!r}; allowed are {', '.join(KINDS)}")
    parts = [part for part in folder.replace("\\", "/").split("/") if part not in ("", ".")]
    if folder.startswith(("/", "\\", "~")) or ".." in parts or any(_is_bad(part) for part in parts):
        raise ShotError(
            f"folder: got {folder!r}; folders inside ComfyUI's output folder are allowed, such as rushes/sh010"
        )
    if not name.strip() or _is_bad(name):
        raise ShotError(
            f"name: got {name!r}; a file name without suffix and frame number is allowed, such as plate (the version "
            'and the number are added; / \\ : * ? " < > | % # are not allowed)'
        )
    root = folder_paths.get_output_directory()
    path = os.path.abspath(os.path.join(root, *parts, name.strip() + KINDS[kind]))
    if os.path.commonpath((os.path.realpath(root), os.path.realpath(os.path.dirname(path)))) != os.path.realpath(root):
        raise ShotError(f"folder: {folder!r} leads out of ComfyUI's output folder; a folder inside is allowed")
    return path


def _is_bad(part: str) -> bool:
    too_long = len(part) > 120  # a file system's 255 bytes hold the version and the frame number too
    return (
        bool(_BAD_IN_NAMES.search(part) or _DEVICES.fullmatch(part)) or part[:1] == "." or part[-1:] == "." or too_long
    )


def sidecar_of(path: str) -> Path:
    """plate_v001.%04d.exr -> plate_v001.json, beside it."""
    return Path(re.sub(r"(\.%04d)?\.\w+$", ".json", path))


def write_sidecar(path: Path, record: Mapping[str, Any], files: list[Path], start_frame: int) -> None:
    """The record, and the files it is of, as a text of its own. It appears whole or not at all."""
    told = {**record, "files": {"first": files[0].name, "count": len(files), "start_frame": start_frame}}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def shown_file(path: Path, folder: str, root: str) -> dict[str, str]:
    """How the UI names a file: its name, its folder below the root, and which root."""
    inside = os.path.relpath(path.parent, root)
    return {"filename": path.name, "subfolder": "" if inside == "." else inside, "type": folder}


class Proxy:
    """A small movie of what is written, for the node's face. Browsers play neither EXR nor ProRes."""

    def __init__(self, fps: Fraction) -> None:
        self._fps = fps
        self._stack = ExitStack()
        self._outputs: Any = None
        self._path = os.path.join(folder_paths.get_temp_directory(), f"rushes_{secrets.token_hex(6)}.mp4")

    def __enter__(self) -> Proxy:
        self._stack.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, frame: npt.NDArray[np.float32]) -> None:
        """frame: float32 [h, w, 3]; every second, third ... pixel of it is shown."""
        from rushes.media import open_outputs

        step = max(1, -(-max(frame.shape[:2]) // PROXY_SIDE))
        small = frame[::step, ::step]
        small = small[: small.shape[0] // 2 * 2 or None, : small.shape[1] // 2 * 2 or None]  # H.264 takes even sides
        if self._outputs is None:
            record = without_shot((small.shape[1], small.shape[0]), None, self._fps)
            self._outputs = self._stack.enter_context(open_outputs([self._path], record))
        self._outputs.write(small[None])

    def shown(self) -> dict[str, Any]:
        """The UI's part of a node's output, after the block was left."""
        path = Path(self._path)
        return {"images": [shown_file(path, "temp", folder_paths.get_temp_directory())], "animated": (True,)}


def rate(record: Mapping[str, Any]) -> Fraction:
    fps = Shot.from_dict(record["shot"]).fps
    assert fps is not None
    return fps
