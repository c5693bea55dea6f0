# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Stills: 8-bit sRGB PNG through OpenImageIO, one or a sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it

from rushes.media import color
from rushes.media.plates import read_attribute
from rushes.media.record import to_text
from rushes.media.sink import Sink, WriteError

RECORD = "rushes"  # keyword of the text chunk


class StillSink(Sink):
    """PNG files; the record is a text chunk."""

    colorspace = color.SRGB

    def write(self, frame: np.ndarray, number: int) -> None:
        name = self.target.file_name(number)
        pixels = np.rint(np.clip(self.finite(frame), 0.0, 1.0) * 255.0).astype(np.uint8)  # [h, w, 3]
        spec = oiio.ImageSpec(frame.shape[1], frame.shape[0], 3, oiio.UINT8)
        spec.attribute("oiio:ColorSpace", "srgb_rec709_scene")
        spec.attribute(RECORD, to_text(self.record))
        out = oiio.ImageOutput.create("png")
        if out is None:
            raise WriteError(f"OpenImageIO cannot write PNG ({oiio.geterror()})")
        if not out.open(str(self.staging / name), spec):
            raise WriteError(out.geterror())
        is_written = out.write_image(pixels)
        reason = out.geterror()
        if not out.close() or not is_written:
            raise WriteError(reason or out.geterror())
        self.add(name, number if self.target.padding is not None else None, pixels)


def read_text(path: Path) -> str | None:
    """The record text in a PNG of ours, None when it has none. Raises ShotError when the file is damaged."""
    return read_attribute(path, RECORD, "a PNG")
