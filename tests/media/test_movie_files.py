# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Movies as files: rotation, time codes, hidden frames, damage, and what stays open."""

from __future__ import annotations

import gc
import os
import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from rushes.media import open_outputs, read_frames
from rushes.shot import ShotError


def noise(*shapes: tuple[int, int], top: int = 255, kind: Any = np.uint8) -> list[np.ndarray]:
    return [np.random.default_rng().integers(0, top, shape, endpoint=True).astype(kind) for shape in shapes]


def everything(path: str | Path, **options: Any) -> np.ndarray:
    return np.concatenate(list(read_frames(path, **options)))


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_rotation_is_followed(tmp_path: Path, write_movie: Any, rotation: int) -> None:
    """A telephone held upright: the matrix of the track header, as QuickTime File Format describes it."""
    if not hasattr(av.VideoFrame, "rotation"):
        pytest.skip("this PyAV does not tell")
    planes = noise(*((14, 18),) * 3)
    straight = everything(write_movie(tmp_path / "a.mp4", [planes], "yuv444p"))[0]
    path = tmp_path / "b.mp4"
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: the matrix is behind 40 bytes of the box
    cos, sin = {90: (0, -1), 180: (-1, 0), -90: (0, 1)}[rotation]  # to the left is positive
    matrix = [cos, sin, 0, -sin, cos, 0, 0, 0, 1]
    content[at : at + 36] = struct.pack(
        ">9i", *(value << (30 if place % 3 == 2 else 16) for place, value in enumerate(matrix))
    )
    path.write_bytes(content)
    reader = read_frames(path)
    assert reader.size == ((18, 14) if rotation == 180 else (14, 18))
    assert np.array_equal(next(reader)[0], np.rot90(straight, rotation // 90))


def test_a_size_fills_and_honours_the_shape_of_pixels(tmp_path: Path, write_movie: Any) -> None:
    """Anamorphic: a pixel twice as wide as high is noted, or stretched when a size is wanted."""
    planes = noise((16, 16), (8, 8), (8, 8))
    path = write_movie(tmp_path / "a.mp4", [planes], "yuv420p", aspect=Fraction(2))
    reader = read_frames(path)
    assert reader.size == (16, 16) and "a pixel is 2 times as wide as high" in reader.notes[0]
    scaled = read_frames(path, size=(32, 16))
    assert scaled.size == (32, 16) and scaled.notes == ()
    wide = next(scaled)[0]
    assert wide.shape == (16, 32, 3)
    assert np.abs(wide[:, ::2] - next(reader)[0]).mean() < np.abs(wide[:, ::2] - wide[:, :16]).mean()


@pytest.mark.parametrize("name", ["a.mov", "a.mp4"])
@pytest.mark.parametrize(
    ("code", "fps", "frame"),
    [
        ("00:00:00:00", Fraction(24), 0),
        ("01:00:00:10", Fraction(24), 86_410),
        ("00:00:41:17", Fraction(24000, 1001), 1001),
        ("00:01:00:02", Fraction(25), 1502),
        ("00:01:00;02", Fraction(30000, 1001), 1800),  # the first code of its minute: two are left out
        ("00:10:00;00", Fraction(30000, 1001), 17_982),  # and none in the tenth
        ("00:01:00;04", Fraction(60000, 1001), 3600),
    ],
)
def test_a_time_code_track_is_the_start_frame(tmp_path: Path, name: str, code: str, fps: Fraction, frame: int) -> None:
    """Counted from zero at the nominal rate; drop-frame numbers as SMPTE ST 12-1 leaves them out."""
    with av.open(str(tmp_path / name), "w") as movie:
        stream = movie.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        stream.metadata["timecode"] = code
        for number in range(2):
            picture = av.VideoFrame(16, 16, "yuv420p")
            picture.pts, picture.time_base = number, 1 / fps
            movie.mux(stream.encode(picture))
        movie.mux(stream.encode(None))
    reader = read_frames(tmp_path / name)
    assert (reader.start_frame, reader.fps, reader.frames) == (frame, fps, 2)


def test_frames_that_the_container_hides_do_not_count(tmp_path: Path, write_movie: Any) -> None:
    """An edit list that begins at the sixth frame, and a fragmented file that states no count."""
    pictures = [noise((16, 16), (8, 8), (8, 8)) for _ in range(12)]
    whole = everything(write_movie(tmp_path / "a.mp4", pictures, "yuv420p"))
    path = write_movie(tmp_path / "b.mp4", pictures, "yuv420p", container={"avoid_negative_ts": "disabled"},
                 times=range(-5, 7))  # fmt: skip
    reader = read_frames(path)
    assert reader.frames == 7
    assert np.array_equal(np.concatenate(list(reader)), whole[5:])
    path = write_movie(tmp_path / "c.mp4", pictures, "yuv420p", container={"movflags": "frag_keyframe+empty_moov"})
    assert read_frames(path).frames == 12 and np.array_equal(everything(path), whole)


def test_uneven_times_and_fields_are_noted_once(tmp_path: Path, write_movie: Any) -> None:
    """A recording of a screen, and an old television picture: all frames come, and one sentence."""
    pictures = [noise((16, 16), (8, 8), (8, 8)) for _ in range(6)]
    reader = read_frames(write_movie(tmp_path / "a.mp4", pictures, "yuv420p", times=[0, 1, 2, 20, 21, 50]))
    assert len(np.concatenate(list(reader))) == 6
    assert len(reader.notes) == 1 and "a.mp4: its frames are not evenly spaced; they come one by one" in reader.notes[0]
    reader = read_frames(
        write_movie(tmp_path / "b.mp4", pictures, "yuv420p", options={"qp": "0", "x264-params": "tff=1"})
    )
    assert len(np.concatenate(list(reader))) == 6
    assert [note.partition(": ")[2] for note in reader.notes] == [
        "it is interlaced; the two fields of a frame stay woven into it"
    ]


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
@pytest.mark.parametrize("rest", [0.0, 0.02, 0.5, 0.97])
def test_a_truncated_movie_is_an_error_and_not_a_shorter_one(
    tmp_path: Path, make_record: Any, make_frames: Any, name: str, rest: float
) -> None:
    """Its head is whole and promises twenty frames: all of them come, or a sentence."""
    with open_outputs([tmp_path / name], make_record(20, size=(64, 48))) as outputs:
        outputs.write(make_frames(20, size=(64, 48)))
    content = outputs.paths[0].read_bytes()
    outputs.paths[0].write_bytes(content[: int(len(content) * rest)])
    with pytest.raises(ShotError, match=rf"{name}: it cannot be read as a movie \(.*\); a complete file is allowed"):
        everything(outputs.paths[0])


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_a_movie_that_is_damaged_inside_is_an_error(
    tmp_path: Path, make_record: Any, make_frames: Any, name: str
) -> None:
    """Frames in the middle overwritten with zeros are told, and not concealed by what came before."""
    with open_outputs([tmp_path / name], make_record(20, size=(64, 48))) as outputs:
        outputs.write(make_frames(20, size=(64, 48)))
    content = bytearray(outputs.paths[0].read_bytes())
    middle = len(content) * 6 // 10
    content[middle : middle + 20_000] = bytes(20_000)  # several frames of either codec
    outputs.paths[0].write_bytes(content)
    with pytest.raises(ShotError, match=rf"{name}: it cannot be read as a movie \(.*\d+.*\); a complete file"):
        everything(outputs.paths[0])


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (4, r"it cannot be read as a movie \(3 of its 4 frames can be decoded\)"),
        (2, r"it has more frames than the 2 it tells of"),
    ],
)
def test_a_wrong_count_is_an_error(
    tmp_path: Path, write_movie: Any, monkeypatch: pytest.MonkeyPatch, told: int, words: str
) -> None:
    """What was promised before reading is what comes, whatever the container says."""
    from rushes.media import footage

    path = write_movie(tmp_path / "a.mp4", [noise((16, 16), (8, 8), (8, 8)) for _ in range(3)], "yuv420p")
    monkeypatch.setattr(footage, "_count", lambda path: told)
    with pytest.raises(ShotError, match=words):
        everything(path)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000)])
def test_a_file_that_is_no_movie_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    """By its name, in one sentence."""
    (tmp_path / "a.mov").write_bytes(content)
    with pytest.raises(ShotError, match=r"a\.mov: it cannot be read as a movie \(.*\); a complete file") as caught:
        read_frames(tmp_path / "a.mov")
    assert "\n" not in str(caught.value)


def test_sound_alone_is_no_movie(tmp_path: Path) -> None:
    """A .mov without pictures says so."""
    with av.open(str(tmp_path / "a.mov"), "w") as movie:
        stream = movie.add_stream("pcm_s16le", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), "s16", "stereo")
        frame.sample_rate, frame.pts = 48000, 0
        movie.mux(stream.encode(frame))
        movie.mux(stream.encode(None))
    with pytest.raises(ShotError, match="it has no pictures"):
        read_frames(tmp_path / "a.mov")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads and files through /proc")
@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.%04d.exr"])
def test_closing_early_leaves_no_thread_and_no_open_file(
    tmp_path: Path, make_record: Any, make_frames: Any, name: str
) -> None:
    """After one chunk of three, after a failure, and without a single frame read."""
    with open_outputs([tmp_path / name], make_record(40, size=(64, 48))) as outputs:
        outputs.write(make_frames(40, size=(64, 48)))
    everything(tmp_path / name)  # OpenImageIO keeps a pool of threads for the process, once

    def held() -> tuple[int, int]:
        if int(av.__version__.partition(".")[0]) < 14:
            gc.collect()  # it keeps decoders in a cycle
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    before = held()
    with read_frames(tmp_path / name) as reader:
        next(reader)
    assert held() == before
    read_frames(tmp_path / name).close()
    assert held() == before
    with pytest.raises(ShotError), read_frames(tmp_path / name, colorspace="ACEScgg"):
        pass
    assert held() == before
