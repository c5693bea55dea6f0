# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Shots and frames for the tests of the media room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

NASTY_PROMPT = 'un œil "grand ouvert"\nlumière à l\'aube \\ 50 % $[x] 夜の街 🎬\ttab'


@pytest.fixture
def make_record() -> Callable[..., dict[str, Any]]:
    """A record as the engine makes it; keywords change fields of the shot."""

    def make(frames: int = 3, size: tuple[int, int] = (20, 14), **changes: Any) -> dict[str, Any]:
        from rushes.shot import Shot

        fields = {"prompt": NASTY_PROMPT, "negative": "“blur”", "fps": "24000/1001", "seed": 7, "steps": 4}
        shot = Shot(**{**fields, "frames": frames, "size": size, **changes})
        model = {"name": "starter", "sha256": "ab" * 32}
        return {"rushes": "0.1.0", "shot": shot.to_dict(), "model": model, "unknown_words": ["œil", "夜"]}

    return make


@pytest.fixture
def make_frames() -> Callable[..., np.ndarray]:
    """Fresh random frames, float32 [n, h, w, 3] in [0, 1]."""

    def make(frames: int = 3, size: tuple[int, int] = (20, 14)) -> np.ndarray:
        return np.random.default_rng().random((frames, size[1], size[0], 3), dtype=np.float32)

    return make
