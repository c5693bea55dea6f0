# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A disk that fills up in mid-plate: nothing half-written is seen, the sentence names the output, room helps."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rushes.media import WriteError, open_outputs, verify

SIZE = (256, 256)
LIMITED = """
import json, resource, signal, sys
import numpy as np
from rushes.media import WriteError, open_outputs
record = json.loads(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
picture = np.random.default_rng(0).random((3, 256, 256, 3), dtype=np.float32)
try:
    with open_outputs([sys.argv[1]], record) as outputs:
        outputs.write(picture)
except WriteError as error:
    print(error)
"""


@pytest.mark.parametrize("size", ["size=1200k", "size=40k"], ids=["in mid-plate", "with the first frame"])
def test_a_full_disk_leaves_nothing_and_room_helps(
    disk: tuple[Path, Callable[[str], None]], make_record: Any, make_frames: Any, size: str
) -> None:
    """Eight frames of 300 kB; the version before stays whole, and the same call succeeds afterwards."""
    place, mount = disk
    mount("size=16m")
    frames = make_frames(8, size=SIZE)
    pattern, other = place / "p_v002.%04d.exr", place / "p_v001.%04d.exr"
    with open_outputs([other], make_record(1)) as outputs:
        outputs.write(make_frames(1))
    before = sorted(path.name for path in place.iterdir())
    mount(size)
    with (
        pytest.raises(WriteError, match=r"p_v002\.%04d\.exr could not be written: the disk is full$") as caught,
        open_outputs([pattern], make_record(8, size=SIZE)) as outputs,
    ):
        outputs.write(frames)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert sorted(path.name for path in place.iterdir()) == before
    assert verify(other).ok
    mount("size=16m")
    with open_outputs([pattern], make_record(8, size=SIZE)) as outputs:
        outputs.write(frames)
    assert verify(pattern).ok


def test_a_disk_that_fills_while_overwriting_keeps_the_plate_from_before(
    disk: tuple[Path, Callable[[str], None]], make_record: Any, make_frames: Any
) -> None:
    """Until all new frames are there, the old ones are, with their manifest."""
    place, mount = disk
    pattern = place / "p.%04d.exr"
    with open_outputs([pattern], make_record(2, size=SIZE)) as outputs:
        outputs.write(make_frames(2, size=SIZE))
    held = {path.name: path.read_bytes() for path in place.iterdir()}
    mount("size=1600k")
    with (
        pytest.raises(WriteError),
        open_outputs([pattern], make_record(8, size=SIZE), overwrite=True) as outputs,
    ):
        outputs.write(make_frames(8, size=SIZE))
    assert {path.name: path.read_bytes() for path in place.iterdir()} == held
    assert verify(pattern).ok


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_FSIZE as Linux has it")
def test_a_limit_on_the_size_of_files_is_a_full_disk_too(tmp_path: Path, make_record: Any) -> None:
    """For everybody, root or not: the kernel refuses the end of each frame."""
    pattern = tmp_path / "p.%04d.exr"
    arguments = [str(pattern), json.dumps(make_record(3, size=SIZE))]
    done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=True)
    assert f"{pattern} could not be written: " in done.stdout
    assert list(tmp_path.iterdir()) == []
