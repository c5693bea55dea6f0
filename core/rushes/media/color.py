# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Colour by OpenColorIO, from one pinned built-in configuration and the one that $OCIO names.

The pinned configuration is ACES 1.3 for CG work. It is named in full because `default` and `latest` mean different
files in different releases of OpenColorIO. A name that it knows means the same everywhere, $OCIO set or not, so that a
shot gives the same numbers; names that only the studio's configuration knows are the studio's, and so are roles, such
as scene_linear. Numbers go from one to the other by the roles for interchange that every configuration of ACES has.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import PyOpenColorIO as ocio  # noqa: N813 - the field's name for it

from rushes.shot import ShotError

CONFIG = "ocio://cg-config-v2.2.0_aces-v1.3_ocio-v2.4"
SRGB = "sRGB Encoded Rec.709 (sRGB)"  # the config's name; "sRGB - Texture" and "srgb_texture" are its aliases
DEFAULT_SPACE = "ACEScg"
EXAMPLES = ("ACEScg", "ACES2065-1", "lin_rec709", "lin_p3d65", "lin_rec2020")

HALF_MAX = 65504.0

_SRGB_LINEAR = "lin_rec709"  # sRGB without its curve
_POINTS = 65536  # the most that OpenColorIO takes in a table
_ONE = int(np.float32(1).view(np.uint32))
_FEW = np.ones(16, np.float32)

# CIE xy of red, green, blue, white: as OpenEXR's `chromaticities` wants them. Keys are the gamut part of a
# Color Interop ID (ASWF Color Interop Forum), such as "ap1" in "lin_ap1_scene".
CHROMATICITIES: dict[str, tuple[float, ...]] = {
    "ap0": (0.7347, 0.2653, 0.0, 1.0, 0.0001, -0.077, 0.32168, 0.33767),
    "ap1": (0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32168, 0.33767),
    "rec709": (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329),
    "p3d65": (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329),
    "rec2020": (0.708, 0.292, 0.17, 0.797, 0.131, 0.046, 0.3127, 0.329),
    "adobergb": (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.329),
}


@dataclass(frozen=True)
class Space:
    """A colour space: canonical name, Color Interop ID or "", primaries or None.

    config: the configuration that has it, CONFIG or what $OCIO names;
    is_bounded: whether its values mean nothing outside of 0 ... 1, as those of a video; false for light and logs.
    """

    name: str
    interop_id: str
    chromaticities: tuple[float, ...] | None
    is_bounded: bool = False
    config: str = CONFIG


@lru_cache(maxsize=1)
def config() -> ocio.Config:
    """The pinned configuration. Raises RuntimeError where this OpenColorIO does not have it."""
    try:
        return ocio.Config.CreateFromFile(CONFIG)
    except ocio.Exception as error:
        raise RuntimeError(
            f"OpenColorIO {ocio.__version__} has no {CONFIG}; opencolorio 2.4 or newer is needed"
        ) from error


def studio_name() -> str:
    """What $OCIO says; "" where it is not set."""
    return os.environ.get("OCIO", "")


def studio() -> ocio.Config | None:
    """The configuration that $OCIO names, None where it is not set. Raises ShotError for what is none."""
    name = studio_name()
    return _from_file(name) if name else None


@lru_cache(maxsize=4)
def _from_file(name: str) -> ocio.Config:
    try:
        return ocio.Config.CreateFromFile(name)
    except (ocio.Exception, ocio.ExceptionMissingFile) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ShotError(f"$OCIO: got {name!r} ({reason}); a configuration of OpenColorIO is allowed") from error


def _home(name: str) -> tuple[str, ocio.ColorSpace | None]:
    """The configuration that gives a name its meaning, and the space; None where neither has it."""
    pinned = config()
    if pinned.hasRole(name) or pinned.getColorSpace(name) is None:
        theirs = studio()
        found = theirs.getColorSpace(name) if theirs is not None else None
        if found is not None and pinned.getColorSpace(found.getName()) is None:
            return studio_name(), found
        if found is not None:
            name = found.getName()
    return CONFIG, pinned.getColorSpace(name)


def find_space(name: str) -> Space:
    """The colour space of a name, alias or role, upper and lower case alike. Raises ShotError."""
    place, space = _home(name)
    if space is None:
        raise ShotError(f"--colorspace: got {name!r}{_hint(name)}; allowed are {', '.join(EXAMPLES)} and others")
    if space.isData():
        raise ShotError(
            f"--colorspace: got {name!r}, which means numbers and not colours; allowed are "
            f"{', '.join(EXAMPLES)} and others (to keep the numbers as they are, give {SRGB!r})"
        )
    # This configuration lists each space's Color Interop ID among its aliases.
    interop_id = next((alias for alias in space.getAliases() if alias.endswith("_scene")), "")
    gamut = interop_id.split("_")[1] if interop_id else ""
    if place != CONFIG:
        _check_interchange(name, space.getName())
    is_bounded = space.getEncoding() == "sdr-video"
    return Space(space.getName(), interop_id, CHROMATICITIES.get(gamut), is_bounded, place)


def _check_interchange(asked: str, name: str) -> None:
    try:
        _processor(SRGB, name, False, studio_name())
    except ocio.Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ShotError(
            f"--colorspace: {asked!r} of $OCIO cannot be reached ({reason}); a space of a configuration with the roles "
            "aces_interchange and cie_xyz_d65_interchange is allowed"
        ) from error


def list_spaces() -> list[dict[str, Any]]:
    """Every space with colours, JSON-ready: name, aliases, interop_id, and is_linear, whether it is scene-linear.

    Those of $OCIO that the pinned configuration lacks stand behind its own.
    """
    theirs = studio()
    spaces = {space.getName(): space for space in (theirs.getColorSpaces() if theirs is not None else ())}
    found = []
    for space in [
        *config().getColorSpaces(),
        *(spaces[name] for name in spaces if config().getColorSpace(name) is None),
    ]:
        if space.isData() or space.getReferenceSpaceType() != ocio.REFERENCE_SPACE_SCENE:
            continue
        try:
            about = find_space(space.getName())
        except ShotError:  # of $OCIO, and not to be reached
            continue
        is_linear = space.getEncoding() == "scene-linear"
        aliases = list(space.getAliases())
        found.append({"name": about.name, "aliases": aliases, "interop_id": about.interop_id, "is_linear": is_linear})
    return found


def find_gamut(primaries: Sequence[float]) -> Space | None:
    """The scene-linear space of some primaries, given as CHROMATICITIES has them; None where it has them not."""
    for gamut, known in CHROMATICITIES.items():
        if len(primaries) == len(known) and np.allclose(primaries, known, atol=2e-3):
            return find_space(f"lin_{gamut}")
    return None


def _hint(name: str) -> str:
    names: dict[str, str] = {}
    theirs = studio()
    for space in [*config().getColorSpaces(), *(theirs.getColorSpaces() if theirs is not None else [])]:
        for known in (space.getName(), *space.getAliases()):
            names.setdefault(known.lower(), known)
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    return f" (closest: {', '.join(names[key] for key in close)})" if close else ""


@lru_cache(maxsize=16)
def _processor(source: str, target: str, is_half: bool, studio_name: str) -> ocio.CPUProcessor:
    """studio_name: what $OCIO says, for the cache."""
    depth = ocio.BIT_DEPTH_F16 if is_half else ocio.BIT_DEPTH_F32
    # Lossless: the default's fast log and power move one value in thirty by a step of half float.
    (source_place, _), (target_place, _) = _home(source), _home(target)
    if source_place == target_place:
        processor = _configuration(source_place).getProcessor(source, target)
    else:
        processor = ocio.Config.GetProcessorFromConfigs(
            _configuration(source_place), source, _configuration(target_place), target
        )
    return processor.getOptimizedCPUProcessor(ocio.BIT_DEPTH_F32, depth, ocio.OPTIMIZATION_LOSSLESS)


def _configuration(place: str) -> ocio.Config:
    return config() if place == CONFIG else _from_file(place)


@lru_cache(maxsize=16)
def _display_processor(target: str) -> ocio.CPUProcessor:
    """From sRGB in 0 ... 1 to half floats of a space, the curve of sRGB as a table: more than twice as fast.

    Between its points lie straight lines, 2e-10 off at most. One value in ten thousand falls to the other one of its
    two nearest halves than with `_processor`.
    """
    points = np.repeat(np.linspace(0, 1, _POINTS, dtype=np.float32)[:, None], 3, axis=1)  # [points, 3]
    curve = ocio.Lut1DTransform(_POINTS, False)  # no half domain
    curve.setData(convert(points.reshape(256, -1, 3), SRGB, _SRGB_LINEAR).ravel())
    curve.setInterpolation(ocio.INTERP_LINEAR)
    steps = ocio.GroupTransform()
    steps.appendTransform(curve)
    steps.appendTransform(ocio.ColorSpaceTransform(_SRGB_LINEAR, target))
    return (
        config()
        .getProcessor(steps)
        .getOptimizedCPUProcessor(ocio.BIT_DEPTH_F32, ocio.BIT_DEPTH_F16, ocio.OPTIMIZATION_LOSSLESS)
    )


def is_displayable(frame: np.ndarray) -> bool:
    """Whether each value of a contiguous float32 array is within 0 ... 1, in one pass; minus zero counts as outside."""
    # As whole numbers, floats from 0 on are in the same order, and negative ones, NaN and infinity come after them.
    return int(frame.view(np.uint32).max()) <= _ONE


def convert(frame: np.ndarray, source: str, target: str, is_half: bool = False) -> np.ndarray:
    """Convert colours between two spaces by their canonical names, colorimetrically (no tone mapping).

    frame: float32 [h, w, 3], finite. Returns float32, or float16 with `is_half`, of the same shape.
    """
    return apply(_processor(source, target, is_half, studio_name()), frame, is_half)


def convert_display(frame: np.ndarray, target: str) -> np.ndarray:
    """`convert` from sRGB to half floats of a space of CONFIG, for a frame that `is_displayable`: float16 [h, w, 3]."""
    return apply(_display_processor(target), frame, is_half=True)


def apply(processor: ocio.CPUProcessor, frame: np.ndarray, is_half: bool = False) -> np.ndarray:
    """float32 [h, w, 3], or float16 with `is_half`, which the processor must have been made for."""
    height, width, channels = frame.shape
    out = np.empty(frame.shape, np.float16 if is_half else np.float32)  # [h, w, 3]
    image = _description(np.ascontiguousarray(frame, np.float32), ocio.BIT_DEPTH_F32, width, height, channels)
    result = _description(out, ocio.BIT_DEPTH_F16 if is_half else ocio.BIT_DEPTH_F32, width, height, channels)
    # OpenEXR's decoder returns with the upper halves of AVX registers in use (seen with OpenImageIO 3.2 on an AVX-512
    # machine), and OpenColorIO's SSE code would then run twenty times slower. NumPy's exp ends by clearing them.
    np.exp(_FEW)
    processor.apply(image, result)
    return out


def _description(
    pixels: np.ndarray, depth: ocio.BitDepth, width: int, height: int, channels: int
) -> ocio.PackedImageDesc:
    return ocio.PackedImageDesc(pixels, width, height, channels, depth, *reversed(pixels.strides))
