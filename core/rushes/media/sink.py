# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Sink: one output that takes frames, in a folder of its own until everything is complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from rushes.media.manifest import Hasher
from rushes.media.paths import Target
from rushes.shot import Shot, ShotError


class WriteError(RuntimeError):
    """An output could not be written. The message names the output and the reason."""


class Sink(ABC):
    """Writes frames of one output into its staging folder. All its methods run in that output's own thread.

    staging: the folder to write into; files: names of the files written so far, which are their final names;
    colorspace: what the numbers in the files mean, by the configuration's name; hasher: gets every complete file,
    where a manifest is wanted;
    transform: how the clip's colours became those in the files; warning: what an artist should know of it, or "";
    slate: number of the file before the first frame that is no frame, or None;
    repaired: how many values had to be changed because no picture can hold them; repair: which, and into what.
    """

    colorspace: str
    transform = ""
    warning = ""
    slate: int | None = None
    repair = "NaN, infinite or beyond half float; NaN became 0, the others the nearest value that the file can hold"

    def __init__(self, target: Target, staging: Path, record: Mapping[str, Any]) -> None:
        self.target = target
        self.staging = staging
        self.record = record
        self.shot = Shot.from_dict(record["shot"])
        self.files: list[str] = []
        self.repaired = 0
        self.hasher: Hasher | None = None

    @property
    def fps(self) -> Fraction:
        """Exact frame rate. Raises ShotError where the record has none."""
        if self.shot.fps is None:
            raise ShotError(f"fps: the record has none, and {self.target.text} needs a frame rate")
        return self.shot.fps

    @abstractmethod
    def write(self, frame: np.ndarray, number: int) -> None:
        """Take the next frame: float32 [h, w, 3], sRGB; number: the frame number in file names."""

    def close(self) -> None:  # noqa: B027 - most sinks have nothing left to do
        """Complete the files. Called once, after the last frame."""

    def abort(self) -> None:  # noqa: B027 - nor anything open
        """Let go of open files, whose content no longer matters. Called instead of `close`."""

    def add(self, name: str, number: int | None, pixels: np.ndarray | None = None) -> None:
        """A file is complete. pixels: what it gives back bit by bit, if it does; not to be changed afterwards."""
        self.files.append(name)
        if self.hasher is not None:
            self.hasher.add(self.staging / name, number, pixels)

    def finite(self, frame: np.ndarray) -> np.ndarray:
        """The frame with NaN as 0 and infinity as -1 or 2, which [0, 1] clips; counts them in `repaired`."""
        bad = frame.size - int(np.count_nonzero(np.isfinite(frame)))
        if not bad:
            return frame
        self.repaired += bad
        return np.nan_to_num(frame, nan=0.0, posinf=2.0, neginf=-1.0)


def printable(text: str) -> str:
    """Text that every file format takes: unpaired surrogates, which UTF-8 has no bytes for, become '?'."""
    return text.encode("utf-8", "replace").decode("utf-8")
