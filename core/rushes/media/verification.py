# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Verification: every pixel of an output is read, and every file compared with the manifest beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rushes.hashing import file_digest
from rushes.media.manifest import File, Manifest, manifest_path, pixels_digest, read_manifest
from rushes.media.paths import MANIFEST, PICTURES, STILLS, Target
from rushes.media.record import read_record
from rushes.shot import Shot, ShotError

Problem = Literal["missing", "empty", "truncated", "unreadable", "altered", "renamed", "extra"]
OnFile = Callable[[int, int], object]  # files done, and of how many
READERS = 4  # files at once; OpenImageIO decodes one with several threads by itself


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. number: of the frame, None for a movie; file: its name.

    sentence: names both and says what is wrong.
    """

    number: int | None
    file: str
    problem: Problem
    sentence: str


@dataclass(frozen=True)
class Verification:
    """What `verify` has found. target: the output; manifest: None where there is none; frames: how many could be
    read to the last pixel; findings: in the order of the frames, first what should be there, then what should not.
    """

    target: Target
    manifest: Manifest | None
    frames: int
    findings: tuple[Finding, ...]

    @property
    def is_proven(self) -> bool:
        """Whether there was a manifest to compare with."""
        return self.manifest is not None

    @property
    def ok(self) -> bool:
        """Complete and unchanged, and proven so."""
        return self.is_proven and not self.findings

    @property
    def sentence(self) -> str:
        """The result in one sentence that names the output."""
        frames = "1 frame" if self.frames == 1 else f"{self.frames} frames"
        if self.findings:
            count = "1 thing is" if len(self.findings) == 1 else f"{len(self.findings)} things are"
            return f"{self.target.text}: {count} not as it should be; {frames} can be read whole"
        if self.manifest is None:
            return (
                f"{self.target.text}: {frames} can be read whole, and nothing proves that these are all and unchanged: "
                f"there is no {manifest_path(self.target.text).name}"
            )
        return f"{self.target.text}: {frames}, complete and unchanged"


def verify(text: str | os.PathLike[str], on_file: OnFile | None = None) -> Verification:
    """Read every pixel of a plate, a PNG sequence, a still or a movie, and compare its files with its manifest.

    text: the output's name as after `-o`, or its manifest's. Files that are wrong are findings. Raises ShotError for
    a name that is no picture's, where there is nothing at all, and for a manifest that is damaged or from the future.
    """
    text = os.fspath(text)
    if text.endswith(MANIFEST):
        manifest: Manifest | None = read_manifest(text)
        assert manifest is not None
        target = Target.parse(os.path.join(os.path.dirname(text), manifest.pattern), argument="")
    else:
        target = Target.parse(text, argument="")
        if target.kind not in PICTURES:
            allowed = ", ".join("." + kind for kind in PICTURES)
            raise ShotError(f"{text}: the suffix is '.{target.kind}'; allowed are {allowed} and {MANIFEST}")
        manifest = _manifest_of(target)
    return _Look(target, manifest, on_file or (lambda done, total: None)).result()


def _manifest_of(target: Target) -> Manifest | None:
    path = manifest_path(target.text)
    if not os.path.lexists(path):
        if not target.existing():
            raise ShotError(f"{target.text}: there is no such file; a plate, a still or a movie is allowed")
        return None
    manifest = read_manifest(path)
    if manifest.pattern != target.name:
        raise ShotError(f"{target.text}: {path.name} is of {manifest.pattern}; this name is allowed")
    return manifest


@dataclass(frozen=True)
class _Seen:
    """One file as it is. sha256: "" where it could not be opened; frames: read whole; reason: why not all were;
    is_slate: it is whole, and says that it is no frame.
    """

    path: Path
    number: int | None
    bytes: int = 0
    sha256: str = ""
    pixels: str = ""
    frames: int = 0
    reason: str = ""
    is_slate: bool = False


class _Look:
    def __init__(self, target: Target, manifest: Manifest | None, on_file: OnFile) -> None:
        self.target, self.manifest, self._on_file = target, manifest, on_file
        self.wanted = {file.name: file for file in manifest.files} if manifest else dict[str, File]()
        self.seen: dict[str, _Seen] = {}

    def result(self) -> Verification:
        there = [(None if self.target.padding is None else number, path) for number, path in self.target.existing()]
        with ThreadPoolExecutor(READERS, thread_name_prefix="rushes verify") as pool:
            for done, seen in enumerate(pool.map(self._see, there), 1):
                self.seen[seen.path.name] = seen
                self._on_file(done, len(there))
        findings = list(self._compared() if self.manifest else self._unproven())
        frames = sum(seen.frames for seen in self.seen.values() if not seen.is_slate)
        return Verification(self.target, self.manifest, frames, tuple(findings))

    def _see(self, file: tuple[int | None, Path]) -> _Seen:
        number, path = file
        try:
            size, digest = file_digest(path)
        except OSError as error:
            return _Seen(path, number, reason=f"it cannot be opened: {error.strerror}")
        if not size:
            return _Seen(path, number, 0, digest, reason="it is empty")
        pixels, frames = "", 0
        try:
            if self.target.kind in STILLS:
                from rushes.media.sequences import is_slate, read_stored

                pixels, frames = pixels_digest(read_stored(path)), 1
                if is_slate(path):
                    return _Seen(path, number, size, digest, pixels, frames, is_slate=True)
            else:
                from rushes.media.footage import count_decoded

                frames = count_decoded(path)
        except ShotError as error:
            # the sentence around it will name the file
            return _Seen(path, number, size, digest, reason=str(error).removeprefix(f"{path}: ").partition(";")[0])
        return _Seen(path, number, size, digest, pixels, frames)

    def _compared(self) -> Iterator[Finding]:
        assert self.manifest is not None
        elsewhere = self._elsewhere()
        for file in self.manifest.files:
            seen = self.seen.get(file.name)
            if seen is not None:
                yield from self._changed(file, seen)
            elif file.name in elsewhere:
                yield _finding(file, "renamed", f"has the name {elsewhere[file.name]} now")
            else:
                yield _finding(file, "missing", "is missing")
        for name, seen in self.seen.items():
            if name not in self.wanted and name not in elsewhere.values():
                extra = File(seen.number, name, seen.bytes, seen.sha256)
                yield _finding(extra, "extra", "is not in the manifest")

    def _changed(self, file: File, seen: _Seen) -> Iterator[Finding]:
        assert self.manifest is not None
        if seen.reason and not seen.sha256:
            yield _finding(file, "unreadable", f"is damaged: {seen.reason}")
        elif not seen.bytes:
            yield _finding(file, "empty", "is empty")
        elif seen.reason and seen.bytes < file.bytes:
            yield _finding(file, "truncated", f"is cut off: {seen.bytes} of {file.bytes} bytes are there")
        elif seen.reason:
            yield _finding(file, "unreadable", f"is damaged: {seen.reason}")
        elif seen.sha256 != file.sha256:
            yield _finding(file, "altered", self._how_altered(file, seen))
        elif file.pixels is not None and seen.pixels != file.pixels:
            yield _finding(file, "altered", "gives other pixels than were written, though the file is unchanged")
        elif self.target.padding is None and seen.frames != self.manifest.frames:
            yield _finding(file, "truncated", f"gives {seen.frames} of {self.manifest.frames} frames")

    def _how_altered(self, file: File, seen: _Seen) -> str:
        other = next((one for one in self.wanted.values() if one.sha256 == seen.sha256), None)
        if other is not None:
            return f"was replaced by frame {other.number} ({other.name})"
        if file.pixels is None:
            return "was changed since it was written"
        if seen.pixels == file.pixels:
            return "was changed since it was written; its pixels are the same"
        return "was changed since it was written, and so were its pixels"

    def _elsewhere(self) -> dict[str, str]:
        """Missing files whose bytes lie beside them under a name that is nobody's, and that name."""
        missing = {file.sha256: file for file in self.wanted.values() if file.name not in self.seen}
        sizes = {file.bytes for file in missing.values()}
        found: dict[str, str] = {}
        if not missing:
            return found
        for entry in sorted(os.scandir(self.target.folder), key=lambda entry: entry.name):
            if entry.name in self.wanted or not entry.is_file() or entry.stat().st_size not in sizes:
                continue
            with suppress(OSError):  # what cannot be read is not the missing frame
                file = missing.pop(file_digest(Path(entry.path))[1], None)
                if file is not None:
                    found[file.name] = entry.name
        return found

    def _unproven(self) -> Iterator[Finding]:
        """Without a manifest: what cannot be read, gaps, and fewer frames than the record tells of."""
        before: int | None = None
        for seen in self.seen.values():
            if before is not None and seen.number is not None:
                for number in range(before + 1, seen.number):
                    yield _finding(File(number, self.target.file_name(number), 0, ""), "missing", "is missing")
            before = seen.number
            if seen.reason:
                problem: Problem = "unreadable" if seen.bytes or not seen.sha256 else "empty"
                yield _finding(
                    File(seen.number, seen.path.name, 0, ""),
                    problem,
                    "is empty" if problem == "empty" else f"is damaged: {seen.reason}",
                )
        wanted = self._frames_of_record()
        numbers = [seen.number for seen in self.seen.values() if seen.number is not None and not seen.is_slate]
        if wanted is not None and numbers:
            there = numbers[-1] - numbers[0] + 1  # gaps are told already
            if there < wanted:
                name = self.target.name
                sentence = f"{name}: its files tell of {wanted} frames, and {there} are there"
                yield Finding(None, name, "missing", sentence)

    def _frames_of_record(self) -> int | None:
        for seen in self.seen.values():
            if not seen.reason:
                with suppress(ShotError):  # somebody else's file tells nothing
                    return Shot.from_dict(read_record(seen.path)["shot"]).frames
                return None
        return None


def _finding(file: File, problem: Problem, what: str) -> Finding:
    whose = file.name if file.number is None else f"frame {file.number} ({file.name})"
    return Finding(file.number, file.name, problem, f"{whose} {what}")
