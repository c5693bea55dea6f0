# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The slate: one picture before a plate's first frame that says what the plate is."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it

from rushes.media.format import OutputFormat
from rushes.media.sink import WriteError, printable
from rushes.shot import Shot

_GROUND, _INK = 0.06, 0.9  # sRGB
_FONT = "DroidSans"  # comes with OpenImageIO; letters that it does not have stay blank
_LINES = 18  # on a picture's height
_WIDTH = 0.55  # of a letter, in heights
_SMALLEST = 5  # pixels; on a smaller picture not everything is legible, or on it


def lines(
    record: Mapping[str, Any], name: str, colorspace: str, transform: str, form: OutputFormat
) -> list[tuple[str, str]]:
    """What the slate says, label and text; nothing that differs between two makings of one shot, such as the date."""
    shot = Shot.from_dict(record["shot"])
    first, total = form.start_frame, shot.frames or 0
    model = record.get("model")
    rows = [
        ("plate", name),
        ("frames", f"{first} to {first + total - 1} ({total})" if total else f"from {first}"),
        ("handles", f"{form.handles} at each end" if form.handles else "none"),
        ("time code", form.timecode or "from the frame number"),
        ("size", "" if shot.size is None else f"{shot.size[0]}x{shot.size[1]}"),
        ("fps", "" if shot.fps is None else str(shot.fps)),
        ("colour", f"{colorspace}, {transform}"),
        ("seed", str(shot.seed)),
        ("model", str(model.get("name", "")) if isinstance(model, Mapping) else ""),
        ("made by", f"Rushes {record['rushes']}"),
        ("prompt", " ".join(printable(shot.prompt).split())),  # last: it may be longer than the picture is high
    ]
    return [(label, text) for label, text in rows if text]


def picture(width: int, height: int, rows: Sequence[tuple[str, str]]) -> np.ndarray:
    """The slate as float32 [height, width, 3], sRGB in [0, 1]. Raises WriteError where OpenImageIO has no fonts."""
    buffer = oiio.ImageBuf(oiio.ImageSpec(width, height, 3, oiio.FLOAT))
    oiio.ImageBufAlgo.fill(buffer, (_GROUND, _GROUND, _GROUND))
    size = max(height // _LINES, _SMALLEST)
    left, top, column = size, 2 * size, 7 * size
    room = max(int((width - left - column - size) / (_WIDTH * size)), 1)  # letters
    for label, text in rows:
        for index, line in enumerate(textwrap.wrap(text, room) or [""]):
            for x, word in ((left, label if index == 0 else ""), (left + column, line)):
                if word and not oiio.ImageBufAlgo.render_text(buffer, x, top, word, size, _FONT, (_INK, _INK, _INK)):
                    raise WriteError(f"--slate: OpenImageIO cannot draw text ({buffer.geterror()})")
            top += size * 5 // 4
    return np.clip(np.asarray(buffer.get_pixels(oiio.FLOAT), np.float32), 0, 1)
