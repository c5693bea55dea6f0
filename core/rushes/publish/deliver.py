# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What goes into a version's folder: the plate's files, a proxy, pictures, a timeline, and the list of them all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rushes
from rushes.jobs.folder import write_json
from rushes.media.format import OutputFormat
from rushes.media.manifest import manifest_path
from rushes.media.outputs import open_outputs
from rushes.media.paths import Target
from rushes.media.reader import read_frames
from rushes.media.record import MADE_FROM, NO_SHOT
from rushes.media.timeline import write_timeline
from rushes.publish.pictures import Caption, contact_sheet, evenly, read_frame, scaled, write_png
from rushes.publish.publication import MANIFEST, OnStep, Publication
from rushes.shot import Shot, ShotError

VERSION = 1


def plate(publication: Publication, on_step: OnStep) -> None:
    """Reserve the version, and copy the plate's files into it with a manifest of their own."""
    publication.reserve()
    publication.copy_plate(on_step)
    target = publication.plate
    name = manifest_path(target.folder / target.name).name
    publication.known("manifest").renamed(target).write(publication.building / name)
    publication.add(name)


def proxy(publication: Publication, on_step: OnStep) -> None:
    """A movie of all frames, where the settings want one."""
    suffix = publication.settings.proxy_suffix
    if not suffix:
        return
    name = f"{publication.stem}.{suffix}"
    facts = publication.known("facts")
    done = 0
    with (
        read_frames(publication.subject.pattern) as reader,
        open_outputs(
            [publication.building / name],
            _record_of_what_is_seen(publication),
            codec=publication.settings.proxy,
            timecode=facts.timecode,
        ) as outputs,
    ):
        for frames in reader:
            outputs.write(frames.clip(0.0, 1.0))
            done += len(frames)
            on_step(done, facts.frames)
    publication.add(name)


def _record_of_what_is_seen(publication: Publication) -> Mapping[str, Any]:
    """The plate's own, but where an overscan is left out: such pictures are made from the shot's, and not they."""
    record, size = publication.record, publication.known("facts").size
    shot = Shot.from_dict(record["shot"])
    if shot.size in (None, size):
        return record
    return {**record, "shot": shot.replace(size=size).to_dict(), NO_SHOT: True, MADE_FROM: dict(record)}


def thumbnail(publication: Publication) -> None:
    """The middle frame."""
    name = f"{publication.stem}_thumbnail.png"
    files = publication.frames()
    picture = scaled(read_frame(files[len(files) // 2][1]), publication.settings.thumbnail_width)
    write_png(publication.building / name, picture, publication.record)
    publication.add(name)


def sheet(publication: Publication) -> None:
    """A contact sheet, where the settings want one."""
    settings, files = publication.settings, publication.frames()
    if not settings.sheet_frames:
        return
    name = f"{publication.stem}_contact_sheet.png"
    chosen = [files[place] for place in evenly(len(files), settings.sheet_frames)]
    labelled = [(path.name if number is None else str(number), path) for number, path in chosen]
    picture = contact_sheet(labelled, _caption(publication), settings.sheet_width, settings.sheet_columns)
    write_png(publication.building / name, picture, publication.record)
    publication.add(name)


def _caption(publication: Publication) -> Caption:
    facts, files, manifest = publication.known("facts"), publication.frames(), publication.known("manifest")
    shot, model = Shot.from_dict(publication.record["shot"]), publication.record.get("model") or {}
    span = f", {files[0][0]} to {files[-1][0]}" if len(files) > 1 else ""
    fps = f" at {float(facts.fps):.6g} fps" if facts.fps else ""
    handles = f", handles of {manifest.handles}" if manifest.handles else ""
    made = f"{facts.size[0]}x{facts.size[1]}, {len(files)} frames{span}{handles}{fps}, {facts.colorspace}"
    review = publication.review
    lines = [shot.prompt, f"{made}, seed {shot.seed}, {model.get('name', shot.model)}"]
    if review is not None:
        lines.append(str(review))
    return Caption(publication.stem, tuple(lines))


def timeline(publication: Publication) -> None:
    """One clip that refers to the published plate and proxy, under their final names, and to earlier versions."""
    facts = publication.known("facts")
    if not publication.settings.has_timeline:
        return
    name, final = f"{publication.stem}.otio", publication.reserved.final
    pictures = [publication.plate]
    suffix = publication.settings.proxy_suffix
    if suffix and f"{publication.stem}.{suffix}" in publication.files:
        pictures.append(Target.parse(final / f"{publication.stem}.{suffix}"))
    if facts.fps is None:
        raise ShotError("fps: a timeline needs a frame rate, and the files do not tell one")
    form = OutputFormat(
        start_frame=facts.first or 0, handles=publication.known("manifest").handles, timecode=facts.timecode
    )
    write_timeline(publication.building / name, pictures, publication.record, facts.fps, facts.frames, form)
    publication.add(name)


def integrate(publication: Publication) -> Path:
    """List everything in the version's folder, look whether it is all there, and give the folder its name."""
    version = publication.reserved
    for name, digest in publication.files.items():
        if not (publication.building / name).is_file():
            raise ShotError(f"{name}: it is gone from {publication.building}; publish again")
        if len(digest) != 64:
            raise ShotError(f"{name}: it was not hashed; publish again")
    write_json(publication.building / MANIFEST, _listing(publication))
    publication.published = version.commit()
    return publication.published


def _listing(publication: Publication) -> dict[str, Any]:
    subject, review, content = publication.subject, publication.review, publication.content
    building, settings = publication.building, publication.settings
    return {
        "version": VERSION,
        "rushes": rushes.__version__,
        "published": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "shot": subject.shot,
        "name": subject.name,
        "number": publication.reserved.number,
        "plate": publication.plate.name,
        "source": subject.pattern,
        "job": subject.job.id if subject.job is not None else None,
        "content": content.digest,
        "review": None if review is None else vars(review),
        "digital_source_type": publication.source_type,
        "settings": None if settings.path is None else str(settings.path),
        "record": dict(publication.record),
        "files": {
            name: {"bytes": (building / name).stat().st_size, "sha256": digest}
            for name, digest in sorted(publication.files.items())
        },
    }
