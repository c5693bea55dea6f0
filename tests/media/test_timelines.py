# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Timelines reopened with OpenTimelineIO: what they refer to is really there."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import opentimelineio as otio

from rushes.media import open_outputs


def local(url: str) -> Path:
    assert url.startswith("file:///") and url.isascii()
    return Path(unquote(urlparse(url).path))


def test_a_timeline_refers_to_every_picture_beside_it(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """One clip, the plate first; each reference gives files that exist, with the exact range and rate."""
    folder = tmp_path / "höher & weiter"  # a folder's name is part of a URL
    names = ["a.mp4", "shot.otio", "sh010 comp.####.exr", "a.mov"]
    with open_outputs([folder / name for name in names], make_record(3), start_frame=996) as outputs:
        outputs.write(make_frames(3))
    timeline = otio.adapters.read_from_file(str(folder / "shot.otio"))
    assert timeline.name == "shot"
    (clip,) = timeline.find_clips()
    rate = 24000 / 1001
    references = clip.media_references()
    assert set(references) == {"sh010 comp.%04d.exr", "a.mov", "a.mp4"}
    assert clip.active_media_reference_key == "sh010 comp.%04d.exr"
    assert clip.duration() == otio.opentime.RationalTime(3, rate)
    plate = clip.media_reference
    assert isinstance(plate, otio.schema.ImageSequenceReference)
    assert (plate.start_frame, plate.frame_zero_padding, plate.frame_step, plate.rate) == (996, 4, 1, rate)
    assert plate.available_range.start_time == otio.opentime.RationalTime(996, rate)
    assert plate.number_of_images_in_sequence() == 3
    files = [local(plate.target_url_for_image_number(n)) for n in range(3)]
    assert files == [folder / f"sh010 comp.{n:04d}.exr" for n in (996, 997, 998)]
    assert all(file.is_file() for file in files)
    for name in ("a.mov", "a.mp4"):
        assert local(references[name].target_url) == folder / name
        assert references[name].available_range.duration == otio.opentime.RationalTime(3, rate)


def test_a_single_still_is_referred_to_as_a_file(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """No sequence is invented for a name without a frame number."""
    with open_outputs([tmp_path / "a.png", tmp_path / "a.otio"], make_record(1)) as outputs:
        outputs.write(make_frames(1))
    (clip,) = otio.adapters.read_from_file(str(tmp_path / "a.otio")).find_clips()
    assert local(clip.media_reference.target_url) == tmp_path / "a.png"
