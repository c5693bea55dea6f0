# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Source: one input that gives frames, as its file has them; the other direction is sink.py's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from rushes.media import color, views


class Source(ABC):
    """Frames in the colours of `space`, which is declared by the file or given.

    text: the input as it was asked for; frames: how many; size: (width, height) of a frame; aspect: width of a
    pixel over its height; view: what the frames are to be seen through, None for colorimetric ones; fps,
    start_frame: None where the files do not tell; notes: sentences on what could not be kept, complete once all
    frames are read.
    """

    frames: int
    size: tuple[int, int]
    space: color.Space
    aspect: float = 1.0
    view: views.View | None = None
    fps: Fraction | None = None
    start_frame: int | None = None

    def __init__(self, text: str) -> None:
        self.text = text
        self.notes: list[str] = []

    @abstractmethod
    def __iter__(self) -> Iterator[np.ndarray]:
        """Every frame once: float32 [h, w, 3], not clipped. Raises ShotError for a damaged or differing one."""

    def close(self) -> None:  # noqa: B027 - a sequence holds no file open
        """Let go of open files."""

    def note(self, sentence: str) -> None:
        """Keep a sentence on this input; what holds for many frames is said once."""
        line = f"{self.text}: {sentence}"
        if line not in self.notes:
            self.notes.append(line)
