# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Which tiles of a 3-D token grid attend to which, and the exact share of scores that this keeps.

Tokens are put in tile order once, when they enter the model (`order`), and taken back at its end (`inverse`), so that
no layer pays for it. A grid need not be a multiple of its tile: tiles at the far edges hold fewer tokens.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from rushes.attention.arrays import is_torch, to_float32

Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class TileLists:
    """Lists of key tiles, ready for the kernel. Tokens of q and of k are in the order of their tiles.

    query_start, key_start: [tiles + 1], first token of each tile and the length. offsets: [sets * query tiles + 1] into
    tiles: set s, query tile i attends to tiles[offsets[s * n + i] : offsets[s * n + i + 1]], rising. sets: 1 for all
    heads, or one for each of batch * heads.
    """

    query_start: np.ndarray  # int64
    key_start: np.ndarray  # int64
    offsets: np.ndarray  # int64
    tiles: np.ndarray  # int32

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.query_start, self.key_start, self.offsets, self.tiles

    @property
    def sets(self) -> int:
        return (len(self.offsets) - 1) // (len(self.query_start) - 1)

    def density(self) -> np.ndarray:
        """Kept scores / all scores, exactly, of each set: float64 [sets]."""
        rows = np.diff(self.query_start)  # [query tiles]
        counts = np.diff(self.key_start)[self.tiles]
        kept = np.add.reduceat(counts, self.offsets[:-1]).reshape(self.sets, -1)  # keys of each query tile
        return (kept * rows).sum(1) / (rows.sum() * int(self.key_start[-1]))


@dataclass(frozen=True)
class _Tiling:
    """grid: tokens (T, H, W). tile: tokens (t, h, w). text: further tokens at the end, in rows and columns dense."""

    grid: Triple
    tile: Triple
    text: int = 0

    def __post_init__(self) -> None:
        for name, triple in (("grid", self.grid), ("tile", self.tile)):
            if len(triple) != 3 or any(not isinstance(n, int) or n < 1 for n in triple):
                raise ValueError(f"{name}: got {triple}; three whole numbers from 1 (time, height, width) are allowed")
        if not isinstance(self.text, int) or self.text < 0:
            raise ValueError(f"text: got {self.text}; a number of tokens from 0 is allowed")

    @property
    def length(self) -> int:
        """Tokens of the video and the text."""
        T, H, W = self.grid
        return T * H * W + self.text

    @property
    def tiles(self) -> Triple:
        """Tiles along each axis."""
        return tuple(-(-n // step) for n, step in zip(self.grid, self.tile, strict=True))  # type: ignore[return-value]

    def order(self) -> np.ndarray:
        """int64 [length]: `tokens[order]` is in tile order, within a tile as (t, h, w); text stays at the end."""
        T, H, W = self.grid
        numbers = np.arange(T * H * W, dtype=np.int64).reshape(self.grid)
        t, h, w = self.tile
        corners = product(range(0, T, t), range(0, H, h), range(0, W, w))
        parts = [numbers[a : a + t, b : b + h, c : c + w].ravel() for a, b, c in corners]
        return np.concatenate([*parts, np.arange(T * H * W, self.length, dtype=np.int64)])

    def inverse(self) -> np.ndarray:
        """int64 [length]: `tiled[inverse]` is in the grid's order again."""
        back = np.empty(self.length, dtype=np.int64)
        back[self.order()] = np.arange(self.length)
        return back

    def starts(self) -> np.ndarray:
        """int64 [tiles + 1]: the first token of each tile in tile order, and the length. Text is the last tile."""
        sizes = [np.minimum(step, n - np.arange(0, n, step)) for n, step in zip(self.grid, self.tile, strict=True)]
        counts = (sizes[0][:, None, None] * sizes[1][:, None] * sizes[2]).ravel()
        return np.concatenate([[0], np.cumsum(np.append(counts, self.text) if self.text else counts)]).astype(np.int64)

    def _lists(self, kept: np.ndarray) -> TileLists:
        """kept: bool [sets, query tiles, key tiles] -> lists."""
        starts = self.starts()
        flat = kept.reshape(-1, kept.shape[-1])
        offsets = np.concatenate([[0], np.cumsum(flat.sum(1))]).astype(np.int64)
        return TileLists(starts, starts, offsets, np.nonzero(flat)[1].astype(np.int32))


@dataclass(frozen=True)
class TilePattern(_Tiling):
    """Each tile attends to a window of tiles around it (sliding tile attention, arXiv:2502.04507).

    window: tiles along (T, H, W), at most the grid's; an even window has its longer side after the tile. wrap: at the
    grid's edge, go on at the other side; otherwise the window is moved inside, so that each tile sees as many.
    global_first_frame: the tiles with frame 0 (a keyframe) attend to all, and all attend to them.
    """

    window: Triple = (3, 3, 3)
    wrap: bool = False
    global_first_frame: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.window) != 3 or any(not isinstance(n, int) or n < 1 for n in self.window):
            raise ValueError(f"window: got {self.window}; three whole numbers of tiles from 1 are allowed")

    def lists(self) -> TileLists:
        """The same for all heads; computed once for equal patterns."""
        return _window_lists(self)

    def density(self) -> float:
        """Kept scores / all scores, exactly; the same in each head."""
        return float(self.lists().density()[0])


@functools.lru_cache(maxsize=16)
def _window_lists(pattern: TilePattern) -> TileLists:
    near = [
        _axis_window(n, width, pattern.wrap) for n, width in zip(pattern.tiles, pattern.window, strict=True)
    ]  # each [n, n]
    kept = np.einsum("ad,be,cf->abcdef", *near)
    if pattern.global_first_frame:
        kept[0] = True
        kept[:, :, :, 0] = True
    n = int(np.prod(pattern.tiles))
    kept = kept.reshape(n, n)
    if pattern.text:
        kept = np.pad(kept, (0, 1), constant_values=True)
    return pattern._lists(kept[None])


def _axis_window(n: int, width: int, wrap: bool) -> np.ndarray:
    """bool [n, n]: which tiles each tile sees along one axis."""
    width = min(width, n)
    first = np.arange(n) - (width - 1) // 2
    if not wrap:
        first = np.clip(first, 0, n - width)
    seen = np.zeros((n, n), dtype=bool)
    np.put_along_axis(seen, (first[:, None] + np.arange(width)) % n, True, axis=1)
    return seen


@dataclass(frozen=True)
class TopK(_Tiling):
    """Each video tile attends to the key tiles with the highest scores between the tiles' mean query and mean key.

    density: the share of its scores that each row of a video tile keeps, in (0, 1]; what it gets is that or more, by
    less than one tile. Text is kept always and counts. Scores are float32 whatever the inputs: in bfloat16 many tie.
    """

    density: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise ValueError(f"density: got {self.density}; above 0 and up to 1 is allowed")

    def lists(self, q: Any, k: Any, scale: float = 1.0) -> TileLists:
        """Lists for these q and k, [batch, heads, length, head_dim] in tile order; one set for each batch and head.

        Tensors on another device are asked there; this then waits for the answer (routing.device_top_k does not).
        """
        if is_torch(q) and q.device.type != "cpu":
            from rushes.attention import routing

            return routing.host_lists(routing.device_top_k(self, q, k, scale))
        starts = self.starts()
        video = starts[: len(starts) - bool(self.text)]  # of the video's tiles, and where the last of them ends
        if is_torch(q):
            from rushes.attention.token_grid import tile_means

            return self.lists_of_means(tile_means(q, video), tile_means(k, video), scale)
        return self.lists_of_means(_tile_means(q, video), _tile_means(k, video), scale)

    def lists_of_means(self, q: np.ndarray, k: np.ndarray, scale: float = 1.0) -> TileLists:
        """The same for whoever has the mean query and key of each video tile: float32 [batch * heads, n, head_dim]."""
        sizes = np.diff(self.starts())
        n = len(sizes) - bool(self.text)
        scores = _products(q, k) * np.float32(scale)  # [sets, n, n]
        best = np.argsort(-scores, axis=-1, kind="stable")
        before = np.cumsum(sizes[best], axis=-1) - sizes[best] + self.text  # keys kept without this one
        chosen = before < self.density * self.length
        chosen[..., 0] = True
        kept = np.zeros((len(scores), len(sizes), len(sizes)), dtype=bool)
        np.put_along_axis(kept[:, :n, :n], best, chosen, axis=-1)
        if self.text:
            kept[:, n] = kept[:, :, n] = True
        return self._lists(kept)


def _products(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """q k^T of float32 [sets, n, head_dim]: by torch where it is loaded. NumPy's threads would wait for torch's, which
    stay awake between two calls: measured were 92 ms for the 2 that one thread takes."""
    if (torch := sys.modules.get("torch")) is None:
        return q @ k.transpose(0, 2, 1)
    found: np.ndarray = torch.matmul(torch.from_numpy(q), torch.from_numpy(k).transpose(1, 2)).numpy()
    return found


def _tile_means(array: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """As token_grid.tile_means, without torch."""
    wide = to_float32(array)[:, :, : starts[-1]]
    sums = np.add.reduceat(wide, starts[:-1], axis=2)  # [batch, heads, tiles, head_dim]
    return (sums / np.diff(starts)[:, None].astype(np.float32)).reshape(-1, *sums.shape[2:])
