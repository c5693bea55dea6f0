# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Publication: what the plug-ins of one plate hand on to each other. It is `instance.data["rushes"]`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from rushes.hashing import file_digest
from rushes.media.manifest import Manifest
from rushes.media.paths import Target
from rushes.publish.review import Review
from rushes.publish.settings import Settings
from rushes.publish.subject import Content, Subject
from rushes.publish.version import Version, reserve
from rushes.shot import ShotError

OnStep = Callable[[int, int], object]  # done, and of how many
KEY = "rushes"  # in an instance's data
FAMILY = "rushes.plate"
MANIFEST = "publish.json"


@dataclass(frozen=True)
class Facts:
    """What the files say of themselves. frames: without a slate; first: number of the first of them, None where it has
    none; size: (width, height) of what is seen; fps: None where they do not tell; colorspace: the configuration's name;
    timecode: of the first frame, None where it is its number counted from 0.
    """

    frames: int
    first: int | None
    size: tuple[int, int]
    fps: Fraction | None
    colorspace: str
    timecode: str | None


@dataclass
class Publication:
    """subject, settings, root, asked: what is wanted; asked is a version's number, None for the next.

    The validators fill in manifest, facts, review and source_type, the extractors version and files.
    files: name in the version's folder -> SHA-256.
    """

    subject: Subject
    settings: Settings
    root: Path
    asked: int | None = None
    manifest: Manifest | None = None
    facts: Facts | None = None
    review: Review | None = None
    source_type: str = ""
    version: Version | None = None
    files: dict[str, str] = field(default_factory=dict)
    published: Path | None = None

    @property
    def record(self) -> Mapping[str, Any]:
        """The record in the plate's files."""
        return self.subject.record

    @property
    def stem(self) -> str:
        """How the version's files begin, such as sh010_v003, so that hosts step through versions of them."""
        return f"{self.subject.name}_v{self.settings.version_text(self.reserved.number)}"

    @property
    def reserved(self) -> Version:
        """The version that is being made. Raises ShotError where none is."""
        if self.version is None or not self.version.is_open:
            raise ShotError("version: none is being made; the plate's own extractor comes first")
        return self.version

    @property
    def plate(self) -> Target:
        """The published plate, under its final name."""
        source = self.subject.plate
        number = "" if source.padding is None else f".%0{source.padding}d"
        return Target.parse(self.reserved.final / f"{self.stem}{number}.{source.kind}", argument="")

    @property
    def building(self) -> Path:
        """Where the version's files are written."""
        return self.reserved.building

    def known(self, name: str) -> Any:
        """What an earlier validator found. Raises ShotError where it could not."""
        value = getattr(self, name)
        if value is None:
            raise ShotError(f"{name}: not known, because an earlier check of the plate has failed")
        return value

    @property
    def content(self) -> Content:
        """Every file with its hash, as it was checked. Raises ShotError where it could not be."""
        return Content(self.known("manifest").files)

    def frames(self) -> list[tuple[int | None, Path]]:
        """Number and path of each frame, the slate left out."""
        manifest, folder = self.known("manifest"), self.subject.plate.folder
        return [
            (file.number, folder / file.name)
            for file in manifest.files
            if manifest.slate is None or file.number != manifest.slate
        ]

    def reserve(self) -> None:
        """A number and a folder. Raises ShotError."""
        if self.version is None or not self.version.is_open:
            subject = self.subject
            self.files, self.published = {}, None  # of an attempt before, in the same context
            self.version = reserve(self.settings, self.root, subject.shot, subject.name, self.asked)

    def copy_plate(self, on_step: OnStep) -> None:
        """The files as they were checked, byte by byte: one that has changed meanwhile is refused."""
        plate, content = self.plate, self.content
        for done, file in enumerate(content.files):
            on_step(done, len(content.files))
            name = plate.file_name(file.number or 0)
            copy = self.building / name
            shutil.copyfile(self.subject.plate.folder / file.name, copy)
            if file_digest(copy) != (file.bytes, file.sha256):
                raise ShotError(f"{file.name}: it has changed since it was checked; publish again")
            self.files[name] = file.sha256

    def add(self, name: str) -> Path:
        """Note a file that was written into `building`. Returns its path. Raises OSError."""
        path = self.building / name
        self.files[name] = file_digest(path)[1]
        return path

    def discard(self) -> None:
        """Leave nothing behind that was not published."""
        if self.version is not None and self.published is None:
            self.version.discard()


def publication_of(instance: Any) -> Publication:
    """Of a pyblish instance. Raises ShotError for one that Rushes' collector has not seen."""
    found = instance.data.get(KEY)
    if not isinstance(found, Publication):
        raise ShotError(f"{instance}: got no plate; an instance that CollectRushesPlates has completed is allowed")
    return found
