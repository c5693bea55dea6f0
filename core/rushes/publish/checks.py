# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What is checked before a plate is published. Each check raises ShotError with one sentence, or leaves a finding."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rushes.media.color import Space, find_gamut, find_space
from rushes.media.manifest import Manifest, manifest_path, record_digest
from rushes.media.plates import SLATE, read_header, read_tag
from rushes.media.reader import read_frames
from rushes.media.record import read_record, source_type
from rushes.media.timecodes import format_timecode, frame_of_timecode, nominal_rate
from rushes.media.verification import OnFile, verify
from rushes.publish.publication import Facts, Publication
from rushes.publish.review import last_review, read_reviews
from rushes.publish.subject import Subject
from rushes.shot import Shot, ShotError


class NoManifest(ShotError):
    """Nothing tells that a plate is complete and unchanged; `write_manifest` may be asked for one."""

    repair = "WriteRushesManifest"  # the action that does; reports offer what an error names


def check_frames(subject: Subject, on_file: OnFile | None = None) -> Manifest:
    """Every pixel is read, and every file is what its manifest says. Returns what is there. Raises ShotError.

    A plate without a manifest is refused, for nothing tells that its files are all and unchanged; a job's own frames
    have none, and are as many as its shot.
    """
    subject.files()
    verification = verify(subject.pattern, on_file)
    if verification.findings:
        more = f", and {len(verification.findings) - 1} more" if len(verification.findings) > 1 else ""
        raise ShotError(
            f"{subject.text}: {verification.findings[0].sentence}{more}; a whole, unchanged plate is allowed"
        )
    if verification.manifest is not None:
        return verification.manifest
    if subject.job is None or subject.plate.folder != subject.job.frames_folder:
        raise NoManifest(f"{verification.sentence}; a plate with its manifest is allowed")
    return measured(subject)


def measured(subject: Subject) -> Manifest:
    """What the manifest of the files would be, as they are now. Raises ShotError."""
    facts, files = read_facts(subject), subject.content().files
    header = read_header(subject.files()[0][1])
    slate = files[0].number if len(files) > 1 and header.getattribute(SLATE) else None
    handles, transform = header.getattribute("rushes/handles"), header.getattribute("rushes/transform")
    return Manifest(
        subject.plate.name, facts.frames, (header.width, header.height), facts.fps, facts.colorspace,
        record_digest(subject.record), files, str(transform or ""), handles if isinstance(handles, int) else 0, slate,
    )  # fmt: skip


def write_manifest(subject: Subject) -> Path:
    """For a plate that has none: what its files are now. It proves nothing of the time before. Raises ShotError.

    Refused where a file does not read, one is missing, the record is another's, or there is a manifest already.
    """
    path = manifest_path(subject.pattern)
    try:
        check_frames(subject)
    except NoManifest:
        try:
            measured(subject).write(path)
        except OSError as error:
            raise ShotError(
                f"{path}: it cannot be written ({error.strerror or error}); a writable folder is allowed"
            ) from error
        return path
    raise ShotError(f"{subject.text}: it needs no manifest written; a plate without one is allowed")


def read_facts(subject: Subject) -> Facts:
    """By the first file's header. Raises ShotError."""
    with read_frames(subject.pattern) as reader:
        first = reader.start_frame if subject.plate.padding is not None else None
        facts = Facts(reader.frames, first, reader.size, reader.fps, reader.colorspace, None)
    number = first or 0
    packed = read_tag(subject.plate.folder / subject.plate.file_name(number), "smpte:TimeCode")
    if facts.fps is None or nominal_rate(facts.fps) is None or not isinstance(packed, tuple):
        return facts
    count = frame_of_timecode(packed[0], facts.fps)
    return facts if count == number else replace(facts, timecode=format_timecode(count, facts.fps))


def frames(publication: Publication, on_file: OnFile | None = None) -> None:
    """Every file is whole, and what was written."""
    subject = publication.subject
    try:
        publication.manifest = check_frames(subject, on_file)
    except ShotError:
        with suppress(ShotError):  # what can be known all the same, so that the other checks speak in the same report
            publication.manifest = measured(subject)
            publication.facts = read_facts(subject)
        raise
    publication.facts = read_facts(subject)


def frame_range(publication: Publication) -> None:
    """First number and length against the shot that made it, and the project's settings."""
    facts, settings = publication.known("facts"), publication.settings
    count, first = facts.frames, facts.first
    wanted = Shot.from_dict(publication.record["shot"]).frames
    if wanted is not None and count != wanted:
        raise ShotError(f"frames: the plate has {count}, its shot {wanted}; the whole shot is allowed")
    if settings.frames is not None and not settings.frames[0] <= count <= settings.frames[1]:
        raise ShotError(
            f"frames: the plate has {count}; the project allows {settings.frames[0]} to {settings.frames[1]}"
        )
    if settings.first_frame is not None and first not in (None, settings.first_frame):
        raise ShotError(f"first frame: the plate begins at {first}; the project allows {settings.first_frame}")


def rate(publication: Publication) -> None:
    """Frames a second, as the files say them."""
    facts, allowed = publication.known("facts"), publication.settings.fps
    wanted = Shot.from_dict(publication.record["shot"]).fps
    if facts.fps is None:
        raise ShotError("fps: the files do not tell it; files with a frame rate are allowed")
    if wanted is not None and facts.fps != wanted:
        raise ShotError(f"fps: the files say {facts.fps}, their shot {wanted}; one and the same rate is allowed")
    if allowed and facts.fps not in allowed:
        raise ShotError(f"fps: the plate has {facts.fps}; the project allows {', '.join(map(str, allowed))}")


def size(publication: Publication) -> None:
    """Width and height."""
    facts, stored = publication.known("facts"), publication.known("manifest").size
    settings, (width, height) = publication.settings, facts.size
    wanted = Shot.from_dict(publication.record["shot"]).size
    if wanted is not None and stored != wanted:
        raise ShotError(
            f"size: the plate is {stored[0]}x{stored[1]}, its shot {wanted[0]}x{wanted[1]}; the same is allowed"
        )
    if settings.sizes and facts.size not in settings.sizes:
        allowed = ", ".join(f"{one[0]}x{one[1]}" for one in settings.sizes)
        raise ShotError(f"size: the plate is {width}x{height}; the project allows {allowed}")
    if settings.proxy_suffix == "mp4" and (width % 2 or height % 2):
        raise ShotError(
            f"size: the plate is {width}x{height}, and an H.264 proxy needs an even width and height; "
            'proxy = "prores-422hq" in the settings is allowed'
        )


def colour(publication: Publication) -> None:
    """What the files' tags say of their colours, all the same."""
    facts, allowed = publication.known("facts"), publication.settings.colorspaces
    for _, path in publication.subject.files():
        with read_frames(path) as reader:  # only the header
            found = reader.colorspace
        if found != facts.colorspace:
            raise ShotError(
                f"colorspace: {path.name} is tagged {found}, the first frame {facts.colorspace}; "
                "one and the same is allowed"
            )
        _check_primaries(path, find_space(found))
    if allowed and facts.colorspace not in allowed:
        raise ShotError(f"colorspace: the files are tagged {facts.colorspace}; the project allows {', '.join(allowed)}")


def _check_primaries(path: Path, space: Space) -> None:
    """The tags of one file agree: hosts differ in which of them they read."""
    primaries = read_tag(path, "chromaticities")
    if primaries is None or space.chromaticities is None:
        return
    gamut = find_gamut(primaries)
    if gamut is None or gamut.chromaticities != space.chromaticities:
        raise ShotError(
            f"colorspace: {path.name} is tagged {space.name}, and its primaries are "
            f"{'none that Rushes knows' if gamut is None else f'those of {gamut.name}'}; tags that agree are allowed"
        )


def provenance(publication: Publication) -> None:
    """Every file says what made it, and all say the same."""
    record = publication.record
    for _, path in publication.subject.files():
        if read_record(path) != record:
            raise ShotError(
                f"{path.name}: it carries another record than the first frame; one plate's frames are allowed"
            )
    publication.source_type = source_type(record, publication.subject.text)


def review(publication: Publication) -> None:
    """Somebody has looked at exactly these files, and their last word is that they are approved."""
    subject, content = publication.subject, publication.content
    command = f"`rushes review {subject.text} --by NAME --verdict approved`"
    history = read_reviews(subject.review_path)
    found = last_review(history, content)
    publication.review = found
    if found is not None and found.verdict == "rejected":
        raise ShotError(f"review: {found}; a plate that was approved is allowed")
    if found is not None or not publication.settings.is_review_required:
        return
    if history:
        raise ShotError(f"review: the files have changed since it was {history[-1]}; look again, then {command}")
    raise ShotError(f"review: nobody has looked at it yet; look at it, then {command}")
