# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Scores from int8: what they cost in accuracy, by the kind of input; refused where the processor has no tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rushes.attention import TilePattern, attention, kernel, last_backend, supports
from rushes.attention.extension import load_extension

if load_extension().module is None:
    pytest.skip(load_extension().reason, allow_module_level=True)

HERE = kernel.backend_name(64, "float32", "int8") is not None
has_int8 = pytest.mark.skipif(not HERE, reason="this processor has no tiles of int8 (AMX-INT8)")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _qkv(length_q: int, length_k: int, head_dim: int, dtype: torch.dtype, std: float = 1.0) -> list[torch.Tensor]:
    lengths = (length_q, length_k, length_k)
    q, k, v = (torch.randn(1, 2, n, head_dim) for n in lengths)
    return [(q * std).to(dtype), k.to(dtype), v.to(dtype)]


def _error(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> float:
    """Relative error in the L2 norm against a loop over queries in double precision."""
    made = attention(q, k, v, scale=scale, precision="int8")
    assert made.dtype == q.dtype and made.shape == q.shape
    assert last_backend() == "rushes amx_int8"
    wrong = total = 0.0
    for b, h in np.ndindex(*q.shape[:2]):
        keys, values = k[b, h].double(), v[b, h].double()
        for i in range(q.shape[2]):
            weights = torch.softmax(keys @ q[b, h, i].double() * scale, 0)
            right = weights @ values
            wrong += float((made[b, h, i].double() - right).square().sum())
            total += float(right.square().sum())
    return (wrong / total) ** 0.5


@has_int8
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [(64, 4096, 128), (100, 799, 64), (33, 65, 72), (31, 113, 256)], ids=str)
def test_usual_inputs_lose_a_hundredth(case: tuple[int, int, int], dtype: torch.dtype) -> None:
    """The goal: under 1.2e-2, bfloat16 values and weights included."""
    assert _error(*_qkv(*case, dtype), case[-1] ** -0.5) < 1.2e-2


@has_int8
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mean_common_to_all_keys_costs_nothing(dtype: torch.dtype) -> None:
    """Real keys have one, many times their spread; it is taken off, since softmax does not see it."""
    q, k, v = _qkv(50, 600, 64, torch.float32)
    k = k + 5 * torch.randn(64)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    assert _error(q, k, v, 64**-0.5) < 1.2e-2


@has_int8
def test_peaky_scores_lose_more() -> None:
    """Scores with a standard deviation of 6: their rounding, 1/256 of the largest, moves weights by some per cent."""
    error = _error(*_qkv(64, 700, 64, torch.float32, std=6.0), 64**-0.5)
    print(f"\nrelative error with peaky scores: {error:.3f}")
    assert error < 0.1


@has_int8
@pytest.mark.parametrize("scale", [-0.2, 0.0, 0.37])
def test_any_scale(scale: float) -> None:
    assert _error(*_qkv(37, 45, 40, torch.float32), scale) < 2e-2


@has_int8
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_keys_give_the_mean(value: float) -> None:
    """No spread to scale by: no division by zero."""
    q, _, v = _qkv(20, 70, 32, torch.float32)
    made = attention(q, torch.full_like(v, value), v, precision="int8")
    torch.testing.assert_close(made, v.mean(2, keepdim=True).expand_as(made), rtol=0.02, atol=0.02)


@has_int8
def test_bits_depend_on_nothing() -> None:
    """Threads, batch, repeats, strides; dense and by tiles."""
    pattern = TilePattern(grid=(3, 6, 7), tile=(2, 2, 4), window=(1, 3, 1), text=5)
    q, k, v = (torch.randn(3, 4, pattern.length, 64) for _ in range(3))
    for used in (None, pattern):
        whole = attention(q, k, v, pattern=used, precision="int8", threads=1)
        for threads in (2, 4):
            assert torch.equal(attention(q, k, v, pattern=used, precision="int8", threads=threads), whole)
        alone = attention(q[1:2], k[1:2], v[1:2], pattern=used, precision="int8")
        assert torch.equal(alone, whole[1:2])
        views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
        assert torch.equal(attention(*views, pattern=used, precision="int8"), whole)


@has_int8
def test_tiles_are_a_mask() -> None:
    """The mean is that of all keys, those that a tile does not keep included."""
    pattern = TilePattern(grid=(3, 6, 7), tile=(2, 2, 4), window=(1, 3, 1))
    q, k, v = (torch.randn(1, 2, pattern.length, 64) for _ in range(3))
    made = attention(q, k, v, pattern=pattern, precision="int8")
    right = attention(q.double(), k.double(), v.double(), pattern=pattern, backend="torch")
    assert (made.double() - right).norm() < 1.2e-2 * right.norm()


@pytest.mark.skipif(HERE, reason="this processor has tiles of int8")
def test_a_processor_without_tiles_refuses() -> None:
    q, k, v = _qkv(20, 20, 64, torch.float32)
    assert any("AMX-INT8" in reason for reason in supports(q, k, v, precision="int8").reasons)
    with pytest.raises(ValueError, match="AMX-INT8"):
        attention(q, k, v, precision="int8")
