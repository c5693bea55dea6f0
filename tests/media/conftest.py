# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Shots and frames for the tests of the media room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
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


@pytest.fixture
def save_picture() -> Callable[..., Path]:
    """`save_picture_file`, for test files, which cannot import this one."""
    return save_picture_file


@pytest.fixture
def write_movie() -> Callable[..., Path]:
    """`write_movie_file`, likewise."""
    return write_movie_file


def save_picture_file(path: Path, pixels: np.ndarray, kind: Any = "half", **attributes: Any) -> Path:
    """Write a picture with OpenImageIO alone. pixels: [h, w, c] in file values; `__` in a name is a colon."""
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it

    spec = oiio.ImageSpec(pixels.shape[1], pixels.shape[0], pixels.shape[2], kind)
    if names := attributes.pop("channelnames", None):
        spec.channelnames = names
    for name in ("full_x", "full_y", "full_width", "full_height", "x", "y"):
        if name in attributes:
            setattr(spec, name, attributes.pop(name))
    for name, value in attributes.items():
        spec.attribute(name.replace("__", ":"), *value if isinstance(value, tuple) else (value,))
    out = oiio.ImageOutput.create(str(path))
    assert out.open(str(path), spec), out.geterror()
    assert out.write_image(np.ascontiguousarray(pixels)), out.geterror()
    assert out.close(), out.geterror()
    return path


def write_movie_file(
    path: Path,
    planes: Sequence[Sequence[np.ndarray]],
    pixels: str,
    codec: str = "libx264",
    *,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    tags: Sequence[int] = (2, 2, 2, 0),
    times: Sequence[int] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """A movie at 24 fps with PyAV alone, lossless unless `options` say otherwise.

    planes: of each frame, as its pixel format has them; tags: primaries, transfer, matrix, range; times: pts of
    each frame; aspect: of a pixel.
    """
    import av

    height, width = planes[0][0].shape[:2]
    with av.open(str(path), "w", options=container or {}) as movie:
        stream = movie.add_stream(
            codec, rate=24, options={"qp": "0", "preset": "ultrafast"} if options is None else options
        )
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = tags
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        for number, picture in enumerate(planes):
            frame = av.VideoFrame(width, height, pixels)
            for plane, values in zip(frame.planes, picture, strict=True):
                room = np.frombuffer(memoryview(plane), values.dtype)[
                    : plane.height * plane.line_size // values.itemsize
                ]
                flat = values.reshape(values.shape[0], -1)
                room.reshape(plane.height, -1)[:, : flat.shape[1]] = flat
            frame.pts, frame.time_base = times[number] if times else number, Fraction(1, 24)
            frame.colorspace, frame.color_range = tags[2], tags[3]
            movie.mux(stream.encode(frame))
        movie.mux(stream.encode(None))
    return path
