# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A clip's frames as the elements of a strip, its name, and Blender's frame rate. No bpy."""

from __future__ import annotations

import os
import shutil
from fractions import Fraction
from pathlib import Path

from .vendor.plan import element_count, frame_at, frame_name

MAX_NAME = 60  # Blender cuts names at 63 bytes, and adds .001


def element_names(frames: int, clip_fps: Fraction, scene_fps: Fraction, length: int = 0) -> list[str]:
    """File names for each scene frame as far as `frames` clip frames go. length: cut there, unless 0."""
    count = element_count(frames, clip_fps, scene_fps)
    count = min(count, length) if length else count
    return [frame_name(frame_at(element, clip_fps, scene_fps) + 1) for element in range(count)]


def scene_rate(fps: int, base: float) -> Fraction:
    """Blender's rate, exactly: its base is a float32 that stands for 1, 1.001 and the like."""
    return Fraction(fps) / Fraction(round(base * 100_000), 100_000)


def conform(frames: Path, target: Path, names: list[str]) -> list[str]:
    """A folder in which file n is what is seen at scene frame n, for what plays one file per frame and cannot repeat.

    Hard links where the disk has them, copies elsewhere. Returns its file names.
    """
    target.mkdir(parents=True, exist_ok=True)
    made = [frame_name(number) for number in range(1, len(names) + 1)]
    for name, source in zip(made, names, strict=True):
        (target / name).unlink(missing_ok=True)
        try:
            os.link(frames / source, target / name)
        except OSError:
            shutil.copyfile(frames / source, target / name)
    return made


def strip_name(prompt: str, seed: int) -> str:
    """A name that tells strips apart: as much of the prompt as fits, and the whole seed."""
    tail = f" · seed {seed}"
    room = MAX_NAME - len(tail.encode())
    words = " ".join(prompt.split()).encode()
    head = words if len(words) <= room else words[: room - 3]
    return head.decode("utf-8", "ignore").rstrip() + ("…" if len(words) > room else "") + tail
