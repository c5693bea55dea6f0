# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Clip: the frames that came out, with the shot that made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rushes.progress import Frames
from rushes.shot import Shot


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames float32 [frames, height, width, 3], display-referred sRGB in [0, 1], with the shot that made them."""

    frames: Frames
    shot: Shot
    record: dict[str, Any]
    latents: Tensor

    def write(self, *paths: str | Path, overwrite: bool = False, **options: Any) -> list[Path]:
        """Write outputs by name (mp4, mov, exr, png, otio, safetensors), all or none.

        options: start_frame and the fields of `rushes.media.OutputFormat`. Raises ShotError.
        """
        from rushes.media import open_outputs

        names = [str(path) for path in paths]
        latents = self.latents.numpy(force=True)
        with open_outputs(names, self.record, overwrite=overwrite, latents=latents, **options) as outputs:
            outputs.write(self.frames)
        return list(outputs.paths)
