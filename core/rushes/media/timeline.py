# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Timelines: one clip in OpenTimelineIO that refers to the plates and movies written beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from rushes.media.paths import Target
from rushes.media.record import to_text, unreadable
from rushes.media.sink import printable
from rushes.shot import Shot, ShotError

RECORD = "rushes"  # key in the timeline's metadata
_BEST_FIRST = ("exr", "mov", "png", "mp4")  # which picture a host shows when several are written


def write_timeline(
    path: Path,
    pictures: Sequence[Target],
    record: Mapping[str, Any],
    fps: Fraction,
    frames: int,
    start_frame: int,
) -> None:
    """Write a timeline of one clip, with one media reference for each picture output (key: its file name).

    pictures: at least one; fps: exact, which OpenTimelineIO keeps as a float; frames: length of the clip;
    start_frame: number of the first file of a sequence. The record is kept in the timeline's metadata.
    References are absolute file URLs, as OpenTimelineIO asks for local media.
    """
    import opentimelineio as otio

    if not pictures:
        raise ShotError(f"{path.name}: a timeline refers to pictures and none are written beside it")
    rate = float(fps)
    ranked = sorted(pictures, key=lambda target: _BEST_FIRST.index(target.kind))
    name = path.stem
    clip = otio.schema.Clip(name=name)
    references = {target.name: _reference(target, rate, frames, start_frame) for target in ranked}
    clip.set_media_references(references, ranked[0].name)
    # As text, like everywhere else: what OpenTimelineIO keeps of a JSON object is not all of it.
    shot = Shot.from_dict(record["shot"])
    metadata = {"record": to_text(record), "prompt": printable(shot.prompt), "seed": shot.seed}
    track = otio.schema.Track(name="V1", kind=otio.schema.TrackKind.Video)
    track.append(clip)
    timeline = otio.schema.Timeline(name=name, metadata={RECORD: metadata})
    timeline.tracks.append(track)
    otio.adapters.write_to_file(timeline, str(path), adapter_name="otio_json")


def _reference(target: Target, rate: float, frames: int, start_frame: int) -> Any:
    import opentimelineio as otio

    def span(first: int) -> Any:
        return otio.opentime.TimeRange(
            otio.opentime.RationalTime(first, rate), otio.opentime.RationalTime(frames, rate)
        )

    if target.padding is None:
        url = (target.folder / target.name).as_uri()
        return otio.schema.ExternalReference(target_url=url, available_range=span(0))
    return otio.schema.ImageSequenceReference(
        target_url_base=target.folder.as_uri() + "/",
        name_prefix=target.prefix,
        name_suffix=target.suffix,
        start_frame=start_frame,
        frame_step=1,
        rate=rate,
        frame_zero_padding=target.padding,
        missing_frame_policy=otio.schema.ImageSequenceReference.MissingFramePolicy.error,
        available_range=span(start_frame),
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
