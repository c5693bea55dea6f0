# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Control passes in: depth, normals, masks and pictures of a host, as a model wants to see them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rushes.hashing import file_digest, joint_digest
from rushes.media.images import filled, fitted, open_picture
from rushes.media.reader import read_frames
from rushes.media.sequences import find_pictures
from rushes.shot import Shot, ShotError

FAR = 1e9  # distances beyond are the background: renderers write 1e10, 3e38 or infinity there
_NUMBERS = ("depth", "normal")  # of an EXR: measures, which are no light
_LUMINANCE = np.array((0.2126, 0.7152, 0.0722), np.float32)


def read_pass(path: str, kind: str, size: tuple[int, int], frames: int) -> np.ndarray:
    """The first `frames` frames of footage, or all where it has fewer: float32 [n, height, width, 3] in [0, 1].

    path: as `read_frames` has it; a picture gives one frame. kind: one of `shot.CONTROL_KINDS`, or "mask". size:
    (width, height), which the frames fill, cropped. Depth is white where it is near, stretched over all frames that are
    read; an EXR holds distances. Normals of an EXR are -1 ... 1. A mask is what its first channel stores, grey is the
    luminance. Raises ShotError for what `read_frames` refuses, which names the file.
    """
    is_exr = path.lower().endswith(".exr")
    if kind == "mask" or (is_exr and kind in _NUMBERS):
        pictures = _numbers(path, size, kind, is_distance=is_exr and kind == "depth")
    else:
        pictures = _colours(path, size)
    found = []
    for picture in pictures:
        found.append(picture)
        if len(found) == frames:
            break
    values = np.stack(found)
    if kind == "depth":
        return _stretched(values[..., :1])
    if kind == "mask":
        return np.clip(np.repeat(values[..., :1], 3, axis=3), 0, 1)
    if kind == "normal" and is_exr:
        values = (values + 1) / 2
    if kind == "grey":
        # not by a matrix product, whose last bits depend on what the BLAS library takes the processor for
        red, green, blue = (values[..., place] * weight for place, weight in enumerate(_LUMINANCE))
        values = np.repeat((red + green + blue)[..., None], 3, axis=3)
    return np.clip(values, 0.0, 1.0)


def read_reference(path: str, size: tuple[int, int]) -> np.ndarray:
    """A picture as a whole within `size`, on white: float32 [height, width, 3], sRGB in [0, 1]. Raises ShotError."""
    rgb, aspect = open_picture(path)
    return np.clip(fitted(rgb, aspect, *size), 0.0, 1.0)


def footage_digest(path: str) -> str:
    """SHA-256 of a file; of several, as a pattern stands for, that of all of theirs. Raises ShotError."""
    try:
        is_picture = path.lower().endswith((".exr", ".png"))
        files = find_pictures(path)[0] if is_picture else [Path(path)]
        digests = [file_digest(file)[1] for file in files]
    except OSError as error:
        raise ShotError(
            f"control: {path} cannot be read ({error.strerror or error}); existing footage is allowed"
        ) from error
    return joint_digest(digests)


def seal_footage(shot: Shot) -> Shot:
    """The shot with the digests of its control passes. Raises ShotError for footage that is gone or has changed."""
    return shot.replace(control=tuple(control.sealed(footage_digest) for control in shot.control))


def is_still(path: str) -> bool:
    """Whether a name is that of one picture, which has no time."""
    return path.lower().endswith((".exr", ".png")) and os.path.isfile(path)


def _colours(path: str, size: tuple[int, int]) -> Iterator[np.ndarray]:
    with read_frames(path, size=size) as reader:
        for chunk in reader:
            yield from chunk


def _numbers(path: str, size: tuple[int, int], kind: str, is_distance: bool) -> Iterator[np.ndarray]:
    """Frames as they are stored. Of depth, one over the distance, which can be scaled where distances cannot."""
    with read_frames(path, numbers=kind) as reader:
        for chunk in reader:
            for frame in chunk:
                yield filled(_nearness(frame) if is_distance else np.nan_to_num(frame), reader.aspect, *size)


def _nearness(distance: np.ndarray) -> np.ndarray:
    is_there = (distance > 0) & (distance < FAR)
    return np.divide(1.0, distance, out=np.zeros_like(distance), where=is_there)


def _stretched(depth: np.ndarray) -> np.ndarray:
    """[n, h, w, 1] to [n, h, w, 3] from 0, the farthest of all frames, to 1, the nearest; 0 where all are alike."""
    low, high = float(depth.min()), float(depth.max())
    scale = 1.0 / (high - low) if high > low else 0.0
    return np.repeat((depth - low) * np.float32(scale), 3, axis=3)
