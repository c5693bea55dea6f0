# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The clip as it stands after a step, as the frontend shows it on the node: moving, by a picture format that moves."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import numpy.typing as npt
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image

SIDE = 256  # pixels of the longer side; latents are small, and every step sends all of them
FRAMES = 24  # of a longer clip every second, third ... one is shown


class Animation:
    """An animated PNG where ComfyUI expects a PIL picture to encode; for all else it is its first frame."""

    def __init__(self, frames: list[Image.Image], milliseconds: int) -> None:
        self._frames, self._milliseconds = frames, milliseconds

    def save(self, file: IO[bytes], **options: Any) -> None:
        """What the server calls. Its options are those of one still picture, JPEG or PNG."""
        first, *rest = self._frames
        first.save(
            file,
            format="PNG",
            save_all=True,
            append_images=rest,
            duration=self._milliseconds,
            loop=0,
            compress_level=options.get("compress_level", 1),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frames[0], name)


def is_wanted() -> bool:
    """Whether the artist has previews on (--preview-method, or the frontend's setting in newer versions)."""
    return args.preview_method != LatentPreviewMethod.NoPreviews


def preview(frames: npt.NDArray[np.float32], seconds: float) -> tuple[str, Any, int | None]:
    """What a progress bar takes as its preview. frames: [n, h, w, 3], sRGB in [0, 1]; seconds: the clip's length."""
    chosen = frames[:: -(-len(frames) // FRAMES)]
    height, width = chosen.shape[1:3]
    scale = max(1, round(SIDE / max(height, width)))
    pictures = [
        Image.fromarray(np.rint(frame * 255).astype(np.uint8)).resize((width * scale, height * scale), Image.BICUBIC)
        for frame in chosen
    ]
    if len(pictures) == 1:
        return ("JPEG", pictures[0], None)
    return ("PNG", Animation(pictures, max(20, round(1000 * seconds / len(pictures)))), None)
