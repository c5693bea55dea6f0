# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Pictures in: any file that OpenImageIO reads, as display-referred sRGB of the size a shot needs."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it

from rushes.media import color
from rushes.media.record import unreadable
from rushes.shot import ShotError

# Tags that name a display, by the pinned configuration's names
_DISPLAYS = {
    "srgb_rec709_display": "sRGB - Display",
    "srgb_p3d65_display": "Display P3 - Display",
    "g24_rec709_display": "Rec.1886 Rec.709 - Display",
    "pq_rec2020_display": "Rec.2100-PQ - Display",
    "pq_p3d65_display": "ST2084-P3-D65 - Display",
    "g26_p3d65_display": "P3-D65 - Display",
}
# What OpenImageIO says of each PNM, as their standard does; people store sRGB in them, or light when float
_EVERY_PNM = "Rec709"
_UNTAGGED_LINEAR = "lin_rec709"


def load_image(path: str | os.PathLike[str], size: tuple[int, int]) -> np.ndarray:
    """A picture as float32 [h, w, 3], sRGB in [0, 1], scaled to fill `size` and cropped, never stretched.

    size: (width, height) in pixels; the centre is kept. Colour goes by the file's colorInteropID, by the
    chromaticities of a float or half file, and by OpenImageIO's oiio:ColorSpace, in this order; a float or
    half file without any is taken as scene-linear Rec.709, another as sRGB. Scene-linear values are sRGB
    encoded and clipped at 1.0, without tone mapping. ICC profiles are not applied. Alpha is dropped (what is
    transparent is black), grey becomes RGB; the EXIF orientation, the pixel aspect ratio and an EXR's display
    window are followed. The filter is Lanczos with three lobes, widened when scaling down. Raises ShotError
    for a file that cannot be read and ValueError for a size below 1.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"size: got {size}; 1x1 and more is allowed")
    rgb, aspect = open_picture(path)
    return np.clip(filled(rgb, aspect, width, height), 0.0, 1.0)


def open_picture(path: str | os.PathLike[str]) -> tuple[np.ndarray, float]:
    """A picture as `load_image` sees it, in its own size, and the width of its pixels over their height."""
    spec, pixels = _read(Path(path))
    rgb = np.ascontiguousarray(pixels[..., rgb_channels(spec)])  # [h, w, 3]
    rgb = display_window(rgb, spec)
    source = source_space(spec, Path(path))
    if source != color.SRGB:
        rgb = color.convert(rgb, source, color.SRGB)
    return upright(np.clip(rgb, 0.0, 1.0), spec)


def _read(path: Path) -> tuple[oiio.ImageSpec, np.ndarray]:
    if not path.is_file():
        raise ShotError(f"{path}: there is no such file; a picture is allowed")
    # ImageInput, not ImageBuf: the latter's cache would go on serving a picture that has changed on disk.
    picture = oiio.ImageInput.open(str(path))
    if picture is None:
        raise unreadable(path, "a picture", oiio.geterror())
    pixels = picture.read_image(oiio.FLOAT)
    spec, reason = picture.spec(), picture.geterror()
    picture.close()
    if pixels is None:
        raise unreadable(path, "a picture", reason)
    pixels = np.asarray(pixels, np.float32).reshape(spec.height, spec.width, spec.nchannels)  # [h, w, c]
    return spec, np.nan_to_num(pixels, nan=0.0, posinf=color.HALF_MAX, neginf=-color.HALF_MAX)


def rgb_channels(spec: oiio.ImageSpec) -> list[int]:
    """Places of red, green and blue by name, the main layer first; else three times the first channel as grey."""
    names = spec.channelnames
    index = {name.lower(): place for place, name in reversed(list(enumerate(names)))}
    layers = [name[:-1] for name in map(str.lower, names) if name == "r" or name.endswith(".r")]
    for layer in sorted(layers, key=len):
        if all(layer + letter in index for letter in "rgb"):
            return [index[layer + letter] for letter in "rgb"]
    return 3 * [next((place for place in range(spec.nchannels) if place != spec.alpha_channel), 0)]


def pass_channels(spec: oiio.ImageSpec, kind: str) -> list[int]:
    """Places of a pass among many layers: "depth" is the first channel Z, or of a layer that says depth, three times;
    "normal" X, Y and Z of a layer that says normal. Without such a one, as `rgb_channels`.
    """
    names = [name.lower() for name in spec.channelnames]
    if kind == "depth":
        layered = [place for place, name in enumerate(names) if "depth" in name]
        plain = [place for place, name in enumerate(names) if name == "z"]
        if found := plain or layered:
            return 3 * found[:1]
    if kind == "normal":
        layers = {name.rpartition(".")[0] for name in names if "normal" in name.rpartition(".")[0]}
        for layer, axes in ((layer, axes) for layer in sorted(layers, key=len) for axes in ("xyz", "rgb")):
            if all(f"{layer}.{axis}" in names for axis in axes):
                return [names.index(f"{layer}.{axis}") for axis in axes]
    return rgb_channels(spec)


def display_window(rgb: np.ndarray, spec: oiio.ImageSpec) -> np.ndarray:
    """What is inside the display window; black where the data window leaves it empty."""
    window = (spec.full_x, spec.full_y, spec.full_width, spec.full_height)
    if window == (spec.x, spec.y, spec.width, spec.height) or spec.full_width < 1 or spec.full_height < 1:
        return rgb
    canvas = np.zeros((spec.full_height, spec.full_width, 3), np.float32)
    left, top = spec.x - spec.full_x, spec.y - spec.full_y
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + spec.width, spec.full_width), min(top + spec.height, spec.full_height)
    if x1 > x0 and y1 > y0:
        canvas[y0:y1, x0:x1] = rgb[y0 - top : y1 - top, x0 - left : x1 - left]
    return canvas


def source_space(spec: oiio.ImageSpec, path: Path) -> str:
    if tag := spec.getattribute("colorInteropID"):
        return _space_of_tag(str(tag), path)
    is_float = spec.format.basetype in (oiio.HALF, oiio.FLOAT, oiio.DOUBLE)
    # before oiio:ColorSpace, which for an EXR with no more than primaries can be a mere guess
    primaries = spec.getattribute("chromaticities")
    if is_float and primaries is not None and (linear := color.find_gamut(primaries)) is not None:
        return linear.name
    tag = spec.getattribute("oiio:ColorSpace")
    if tag and tag != _EVERY_PNM:
        return _space_of_tag(str(tag), path)
    return color.find_space(_UNTAGGED_LINEAR).name if is_float else color.SRGB


def tagged_space(tag: str) -> color.Space:
    """The colour space of a Color Interop ID or of OpenImageIO's name for one. Raises ShotError."""
    return color.find_space(_DISPLAYS.get(tag, tag))


def _space_of_tag(tag: str, path: Path) -> str:
    try:
        return tagged_space(tag).name
    except ShotError as error:
        raise ShotError(
            f"{path}: it is tagged as {tag!r}, a colour space that Rushes does not know; "
            "a picture in sRGB or in a scene-linear space such as ACEScg is allowed"
        ) from error


def upright(rgb: np.ndarray, spec: oiio.ImageSpec) -> tuple[np.ndarray, float]:
    """Turn by the EXIF orientation; returns the picture and the width of its pixels over their height."""
    aspect = spec.getattribute("PixelAspectRatio")
    aspect = float(aspect) if isinstance(aspect, (int, float)) else 1.0
    if not math.isfinite(aspect) or not 0.1 <= aspect <= 10:
        aspect = 1.0  # a damaged density field, no lens squeezes that far
    orientation = spec.getattribute("Orientation")
    if orientation not in (2, 3, 4, 5, 6, 7, 8):
        return rgb, aspect
    if orientation >= 5:  # rows and columns change places
        rgb, aspect = rgb.transpose(1, 0, 2), 1 / aspect
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb), aspect


def filled(rgb: np.ndarray, aspect: float, width: int, height: int) -> np.ndarray:
    """Scaled by Lanczos to fill width x height, the centre kept: float32 [height, width, 3], not clipped.

    aspect: width of a pixel over its height.
    """
    rows, columns = rgb.shape[:2]
    scale = max(width / (columns * aspect), height / rows)
    # to the nearest pixel, so the shape is off by less than half a pixel over the whole width
    new_width, new_height = max(width, round(columns * aspect * scale)), max(height, round(rows * scale))
    rgb = _resized(rgb, new_width, new_height)
    left, top = (new_width - width) // 2, (new_height - height) // 2
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def fitted(rgb: np.ndarray, aspect: float, width: int, height: int) -> np.ndarray:
    """Scaled by Lanczos to lie within width x height as a whole, white around it: float32 [height, width, 3].

    aspect: width of a pixel over its height. Not clipped.
    """
    rows, columns = rgb.shape[:2]
    scale = min(width / (columns * aspect), height / rows)
    new_width = min(width, max(1, round(columns * aspect * scale)))
    new_height = min(height, max(1, round(rows * scale)))
    canvas = np.ones((height, width, 3), np.float32)
    left, top = (width - new_width) // 2, (height - new_height) // 2
    canvas[top : top + new_height, left : left + new_width] = _resized(rgb, new_width, new_height)
    return canvas


def _resized(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    if rgb.shape[:2] == (height, width):
        return rgb
    region = oiio.ROI(0, width, 0, height, 0, 1, 0, 3)
    scaled = oiio.ImageBufAlgo.resize(oiio.ImageBuf(rgb), filtername="lanczos3", roi=region)
    if scaled.has_error:
        raise RuntimeError(f"OpenImageIO could not scale a picture ({scaled.geterror()})")
    return np.asarray(scaled.get_pixels(oiio.FLOAT), np.float32)  # [height, width, 3]
