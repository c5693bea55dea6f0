# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The names of outputs: what a name means, which files it stands for, and every refusal before any work."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from rushes.replacing import HIDDEN_LENGTH, hidden_start
from rushes.shot import ShotError

KINDS = ("exr", "mov", "mp4", "otio", "png", "safetensors")
PICTURES = ("exr", "mov", "mp4", "png")  # what a timeline can refer to, and a manifest
STILLS = ("exr", "png")  # one file a frame: these take a frame pattern
MAX_START_FRAME = 10_000_000
MANIFEST = ".manifest.json"  # what a manifest's name ends with
NAME_BYTES = 255  # what file systems take
COMPRESSIONS = ("zip", "zips", "dwaa", "piz", "none")  # of plates; the first is the default
LOSSY = ("dwaa",)
DEPTHS = ("half", "float")
ALPHAS = ("none", "solid")
CODECS = {  # of movies, by suffix; the first is the default
    "mp4": ("h264", "h264-10bit"),
    "mov": ("prores-422hq", "prores-4444", "dnxhr-hqx", "h264", "h264-10bit"),
}

_PATTERN = re.compile(r"%(?:0(\d{1,2}))?d|#+")


@dataclass(frozen=True)
class Target:
    """One output as it was asked for.

    text: the name as given; kind: one of KINDS; folder: absolute; prefix, suffix: the file name around the
    frame number; padding: digits of the frame number, or None for a name that stands for a single file.
    """

    text: str
    kind: str
    folder: Path
    prefix: str
    suffix: str
    padding: int | None

    @classmethod
    def parse(cls, text: str | os.PathLike[str], argument: str = "-o ") -> Target:
        """Read an output name. Raises ShotError, which begins with `argument` and the name, for an unknown
        suffix and for two frame patterns.
        """
        text = os.fspath(text)
        name = os.path.basename(text)
        kind = os.path.splitext(name)[1][1:].lower()
        if kind not in KINDS:
            got = f"the suffix is '.{kind}'" if kind else "the name has no suffix"
            allowed = ", ".join("." + one for one in KINDS)
            raise ShotError(f"{argument}{text}: {got}; allowed are {allowed}")
        folder = Path(os.path.abspath(text)).parent
        found = list(_PATTERN.finditer(name)) if kind in STILLS else []
        if len(found) > 1:
            raise ShotError(
                f"{argument}{text}: the name holds {len(found)} frame patterns; one %04d or #### is allowed"
            )
        if not found:
            return cls(text, kind, folder, name, "", None)
        match = found[0]
        padding = len(match[0]) if match[0].startswith("#") else int(match[1] or 1)
        return cls(text, kind, folder, name[: match.start()], name[match.end() :], max(padding, 1))

    @property
    def name(self) -> str:
        """The file name, a frame pattern in its %04d form."""
        return self.prefix if self.padding is None else f"{self.prefix}%0{self.padding}d{self.suffix}"

    def file_name(self, number: int) -> str:
        """The file name of a frame; a name without a pattern is the same for each."""
        return self.prefix if self.padding is None else f"{self.prefix}{number:0{self.padding}d}{self.suffix}"

    def existing(self) -> list[tuple[int, Path]]:
        """The files on disk that this name stands for, by frame number (0 for a single file)."""
        if self.padding is None:
            path = self.folder / self.prefix
            return [(0, path)] if os.path.lexists(path) else []
        if not self.folder.is_dir():
            return []
        frames = []
        for name in os.listdir(self.folder):
            digits = name[len(self.prefix) : len(name) - len(self.suffix)]
            if digits.isascii() and digits.isdigit() and self.file_name(int(digits)) == name:
                frames.append((int(digits), self.folder / name))
        return sorted(frames)

    def clashes(self, other: Target) -> bool:
        """Whether both names could stand for one and the same file."""
        if os.path.realpath(self.folder) != os.path.realpath(other.folder):
            return False
        if self.padding is not None and other.padding is not None:
            ours, theirs = (self.prefix, self.suffix), (other.prefix, other.suffix)
            return [os.path.normcase(part) for part in ours] == [os.path.normcase(part) for part in theirs]
        if self.padding is None and other.padding is None:
            return os.path.normcase(self.prefix) == os.path.normcase(other.prefix)
        pattern, single = (self, other) if self.padding is not None else (other, self)
        around = re.escape(os.path.normcase(pattern.prefix)), re.escape(os.path.normcase(pattern.suffix))
        return re.fullmatch(rf"{around[0]}\d+{around[1]}", os.path.normcase(single.prefix)) is not None


def manifest_name(target: Target) -> str:
    """The file name of an output's manifest: `sh010_v003.exr.manifest.json` for `sh010_v003.%04d.exr`.

    Of a name that would be too long only the start, and a digest of the whole.
    """
    bare, ending = os.path.splitext(target.name)
    if target.padding is not None:
        # what separates the name from the frame number goes with it
        bare = target.prefix.rstrip("._-") + target.suffix.removesuffix(ending) or "frames"
    ending += MANIFEST
    if len(os.fsencode(bare + ending)) > NAME_BYTES:
        ending = f"~{hashlib.sha256(os.fsencode(bare)).hexdigest()[:8]}{ending}"
        while len(os.fsencode(bare + ending)) > NAME_BYTES:
            bare = bare[:-1]
    return bare + ending


def frame_pattern(name: str) -> re.Match[str] | None:
    """Where a file name has its %04d or ####."""
    return _PATTERN.search(name)


def is_being_written(target: Target) -> bool:
    """Whether a staging folder lies beside the target: somebody writes it now, or was killed at it.

    Of a name above HIDDEN_LENGTH characters this cannot be told, and the answer is no.
    """
    if len(target.name) > HIDDEN_LENGTH or not target.folder.is_dir():
        return False
    return any(name.startswith(hidden_start(target.name)) for name in os.listdir(target.folder))
