# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Stills: 8-bit sRGB PNG, alone or as a sequence."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rushes.media import load_image, open_outputs


def chunks(content: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG (ISO/IEC 15948), checked by their CRC."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    found: dict[bytes, bytes] = {}
    place = 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + data) == struct.unpack(">I", content[place + 8 + length : place + 12 + length])[0]
        found[kind] = found.get(kind, b"") + data
        place += 12 + length
    return found


@pytest.mark.parametrize("name", ["still.png", "still.%04d.png"])
def test_one_frame_is_written_under_a_plain_name_or_a_pattern(
    tmp_path: Path, make_record: Any, make_frames: Any, name: str
) -> None:
    """Values are rounded to the nearest of 256; the file says sRGB and nothing about the time of day."""
    frames = make_frames(1)
    frames[0, 0, :3, 0] = [-0.5, 1.5, 0.5]
    with open_outputs([tmp_path / name], make_record(1)) as outputs:
        outputs.write(frames)
    assert outputs.paths == [tmp_path / name.replace("%04d", "1001")]
    picture = load_image(outputs.paths[0], (20, 14))
    assert np.abs(picture * 255 - np.rint(np.clip(frames[0], 0, 1) * 255)).max() < 1e-3
    found = chunks(outputs.paths[0].read_bytes())
    assert struct.unpack(">IIBB", found[b"IHDR"][:10]) == (20, 14, 8, 2)  # 8 bits, RGB
    assert b"sRGB" in found
    assert b"tIME" not in found
    assert found[b"tEXt"].startswith(b"rushes\0{") and found[b"tEXt"].isascii()


def test_not_a_number_becomes_black_with_a_warning(tmp_path: Path, make_record: Any, make_frames: Any) -> None:
    """Infinity is white; one warning for a sequence, and values that are only clipped are no fault."""
    frames = make_frames(3)
    frames[:, 0, 0], frames[:, 0, 1], frames[:, 0, 2] = np.nan, np.inf, 7.0
    with (
        pytest.warns(RuntimeWarning, match=r"a\.%04d\.png: 18 values were NaN") as caught,
        open_outputs([tmp_path / "a.%04d.png"], make_record(3)) as outputs,
    ):
        outputs.write(frames)
    assert len(caught) == 1
    picture = load_image(outputs.paths[2], (20, 14))
    assert (picture[0, 0] == 0).all() and (picture[0, 1] == 1).all() and (picture[0, 2] == 1).all()
