# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Memory does not grow with the length of a shot, neither while it is written nor while it is read."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rushes.media import WriteError, open_outputs, read_frames

SIZE = (320, 180)
FRAME_MB = SIZE[0] * SIZE[1] * 12 / 1e6  # one in float32
NAMES = ["a.%04d.exr", "a.%04d.png", "a.mov", "a.mp4"]

# The libraries' own memory counts too. Not by getrusage: its peak begins with that of the process which started it.
LINUX_ONLY = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
READ = """
import sys
from rushes.media import read_frames
seen, total = 0, 0.0
with read_frames(sys.argv[1]) as reader:
    for chunk in reader:
        seen, total = seen + len(chunk), total + float(chunk.mean())
        if seen >= int(sys.argv[2]):
            break
assert 0 < total < seen
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""

WRITE = """
import json, sys
import numpy as np
from rushes.media import open_outputs
record = json.loads(sys.argv[2])
frames, (width, height) = record["shot"]["frames"], record["shot"]["size"]
picture = np.random.default_rng(0).random((1, height, width, 3), dtype=np.float32)
with open_outputs([sys.argv[1]], record, compression="dwaa", depth="float") as outputs:
    for _ in range(frames):
        outputs.write(picture)
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


def peak_mb(code: str, *arguments: str) -> float:
    """Largest resident memory of a process of its own, in MB."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e3


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred frames in every format, from a short ring of pictures."""
    from rushes.shot import Shot

    folder = tmp_path_factory.mktemp("shot")
    fields: dict[str, Any] = {"prompt": "x", "frames": 200, "size": SIZE, "fps": 24}
    record = {"rushes": "0.1.0", "shot": Shot(**fields).to_dict(), "model": {"name": "starter", "sha256": ""}}
    y, x = np.mgrid[: SIZE[1], : SIZE[0]].astype(np.float32)
    with open_outputs([folder / name for name in NAMES], record, colorspace="lin_rec709") as outputs:
        for number in range(200):
            wave = 0.5 + 0.4 * np.sin((x + 3 * number) / 21) * np.cos(y / 17)
            outputs.write(np.repeat(wave[None, ..., None], 3, axis=3))
    return folder


@LINUX_ONLY
@pytest.mark.parametrize("name", NAMES)
def test_two_hundred_frames_are_read_in_the_memory_of_twenty(shot: Path, name: str) -> None:
    """180 frames more are 124 MB; what is allowed is the libraries' coming and going."""
    few, many = (peak_mb(READ, str(shot / name), count) for count in ("20", "200"))
    assert many - few < 180 * FRAME_MB / 4


def test_a_chunk_is_all_that_reading_holds(shot: Path) -> None:
    """In Python's own count: a chunk, the next one, and a few copies of one frame while it is converted."""
    reader = read_frames(shot / "a.%04d.exr")
    chunk = next(reader)  # what is loaded once
    tracemalloc.start()
    seen = len(chunk)
    for chunk in reader:
        seen += len(chunk)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert seen == 200
    assert len(chunk) * FRAME_MB < peak < (2 * 16 + 8) * FRAME_MB


@LINUX_ONLY
def test_a_float_plate_in_dwaa_is_written_in_constant_memory(tmp_path: Path, make_record: Any) -> None:
    """However long the shot: eight frames wait for the writer, and a few are in work. Allocators take a while."""
    few, many = (
        peak_mb(WRITE, str(tmp_path / f"{frames}.%04d.exr"), json.dumps(make_record(frames, size=SIZE)))
        for frames in (100, 220)
    )
    assert len(list(tmp_path.glob("220.*.exr"))) == 220
    assert many - few < 120 * FRAME_MB / 4


def test_openexrs_threads_are_as_before_however_a_plate_ends(
    tmp_path: Path, make_record: Any, make_frames: Any
) -> None:
    """They are one setting for the whole process, and a host may have its own: after success, failure and cancel."""
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it

    def threads() -> int:
        return oiio.get_int_attribute("exr_threads")

    before = threads()
    oiio.attribute("exr_threads", 3)
    try:
        names = [tmp_path / "a.%04d.exr", tmp_path / "b.%04d.exr"]
        with open_outputs(names, make_record(3)) as outputs:  # two at once
            outputs.write(make_frames(3))
        assert threads() == 3
        with (
            pytest.raises(RuntimeError, match="cancelled"),
            open_outputs([tmp_path / "c.%04d.exr"], make_record(3)) as o,
        ):
            o.write(make_frames(2))
            raise RuntimeError("cancelled")
        assert threads() == 3
        with open_outputs([tmp_path / "d.%04d.exr"], make_record(3)) as outer:
            outer.write(make_frames(1))
            with open_outputs([tmp_path / "e.%04d.exr"], make_record(3)) as inner:
                inner.write(make_frames(3))
            outer.write(make_frames(2))
        assert threads() == 3
        with pytest.raises(WriteError), open_outputs([tmp_path / "f.%04d.exr"], make_record(3)) as outputs:
            next(path for path in tmp_path.iterdir() if path.name.startswith(".f")).rename(tmp_path / "gone")
            outputs.write(make_frames(3))
        assert threads() == 3
    finally:
        oiio.attribute("exr_threads", before)
