# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""FlexAttention, the named fall back for patterns: the kernel's numbers, and a refusal where torch is too old."""

from __future__ import annotations

import shutil

import pytest
import torch

from rushes.attention import TilePattern, TopK, attention, flex, last_backend

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
too_old = pytest.mark.skipif(flex.obstacle() is not None, reason=str(flex.obstacle()))
no_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile finds no C++ compiler")


def _qkv(length: int) -> QKV:
    q, k, v = (torch.randn(2, 3, length, 40) for _ in range(3))
    return q, k, v


@too_old
@pytest.mark.parametrize("pattern", [TilePattern((3, 5, 6), (2, 2, 4), 5), TopK((3, 5, 6), (2, 2, 4), 5, 0.4)], ids=str)
def test_its_mask_is_the_lists(pattern: TilePattern | TopK) -> None:
    """Every pair of tokens, for each batch and head, by walking the lists."""
    q, k, _ = _qkv(pattern.length)
    lists = pattern.lists(q, k) if isinstance(pattern, TopK) else pattern.lists()
    tiles, sets = len(lists.query_start) - 1, lists.sets
    expected = torch.zeros(sets, pattern.length, pattern.length, dtype=torch.bool)
    for s in range(sets):
        for i in range(tiles):
            row = s * tiles + i
            for j in lists.tiles[lists.offsets[row] : lists.offsets[row + 1]]:
                rows, columns = (
                    slice(start[n], start[n + 1]) for start, n in ((lists.query_start, i), (lists.key_start, j))
                )
                expected[s, rows, columns] = True
    mask = flex._block_mask(lists, 2, 3, "cpu").mask_mod
    for b in range(2):
        for h in range(3):
            n = torch.arange(pattern.length)
            found = mask(torch.tensor(b), torch.tensor(h), n[:, None], n[None])
            assert torch.equal(found, expected[(b * 3 + h) % sets])


@too_old
@no_compiler
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_gives_what_the_tiles_give() -> None:
    """Compiled, on ragged tiles with text."""
    pattern = TopK((3, 5, 6), (2, 2, 4), 5, 0.4)
    q, k, v = _qkv(pattern.length)
    found = attention(q, k, v, pattern=pattern, backend="flex")
    assert last_backend() == "flex"
    torch.testing.assert_close(found, attention(q, k, v, pattern=pattern, backend="torch"), rtol=1e-4, atol=1e-5)
    assert last_backend() == "torch by tiles"


def test_dense_is_not_its_business() -> None:
    """Asked for by name, it serves patterns; dense attention stays torch's own."""
    q, k, v = _qkv(20)
    attention(q, k, v, backend="flex")
    assert last_backend() == "torch"
    with pytest.raises(ValueError, match="got 'flex' for NumPy arrays"):
        attention(q.numpy(), k.numpy(), v.numpy(), backend="flex")


def test_an_old_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused with the version that would do, and not served by something else in silence."""
    monkeypatch.setattr(flex, "obstacle", lambda: "backend: got 'flex' with torch 2.4; it is allowed from torch 2.5 on")
    pattern = TilePattern((3, 5, 6), (2, 2, 4))
    with pytest.raises(ValueError, match=r"from torch 2\.5 on"):
        attention(*_qkv(pattern.length), pattern=pattern, backend="flex")
