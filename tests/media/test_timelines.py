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


def test_every_version_on_disk_is_a_reference(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Those before and after, as long as they are; the one that was just written is the active one."""
    for version, frames, suffix in (("v001", 3, "%04d.exr"), ("v004", 5, "%04d.exr"), ("v001", 3, "mov")):
        with open_outputs([tmp_path / f"sh010_{version}.{suffix}"], make_record(frames), slate="exr" in suffix) as one:
            one.write(make_frames(frames))
    (tmp_path / "sh010_v002.1001.exr").write_bytes(b"no picture")
    (tmp_path / "other_v001.1001.exr").write_bytes(b"another shot")
    names = [f"sh010_v003.{suffix}" for suffix in ("%04d.exr", "mov", "otio")]
    with open_outputs([tmp_path / name for name in names], make_record(7), handles=2) as outputs:
        outputs.write(make_frames(7))
    (clip,) = otio.adapters.read_from_file(str(tmp_path / "sh010_v003.otio")).find_clips()
    assert clip.active_media_reference_key == "sh010_v003.%04d.exr"
    spans = {
        key: (int(reference.available_range.start_time.value), int(reference.available_range.duration.value))
        for key, reference in clip.media_references().items()
    }
    assert spans == {
        "sh010_v001.%04d.exr": (1001, 3), "sh010_v003.%04d.exr": (1001, 7), "sh010_v004.%04d.exr": (1001, 5),
        "sh010_v001.mov": (0, 3), "sh010_v003.mov": (0, 7),
    }  # fmt: skip
    older = clip.media_references()["sh010_v001.%04d.exr"]
    assert local(older.target_url_for_image_number(0)) == tmp_path / "sh010_v001.1001.exr"  # not its slate
    rate = 24000 / 1001
    assert clip.source_range == otio.opentime.TimeRange(
        otio.opentime.RationalTime(1003, rate), otio.opentime.RationalTime(3, rate)
    )
    assert clip.available_range().duration.value == 7


def test_a_time_code_is_what_a_timeline_counts_in(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Of plate and movie alike, and of the cut between the handles."""
    paths = [tmp_path / name for name in ("a_v001.mov", "a_v001.%04d.exr", "a_v001.otio")]
    with open_outputs(paths, make_record(5, size=(16, 16), fps="25"), handles=1, timecode="10:00:00:00") as outputs:
        outputs.write(make_frames(5, size=(16, 16)))
    (clip,) = otio.adapters.read_from_file(str(paths[2])).find_clips()
    assert {r.available_range.start_time.value for r in clip.media_references().values()} == {900_000}
    assert (clip.source_range.start_time.value, clip.source_range.duration.value) == (900_001, 3)
    assert clip.media_reference.start_frame == 1001


def test_versions_by_folder_are_told_apart(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """v001/plate and v002/plate have one file name, and two keys."""
    with open_outputs([tmp_path / "v001" / "p.%04d.exr"], make_record(2)) as outputs:
        outputs.write(make_frames(2))
    with open_outputs([tmp_path / "v002" / "p.%04d.exr", tmp_path / "v002" / "p.otio"], make_record(2)) as outputs:
        outputs.write(make_frames(2))
    (clip,) = otio.adapters.read_from_file(str(tmp_path / "v002" / "p.otio")).find_clips()
    assert set(clip.media_references()) == {"v001/p.%04d.exr", "p.%04d.exr"}
    folders = {local(reference.target_url_base) for reference in clip.media_references().values()}
    assert folders == {tmp_path / "v001", tmp_path / "v002"}
