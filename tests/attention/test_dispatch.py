# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""attention(): against the formula written out in double precision, and everything it refuses."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import torch

from rushes.attention import attention, last_backend

# batch, heads, length_q, length_k, head_dim
CASES = [
    (1, 1, 1, 1, 1),  # the smallest there is
    (2, 3, 17, 17, 64),  # self-attention
    (1, 4, 113, 40, 48),  # cross-attention, ragged, a head that is no power of two
    (3, 1, 5, 799, 128),  # few queries, many keys
    (1, 2, 130, 1, 32),  # one key: every query gets its value
]


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """One query at a time, in double precision."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.empty(q.shape, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                scores = (k[b, h] @ q[b, h, i]) * scale  # [length_k]
                weights = torch.exp(scores - scores.max())
                out[b, h, i] = (weights / weights.sum()) @ v[b, h]
    return out


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """The formula in the inputs' own precision: how exact one may expect it to be."""
    return torch.softmax(q @ k.transpose(-1, -2) * scale, -1) @ v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [None, 0.37])
def test_it_is_the_formula(case: tuple[int, ...], dtype: torch.dtype, scale: float | None) -> None:
    """Error against double precision at most twice the plain formula's, plus the rounding of the result."""
    batch, heads, length_q, length_k, head_dim = case
    q = torch.randn(batch, heads, length_q, head_dim).to(dtype)
    k, v = torch.randn(2, batch, heads, length_k, head_dim).to(dtype)
    used = head_dim**-0.5 if scale is None else scale
    out = attention(q, k, v, scale=scale)
    expected = _reference(q, k, v, used)
    assert out.shape == q.shape and out.dtype == dtype
    rounding = 2 * torch.finfo(dtype).eps * expected.abs().max()
    allowed = 2 * (_plain(q, k, v, used).double() - expected).abs().max() + rounding
    assert (out.double() - expected).abs().max() <= allowed


def test_strides_do_not_matter() -> None:
    """Models hand over [batch, length, heads, head_dim] with two dimensions swapped: same numbers."""
    q, k, v = (torch.randn(2, 33, 3, 40).transpose(1, 2) for _ in range(3))
    packed = attention(q.contiguous(), k.contiguous(), v.contiguous())
    torch.testing.assert_close(attention(q, k, v), packed, rtol=1e-5, atol=1e-6)


def test_the_same_input_gives_the_same_bits() -> None:
    """Repeats are equal, which the whole house relies on."""
    q, k, v = torch.randn(3, 1, 2, 257, 64)
    first = attention(q, k, v)
    assert all(torch.equal(attention(q, k, v), first) for _ in range(5))


def _tensor(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(shape, **options)


GOOD = (1, 2, 5, 8)
REFUSED = [
    (_tensor(2, 5, 8), _tensor(*GOOD), _tensor(*GOOD), "q: its shape is [2, 5, 8]"),
    (_tensor(*GOOD), _tensor(1, 2, 5, 8, 1), _tensor(*GOOD), "k: its shape is [1, 2, 5, 8, 1]"),
    (_tensor(*GOOD, dtype=torch.int64), _tensor(*GOOD), _tensor(*GOOD), "q: its dtype is torch.int64"),
    (_tensor(*GOOD), _tensor(*GOOD).half(), _tensor(*GOOD), "k: its dtype is torch.float16"),
    (_tensor(*GOOD), _tensor(*GOOD), _tensor(*GOOD).double(), "v: its dtype is torch.float64"),
    (_tensor(*GOOD), _tensor(*GOOD, device="meta"), _tensor(*GOOD), "k: it is on meta"),
    (_tensor(1, 2, 0, 8), _tensor(*GOOD), _tensor(*GOOD), "q: its shape is [1, 2, 0, 8]"),
    (
        _tensor(*GOOD),
        _tensor(1, 2, 0, 8),
        _tensor(1, 2, 0, 8),
        "k: its shape is [1, 2, 0, 8]",
    ),  # no key at all
    (
        _tensor(*GOOD),
        _tensor(3, 2, 5, 8),
        _tensor(3, 2, 5, 8),
        "k: its shape is [3, 2, 5, 8]",
    ),  # would broadcast
    (
        _tensor(*GOOD),
        _tensor(1, 1, 5, 8),
        _tensor(1, 1, 5, 8),
        "k: its shape is [1, 1, 5, 8]",
    ),  # would broadcast
    (_tensor(*GOOD), _tensor(1, 2, 5, 4), _tensor(1, 2, 5, 4), "k: its shape is [1, 2, 5, 4]"),
    (_tensor(*GOOD), _tensor(*GOOD), _tensor(1, 2, 6, 8), "v: its shape is [1, 2, 6, 8]"),
    (_tensor(*GOOD), _tensor(*GOOD), _tensor(1, 2, 5, 4), "v: its shape is [1, 2, 5, 4]"),
]


@pytest.mark.parametrize(("q", "k", "v", "words"), REFUSED)
def test_what_does_not_fit_is_refused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, words: str) -> None:
    """With the argument, what was got and what is allowed; nothing is broadcast or cast."""
    with pytest.raises(ValueError, match=re.escape(words) + ".*allowed"):
        attention(q, k, v)


def test_the_backend_is_named_per_thread() -> None:
    """A thread that has computed nothing does not see what another one used."""
    attention(*torch.randn(3, 1, 1, 4, 8))
    seen: list[str | None] = []

    def look() -> None:
        seen.append(last_backend())
        attention(*torch.randn(3, 1, 1, 4, 8))
        seen.append(last_backend())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert last_backend() == "torch" and seen == [None, "torch"]
