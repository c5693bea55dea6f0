# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Quantised weights on a card: the same bits as on the processor, opened where they are used."""

from __future__ import annotations

import secrets

import pytest
import torch
import torch.nn.functional as F

from rushes.model.blocks import FORMATS
from rushes.model.packed import FP8, HALVES, Packed, PackedEmbedding, PackedLinear, values_and_bytes

if not torch.cuda.is_available():
    pytest.skip("no CUDA card here", allow_module_level=True)

CARD = torch.device("cuda", 0)


def random_weight(kind: str, rows: int = 67, columns: int = 512) -> Packed:
    values, size = values_and_bytes(kind)
    raw = torch.frombuffer(bytearray(secrets.token_bytes(rows * columns // values * size)), dtype=torch.uint8)
    scale = torch.rand(rows) if kind in FP8 else None
    return Packed(kind, raw.view(rows, -1), (rows, columns), scale)


@pytest.mark.parametrize("kind", [*FP8, *HALVES, *FORMATS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_is_opened_to_the_processors_bits(kind: str, dtype: torch.dtype) -> None:
    """Any bytes, infinite and not-a-number scales among them."""
    weight = random_weight(kind)
    got, want = weight.to(CARD).unpack(dtype).cpu(), weight.unpack(dtype)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["F8_E4M3", "Q4_K"])
def test_layers_move_to_the_card_and_work_there(kind: str) -> None:
    """A product with the opened weight, and rows of the opened table, to the bit."""
    weight = random_weight(kind)
    opened = weight.to(CARD).unpack(torch.bfloat16)
    x = torch.randn(5, 512, device=CARD, dtype=torch.bfloat16)
    ids = torch.randint(67, (3, 4), device=CARD)
    linear, table = PackedLinear(weight, None).to(CARD), PackedEmbedding(weight, torch.bfloat16).to(CARD)
    torch.testing.assert_close(linear(x), F.linear(x, opened), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(table(ids), F.embedding(ids, opened), rtol=0, atol=0, equal_nan=True)
