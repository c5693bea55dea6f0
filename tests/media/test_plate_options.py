# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Range, time code, alpha, overscan and slate of a plate, and every refusal of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it
import pytest

from rushes.media import check_outputs, open_outputs, read_frames, read_manifest, read_record, verify
from rushes.media.sequences import read_stored
from rushes.shot import ShotError

PATTERN = "p_v001.%04d.exr"


def header(path: Path) -> Any:
    picture = oiio.ImageInput.open(str(path))
    assert picture is not None, oiio.geterror()
    spec = picture.spec()
    picture.close()
    return spec


def test_time_codes_count_from_the_one_that_is_given(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """In the plate frame by frame, over the full minute; the movie's first frame has the same."""
    paths = [tmp_path / PATTERN, tmp_path / "m.mov", tmp_path / "m.mp4"]
    record = make_record(3, size=(32, 16), fps="25")
    with open_outputs(paths, record, start_frame=7, timecode="01:02:59:23") as outputs:
        outputs.write(make_frames(3, size=(32, 16)))
    codes = [header(path).getattribute("smpte:TimeCode")[0] for path in outputs.paths[:3]]
    assert codes == [0x01025923, 0x01025924, 0x01030000]
    for path in paths[1:]:
        with read_frames(path) as reader:
            assert reader.start_frame == ((1 * 60 + 2) * 60 + 59) * 25 + 23


def test_handles_are_told_and_move_nothing(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """The first file keeps its number; header and manifest say how many frames are no part of the cut."""
    with open_outputs([tmp_path / PATTERN], make_record(7), handles=2) as outputs:
        outputs.write(make_frames(7))
    assert [path.name for path in outputs.paths] == [f"p_v001.{number}.exr" for number in range(1001, 1008)]
    assert {header(path).getattribute("rushes/handles") for path in outputs.paths} == {2}
    assert read_manifest(outputs.manifests[0]).handles == 2


@pytest.mark.parametrize("depth", ["half", "float"])
def test_solid_alpha_is_one_everywhere(tmp_path: Path, make_record: Any, make_frames: Any, depth: str) -> None:
    """A fourth channel called A; the colours are those of a plate without it."""
    frames, plates = make_frames(2), {}
    for alpha in (None, "none", "solid"):
        with open_outputs([tmp_path / str(alpha) / PATTERN], make_record(2), alpha=alpha, depth=depth) as outputs:
            outputs.write(frames)
        plates[alpha] = [read_stored(path)[0] for path in outputs.paths]
        spec = header(outputs.paths[0])
        assert spec.channelnames == (("R", "G", "B", "A") if alpha == "solid" else ("R", "G", "B"))
        assert spec.alpha_channel == (3 if alpha == "solid" else -1)
        assert verify(tmp_path / str(alpha) / PATTERN).ok
    for solid, plain, default in zip(plates["solid"], plates["none"], plates[None], strict=True):
        assert (solid[..., 3] == 1).all() and np.array_equal(solid[..., :3], plain)
        assert np.array_equal(plain, default)


def test_overscan_lies_around_the_display_window(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """All pixels are in the file; who follows the display window sees the middle."""
    frames = make_frames(1, size=(61, 37))
    with open_outputs([tmp_path / "p.exr"], make_record(1, size=(61, 37)), overscan=5) as outputs:
        outputs.write(frames)
    spec = header(outputs.paths[0])
    assert (spec.x, spec.y, spec.width, spec.height) == (-5, -5, 61, 37)
    assert (spec.full_x, spec.full_y, spec.full_width, spec.full_height) == (0, 0, 51, 27)
    with read_frames(outputs.paths[0]) as reader:
        assert reader.size == (51, 27)
        assert np.abs(next(iter(reader))[0] - frames[0, 5:-5, 5:-5]).max() < 0.02  # a step of half near black


def test_a_slate_is_a_file_before_the_first_and_no_frame(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Number 1000 of a plate from 1001; the frames are those of a plate without one, and so is what is read."""
    frames, size = make_frames(3, size=(320, 180)), (320, 180)
    for name, slate in (("with", True), ("without", False)):
        with open_outputs([tmp_path / name / PATTERN], make_record(3, size=size), slate=slate, handles=1) as outputs:
            outputs.write(frames)
    slate, *rest = sorted((tmp_path / "with").glob("*.exr"))
    assert slate.name == "p_v001.1000.exr" and [path.name for path in rest] == [path.name for path in outputs.paths]
    for ours, plain in zip(rest, outputs.paths, strict=True):
        assert ours.read_bytes() == plain.read_bytes()
    assert header(slate).getattribute("rushes/slate") == 1
    code = header(slate).getattribute("smpte:TimeCode")[0]
    assert code == 0x00004116  # one before frame 1001, 41 seconds and 17 frames
    with read_frames(tmp_path / "with" / PATTERN) as reader:
        assert (reader.frames, reader.start_frame) == (3, 1001)
        assert np.abs(np.concatenate(list(reader)) - frames).max() < 0.02
    manifest = read_manifest(tmp_path / "with" / "p_v001.exr.manifest.json")
    assert (manifest.slate, manifest.first, manifest.last, manifest.frames) == (1000, 1001, 1003, 3)
    found = verify(tmp_path / "with" / PATTERN)
    assert found.ok and found.frames == 3
    assert read_record(tmp_path / "with" / PATTERN) == make_record(3, size=size)
    (tmp_path / "with" / "p_v001.exr.manifest.json").rename(tmp_path / "kept")
    assert (verify(tmp_path / "with" / PATTERN).frames, verify(tmp_path / "with" / PATTERN).findings) == (3, ())
    rest[2].rename(tmp_path / "gone")
    assert [finding.problem for finding in verify(tmp_path / "with" / PATTERN).findings] == ["missing"]
    (tmp_path / "gone").rename(rest[2])
    (tmp_path / "kept").rename(tmp_path / "with" / "p_v001.exr.manifest.json")
    slate.unlink()
    assert [finding.number for finding in verify(tmp_path / "with" / PATTERN).findings] == [1000]


def test_a_slate_says_what_the_plate_is(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Letters are drawn, others for another shot, the same for the same; of any size, text or not."""
    seen: dict[str, np.ndarray] = {}
    for name, seed, prompt in (("a", 1, "a ball"), ("b", 1, "a ball"), ("c", 2, "a ball"), ("d", 1, "x " * 4000)):
        record = make_record(1, size=(640, 360), seed=seed, prompt=prompt)
        with open_outputs([tmp_path / name / PATTERN], record, slate=True) as outputs:
            outputs.write(make_frames(1, size=(640, 360)))
        seen[name] = read_stored(outputs.paths[0])[0].astype(np.float32)
    assert (seen["a"] > 0.5).mean() > 0.005  # ink
    assert np.array_equal(seen["a"], seen["b"]) and not np.array_equal(seen["a"], seen["c"])
    assert not np.array_equal(seen["a"], seen["d"])
    with open_outputs([tmp_path / "tiny.%04d.exr"], make_record(1, size=(8, 9)), slate=True) as outputs:
        outputs.write(make_frames(1, size=(8, 9)))
    assert len(outputs.paths) == 2


REFUSALS: list[tuple[list[str], dict[str, Any], str]] = [
    ([PATTERN], {"alpha": "black"}, r"^--alpha: got 'black'; allowed are none, solid$"),
    (["m.mp4"], {"alpha": "solid"}, r"^--alpha: got 'solid' without a plate; it is allowed with an \.exr output$"),
    (["m.mp4"], {"overscan": 2}, r"^--overscan: got 2 without a plate"),
    ([PATTERN], {"overscan": -1}, r"^--overscan: got -1; a whole number from 0 on is allowed$"),
    ([PATTERN], {"overscan": 7}, r"^--overscan: got 7 for 20x14; up to 6 pixels at each side are allowed$"),
    ([PATTERN], {"handles": -1}, r"^--handles: got -1; a whole number from 0 on"),
    ([PATTERN], {"handles": 3}, r"^--handles: got 3 for 5 frames; up to 2 at each end are allowed$"),
    (["m.mp4"], {"handles": 1}, r"^--handles: got 1 without a \.exr or \.png or \.otio; it is allowed with"),
    (["s.%04d.png"], {"timecode": "01:00:00:00"}, r"^--timecode: got '01:00:00:00' without a \.exr or \.mov or \.mp4"),
    (["s.%04d.png"], {"slate": True}, r"^--slate: got True without a plate"),
    (["p.exr"], {"slate": True}, r"^--slate: the plate is one file; it is allowed with a sequence such as"),
    (
        [PATTERN],
        {"slate": True, "start_frame": 0},
        r"^--slate: the start frame is 0 and the slate would be -1; a start",
    ),
    (["m.mp4"], {"codec": "av1"}, r"^--codec: got 'av1'; allowed are h264, h264-10bit, prores-422hq, prores-4444, dnx"),
    (["m.mp4"], {"codec": "prores-4444"}, r"^--codec: got 'prores-4444' for .*m\.mp4; allowed there are h264, h264-10"),
    ([PATTERN], {"codec": "h264"}, r"^--codec: got 'h264' without a \.mov or \.mp4; it is allowed with"),
    ([PATTERN], {"cap": 4.0}, r"^--cap: got 4 without --inverse-view; it is allowed with that$"),
    ([PATTERN], {"inverse_view": "default", "cap": 0.5}, r"^--cap: got 0\.5; a number from 1 to 1000 is allowed$"),
    ([PATTERN], {"inverse_view": "default", "cap": float("nan")}, r"^--cap: got nan; a number from 1 to 1000"),
    ([PATTERN], {"inverse_view": "Filmic"}, r"^--inverse-view: got 'Filmic'; allowed are default, ACES 1\.0 - SDR"),
    (["m.mov"], {"inverse_view": "default"}, r"^--inverse-view: got 'default' without a plate"),
]


@pytest.mark.parametrize(("names", "options", "message"), REFUSALS)
def test_what_cannot_be_done_is_refused_before_any_work(
    tmp_path: Path, make_record: Any, names: list[str], options: dict[str, Any], message: str
) -> None:
    """In one sentence, from both doors; nothing is created."""
    paths = [tmp_path / "new" / name for name in names]
    start = options.pop("start_frame", 1001)
    record = make_record(1 if names == ["p.exr"] else 5)
    with pytest.raises(ShotError, match=message):
        check_outputs(paths, record["shot"]["frames"], False, None, (20, 14), start_frame=start, **options)
    with pytest.raises(ShotError, match=message):
        open_outputs(paths, record, start_frame=start, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "fps", "message"),
    [
        ("1:00:00:00", "24", r"--timecode: got '1:00:00:00'; HH:MM:SS:FF is allowed, up to 23:59:59:23"),
        ("01:00:00:24", "24", r"got '01:00:00:24'; .* up to 23:59:59:23 at this rate, counted without drop frames"),
        ("01:00:00;00", "30000/1001", r"got '01:00:00;00'; .* up to 23:59:59:29"),
        ("24:00:00:00", "25", r"got '24:00:00:00'"),
        ("01:60:00:00", "25", r"got '01:60:00:00'"),
        ("", "25", r"got ''"),
        ("01:00:00:00", "120", r"--timecode: the rate is 120; time codes are allowed with 1 to 60 frames a second"),
    ],
)
def test_a_time_code_that_the_rate_does_not_have_is_refused(
    tmp_path: Path, make_record: Any, text: str, fps: str, message: str
) -> None:
    """By its fields and by the rate."""
    with pytest.raises(ShotError, match=message):
        open_outputs([tmp_path / PATTERN], make_record(1, fps=fps), timecode=text)
