# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""R'G'B' and Y'CbCr, there and back, with chroma where H.264 and ProRes have it.

It is done here and not by libswscale: that one takes BT.601 numbers unless told otherwise, lifts 10-bit luma
from 16-bit sources by about two codes, and places chroma between pixels, where decoders expect it on the even
columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# ITU-R BT.709-6, item 3.2: luma weights, and the divisors that bring B'-Y' and R'-Y' to -0.5 ... 0.5
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
BLUE_DIVISOR, RED_DIVISOR = 1.8556, 1.5748


def to_ycbcr(
    frame: np.ndarray, bits: int, chroma_columns: int, chroma_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Y', Cb, Cr planes of BT.709 in video range, from display-referred R'G'B'.

    frame: float32 [h, w, 3] in [0, 1]; chroma_columns, chroma_rows: of luma for one of chroma, 1 and 1 for 4:4:4,
    2 and 1 for 4:2:2, 2 and 2 for 4:2:0 (even h). Halved, chroma lies on the
    even columns (filter 1 2 1) and, in 4:2:0, between two rows: the "left" placement H.264 has when untold.
    Returns uint8 for 8 bits, little-endian uint16 above: [h, w], [h / chroma_rows, ceil(w / chroma_columns)] twice.
    """
    rgb = np.clip(frame, 0.0, 1.0)
    luma = rgb @ LUMA  # [h, w]
    blue, red = (rgb[..., 2] - luma) / np.float32(BLUE_DIVISOR), (rgb[..., 0] - luma) / np.float32(RED_DIVISOR)
    if chroma_columns == 2:
        blue, red = _halved(blue, chroma_rows), _halved(red, chroma_rows)
    return _codes(luma, 16, 219, bits), _codes(blue, 128, 224, bits), _codes(red, 128, 224, bits)


def _halved(chroma: np.ndarray, rows: int) -> np.ndarray:
    width = chroma.shape[1]
    padded = np.pad(chroma, ((0, 0), (1, 1)), mode="edge")  # [h, w + 2]
    half = (
        padded[:, 0:width:2] + 2 * padded[:, 1 : width + 1 : 2] + padded[:, 2 : width + 2 : 2]
    ) / 4  # [h, ceil(w / 2)]
    return half if rows == 1 else (half[0::2] + half[1::2]) / 2


def _codes(values: np.ndarray, offset: int, span: int, bits: int) -> np.ndarray:
    scale = 2 ** (bits - 8)
    return np.rint(values * (span * scale) + offset * scale).astype(np.uint8 if bits == 8 else "<u2")


def from_ycbcr(planes: Sequence[np.ndarray], weights: tuple[float, float], bits: int, is_full: bool) -> np.ndarray:
    """R'G'B' of three planes of codes: float32 [h, w, 3], not clipped.

    planes: Y' [h, w], then Cb and Cr, each [h, w] or half as wide or high, rounded up; weights: of red and
    blue in Y', 0.2126 and 0.0722 in BT.709; is_full: codes from 0 to the largest mean 0 to 1, else video range
    (ITU-R BT.709-6, item 3.4). Chroma is interpolated linearly from where `to_ycbcr` has it.
    """
    kr, kb = weights
    height, width = planes[0].shape
    luma = unit_range(planes[0], bits, is_full)  # [h, w]
    span, middle = (2**bits - 1, 2 ** (bits - 1)) if is_full else (224 << bits - 8, 128 << bits - 8)
    blue, red = (
        (_widened(_heightened(plane.astype(np.float32), height), width) - np.float32(middle)) / np.float32(span)
        for plane in planes[1:]
    )
    rgb = np.empty((height, width, 3), np.float32)
    rgb[..., 0] = luma + np.float32(2 * (1 - kr)) * red
    rgb[..., 2] = luma + np.float32(2 * (1 - kb)) * blue
    rgb[..., 1] = (luma - np.float32(kr) * rgb[..., 0] - np.float32(kb) * rgb[..., 2]) / np.float32(1 - kr - kb)
    return rgb


def unit_range(codes: np.ndarray, bits: int, is_full: bool) -> np.ndarray:
    """Codes of Y', R', G' or B' as float32, black 0 and white 1."""
    if is_full:
        return codes.astype(np.float32) / np.float32(2**bits - 1)
    return (codes.astype(np.float32) - np.float32(16 << bits - 8)) / np.float32(219 << bits - 8)


def _widened(chroma: np.ndarray, width: int) -> np.ndarray:
    """Even columns are samples, odd ones lie between two: [h, width]."""
    if chroma.shape[1] == width:
        return chroma
    out = np.empty((chroma.shape[0], width), np.float32)
    out[:, 0::2] = chroma
    right = np.concatenate([chroma[:, 1:], chroma[:, -1:]], axis=1)
    out[:, 1::2] = ((chroma + right) / 2)[:, : width // 2]
    return out


def _heightened(chroma: np.ndarray, height: int) -> np.ndarray:
    """Samples lie between two rows, a quarter of their distance from either: [height, w]."""
    if chroma.shape[0] == height:
        return chroma
    out = np.empty((height, chroma.shape[1]), np.float32)
    above = np.concatenate([chroma[:1], chroma[:-1]])
    below = np.concatenate([chroma[1:], chroma[-1:]])
    out[0::2] = 0.75 * chroma + 0.25 * above
    out[1::2] = (0.75 * chroma + 0.25 * below)[: height // 2]
    return out
