# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Pictures of a graph as files, which a record can name: lossless, in the output folder, named by their content."""

from __future__ import annotations

import hashlib
import os

import folder_paths
import numpy as np
import numpy.typing as npt

from rushes.shot import ShotError

from .records import without_shot

# Of the output folder: the temporary one is emptied at every start
KEYFRAMES, CONTROL = (os.path.join("rushes", name) for name in ("keyframes", "control"))


def stored(pictures: npt.NDArray[np.float32], folder: str) -> str:
    """A file with this one picture, or the pattern of several; float32 [n, h, w, 3], to the last bit.

    folder: KEYFRAMES or CONTROL. Equal pictures are one file. Raises ShotError.
    """
    from rushes.media import open_outputs
    from rushes.media.color import SRGB

    pixels = np.ascontiguousarray(pictures, np.float32)
    frames, height, width = pixels.shape[:3]
    about = f"{width}x{height} " if frames == 1 else f"{width}x{height}x{frames} "
    name = hashlib.sha256(about.encode() + pixels.tobytes()).hexdigest()[:24]
    place = f"{name}.exr" if frames == 1 else os.path.join(name, "frame.%04d.exr")
    path = os.path.join(folder_paths.get_output_directory(), folder, place)
    if _is_there(path, pixels):
        return path
    record = without_shot((width, height), frames, None)
    with open_outputs([path], record, colorspace=SRGB, depth="float", overwrite=True, manifest=False) as outputs:
        outputs.write(pixels)
    return path


def _is_there(path: str, pixels: npt.NDArray[np.float32]) -> bool:
    from rushes.media import read_frames

    if not os.path.isdir(os.path.dirname(path)):
        return False
    try:
        with read_frames(path, numbers="mask") as reader:
            if reader.frames != len(pixels):
                return False
            return np.array_equal(np.concatenate(list(reader)), pixels)
    except ShotError:  # it is not there, or somebody has damaged it
        return False
