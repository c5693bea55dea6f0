# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Contact sheets: the middle frame of each take in one picture, made with Blender's own images."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import bpy

from .vendor.controller import Job
from .vendor.plan import frame_name

THUMB, GAP = 256, 4  # pixels
GREY = array("f", [0.1, 0.1, 0.1, 1.0])


class Wanted(NamedTuple):
    """A sheet of these jobs, to be made when none of them is active any more. folder: where it goes."""

    name: str
    keys: tuple[str, ...]
    folder: str


def make(wanted: Wanted, jobs: Mapping[str, Job]) -> str:
    """Make a sheet of those that are done. Returns a sentence for the panel."""
    done = [jobs[key] for key in wanted.keys if key in jobs and jobs[key].state == "done"]
    if not done:
        return f"{wanted.name}: none of its clips was made, so there is no sheet"
    frames = [job.folder / "frames" / frame_name((job.frames + 1) // 2) for job in done]
    path = write_sheet(frames, Path(wanted.folder) / f"{wanted.name}.png")
    return f"contact sheet of {len(done)} takes: {path}"


def write_sheet(pictures: list[Path], path: Path) -> Path:
    """Pictures in reading order, THUMB pixels wide or less; also as an image in the file."""
    thumbs = [_pixels(picture) for picture in pictures]
    width, height = max(thumb[0] for thumb in thumbs), max(thumb[1] for thumb in thumbs)
    columns = math.ceil(math.sqrt(len(thumbs)))
    rows = math.ceil(len(thumbs) / columns)
    full_width, full_height = (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP)
    sheet = GREY * (full_width * full_height)
    for index, (w, h, pixels) in enumerate(thumbs):
        left = GAP + index % columns * (width + GAP)
        bottom = GAP + (rows - 1 - index // columns) * (height + GAP)  # Blender's rows go upwards
        for y in range(h):
            at = 4 * ((bottom + y) * full_width + left)
            sheet[at : at + 4 * w] = pixels[4 * w * y : 4 * w * (y + 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    image = bpy.data.images.get(path.stem)
    if image is not None:
        bpy.data.images.remove(image)
    image = bpy.data.images.new(path.stem, full_width, full_height, alpha=False)
    image.pixels.foreach_set(sheet)
    image.filepath_raw, image.file_format = str(path), "PNG"
    image.save()
    return path


def _pixels(picture: Path) -> tuple[int, int, Any]:
    """(width, height, RGBA floats row by row from the bottom) of a picture, scaled down."""
    image = bpy.data.images.load(str(picture), check_existing=False)
    try:
        width, height = image.size
        if width > THUMB:
            width, height = THUMB, max(1, round(height * THUMB / width))
            image.scale(width, height)
        pixels = array("f", bytes(4 * 4 * width * height))
        image.pixels.foreach_get(pixels)
        return width, height, pixels
    finally:
        bpy.data.images.remove(image)
