# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Timelines: one clip in OpenTimelineIO that refers to the plates and movies written beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from rushes.media.format import OutputFormat
from rushes.media.paths import Target
from rushes.media.reader import read_frames
from rushes.media.record import to_text, unreadable
from rushes.media.sink import printable
from rushes.media.timecodes import parse_timecode
from rushes.media.versions import versions_of
from rushes.shot import Shot, ShotError

RECORD = "rushes"  # key in the timeline's metadata
_BEST_FIRST = ("exr", "mov", "png", "mp4")  # which picture a host shows when several are written


def write_timeline(
    path: Path,
    pictures: Sequence[Target],
    record: Mapping[str, Any],
    fps: Fraction,
    frames: int,
    form: OutputFormat,
) -> None:
    """Write a timeline of one clip, with one media reference for each picture output (key: its file name).

    pictures: at least one; fps: exact, which OpenTimelineIO keeps as a float; frames: length of the clip. Versions of
    these pictures that are on disk are references too, and of those written now the best is the active one. What is
    available is the whole clip with its handles; with handles the clip has a source range, the cut without them. Times
    are frame numbers or, with a time code, its count; a movie without one begins at 0. The record is kept in the
    timeline's metadata. References are absolute file URLs, as OpenTimelineIO asks for local media.
    """
    import opentimelineio as otio

    if not pictures:
        raise ShotError(f"{path.name}: a timeline refers to pictures and none are written beside it")
    rate = float(fps)
    ranked = sorted(pictures, key=lambda target: _BEST_FIRST.index(target.kind))
    name = path.stem
    clip = otio.schema.Clip(name=name)
    # what a clip's time starts with, in the count of its time code or of its frame numbers
    begin = form.start_frame if form.timecode is None else parse_timecode(form.timecode, fps)
    references = {
        _key(version, target): _reference(version, rate, *span, begin - form.start_frame)
        for target in ranked
        for version in map(Target.parse, versions_of(target.folder / target.name))
        if (span := _span(version)) is not None
    }
    for target in ranked:
        start = form.start_frame if target.padding is not None or form.timecode is not None else None
        references[target.name] = _reference(target, rate, start, frames, begin - form.start_frame)
    clip.set_media_references(references, ranked[0].name)
    if form.handles:
        cut = clip.available_range().start_time.value + form.handles, frames - 2 * form.handles
        clip.source_range = otio.opentime.TimeRange(*(otio.opentime.RationalTime(value, rate) for value in cut))
    # As text, like everywhere else: what OpenTimelineIO keeps of a JSON object is not all of it.
    shot = Shot.from_dict(record["shot"])
    metadata = {"record": to_text(record), "prompt": printable(shot.prompt), "seed": shot.seed}
    track = otio.schema.Track(name="V1", kind=otio.schema.TrackKind.Video)
    track.append(clip)
    timeline = otio.schema.Timeline(name=name, metadata={RECORD: metadata})
    timeline.tracks.append(track)
    otio.adapters.write_to_file(timeline, str(path), adapter_name="otio_json")


def _key(version: Target, target: Target) -> str:
    """How a version is called among the media; one whose folder alone has the number, by that too."""
    return version.name if version.name != target.name else f"{version.folder.name}/{version.name}"


def _span(target: Target) -> tuple[int | None, int] | None:
    """First frame number, if it has one, and count of frames of a version on disk; None where they cannot be told."""
    try:
        with read_frames(target.folder / target.name) as reader:
            return reader.start_frame, reader.frames
    except ShotError:  # damaged, with a gap, or of colours that nobody tells: no medium to offer
        return None


def _reference(target: Target, rate: float, start: int | None, frames: int, shift: int) -> Any:
    """start: number of the first frame, None where the file has no numbers; shift: from a number to its time."""
    import opentimelineio as otio

    def span(first: int) -> Any:
        return otio.opentime.TimeRange(
            otio.opentime.RationalTime(first, rate), otio.opentime.RationalTime(frames, rate)
        )

    if target.padding is None:
        url = (target.folder / target.name).as_uri()
        available = span(0 if start is None else start + shift)
        return otio.schema.ExternalReference(target_url=url, available_range=available)
    start = start or 0
    return otio.schema.ImageSequenceReference(
        target_url_base=target.folder.as_uri() + "/",
        name_prefix=target.prefix,
        name_suffix=target.suffix,
        start_frame=start,
        frame_step=1,
        rate=rate,
        frame_zero_padding=target.padding,
        missing_frame_policy=otio.schema.ImageSequenceReference.MissingFramePolicy.error,
        available_range=span(start + shift),
    )


def read_text(path: Path) -> str | None:
    """The record text in a timeline, None when it has none. Raises ShotError when the file is damaged."""
    try:
        timeline = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise unreadable(path, "a timeline", error) from error
    found = timeline
    for key in ("metadata", RECORD, "record"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None
