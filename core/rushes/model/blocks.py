# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""ggml's blocks, in which GGUF files keep quantised weights: from bytes to numbers, on whatever device the bytes are.

Each format packs a run of weights with the numbers that scale it. In torch and not in numpy, as the `gguf` package has
it, because weights stay packed and are opened again in every step, on the card that multiplies them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Format(NamedTuple):
    """values: weights in a block. size: its bytes. decode: uint8 [n, size] -> float32 [n, values]."""

    values: int
    size: int
    decode: Callable[[Tensor], Tensor]


def _halves(raw: Tensor) -> Tensor:
    """float16 numbers [n, m] of bytes [n, 2m], as float32."""
    return raw.contiguous().view(torch.float16).float()


def _nibbles(raw: Tensor) -> Tensor:
    """[n, 2m] of bytes [n, m]: first all lower halves, then all upper ones."""
    return torch.cat((raw & 0x0F, raw >> 4), dim=1)


def _fifth_bits(raw: Tensor) -> Tensor:
    """Bit i of four bytes, shifted to the fifth place: [n, 32] of [n, 4]."""
    places = torch.arange(8, dtype=torch.uint8, device=raw.device)
    return ((raw[:, :, None] >> places & 1) << 4).flatten(1)


def _q4_0(raw: Tensor) -> Tensor:
    return _halves(raw[:, :2]) * (_nibbles(raw[:, 2:]).float() - 8)


def _q4_1(raw: Tensor) -> Tensor:
    return _halves(raw[:, :2]) * _nibbles(raw[:, 4:]).float() + _halves(raw[:, 2:4])


def _q5_0(raw: Tensor) -> Tensor:
    return _halves(raw[:, :2]) * ((_nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])).float() - 16)


def _q5_1(raw: Tensor) -> Tensor:
    number = _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])
    return _halves(raw[:, :2]) * number.float() + _halves(raw[:, 2:4])


def _q8_0(raw: Tensor) -> Tensor:
    return _halves(raw[:, :2]) * raw[:, 2:].contiguous().view(torch.int8).float()


def _pairs_of_bits(raw: Tensor) -> Tensor:
    """Two-bit numbers [n, 256] of [n, 64]: per 32 bytes the lowest pairs of all, then the next ones."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=raw.device)[:, None]
    return (raw.view(-1, 2, 1, 32) >> shifts & 3).flatten(1)


def _scaled(scale: Tensor, number: Tensor, least: Tensor | None = None) -> Tensor:
    """number [n, 256] in as many groups as scale [n, groups] has columns: scale number - least."""
    grouped = scale[:, :, None] * number.float().view(len(number), scale.shape[1], -1)
    return (grouped if least is None else grouped - least[:, :, None]).flatten(1)


def _q2_k(raw: Tensor) -> Tensor:
    scales, numbers, ends = raw[:, :16], raw[:, 16:80], _halves(raw[:, 80:])
    return _scaled(
        ends[:, :1] * (scales & 0x0F).float(),
        _pairs_of_bits(numbers.contiguous()),
        ends[:, 1:] * (scales >> 4).float(),
    )


def _q3_k(raw: Tensor) -> Tensor:
    high, low, packed, scale = raw[:, :32], raw[:, 32:96], raw[:, 96:108], _halves(raw[:, 108:])
    places = torch.arange(8, dtype=torch.uint8, device=raw.device)[:, None]
    number = _pairs_of_bits(low.contiguous()) | (high[:, None] >> places & 1).flatten(1) << 2
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=raw.device)[:, None]
    top = (packed[:, None, 8:] >> shifts & 3).flatten(1)
    scales = (_nibbles(packed[:, :8]) | top << 4).float() - 32
    return _scaled(scale * scales, number.float() - 4)


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight least values [n, 8], of six bits each, from 12 bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, third & 0x0F | first >> 6 << 4), dim=1)
    least = torch.cat((second & 63, third >> 4 | second >> 6 << 4), dim=1)
    return scales.float(), least.float()


def _nibbles_of_64(raw: Tensor) -> Tensor:
    """Four-bit numbers [n, 256] of [n, 128]: per 32 bytes the lower halves, then the upper ones."""
    return _nibbles(raw.reshape(-1, 32)).view(len(raw), -1)


def _q4_k(raw: Tensor) -> Tensor:
    ends, (scales, least) = _halves(raw[:, :4]), _six_bits(raw[:, 4:16])
    return _scaled(ends[:, :1] * scales, _nibbles_of_64(raw[:, 16:]), ends[:, 1:] * least)


def _q5_k(raw: Tensor) -> Tensor:
    ends, (scales, least) = _halves(raw[:, :4]), _six_bits(raw[:, 4:16])
    places = torch.arange(8, dtype=torch.uint8, device=raw.device)[:, None]
    fifth = ((raw[:, None, 16:48] >> places & 1) << 4).flatten(1)
    return _scaled(ends[:, :1] * scales, _nibbles_of_64(raw[:, 48:]) | fifth, ends[:, 1:] * least)


def _q6_k(raw: Tensor) -> Tensor:
    low, high, scales = raw[:, :128], raw[:, 128:192], raw[:, 192:208].contiguous().view(torch.int8)
    number = _nibbles(low.reshape(-1, 64)).view(len(raw), -1) | _pairs_of_bits(high.contiguous()) << 4
    return _scaled(_halves(raw[:, 208:]) * scales.float(), number.float() - 32)


FORMATS = {
    "Q4_0": Format(32, 18, _q4_0),
    "Q4_1": Format(32, 20, _q4_1),
    "Q5_0": Format(32, 22, _q5_0),
    "Q5_1": Format(32, 24, _q5_1),
    "Q8_0": Format(32, 34, _q8_0),
    "Q2_K": Format(256, 84, _q2_k),
    "Q3_K": Format(256, 110, _q3_k),
    "Q4_K": Format(256, 144, _q4_k),
    "Q5_K": Format(256, 176, _q5_k),
    "Q6_K": Format(256, 210, _q6_k),
}
