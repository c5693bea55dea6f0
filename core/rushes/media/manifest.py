# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Manifests: what was written, file by file, so that anybody can tell later that it is complete and unchanged.

A manifest lies beside its output. Its name is the output's without the frame number, and `.manifest.json`:
`sh010_v003.%04d.exr` has `sh010_v003.exr.manifest.json`, and `shot.mov` has `shot.mov.manifest.json`. The suffix
stays in it, so that a plate, its PNG frames and its proxy can have one each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from rushes.hashing import file_digest
from rushes.media.paths import PICTURES, Target, manifest_name
from rushes.media.record import to_text
from rushes.replacing import replacing
from rushes.shot import ShotError, parse_fps

VERSION = 1
_MAX_WAITING = 4  # frames whose pixels wait to be hashed; hashing is faster than writing


@dataclass(frozen=True)
class File:
    """One file of an output. number: of the frame, None for a movie; bytes: its size; sha256: of the file;
    pixels: SHA-256 of the decoded numbers, row by row and channel by channel, little-endian as the file has them;
    None where the file does not hold exactly what was written into it (lossy compression, movies).
    """

    number: int | None
    name: str
    bytes: int
    sha256: str
    pixels: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What an output is made of. pattern: its file name, a frame pattern as %04d; frames: how many pictures;
    size: (width, height) in pixels; fps: exact; colorspace: of the numbers in the files; shot: SHA-256 of the
    record that every file carries; files: in the order of their numbers, the slate's before the others;
    transform: how the clip's colours became the files', "" where they were not changed; handles: frames at each end
    that are no part of the cut; slate: number of the file before the first that is no frame, None without one.
    """

    pattern: str
    frames: int
    size: tuple[int, int]
    fps: Fraction | None
    colorspace: str
    shot: str
    files: tuple[File, ...]
    transform: str = ""
    handles: int = 0
    slate: int | None = None

    @property
    def first(self) -> int | None:
        return self.files[0 if self.slate is None else 1].number

    @property
    def last(self) -> int | None:
        return self.files[-1].number

    def to_text(self) -> str:
        """JSON that reads well: a line for each file."""
        head = {
            "manifest": VERSION,
            "pattern": self.pattern,
            "frames": self.frames,
            "first": self.first,
            "last": self.last,
            "size": list(self.size),
            "fps": None if self.fps is None else str(self.fps),
            "colorspace": self.colorspace,
            "transform": self.transform,
            "handles": self.handles,
            "slate": self.slate,
            "shot": self.shot,
        }
        lines = ",\n".join(f"  {json.dumps(dataclasses.asdict(file))}" for file in self.files)
        return f'{json.dumps(head, indent=1)[:-2]},\n "files": [\n{lines}\n ]\n}}\n'

    def write(self, path: Path) -> None:
        """The file appears whole or not at all, in the place of an older one. Raises OSError."""
        with replacing(path) as temporary:
            temporary.write_text(self.to_text(), encoding="utf-8")

    def renamed(self, target: Target) -> Manifest:
        """The manifest of the same files under another output's names, such as those of a published version."""
        files = tuple(
            dataclasses.replace(file, name=target.name if file.number is None else target.file_name(file.number))
            for file in self.files
        )
        return dataclasses.replace(self, pattern=target.name, files=files)


def manifest_path(text: str | os.PathLike[str]) -> Path:
    """Where the manifest of an output lies, whether there is one or not. Raises ShotError for an unknown suffix."""
    target = Target.parse(text, argument="")
    return target.folder / manifest_name(target)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Raises ShotError for a manifest that is missing, damaged, from a newer Rushes, or that names other files."""
    path = Path(path)
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ShotError(f"{path}: there is no such file; a manifest that Rushes has written is allowed") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, "it is no complete JSON text") from error
    version = found.get("manifest") if isinstance(found, dict) else None
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise _damaged(path, "it has no version")
    if version > VERSION:
        raise ShotError(
            f"{path}: its version is {version}; up to {VERSION} is allowed (a newer Rushes has written it and reads it)"
        )
    try:
        manifest = _parsed(found)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{error}" if isinstance(error, ShotError) else "a field is missing or wrong") from error
    _check_names(manifest, path)
    return manifest


def _damaged(path: Path, reason: str) -> ShotError:
    return ShotError(f"{path}: it cannot be read as a manifest ({reason}); a complete manifest is allowed")


def _parsed(found: Mapping[str, Any]) -> Manifest:
    width, height = map(_whole, found["size"])
    files = tuple(
        File(
            None if file["number"] is None else _whole(file["number"]),
            _text(file["name"]),
            _whole(file["bytes"]),
            _digest(file["sha256"]),
            None if file["pixels"] is None else _digest(file["pixels"]),
        )
        for file in found["files"]
    )
    if not files:
        raise ShotError("it names no file")
    return Manifest(
        _text(found["pattern"]),
        _whole(found["frames"]),
        (width, height),
        None if found["fps"] is None else parse_fps(_text(found["fps"])),
        _text(found["colorspace"]),
        _digest(found["shot"]),
        files,
        _text(found.get("transform", "")),
        _whole(found.get("handles", 0)),
        None if found.get("slate") is None else _whole(found["slate"]),
    )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _digest(value: Any) -> str:
    if len(bytes.fromhex(value)) != hashlib.sha256().digest_size:
        raise ValueError(value)
    return _text(value)


def _check_names(manifest: Manifest, path: Path) -> None:
    """Only names that the pattern stands for: a manifest must not lead a reader to any other file."""
    target = Target.parse(path.parent / manifest.pattern, argument="")
    if os.path.basename(manifest.pattern) != manifest.pattern or target.kind not in PICTURES:
        raise _damaged(path, "its pattern is no file name")
    if manifest_name(target) != path.name:
        raise ShotError(
            f"{path}: it is the manifest of {manifest.pattern}, which belongs into {manifest_name(target)}; "
            "a manifest beside its files is allowed"
        )
    numbers = [file.number for file in manifest.files]
    wanted: list[int | None] = [None]
    if target.padding is not None and numbers[0] is not None:
        wanted = list(range(numbers[0], numbers[0] + len(numbers)))
    names = [target.name if number is None else target.file_name(number) for number in wanted]
    if numbers != wanted or [file.name for file in manifest.files] != names:
        raise _damaged(path, "its files are not those of its pattern, one for each frame")
    if manifest.slate is not None and (manifest.slate != numbers[0] or len(numbers) < 2):
        raise _damaged(path, "its slate is not before its first frame")
    if wanted != [None] and manifest.frames != len(wanted) - (manifest.slate is not None):
        raise _damaged(path, "its number of frames is not that of its files")


class Hasher:
    """Hashes the files of one output in a thread of its own, while the next ones are written."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rushes hash")
        self._waiting: deque[Future[File]] = deque()
        self._done: list[File] = []

    def add(self, path: Path, number: int | None, pixels: np.ndarray | None = None) -> None:
        """A file that is complete. pixels: what it holds, where it gives that back bit by bit; not to be changed."""
        self._waiting.append(self._pool.submit(_file, path, number, pixels))
        while len(self._waiting) > _MAX_WAITING:
            self._done.append(self._waiting.popleft().result())

    def files(self) -> tuple[File, ...]:
        """All of them, once they are hashed. Raises OSError."""
        self._done += [future.result() for future in self._waiting]
        self._waiting.clear()
        return tuple(self._done)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _file(path: Path, number: int | None, pixels: np.ndarray | None) -> File:
    size, digest = file_digest(path)
    return File(number, path.name, size, digest, None if pixels is None else pixels_digest([pixels]))


def pixels_digest(parts: Sequence[np.ndarray]) -> str:
    """SHA-256 of pictures as File has it: [h, w, c] each, all parts of a file one behind the other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).data)
    return found.hexdigest()


def record_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record, as a manifest's `shot` has it."""
    return hashlib.sha256(to_text(record).encode()).hexdigest()
