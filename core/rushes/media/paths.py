# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The names of outputs: what a name means, which files it stands for, and every refusal before any work."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rushes.shot import ShotError

KINDS = ("exr", "mov", "mp4", "otio", "png", "safetensors")
PICTURES = ("exr", "mov", "mp4", "png")  # what a timeline can refer to
STILLS = ("exr", "png")  # one file a frame: these take a frame pattern
MAX_START_FRAME = 10_000_000
HIDDEN_LENGTH = 60  # characters of a name that its temporary name repeats
COMPRESSIONS = ("zip", "dwaa", "piz", "none")  # of plates; the first is the default
DEPTHS = ("half", "float")

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


def frame_pattern(name: str) -> re.Match[str] | None:
    """Where a file name has its %04d or ####."""
    return _PATTERN.search(name)


def temporary_name(name: str) -> str:
    """A hidden name that nobody else uses; of a long name only the start, as file systems have a limit."""
    return f"{_hidden(name)}{os.getpid()}-{secrets.token_hex(4)}"


def is_being_written(target: Target) -> bool:
    """Whether a staging folder lies beside the target: somebody writes it now, or was killed at it.

    Of a name above HIDDEN_LENGTH characters this cannot be told, and the answer is no.
    """
    if len(target.name) > HIDDEN_LENGTH or not target.folder.is_dir():
        return False
    return any(name.startswith(_hidden(target.name)) for name in os.listdir(target.folder))


def _hidden(name: str) -> str:
    return f".{name[:HIDDEN_LENGTH]}.rushes-"


def check_outputs(
    paths: Sequence[str | os.PathLike[str]],
    frames: int | None,
    overwrite: bool,
    colorspace: str | None,
    size: tuple[int, int] | None = None,
    compression: str | None = None,
    depth: str | None = None,
) -> list[Target]:
    """Refuse, before any work, every set of outputs that could not be written. Creates and writes nothing.

    paths: names as after `-o`; frames: number of frames, None when not yet known; colorspace: None means
    ACEScg for plates; size: (width, height) in pixels when known; compression, depth: of plates, one of
    COMPRESSIONS and of DEPTHS, None means zip and half. Returns the names as Targets. Raises ShotError.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    if not paths:
        raise ShotError("-o: no output is given; one or more file names are allowed")
    targets = [Target.parse(path) for path in paths]
    for index, target in enumerate(targets):
        for earlier in targets[:index]:
            if target.clashes(earlier):
                raise ShotError(f"-o {target.text}: it is the same output as -o {earlier.text}; give each name once")
    for target in targets:
        _check_pattern(target, frames)
        _check_size(target, size)
        _check_place(target, overwrite)
    _check_timeline(targets)
    _check_plates(targets, colorspace, compression, depth)
    return targets


def _check_pattern(target: Target, frames: int | None) -> None:
    if target.kind in STILLS and target.padding is None and frames is not None and frames > 1:
        stem = target.prefix[: -len(target.kind) - 1]
        raise ShotError(
            f"-o {target.text}: it names one file and the shot has {frames} frames; a frame pattern "
            f"such as {stem}.%04d.{target.kind} or {stem}.####.{target.kind} is allowed"
        )


def _check_size(target: Target, size: tuple[int, int] | None) -> None:
    if size is None or target.kind != "mp4" or not any(side % 2 for side in size):
        return
    low, high = [side - side % 2 for side in size], [side + side % 2 for side in size]
    raise ShotError(
        f"-o {target.text}: the size is {size[0]}x{size[1]}; H.264 in 4:2:0 needs an even width and height, "
        f"such as {low[0]}x{low[1]} or {high[0]}x{high[1]} (a .mov takes any size)"
    )


def _check_place(target: Target, overwrite: bool) -> None:
    ancestor = target.folder
    while not os.path.lexists(ancestor) and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise ShotError(f"-o {target.text}: {ancestor} is not a folder; a name inside a folder is allowed")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise ShotError(f"-o {target.text}: the folder {ancestor} is not writable; a folder of your own is allowed")
    there = target.existing()
    for _, path in there:
        if path.is_dir():
            raise ShotError(f"-o {target.text}: {path} is a folder; the name of a file is allowed")
    if there and not overwrite:
        raise ShotError(f"-o {target.text}: {there[0][1].name} already exists; give another name or --overwrite")


def _check_timeline(targets: Sequence[Target]) -> None:
    for target in targets:
        if target.kind == "otio" and not any(other.kind in PICTURES for other in targets):
            raise ShotError(
                f"-o {target.text}: a timeline refers to pictures and none are written beside it; "
                "add another -o such as plate.%04d.exr or shot.mov"
            )


def _check_plates(
    targets: Sequence[Target], colorspace: str | None, compression: str | None, depth: str | None
) -> None:
    has_plate = any(target.kind == "exr" for target in targets)
    if colorspace is not None and not has_plate:
        raise ShotError(
            f"--colorspace: got {colorspace!r} without a plate; it is allowed with an .exr output "
            "(movies are Rec.709, stills are sRGB)"
        )
    for name, got, allowed in (("compression", compression, COMPRESSIONS), ("depth", depth, DEPTHS)):
        if got is not None and got not in allowed:
            raise ShotError(f"--{name}: got {got!r}; allowed are {', '.join(allowed)}")
        if got is not None and not has_plate:
            raise ShotError(f"--{name}: got {got!r} without a plate; it is allowed with an .exr output")
    if has_plate:
        from rushes.media import color

        color.find_space(colorspace or color.DEFAULT_SPACE)
