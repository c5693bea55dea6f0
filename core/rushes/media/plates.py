# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Plates: OpenEXR in half or float through OpenImageIO, scene-linear by OpenColorIO, tagged for compositing."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it

from rushes.media import color, slate, threads, views
from rushes.media.format import OutputFormat
from rushes.media.paths import COMPRESSIONS, LOSSY, Target
from rushes.media.record import SOURCE_TYPE, to_text, unreadable
from rushes.media.sink import Sink, WriteError, printable
from rushes.media.timecodes import parse_timecode, timecode

RECORD = "rushes/record"
VIEW = "rushes/view"  # what a plate is to be seen through, where it was made so
SLATE = "rushes/slate"  # marks the frame before the first, which is no frame of the clip
# Frames of a plate in work at once, each in a thread of its own; one holds 37 MB at 1920x1080
WORKERS = min(os.cpu_count() or 1, 8)
INT_MAX = 2**31 - 1  # OpenEXR has no longer integer attribute

_HALF_INFINITE = 0x7C00  # exponent bits of a half: all set in infinity and NaN
_HALF_NEGATIVE_ZERO = 0x8000
_HUGE = 1e9  # still beyond half float once it is linear
# Lossless zip, the default, is read by every release of every host. 45 is OpenEXR's own quality of DWA, and
# in the header it does not depend on the release that writes.
_DWA_LEVEL = 45


class PlateSink(Sink):
    """An EXR sequence, or one EXR, as `form` has it.

    The conversion is colorimetric unless a view is inverted: display white 1.0 becomes 1.0 in every scene-linear
    space, so that no highlight above 1.0 is invented.
    """

    def __init__(self, target: Target, staging: Path, record: Mapping[str, Any], form: OutputFormat) -> None:
        super().__init__(target, staging, record)
        self._form = form
        self._space = color.find_space(form.colorspace or color.DEFAULT_SPACE)
        self.colorspace = self._space.name
        self._compression = form.compression or COMPRESSIONS[0]
        self._is_half = form.depth != "float"
        self._view = None if form.inverse_view is None else views.find_view(form.inverse_view)
        self._cap = views.DEFAULT_CAP if form.cap is None else form.cap
        self._first_count = form.start_frame if form.timecode is None else parse_timecode(form.timecode, self.fps)
        self._text = to_text(record)
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix=f"rushes {target.name}")
        self._is_holding = False
        self._waiting: deque[tuple[int, Future[tuple[np.ndarray, int]]]] = deque()
        self.transform = "colorimetric, clipped at display white"
        if self._view is not None:
            self.transform = f"inverse of {self._view.text}, soft cap {self._cap:g}"
            self.warning = (
                f"display white 1.0 becomes {self._view.white:.3g} before the soft cap of {self._cap:g}: near "
                "white the steps of the clip are far apart, and exposing down may show bands and sparks; a "
                "colorimetric plate has none"
            )
            self.repair = (
                "NaN, infinite or outside 0 ... 1; NaN became 0, the others the nearest value that a view shows"
            )
        elif not self._is_half:
            self.repair = "NaN or infinite; NaN became 0, the others the largest value of a half float"

    def write(self, frame: np.ndarray, number: int) -> None:
        if not self._is_holding:
            threads.hold()
            self._is_holding = True
        if self._form.slate and self.slate is None:
            self.slate = number - 1
            lines = slate.lines(self.record, self.target.name, self.colorspace, self.transform, self._form)
            picture = slate.picture(frame.shape[1], frame.shape[0], lines)
            self._waiting.append((self.slate, self._pool.submit(self._write, picture, self.slate)))
        self._waiting.append((number, self._pool.submit(self._write, frame, number)))
        while len(self._waiting) > WORKERS:
            self._take()

    def close(self) -> None:
        while self._waiting:
            self._take()
        self._let_go()

    def abort(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._is_holding:
            threads.release()
            self._is_holding = False

    def _take(self) -> None:
        """Wait for the oldest frame. In the order of the frames, whichever was ready first."""
        number, future = self._waiting.popleft()
        pixels, repaired = future.result()
        self.repaired += repaired
        is_kept = self._compression not in LOSSY
        name = self.target.file_name(number)
        self.add(name, number if self.target.padding is not None else None, pixels if is_kept else None)

    def _write(self, frame: np.ndarray, number: int) -> tuple[np.ndarray, int]:
        """One frame, in a thread of the pool: its pixels in the file, and how many of them were repaired."""
        if self._view is not None and number != self.slate:
            pixels, repaired = self._inverted(frame, self._view)
        else:
            pixels, repaired = self._half(frame) if self._is_half else self._float(frame)
        if self._form.alpha == "solid":
            pixels = np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=2)  # [h, w, 4]
        spec = self._spec(pixels.shape[1], pixels.shape[0], pixels.shape[2], number)
        _write(self.staging / self.target.file_name(number), spec, pixels, self._compression)
        return pixels, repaired

    def _inverted(self, frame: np.ndarray, view: views.View) -> tuple[np.ndarray, int]:
        repaired = 0
        if not color.is_displayable(frame):
            inside = np.clip(np.nan_to_num(frame, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
            repaired = int(np.count_nonzero(inside != frame))
            frame = inside
        pixels = views.invert(frame, view, self._space.name, self._cap)  # [h, w, 3]
        if self._is_half:
            pixels = pixels.astype(np.float16)  # far below its largest, by the cap
        pixels += pixels.dtype.type(0)  # minus zero becomes zero
        return pixels, repaired

    def _float(self, frame: np.ndarray) -> tuple[np.ndarray, int]:
        bad = ~np.isfinite(frame)
        if bad.any():
            frame = np.nan_to_num(frame, nan=0.0, posinf=_HUGE, neginf=-_HUGE)
        pixels = color.convert(frame, color.SRGB, self._space.name)  # [h, w, 3]
        bad |= ~np.isfinite(pixels)  # finite before, but not as light
        repaired = int(np.count_nonzero(bad))
        if repaired:
            hit = bad.any(axis=2)
            # not the largest float: the first product in a compositor would make it infinite again
            pixels[hit] = np.clip(np.nan_to_num(pixels[hit], nan=0.0), -color.HALF_MAX, color.HALF_MAX)
        pixels += np.float32(0)  # minus zero becomes zero
        return pixels, repaired

    def _half(self, frame: np.ndarray) -> tuple[np.ndarray, int]:
        bad = None
        # (to sRGB nothing is converted, and both ways through a curve would change it)
        if self._space.config == color.CONFIG and self.colorspace != color.SRGB and color.is_displayable(frame):
            half = color.convert_display(frame, self._space.name)  # [h, w, 3]
        else:
            bad = ~np.isfinite(frame)
            if bad.any():  # before the conversion, whose matrix would spread them over the other channels as NaN
                frame = np.nan_to_num(frame, nan=0.0, posinf=_HUGE, neginf=-_HUGE)
            half = color.convert(frame, color.SRGB, self._space.name, is_half=True)  # [h, w, 3]
        signed = half.view(np.int16)
        if bad is None and signed.min() >= 0 and signed.max() < _HALF_INFINITE:
            return half, 0
        bits = half.view(np.uint16)
        bits[bits == _HALF_NEGATIVE_ZERO] = 0
        infinite = (bits & _HALF_INFINITE) == _HALF_INFINITE
        repaired = int(np.count_nonzero(infinite if bad is None else infinite | bad))
        if repaired:
            np.nan_to_num(half, copy=False, nan=0.0, posinf=color.HALF_MAX, neginf=-color.HALF_MAX)
        return half, repaired

    def _spec(self, width: int, height: int, channels: int, number: int) -> oiio.ImageSpec:
        fps, form = self.fps, self._form
        spec = oiio.ImageSpec(width, height, channels, oiio.HALF if self._is_half else oiio.FLOAT)
        if form.overscan:  # the display window is what is seen; the data window goes on around it
            spec.x = spec.y = -form.overscan
            spec.full_width, spec.full_height = width - 2 * form.overscan, height - 2 * form.overscan
        spec.attribute("compression", f"dwaa:{_DWA_LEVEL}" if self._compression == "dwaa" else self._compression)
        spec.attribute("Software", f"Rushes {self.record['rushes']}")
        # Empty: OpenImageIO would else write the time of day, and equal shots would differ in their bytes.
        spec.attribute("DateTime", "")
        # The standard OpenEXR name: OpenImageIO's own "FramesPerSecond" ends up as an unknown attribute.
        spec.attribute("framesPerSecond", oiio.TypeDesc("rational"), [fps.numerator, fps.denominator])
        packed = timecode(self._first_count + number - form.start_frame, fps)
        if packed is not None:
            spec.attribute("smpte:TimeCode", oiio.TypeDesc("timecode"), [packed, 0])
        if self._space.chromaticities is not None:
            spec.attribute("chromaticities", "float[8]", self._space.chromaticities)
        if self._space.interop_id:
            spec.attribute("colorInteropID", self._space.interop_id)
        spec.attribute("rushes/colorspace", self._space.name)
        spec.attribute("rushes/config", self._space.config)
        spec.attribute("rushes/transform", self.transform)
        if self._view is not None and number != self.slate:
            spec.attribute(VIEW, views.to_text(self._view))
        if self.warning:
            spec.attribute("rushes/warning", self.warning)
        if form.handles:
            spec.attribute("rushes/handles", form.handles)
        if number == self.slate:
            spec.attribute(SLATE, 1)
        spec.attribute("rushes/prompt", printable(self.shot.prompt))
        spec.attribute("rushes/seed", self.shot.seed if self.shot.seed <= INT_MAX else str(self.shot.seed))
        if SOURCE_TYPE in self.record:
            spec.attribute("rushes/digitalSourceType", str(self.record[SOURCE_TYPE]))
        spec.attribute(RECORD, self._text)
        return spec


def _write(path: Path, spec: oiio.ImageSpec, pixels: np.ndarray, compression: str) -> None:
    out = oiio.ImageOutput.create("openexr")
    if out is None:
        raise WriteError(f"OpenImageIO cannot write OpenEXR ({oiio.geterror()})")
    # OpenImageIO reports by return value only; each one counts.
    if not out.open(str(path), spec):
        raise WriteError(out.geterror())
    is_written = out.write_image(pixels)
    reason = out.geterror()
    if not out.close() or not is_written:
        raise WriteError(reason or out.geterror())
    _verify(path, spec, compression)


def _verify(path: Path, spec: oiio.ImageSpec, compression: str) -> None:
    """Read the header back: OpenImageIO replaces a compression that it does not know without a word."""
    there = oiio.ImageInput.open(str(path))
    if there is None:
        raise WriteError(f"{path.name} does not read back ({oiio.geterror()})")
    found = there.spec()
    there.close()
    got, wanted = (
        (one.width, one.height, one.format, kind)
        for one, kind in ((found, found.getattribute("compression")), (spec, compression))
    )
    if got != wanted:
        raise WriteError(f"{path.name} reads back as {got[0]}x{got[1]}, {got[2]}, {got[3]}")


def read_text(path: Path) -> str | None:
    """The record text in an EXR of ours, None when it has none. Raises ShotError when the file is damaged."""
    return read_attribute(path, RECORD, "an EXR")


def read_attribute(path: Path, name: str, what: str) -> str | None:
    """A text attribute in the header of any picture that OpenImageIO opens."""
    value = read_tag(path, name, what)
    return value if isinstance(value, str) else None


def read_tag(path: Path, name: str, what: str = "a picture") -> Any:
    """An attribute of any kind, by OpenImageIO's name for it; None where there is none. Raises ShotError."""
    return read_header(path, what).getattribute(name)


def read_header(path: Path, what: str = "a picture") -> oiio.ImageSpec:
    """All that a picture says of itself. Raises ShotError."""
    picture = oiio.ImageInput.open(str(path))
    if picture is None:
        raise unreadable(path, what, oiio.geterror())
    spec = picture.spec()
    picture.close()
    return spec
