# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The CUDA kernels without a card: index maps, the order of work, their very source run thread by thread on the host.

The host has its own versions of the card's instructions (cuda_host/), which do copies and products as late or as early
as a card might. What that cannot show: speed, and a rule of the card that both sides have misread.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch

import cuda_emulation as emulation
from rushes.attention import TileLists, TilePattern, TopK
from rushes.attention.routing import device_top_k

HEAD_DIMS = (64, 96, 128, 256)
KERNELS = [
    "mma d64 128", "mma d64 64", "mma d96 128", "mma d96 64", "mma d128 128", "mma d128 128x32", "mma d128 64",
    "mma d256 64", "sm90 d64 128", "sm90 d64 64", "sm90 d96 128", "sm90 d96 64", "sm90 d128 128", "sm90 d128 64",
    "sm90 d256 128", "sm90 d256 64",
]  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels for the host."""
    built = emulation.build(Path(tmp_path_factory.mktemp("cuda_host")))
    if isinstance(built, str):
        pytest.skip(built)
    return built


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


# ---- Index maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("rows", [64, 128])
def test_a_tile_in_shared_memory_has_a_place_for_each_chunk(library: ctypes.CDLL, head_dim: int, rows: int) -> None:
    """Every 16 bytes their own place, none left over; eight rows of a chunk in eight different groups of banks."""
    offset, moved = np.empty((2, rows, head_dim // 8), dtype=np.int32)
    library.tile_offsets(head_dim, rows, _pointer(offset), _pointer(moved))
    assert sorted(offset.ravel()) == list(range(0, rows * head_dim * 2, 16))
    np.testing.assert_array_equal(moved, offset)
    banks = offset.reshape(rows // 8, 8, -1) // 16 % 8
    assert (np.sort(banks, axis=1) == np.arange(8)[:, None]).all()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_permutation_is_that_of_the_tensor_copy(library: ctypes.CDLL, head_dim: int) -> None:
    """128-byte mode: address bits 4-6 ^= bits 7-9; 64-byte mode: bits 4-5 ^= bits 7-8; on panels one after another."""
    rows, panel = 128, 64 if head_dim % 64 == 0 else 32
    offset, moved = np.empty((2, rows, head_dim // 8), dtype=np.int32)
    library.tile_offsets(head_dim, rows, _pointer(offset), _pointer(moved))
    row, channel = np.ogrid[:rows, 0:head_dim:8]
    plain = channel // panel * rows * panel * 2 + row * panel * 2 + channel % panel * 2
    mask = 7 if panel == 64 else 3
    np.testing.assert_array_equal(offset, plain ^ (plain >> 7 & mask) << 4)


@pytest.mark.parametrize(("head_dim", "rows"), [(64, 128), (96, 128), (128, 128), (256, 64)])
def test_descriptors_hold_what_the_instruction_reads(library: ctypes.CDLL, head_dim: int, rows: int) -> None:
    """Fields by their bits; steps along k lead to the 16 channels, or the 16 keys, that they should."""
    address, panel = 0x2A400, 64 if head_dim % 64 == 0 else 32
    words, steps = np.empty(2, dtype=np.uint64), np.empty(head_dim // 16 + rows // 16, dtype=np.int32)
    library.descriptors(head_dim, rows, ctypes.c_uint32(address), _pointer(words), _pointer(steps))
    for word, leading in zip(map(int, words), (16, rows * panel * 2), strict=True):
        assert (word & 0x3FFF) << 4 == address & 0x3FFFF
        assert (word >> 32 & 0x3FFF) << 4 == 8 * panel * 2, "eight rows further"
        assert word >> 62 == (1 if panel == 64 else 2) and word >> 46 & 0xFFFF == 0
        assert (word >> 16 & 0x3FFF) << 4 == leading
    channels = np.arange(0, head_dim, 16)
    assert list(steps[: head_dim // 16]) == list(channels // panel * rows * panel * 2 + channels % panel * 2)
    assert list(steps[head_dim // 16 :]) == list(np.arange(0, rows, 16) * panel * 2)


def test_fragments_cover_their_matrices(library: ctypes.CDLL) -> None:
    """Each element of a 16 x 8 accumulator, a 16 x 16 A and a 16 x 8 B lies in one place, and ldmatrix fills it."""
    table = np.empty((32, 8 + 8 + 2 + 1 + 6), dtype=np.int32)
    library.fragments(_pointer(table))
    accumulator, a = table[:, :8].reshape(-1, 2), table[:, 8:16].reshape(32, 4, 2)
    assert len({tuple(x) for x in accumulator}) == 128 and accumulator.max(0).tolist() == [15, 7]
    assert len({tuple(x) for x in a.reshape(-1, 2)}) == 128 and set(a[..., 1].ravel() % 2) == {0}
    b_k, b_column = table[:, 16:18], table[:, 18]
    assert len({(k, n) for row, n in zip(b_k, b_column, strict=True) for k in row}) == 64
    query, key, value = (table[:, i : i + 2] for i in (19, 21, 23))
    for lane in range(32):
        for r in range(4):  # register r of this lane comes from matrix r, whose rows lanes 8 r ... 8 r + 7 name
            row, chunk = query[8 * r + lane // 4]
            assert (row, chunk * 8 + lane % 4 * 2) == tuple(a[lane, r])
            row, chunk = key[8 * r + lane // 4]
            assert (row, chunk * 8 + lane % 4 * 2) == (r // 2 * 8 + b_column[lane], b_k[lane, r % 2])
            row, chunk = value[8 * r + lane % 4 * 2]  # transposed: rows are k
            assert (row, chunk * 8 + lane // 4) == (b_k[lane, r % 2], r // 2 * 8 + b_column[lane])


# ---- The order of work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "part_keys"), [(2, 64), (1, 64), (1, 32)])
def test_steps_take_every_listed_key_once_in_order(library: ctypes.CDLL, parts: int, part_keys: int) -> None:
    """Tiles that touch are one run; only the last part of a run may be short; a step is full but for the last."""
    rng = np.random.default_rng()
    starts = np.concatenate([[0], np.cumsum(rng.integers(1, 3 * part_keys, 60))])
    tiles = np.flatnonzero(rng.random(60) < 0.6)
    ranges = np.stack([starts[tiles], starts[tiles + 1]], 1).astype(np.int32)
    out = np.full((2000, parts, 2), -1, dtype=np.int32)
    count = library.key_steps(parts, part_keys, _pointer(ranges), len(ranges), _pointer(out))
    taken = out[:count].reshape(-1, 2)
    expected = np.concatenate([np.arange(a, b) for a, b in ranges])
    np.testing.assert_array_equal(np.concatenate([np.arange(a, a + n) for a, n in taken]), expected)
    assert (taken[:-1, 1] > 0).all() if count * parts == len(taken) and taken[-1, 1] else (taken[:-2, 1] > 0).all()
    ends = {int(b) for b in ranges[:, 1]} - {int(a) for a in ranges[:, 0]}  # of runs
    assert all(n == part_keys or a + n in ends for a, n in taken if n)


@pytest.mark.parametrize("rows", [64, 128])
def test_items_cover_every_query_once_longest_lists_first(library: ctypes.CDLL, rows: int) -> None:
    """Slots without work come last; lengths fall but for a quarter of an octave; the same every time."""
    rng = np.random.default_rng()
    starts = np.concatenate([[0], np.cumsum(rng.integers(1, 400, 40))]).astype(np.int64)
    kept = rng.random((6, 40, 40)) < rng.random((6, 40, 1))
    kept[..., 0] = True
    lists = TileLists(
        starts, starts, np.concatenate([[0], np.cumsum(kept.reshape(-1, 40).sum(1))]).astype(np.int64),
        np.nonzero(kept.reshape(-1, 40))[1].astype(np.int32),
    )  # fmt: skip
    items = emulation.plan(library, lists, 2, 3, rows)
    work = items[items[:, 2] > 0]
    assert (items[len(work) :, 2] == 0).all()
    seen = np.zeros((6, starts[-1]), dtype=int)
    for group, token, count, row in work:
        seen[group, token : token + count] += 1
        tile = row - group * 40
        assert 0 <= tile < 40 and starts[tile] <= token and token + count <= starts[tile + 1] and count <= rows
    assert (seen == 1).all()
    lengths = np.diff(lists.offsets)[work[:, 3]]
    assert (lengths[1:] <= lengths[:-1] * 1.25).all() and lengths[0] >= lengths.max() / 1.25
    np.testing.assert_array_equal(emulation.plan(library, lists, 2, 3, rows), items)


# ---- The kernels themselves ------------------------------------------------------------------------------------------


def _reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, lists: TileLists | None) -> np.ndarray:
    """One query tile at a time, in double precision."""
    batch, heads, length, _ = q.shape
    out = np.empty(q.shape)
    bounds = [0, length] if lists is None else lists.query_start
    for group in np.ndindex(batch, heads):
        for i in range(len(bounds) - 1):
            keys = np.arange(k.shape[2])
            if lists is not None:
                row = (group[0] * heads + group[1]) % lists.sets * (len(bounds) - 1) + i
                tiles = lists.tiles[lists.offsets[row] : lists.offsets[row + 1]]
                keys = np.concatenate([np.arange(lists.key_start[t], lists.key_start[t + 1]) for t in tiles])
            rows = slice(bounds[i], bounds[i + 1])
            scores = q[group][rows] @ k[group][keys].T * scale
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[group][rows] = weights @ v[group][keys] / weights.sum(1, keepdims=True)
    return out


def _check(
    library: ctypes.CDLL,
    kernel: str,
    shape: tuple[int, int, int, int, int],
    lists: TileLists | None = None,
    dtype: str = "bfloat16",
    scale: float | None = None,
    std: float = 1.0,
    mode: str = "random",
    layout: str = "bhld",
) -> None:
    """Within the rounding of the weights and of the answer: 2^-8 of its root mean square for bfloat16."""
    batch, heads, length_q, length_k, head_dim = shape
    rng = np.random.default_rng()

    def tensor(length: int, deviation: float = 1.0) -> np.ndarray:
        x = rng.standard_normal((batch, heads, length, head_dim), dtype=np.float32) * np.float32(deviation)
        bits = emulation.encode(x, dtype)
        return bits if layout == "bhld" else np.ascontiguousarray(bits.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)

    q, k, v, out = tensor(length_q, std), tensor(length_k), tensor(length_k), tensor(length_q)
    out[:] = emulation.encode(np.full(out.shape, np.nan, dtype=np.float32), dtype)
    scale = head_dim**-0.5 if scale is None else scale
    emulation.run(library, kernel, (q, k, v, out), dtype, scale, lists, mode, int(rng.integers(2**31)))
    expected = _reference(*(emulation.decode(x, dtype) for x in (q, k, v)), scale, lists)
    error = emulation.decode(out, dtype) - expected
    eps = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    assert np.sqrt(np.mean(error**2)) <= eps * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("mode", emulation.MODES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_each_kernel_computes_attention(library: ctypes.CDLL, kernel: str, mode: str) -> None:
    """Two blocks of queries, three steps of keys, all ragged; padded channels; whenever copies and products happen."""
    head_dim = int(kernel.split()[1][1:])
    _check(library, kernel, (1, 1, 70, 150, head_dim), mode=mode)
    _check(library, kernel, (1, 2, 130, 70, head_dim - 8), dtype="float16", mode=mode, layout="blhd")


CASES = [
    (1, 1, 1, 1, 8),  # the smallest there is
    (2, 1, 3, 128, 128),  # one full step, no mask
    (1, 1, 64, 129, 128),  # full rows; one key more than a step
    (1, 1, 129, 64, 120),  # one query more than a block
    (1, 2, 5, 799, 104),  # many steps: stages are used again and again
]


@pytest.mark.parametrize("kernel", ["mma d128 128", "mma d128 128x32", "mma d128 64", "sm90 d128 128", "sm90 d128 64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lengths(library: ctypes.CDLL, kernel: str, case: tuple[int, int, int, int, int]) -> None:
    """Ragged in every way."""
    _check(library, kernel, case)


PATTERNS = [
    TilePattern((5, 6, 9), (4, 4, 4), text=19, window=(1, 2, 2)),  # 21x30x52 made small; tiles of 64 and 4, text
    TilePattern((3, 5, 9), (2, 3, 4), window=(2, 1, 3), wrap=True),  # tiles under 64; runs that wrap
    TilePattern((3, 8, 16), (3, 8, 8), text=5, window=(1, 1, 1)),  # a query tile of two blocks
]


@pytest.mark.parametrize("kernel", ["mma d64 128", "mma d128 128x32", "mma d128 64", "sm90 d64 128", "sm90 d128 64"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=["ragged", "small", "large"])
def test_tile_patterns(library: ctypes.CDLL, kernel: str, pattern: TilePattern) -> None:
    """Lists that all heads share, on grids that are no multiple of their tile."""
    head_dim = int(kernel.split()[1][1:])
    _check(library, kernel, (1, 128 // head_dim, pattern.length, pattern.length, head_dim), pattern.lists())


@pytest.mark.parametrize("kernel", ["mma d64 64", "sm90 d64 128", "sm90 d96 64"])
def test_lists_of_each_head(library: ctypes.CDLL, kernel: str) -> None:
    """A set for each batch and head, other tiles for keys than for queries, lists of one and of more than 32 tiles."""
    rng = np.random.default_rng()
    query_start = np.array([0, 1, 64, 65, 150])
    key_start = np.concatenate([[0], np.cumsum(rng.integers(1, 30, 50))])
    kept = rng.random((4, 4, 50)) < 0.3
    kept[..., 3] = kept[1, 2] = True
    kept[2, 0] = np.arange(50) == 49
    offsets = np.concatenate([[0], np.cumsum(kept.reshape(-1, 50).sum(1))])
    tiles = np.nonzero(kept.reshape(-1, 50))[1].astype(np.int32)
    lists = TileLists(query_start, key_start.astype(np.int64), offsets.astype(np.int64), tiles)
    head_dim = int(kernel.split()[1][1:])
    _check(library, kernel, (2, 2, 150, int(key_start[-1]), head_dim), lists)


@pytest.mark.parametrize("kernel", ["mma d64 64", "sm90 d64 128"])
def test_lists_that_the_card_has_made(library: ctypes.CDLL, kernel: str) -> None:
    """Arrays from routing.py as they are: behind the last list is room that no kernel and no plan may read."""
    pattern = TopK((3, 6, 9), (2, 4, 4), text=9, density=0.3)
    q, k = torch.randn(2, 1, 2, pattern.length, 64)
    query_start, key_start, offsets, tiles = (x.numpy() for x in device_top_k(pattern, q, k, 0.125).arrays)
    assert len(tiles) > offsets[-1]
    tiles[offsets[-1] :] = 2**30
    _check(
        library, kernel, (1, 2, pattern.length, pattern.length, 64), TileLists(query_start, key_start, offsets, tiles)
    )


@pytest.mark.parametrize("kernel", ["mma d64 128", "sm90 d64 128", "sm90 d64 64"])
@pytest.mark.parametrize("scale", [4.0, -0.3, 0.0])
def test_scales(library: ctypes.CDLL, kernel: str, scale: float) -> None:
    """Sharp scores move the maximum by more than 2^8 between steps; a negative scale turns them; 0 is the mean."""
    _check(library, kernel, (1, 1, 40, 300, 64), scale=scale, std=2.0)
