# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Keyframe pictures as files, which a record can name: lossless, in ComfyUI's output folder, named by their content."""

from __future__ import annotations

import hashlib
import os

import folder_paths
import numpy as np
import numpy.typing as npt

from rushes.shot import ShotError

from .records import without_shot

FOLDER = os.path.join("rushes", "keyframes")  # of the output folder: the temporary one is emptied at every start


def stored(picture: npt.NDArray[np.float32]) -> str:
    """The path of a file with this picture, float32 [h, w, 3] in sRGB, to the last bit. Equal pictures are one file."""
    from rushes.media import load_image, open_outputs
    from rushes.media.color import SRGB

    pixels = np.ascontiguousarray(picture, np.float32)
    height, width = pixels.shape[:2]
    name = hashlib.sha256(f"{width}x{height} ".encode() + pixels.tobytes()).hexdigest()[:24]
    path = os.path.join(folder_paths.get_output_directory(), FOLDER, f"{name}.exr")
    if os.path.isfile(path):
        try:
            if np.array_equal(load_image(path, (width, height)), np.clip(pixels, 0.0, 1.0)):
                return path
        except ShotError:
            pass  # somebody has damaged it: it is written anew
    record = without_shot((width, height), 1, None)
    with open_outputs([path], record, colorspace=SRGB, depth="float", overwrite=True, manifest=False) as outputs:
        outputs.write(pixels[None])
    return path
