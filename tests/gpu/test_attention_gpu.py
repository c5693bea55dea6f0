# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The CUDA kernel on a card: accuracy against double precision, the same bits every time, graphs, streams, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rushes.attention import TileLists, TilePattern, cuda
from rushes.attention.cuda_proof import failure

if not torch.cuda.is_available():
    pytest.skip("no CUDA card here", allow_module_level=True)
if cuda.load_cuda().module is None:
    pytest.skip(cuda.load_cuda().reason, allow_module_level=True)

CARD = torch.device("cuda", 0)
DTYPES = [torch.bfloat16, torch.float16]
# batch, heads, length_q, length_k, head_dim
CASES = [
    (1, 1, 1, 1, 8),  # the smallest there is
    (2, 3, 63, 65, 64),  # one less and one more than a part
    (1, 2, 64, 128, 96),  # full steps; panels of 32 channels
    (1, 2, 129, 127, 128),  # one query more than a block
    (3, 1, 5, 799, 104),  # padded channels, many steps
    (1, 2, 113, 1023, 256),  # the widest
    (1, 3, 1023, 2047, 128),  # more blocks than a small card has processors
    (1, 1, 257, 33, 160),  # one short step
]


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


def _inputs(case: tuple[int, ...], dtype: torch.dtype, std: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, length_q, length_k, head_dim = case
    q = (torch.randn(batch, heads, length_q, head_dim, device=CARD) * std).to(dtype)
    k, v = torch.randn(2, batch, heads, length_k, head_dim, device=CARD).to(dtype)
    return q, k, v


def _mask(lists: TileLists, batch: int, heads: int) -> Tensor:
    """bool [batch, heads, length_q, length_k]."""
    tiles = len(lists.query_start) - 1
    kept = np.zeros((batch * heads, lists.query_start[-1], lists.key_start[-1]), dtype=bool)
    for group, i in np.ndindex(batch * heads, tiles):
        row = group % lists.sets * tiles + i
        rows = slice(lists.query_start[i], lists.query_start[i + 1])
        for tile in lists.tiles[lists.offsets[row] : lists.offsets[row + 1]]:
            kept[group, rows, lists.key_start[tile] : lists.key_start[tile + 1]] = True
    return torch.from_numpy(kept).unflatten(0, (batch, heads)).to(CARD)


def _assert_close(out: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, lists: TileLists | None = None) -> None:
    """At most twice the root mean square error of torch in the same dtype, plus the result's rounding."""
    mask = None if lists is None else _mask(lists, *q.shape[:2])
    scores = q.double() @ k.double().transpose(-1, -2) * scale
    expected = torch.softmax(scores if mask is None else scores.masked_fill(~mask, -torch.inf), -1) @ v.double()
    peer = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    ours, theirs, size = (
        float(x.square().mean().sqrt()) for x in (out.double() - expected, peer.double() - expected, expected)
    )
    assert ours <= 2 * theirs + torch.finfo(q.dtype).eps * size


def test_the_kernel_proves_itself() -> None:
    """Nothing else here matters when it does not."""
    assert failure(CARD) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dense(case: tuple[int, ...], dtype: torch.dtype) -> None:
    """Ragged in every way, both dtypes."""
    q, k, v = _inputs(case, dtype)
    scale = case[-1] ** -0.5
    _assert_close(cuda.compute(q, k, v, scale=scale), q, k, v, scale)


@pytest.mark.parametrize("scale", [2.0, -0.3, 0.0])
def test_scales(scale: float) -> None:
    """Sharp scores, negative ones, and the plain mean."""
    q, k, v = _inputs((1, 2, 200, 300, 128), torch.bfloat16, std=2.0)
    _assert_close(cuda.compute(q, k, v, scale=scale), q, k, v, scale)


PATTERNS = [
    TilePattern((21, 30, 52), (4, 4, 4), text=77, window=(1, 1, 3)),  # Wan's grid of 480p: every edge ragged
    TilePattern((7, 15, 26), (6, 8, 8), text=5, window=(1, 3, 3), wrap=True),
    TilePattern((3, 5, 9), (2, 3, 4), window=(2, 1, 3), global_first_frame=True),  # tiles under 64 tokens
]


@pytest.mark.parametrize("pattern", PATTERNS[1:], ids=["large tiles", "small tiles"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_tile_patterns(pattern: TilePattern, head_dim: int) -> None:
    """Lists that all heads share."""
    q, k, v = _inputs((2, 2, pattern.length, pattern.length, head_dim), torch.bfloat16)
    lists = pattern.lists()
    _assert_close(cuda.compute(q, k, v, scale=0.1, lists=lists), q, k, v, 0.1, lists)


def test_a_whole_grid() -> None:
    """32 837 tokens, a few query tiles compared."""
    pattern = PATTERNS[0]
    q, k, v = _inputs((1, 1, pattern.length, pattern.length, 128), torch.bfloat16)
    lists = pattern.lists()
    out = cuda.compute(q, k, v, scale=0.1, lists=lists)
    for i in (0, 700, len(lists.query_start) - 2):
        rows = slice(int(lists.query_start[i]), int(lists.query_start[i + 1]))
        tiles = lists.tiles[lists.offsets[i] : lists.offsets[i + 1]]
        keys = torch.cat([torch.arange(lists.key_start[t], lists.key_start[t + 1]) for t in tiles]).to(CARD)
        _assert_close(out[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys], 0.1)


def test_lists_of_each_head() -> None:
    """A set for each batch and head, other tiles for keys than for queries."""
    rng = np.random.default_rng()
    query_start = np.array([0, 1, 64, 65, 200, 201, 330])
    key_start = np.concatenate([[0], np.cumsum(rng.integers(1, 90, 70))]).astype(np.int64)
    kept = rng.random((4, 6, 70)) < 0.3
    kept[..., 3] = True
    flat = kept.reshape(-1, 70)
    offsets = np.concatenate([[0], np.cumsum(flat.sum(1))]).astype(np.int64)
    lists = TileLists(query_start, key_start, offsets, np.nonzero(flat)[1].astype(np.int32))
    q, k, v = _inputs((2, 2, 330, int(key_start[-1]), 128), torch.float16)
    _assert_close(cuda.compute(q, k, v, scale=0.09, lists=lists), q, k, v, 0.09, lists)


@pytest.mark.parametrize("pattern", [None, PATTERNS[1]], ids=["dense", "lists"])
def test_the_same_bits_every_time(pattern: TilePattern | None) -> None:
    """Over repeats, on another stream, and alone as in a batch."""
    length = 1500 if pattern is None else pattern.length
    lists = None if pattern is None else pattern.lists()
    q, k, v = _inputs((3, 2, length, length, 128), torch.bfloat16)
    first = cuda.compute(q, k, v, scale=0.1, lists=lists)
    side = torch.cuda.Stream(CARD)
    side.wait_stream(torch.cuda.current_stream())
    for _ in range(20):
        assert torch.equal(cuda.compute(q, k, v, scale=0.1, lists=lists), first)
    with torch.cuda.stream(side):
        other = cuda.compute(q, k, v, scale=0.1, lists=lists)
    torch.cuda.synchronize()
    assert torch.equal(other, first)
    alone = cuda.compute(q[1:2], k[1:2], v[1:2], scale=0.1, lists=lists)
    assert torch.equal(alone, first[1:2])


@pytest.mark.parametrize("pattern", [None, PATTERNS[1]], ids=["dense", "lists"])
def test_a_graph_replays(pattern: TilePattern | None) -> None:
    """Captured once, it computes what lies in the inputs at each replay."""
    length = 700 if pattern is None else pattern.length
    lists = None if pattern is None else pattern.lists()
    q, k, v = _inputs((1, 2, length, length, 128), torch.bfloat16)
    cuda.compute(q, k, v, scale=0.1, lists=lists)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = cuda.compute(q, k, v, scale=0.1, lists=lists)
    for x in (q, k, v):
        x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, cuda.compute(q, k, v, scale=0.1, lists=lists))


def test_layouts() -> None:
    """[batch, length, heads, head_dim] is read as it lies; odd strides and addresses, and expanded heads, by a copy."""
    q, k, v = _inputs((2, 3, 150, 150, 64), torch.bfloat16)
    expected = cuda.compute(q, k, v, scale=0.1)
    swapped = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    odd = [F.pad(x, (1, 2))[..., 1:-2] for x in (q, k, v)]
    assert torch.equal(cuda.compute(*swapped, scale=0.1), expected)
    assert torch.equal(cuda.compute(*odd, scale=0.1), expected)
    shared = [x[:, :1].expand(-1, 3, -1, -1) for x in (k, v)]
    assert torch.equal(cuda.compute(q, *shared, scale=0.1), cuda.compute(q, *(x.clone() for x in shared), scale=0.1))


def test_absent_keys_are_never_read() -> None:
    """NaN behind the last key and in other heads' rows changes nothing."""
    wide = [torch.full((1, 2, 200, 128), torch.nan, dtype=torch.bfloat16, device=CARD) for _ in range(3)]
    for x in wide:
        x[:, :, :133] = torch.randn(1, 2, 133, 128, device=CARD)
    q, k, v = (x[:, :, :133] for x in wide)
    assert torch.equal(cuda.compute(q, k, v, scale=0.1), cuda.compute(q.clone(), k.clone(), v.clone(), scale=0.1))


def test_refusals() -> None:
    """One sentence each."""
    q, k, v = _inputs((1, 1, 10, 10, 64), torch.bfloat16)
    assert list(cuda.obstacles(q, k, v, None)) == []
    assert "float16 is allowed" in next(cuda.obstacles(q.float(), k.float(), v.float(), None))
    assert "head_dim" in next(cuda.obstacles(q[..., :12], k[..., :12], v[..., :12], None))
    assert "precision" in next(cuda.obstacles(q, k, v, "fp32"))
