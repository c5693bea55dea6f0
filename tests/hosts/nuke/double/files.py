# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Files as a Read and a Write meet them: sequences on disk, headers, metadata, pixels. By OpenImageIO."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio

# What OpenImageIO calls the attributes of the OpenEXR standard otherwise than the file does
_EXR_NAMES = {
    "ImageDescription": "comments", "DateTime": "capDate", "Copyright": "owner", "smpte:TimeCode": "timeCode",
    "smpte:KeyCode": "keyCode", "FramesPerSecond": "framesPerSecond", "worldtocamera": "worldToCamera",
    "PixelAspectRatio": "pixelAspectRatio", "ExposureTime": "expTime", "FNumber": "aperture", "Artist": "artist",
    "screenWindowWidth": "screenWindowWidth", "captureRate": "captureRate",
}  # fmt: skip


def frames_on_disk(pattern: str) -> list[int]:
    """The numbers of the files of a %04d pattern, sorted. Empty for a single file."""
    path = Path(pattern)
    match = re.search(r"%0?(\d*)d", path.name)
    if match is None or not path.parent.is_dir():
        return []
    width = int(match[1] or 1)
    head, tail = path.name[: match.start()], path.name[match.end() :]
    found = []
    for name in os.listdir(path.parent):
        if name.startswith(head) and name.endswith(tail) and len(name) > len(head) + len(tail):
            number = name[len(head) : len(name) - len(tail)]
            if re.fullmatch(rf"-?\d{{{width},}}", number) and f"{int(number):0{width}d}" == number:
                found.append(int(number))
    return sorted(found)


def header(path: str) -> Any:
    """The ImageSpec. RuntimeError if the file is missing or no picture."""
    source = oiio.ImageInput.open(path)
    if source is None:
        raise RuntimeError(f"{path}: {oiio.geterror() or 'no such file'}")
    try:
        return source.spec()
    finally:
        source.close()


def metadata(path: str) -> dict[str, Any]:
    """As ViewMetaData shows it: input/… for the file, exr/… for the attributes of an EXR."""
    spec = header(path)
    found: dict[str, Any] = {
        "input/filename": path, "input/width": spec.full_width, "input/height": spec.full_height,
        "input/filereader": Path(path).suffix[1:], "input/filesize": os.path.getsize(path),
        "input/bitsperchannel": {"half": "16-bit half float", "float": "32-bit float"}.get(
            str(spec.format), f"{spec.format.size() * 8}-bit fixed"
        ),
    }  # fmt: skip
    if Path(path).suffix.lower() == ".exr":
        for attribute in spec.extra_attribs:
            if not attribute.name.startswith(("oiio:", "openexr:")):
                name = _EXR_NAMES.get(attribute.name, attribute.name)
                value = attribute.value
                if name == "timeCode":
                    found["input/timecode"] = spec.get_string_attribute("smpte:TimeCode")
                found[f"exr/{name}"] = value
    return found


def read(path: str) -> Any:
    """float32 [height, width, 4]; alpha is 0 where the file has none. RuntimeError if a pixel is missing."""
    source = oiio.ImageInput.open(path)
    if source is None:
        raise RuntimeError(f"{path}: {oiio.geterror() or 'no such file'}")
    try:
        spec = source.spec()
        pixels = source.read_image(oiio.FLOAT)
        if pixels is None:
            raise RuntimeError(f"{path}: {source.geterror()}")
    finally:
        source.close()
    pixels = np.asarray(pixels, dtype=np.float32).reshape(spec.height, spec.width, spec.nchannels)
    picture = np.zeros((spec.full_height, spec.full_width, 4), np.float32)
    channels = [spec.channelnames.index(name) for name in "RGBA" if name in spec.channelnames]
    if len(channels) < 3:
        channels = [0, 0, 0]  # one channel is grey
    top, left = spec.y - spec.full_y, spec.x - spec.full_x
    rows = slice(max(0, top), min(spec.full_height, top + spec.height))
    columns = slice(max(0, left), min(spec.full_width, left + spec.width))
    inside = pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    picture[rows, columns, : len(channels)] = inside[..., channels]
    return picture


def write(path: str, pixels: Any, kind: str, attributes: dict[str, Any]) -> None:
    """pixels float32 [height, width, 3 or 4]; kind "half", "float", "uint8" or "uint16". RuntimeError on failure."""
    height, width, channels = pixels.shape
    spec = oiio.ImageSpec(width, height, channels, kind)
    for name, value in attributes.items():
        spec.attribute(name, value)
    target = oiio.ImageOutput.create(path)
    if target is None or not target.open(path, spec):
        raise RuntimeError(f"{path}: {target.geterror() if target else oiio.geterror()}")
    try:
        if not target.write_image(np.ascontiguousarray(pixels, dtype=np.float32)):
            raise RuntimeError(f"{path}: {target.geterror()}")
    finally:
        target.close()
