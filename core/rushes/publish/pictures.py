# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Pictures of a plate for people: a thumbnail, and a contact sheet with numbers and what was asked for."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it

from rushes.media.images import filled
from rushes.media.paths import Target
from rushes.media.reader import read_frames
from rushes.media.sink import WriteError
from rushes.media.stills import StillSink

_FONT, _BOLD = "DroidSans", "DroidSans-Bold"  # they come with OpenImageIO
_GROUND, _INK, _FAINT = 0.11, 0.92, 0.58  # display values of grey
_FIRST_PRINTABLE = " "


@dataclass(frozen=True)
class Caption:
    """What stands over a contact sheet: a title, and further lines."""

    title: str
    lines: tuple[str, ...]


def read_frame(path: Path) -> np.ndarray:
    """One picture: float32 [h, w, 3], display-referred sRGB in [0, 1]. Raises ShotError."""
    with read_frames(path) as reader:
        return np.clip(next(iter(reader))[0], 0.0, 1.0)


def scaled(frame: np.ndarray, width: int) -> np.ndarray:
    """To a width in pixels, the shape kept; smaller ones are made larger, so that all of a project are alike."""
    height = max(1, round(frame.shape[0] * width / frame.shape[1]))
    return np.clip(filled(frame, 1.0, width, height), 0.0, 1.0)


def evenly(count: int, wanted: int) -> list[int]:
    """Places of up to `wanted` of `count` things, the first and the last among them."""
    if wanted >= count:
        return list(range(count))
    return [round(place * (count - 1) / max(1, wanted - 1)) for place in range(wanted)]


def contact_sheet(frames: Sequence[tuple[str, Path]], caption: Caption, width: int, columns: int) -> np.ndarray:
    """Pictures in rows with their labels under them: float32 [h, width, 3]. frames: label and file of each."""
    columns = min(columns, len(frames))
    gap = max(6, width // 100)
    cell = (width - gap * (columns + 1)) // columns
    small, large = max(11, width // 90), max(15, width // 55)
    pictures = [scaled(read_frame(path), cell) for _, path in frames]
    row = pictures[0].shape[0] + 2 * small + gap // 2
    lines = [part for line in caption.lines for part in _wrapped(line, small, width - 2 * gap)]
    head = 3 * gap + large + round(1.5 * small) * len(lines)
    rows = -(-len(frames) // columns)
    sheet = np.full((head + rows * row + gap, width, 3), _GROUND, np.float32)  # [h, w, 3]
    texts = [_Text(caption.title, gap, gap + large, large, _BOLD, _INK)]
    texts += [
        _Text(line, gap, 2 * gap + large + round(1.5 * small * (at - 0.25)), small, _FONT, _FAINT)
        for at, line in enumerate(lines, 1)
    ]
    for at, ((label, _), picture) in enumerate(zip(frames, pictures, strict=True)):
        x, y = gap + at % columns * (cell + gap), head + at // columns * row
        sheet[y : y + picture.shape[0], x : x + cell] = picture
        texts.append(_Text(label, x, y + picture.shape[0] + round(1.3 * small), small, _FONT, _FAINT))
    return _with_texts(sheet, texts)


@dataclass(frozen=True)
class _Text:
    """A line of text, its baseline's start and height in pixels."""

    words: str
    x: int
    y: int
    height: int
    font: str
    grey: float


def _wrapped(line: str, size: int, width: int) -> list[str]:
    """A line in as many as it takes, three at most."""
    return textwrap.wrap(line, max(20, int(width / (0.52 * size))), max_lines=3, placeholder=" …") or [""]


def _with_texts(sheet: np.ndarray, texts: Sequence[_Text]) -> np.ndarray:
    canvas = oiio.ImageBuf(np.ascontiguousarray(sheet))
    for text in texts:
        words = "".join(letter if letter >= _FIRST_PRINTABLE else " " for letter in text.words)
        grey = (text.grey,) * 3
        if not oiio.ImageBufAlgo.render_text(canvas, text.x, text.y, words, text.height, text.font, grey):
            raise WriteError(f"OpenImageIO could not write text into a contact sheet ({canvas.geterror()})")
    return np.asarray(canvas.get_pixels(oiio.FLOAT), np.float32)


def write_png(path: Path, picture: np.ndarray, record: Mapping[str, Any]) -> None:
    """8-bit sRGB with the record in it. Raises WriteError."""
    StillSink(Target.parse(path), path.parent, record).write(picture, 0)
