# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""SMPTE time codes: frame numbers as editors count them, and OpenEXR's and QuickTime's forms of them."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from rushes.shot import ShotError

_TEXT = re.compile(r"(\d\d):(\d\d):(\d\d):(\d\d)")


def parse_timecode(text: str, fps: Fraction) -> int:
    """The frame number of HH:MM:SS:FF, counted from 0 without drop frames at the nominal rate. Raises ShotError."""
    nominal = nominal_rate(fps)
    match = _TEXT.fullmatch(text)
    hours, minutes, seconds, frames = map(int, match.groups()) if match else (0, 60, 0, 0)
    if nominal is None:
        raise ShotError(f"--timecode: the rate is {float(fps):g}; time codes are allowed with 1 to 60 frames a second")
    if hours > 23 or minutes > 59 or seconds > 59 or frames >= nominal:
        raise ShotError(
            f"--timecode: got {text!r}; HH:MM:SS:FF is allowed, up to 23:59:59:{nominal - 1:02d} at this rate, "
            "counted without drop frames"
        )
    return ((60 * hours + minutes) * 60 + seconds) * nominal + frames


def format_timecode(number: int, fps: Fraction) -> str:
    """HH:MM:SS:FF of a frame number that has one."""
    nominal = nominal_rate(fps)
    assert nominal is not None
    seconds, frames = divmod(number, nominal)
    return f"{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frames:02d}"


def nominal_rate(fps: Fraction) -> int | None:
    """24 for 24000/1001; None where the standard has no such codes."""
    nominal = math.floor(fps + Fraction(1, 2))
    return nominal if 1 <= nominal <= 60 else None


def timecode(number: int, fps: Fraction) -> int | None:
    """SMPTE ST 12-1 time code of a frame number counted from 0, as OpenEXR packs it (BCD, hh mm ss ff).

    Counted without drop frames at the nominal rate (24 for 24000/1001). Above 30 frames a second the frame
    field counts pairs and the field bit tells the two apart; above 60 the standard has no such code: None.
    """
    nominal = nominal_rate(fps)
    if nominal is None:
        return None
    seconds, frame = divmod(number, nominal)
    field = 0
    if nominal > 30:
        frame, field = divmod(frame, 2)
    hours, minutes = seconds // 3600 % 24, seconds // 60 % 60
    return _bcd(hours) << 24 | _bcd(minutes) << 16 | field << 15 | _bcd(seconds % 60) << 8 | _bcd(frame)


def frame_of_timecode(packed: int, fps: Fraction) -> int:
    """The frame number of `timecode`'s form, counted from 0 as it counts."""
    nominal = math.floor(fps + Fraction(1, 2))
    frame = _decimal(packed & 0x3F)  # the bits above it are flags
    if nominal > 30:
        frame = 2 * frame + (packed >> 15 & 1)
    seconds = 3600 * _decimal(packed >> 24 & 0x3F) + 60 * _decimal(packed >> 16 & 0x7F) + _decimal(packed >> 8 & 0x7F)
    return seconds * nominal + frame


def _bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


def _decimal(bcd: int) -> int:
    return (bcd >> 4) * 10 + (bcd & 0xF)
