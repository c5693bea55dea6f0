# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Frames as they come: a folder of numbered PNG files, each of which appears when it is whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rushes.media.paths import Target
from rushes.media.stills import StillSink
from rushes.replacing import temporary_name


class FrameFolder:
    """8-bit sRGB PNG files 0001.png, 0002.png ... in a folder that exists; the record is in each."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder
        self._staging = folder / temporary_name("frame")
        self._sink = StillSink(Target.parse(str(folder / "%04d.png")), self._staging, record)

    def __enter__(self) -> FrameFolder:
        self._staging.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._staging.iterdir():  # one that was being written when something failed
            file.unlink()
        self._staging.rmdir()

    def path(self, number: int) -> Path:
        return self.folder / self._sink.target.file_name(number)

    def write(self, frame: np.ndarray, number: int) -> Path:
        """frame: float32 [h, w, 3], sRGB in [0, 1]; number: from 1. Raises WriteError, OSError."""
        self._sink.write(frame, number)
        final = self.path(number)
        os.replace(self._staging / final.name, final)
        return final
