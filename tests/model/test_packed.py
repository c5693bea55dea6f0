# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Quantised weights: blocks opened to the bit as the `gguf` package opens them, and layers that work with them."""

from __future__ import annotations

import secrets
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.model import packed as packed_module
from rushes.model.blocks import FORMATS
from rushes.model.packed import FP8, HALVES, Packed, PackedEmbedding, PackedLinear, float_of_fp8, pack


def random_bytes(*shape: int) -> Any:
    return np.frombuffer(secrets.token_bytes(int(np.prod(shape))), dtype=np.uint8).reshape(shape)


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_are_opened_to_the_same_bits_as_by_the_gguf_package(kind: str) -> None:
    """Any bytes at all, new ones each time: every scale, infinite and not-a-number ones too, and every number."""
    values, size, decode = FORMATS[kind]
    type_ = gguf.GGMLQuantizationType[kind]
    assert gguf.GGML_QUANT_SIZES[type_] == (values, size)
    raw = random_bytes(113, size)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, type_)
    got = decode(torch.from_numpy(raw.copy())).numpy()
    assert got.dtype == np.float32 and np.array_equal(got, expected.reshape(113, values), equal_nan=True)


@pytest.mark.parametrize("kind", FP8)
def test_every_fp8_number_is_opened_exactly(kind: str) -> None:
    """All 256 of each kind, as torch converts them one by one."""
    raw = torch.arange(256, dtype=torch.uint8).view(16, 16)
    got, want = float_of_fp8(raw, kind), raw.view(FP8[kind]).float()
    assert got.dtype is torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    numbers = ~want.isnan()
    assert torch.equal(got.signbit()[numbers], want.signbit()[numbers])
    for row in range(16):  # without a NaN beside them, or with that of one sign
        torch.testing.assert_close(float_of_fp8(raw[row], kind), want[row], rtol=0, atol=0, equal_nan=True)


def some_weight(kind: str, rows: int = 7) -> tuple[Packed, Tensor]:
    """A weight [rows, 512] and the same opened by another way."""
    if kind in FP8 or kind in HALVES:
        plain = torch.randn(rows, 512).to((FP8 | HALVES)[kind])
        return Packed(kind, plain.view(torch.uint8), (rows, 512)), plain.float()
    raw = gguf.quants.quantize(np.random.randn(rows, 512).astype(np.float32), gguf.GGMLQuantizationType[kind])
    opened = torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]))
    return Packed(kind, torch.from_numpy(raw), (rows, 512)), opened


@pytest.mark.parametrize("kind", [*FP8, *HALVES, "Q8_0", "Q5_1", "Q4_0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_linear_layer_gives_what_the_open_weight_gives(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, in the type of the input, opened in one go or a few rows at a time."""
    weight, opened = some_weight(kind)
    layer = nn.Linear(512, 7)
    expected = F.linear(x := torch.randn(3, 5, 512, dtype=dtype), opened.to(dtype), layer.bias.to(dtype))
    holder = nn.ModuleDict({"a": layer})
    assert pack(holder, "a.weight", weight, dtype)
    assert torch.equal(holder["a"](x), expected)
    monkeypatch.setattr(packed_module, "OPEN_VALUES", 1100)  # two rows
    assert torch.equal(holder["a"](x), expected)
    assert list(holder.state_dict()) == ["a.bias"] and isinstance(holder["a"], PackedLinear)


@pytest.mark.parametrize("rows", [1, 7])
def test_scales_are_for_all_rows_or_for_each(rows: int) -> None:
    plain, scale = torch.randn(7, 9).to(torch.float8_e4m3fn), torch.rand(rows) + 0.1
    weight = Packed("F8_E4M3", plain.view(torch.uint8), (7, 9), scale)
    assert torch.equal(weight.unpack(torch.float32), plain.float() * scale[:, None])
    ids = torch.tensor([[6, 0], [3, 3]])
    table = PackedEmbedding(weight, torch.bfloat16)
    assert torch.equal(table(ids), F.embedding(ids, weight.unpack(torch.bfloat16)))


def test_an_embedding_opens_only_the_rows_it_needs() -> None:
    weight, opened = some_weight("Q8_0", rows=50)
    ids = torch.randint(50, (2, 3))
    assert torch.equal(PackedEmbedding(weight, torch.float32)(ids), F.embedding(ids, opened))


def test_a_layer_with_two_names_is_packed_under_both_and_others_are_left() -> None:
    """UMT5's table of words is one; a norm keeps its plain weight."""
    weight, _ = some_weight("Q8_0", rows=50)
    table = nn.Embedding(50, 512)
    holder = nn.ModuleDict({"a": table, "b": nn.ModuleDict({"c": table}), "norm": nn.LayerNorm(512)})
    assert pack(holder, "a.weight", weight, torch.float32)
    assert isinstance(holder["a"], PackedEmbedding) and holder["a"] is holder["b"]["c"]
    assert not pack(holder, "norm.weight", weight, torch.float32)
    assert not pack(holder, "norm.bias", weight, torch.float32)


def test_bytes_that_are_not_the_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data: got torch\.float32"):
        Packed("Q8_0", torch.zeros(2, 34), (2, 32))
    with pytest.raises(ValueError, match=r"shape: got \[2, 64\] for 68 bytes of Q8_0"):
        Packed("Q8_0", torch.zeros(2, 34, dtype=torch.uint8), (2, 64))


def test_a_layer_works_where_its_input_is() -> None:
    """A host leaves weights behind where memory is short. "meta" stands for a device that is not the weights'."""
    layer = PackedLinear(some_weight("BF16")[0], nn.Parameter(torch.ones(7)))
    layer.adapt(torch.ones(7, 2), torch.ones(2, layer.shape[1]), torch.ones(layer.shape))
    out = layer(torch.zeros(3, layer.shape[1], device="meta"))
    assert out.shape == (3, 7) and out.is_meta and not layer.data.is_meta


def test_packed_weights_move_with_their_module() -> None:
    weight, _ = some_weight("F8_E4M3")
    layer = PackedLinear(weight, None).to("meta")
    assert layer.packed.data.is_meta and "F8_E4M3, [7, 512]" in repr(layer)
