# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The lists of a TopK by torch, on the tensors' own device, which nobody waits for; patterns.py makes them by NumPy."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rushes.attention.cuda import DeviceLists
from rushes.attention.patterns import TileLists, TopK


def device_top_k(pattern: TopK, q: Tensor, k: Tensor, scale: float) -> DeviceLists:
    """What pattern.lists(q, k, scale) says, of tensors on any device, left there. Asks the device for nothing back.

    tiles holds room for the longest lists that there can be; what lies behind the last offset has no meaning.
    """
    table = _table(pattern, q.device)
    n, all_tiles = table.video, table.video + bool(pattern.text)
    scores = _means(q, table) @ _means(k, table).transpose(1, 2) * scale  # [sets, n, n]
    best = torch.sort(-scores, dim=-1, stable=True).indices
    before = table.sizes[best].cumsum(-1) - table.sizes[best] + pattern.text  # keys kept without this one
    chosen = before < math.ceil(pattern.density * pattern.length)
    chosen[..., 0] = True
    kept = torch.zeros(len(scores), all_tiles, all_tiles, dtype=torch.bool, device=q.device)
    kept[:, :n, :n].scatter_(-1, best, chosen)
    if pattern.text:
        kept[:, n] = kept[:, :, n] = True
    offsets, tiles = _compact(kept.flatten(0, 1), len(scores) * table.most_kept)
    return DeviceLists((all_tiles, all_tiles, len(scores), table.largest), (table.starts, table.starts, offsets, tiles))


def host_lists(lists: DeviceLists) -> TileLists:
    """The same on the host, which waits for them."""
    query_start, key_start, offsets, tiles = (array.cpu().numpy() for array in lists.arrays)
    return TileLists(query_start, key_start, offsets, tiles[: offsets[-1]])


class _Table(NamedTuple):
    """What depends on the pattern alone. rows: int64 [video tiles, most tokens]; extra: where there is no token."""

    video: int  # tiles
    largest: int  # tokens of a tile, the text's included
    most_kept: int  # tiles in all lists of a set together
    starts: Tensor
    sizes: Tensor  # int64 [video tiles]
    rows: Tensor
    extra: Tensor | None


@functools.lru_cache(maxsize=16)
def _table(pattern: TopK, device: torch.device) -> _Table:
    starts = pattern.starts()
    sizes = np.diff(starts)
    video = sizes[: len(sizes) - bool(pattern.text)]
    within = np.arange(video.max())
    extra = within >= video[:, None]
    rows = np.where(extra, 0, starts[: len(video), None] + within)
    # the longest list is that of the smallest tiles; one is kept always
    before = pattern.text + np.cumsum(np.sort(video)) - np.sort(video)
    longest = max(1, int((before < math.ceil(pattern.density * pattern.length)).sum()))
    most = len(video) * longest + (2 * len(video) + 1 if pattern.text else 0)
    tensors = (torch.from_numpy(x).to(device) for x in (starts, video, rows, extra))
    on_device, sizes_on_device, rows_on_device, extra_on_device = tensors
    return _Table(
        len(video), int(sizes.max()), most, on_device, sizes_on_device, rows_on_device,
        extra_on_device if extra.any() else None,
    )  # fmt: skip


def _means(x: Tensor, table: _Table) -> Tensor:
    """float32 [batch * heads, video tiles, head_dim]."""
    x = x.detach()
    if table.extra is None:
        tiles = x[:, :, : table.rows.numel()].unflatten(2, table.rows.shape)
    else:
        tiles = x[:, :, table.rows].masked_fill_(table.extra[..., None], 0)  # [batch, heads, tiles, tokens, head_dim]
    return (tiles.sum(3, dtype=torch.float32) / table.sizes[:, None]).flatten(0, 1)


def _compact(kept: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """kept: bool [lists, tiles] -> offsets int64 [lists + 1], and the tiles of one list after another, int32 [room]."""
    place = kept.flatten().cumsum(0)  # counts from 1
    offsets = torch.cat([place.new_zeros(1), place.unflatten(0, kept.shape)[:, -1]])
    column = torch.arange(kept.shape[1], dtype=torch.int32, device=kept.device).expand_as(kept)
    tiles = torch.zeros(room + 1, dtype=torch.int32, device=kept.device)  # those not kept go to the last place
    tiles.scatter_(0, torch.where(kept.flatten(), place - 1, room), column.flatten())
    return offsets, tiles[:room]
