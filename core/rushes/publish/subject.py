# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Subject: what is reviewed and published, a plate by its pattern or what a job has made, and what lies on the disk."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rushes.hashing import file_digest
from rushes.jobs.folder import REVIEWS, Job, JobError, find_job, jobs_home
from rushes.media.manifest import File, manifest_path
from rushes.media.paths import STILLS, Target
from rushes.media.versions import without_version
from rushes.shot import ShotError

FRAMES = "%04d.png"  # a job's own frames, where it has written no plate
_MANIFEST_END, _REVIEW_END = ".manifest.json", ".review.json"
_NAME = re.compile(r"\w[\w.-]*")
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Content:
    """Every file of a plate as it is now, with its hash."""

    files: tuple[File, ...]

    @property
    def digest(self) -> str:
        """One SHA-256 of all numbers and hashes: what a review holds for."""
        lines = "".join(f"{file.number} {file.sha256}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Subject:
    """text: as it was asked for; plate: its files; job: what made it, where it was asked for by its job; shot, name: of
    the published version, one folder's name each.
    """

    text: str
    plate: Target
    job: Job | None
    shot: str
    name: str

    @property
    def pattern(self) -> str:
        """The plate's absolute name, with %04d where it is a sequence."""
        return str(self.plate.folder / self.plate.name)

    @property
    def review_path(self) -> Path:
        """In a job's folder, or beside the plate."""
        if self.job is not None:
            return self.job.path / REVIEWS
        path = manifest_path(self.pattern)
        return path.with_name(path.name.removesuffix(_MANIFEST_END) + _REVIEW_END)

    def files(self) -> list[tuple[int, Path]]:
        """Number and path of each file now on the disk; a single file has the number 0. Raises ShotError for none."""
        there = self.plate.existing()
        if not there:
            raise ShotError(f"{self.text}: {self.pattern} stands for no file; an existing plate is allowed")
        for _, path in there:
            if not path.is_file():
                raise ShotError(f"{self.text}: {path} is not a file; frames that are files are allowed")
        return there

    def content(self) -> Content:
        """Reads every byte. Raises ShotError."""
        files = []
        for number, path in self.files():
            try:
                size, digest = file_digest(path)
            except OSError as error:
                reason = error.strerror or error
                raise ShotError(f"{self.text}: {path} cannot be read ({reason}); a readable file is allowed") from error
            files.append(File(None if self.plate.padding is None else number, path.name, size, digest))
        return Content(tuple(files))

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The record in the first file. Raises ShotError."""
        from rushes.media.record import read_record

        return read_record(self.files()[0][1])


def find_subject(text: str, home: Path | None = None, shot: str | None = None, name: str | None = None) -> Subject:
    """What a JOB (its id, a clear beginning of that, or its folder) or a PATTERN (or one file) stands for.

    home: where jobs are, None for the user's; shot, name: None goes by the file's name, the shot's
    up to its first underscore. Raises ShotError for what is missing, and for a job that has not made its frames.
    """
    kind = os.path.splitext(text)[1][1:].lower()
    if kind and not os.path.isdir(text):  # a job's id has no dot
        if kind not in STILLS:
            raise ShotError(f"{text}: the suffix is '.{kind}'; a plate (.exr or .png) or a job is allowed")
        job, plate = None, _plate(text)
    else:
        job = find_job(home or jobs_home(), text)
        plate = _made_by(job)
    bare = job.id if job is not None and plate.folder == job.frames_folder else _bare_name(plate)
    name = _checked("name", name) if name is not None else bare
    return Subject(text, plate, job, _checked("shot", shot) if shot is not None else name.partition("_")[0], name)


def _plate(text: str) -> Target:
    if os.path.isfile(text):  # before patterns: a file may really be called take#2.png
        path = Path(os.path.abspath(text))
        return Target(text, path.suffix[1:].lower(), path.parent, path.name, "", None)
    return Target.parse(text, argument="")


def _made_by(job: Job) -> Target:
    request, state = job.request(), job.state()
    if state != "done":
        raise JobError(f"job: {job.id} is {state}; one that is done is allowed")
    names = (job.ending() or {}).get("patterns") or request["outputs"]  # with the version that a plate was given
    plates = [output for output in names if output.lower().endswith(".exr")]
    if len(plates) > 1:
        raise JobError(f"job: {job.id} has made {len(plates)} plates; the pattern of one of them is allowed")
    return Target.parse(plates[0] if plates else job.frames_folder / FRAMES, argument="")


def _bare_name(plate: Target) -> str:
    """The file's name without version, frame number and suffix, as a folder may be called."""
    stem = plate.prefix if plate.padding is not None else os.path.splitext(plate.prefix)[0]
    name = _NOT_IN_NAMES.sub("_", without_version(stem)).strip("._-")
    return name or "plate"


def _checked(argument: str, text: str) -> str:
    if not isinstance(text, str) or not _NAME.fullmatch(text) or len(text) > 100 or text.endswith("."):
        raise ShotError(
            f"{argument}: got {text!r}; letters, digits, '.', '_' and '-', up to 100, begun by no mark, are allowed"
        )
    return text
