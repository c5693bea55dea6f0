# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Where the video stands among the tokens of somebody else's model, from the shape of its latent and their number.

A host's layers see tokens in raster order, so each sparse call has to put them in tile order and its answer back. That
is memory traffic and nothing else, and most of it would be the operating system handing out fresh pages: hence `Shelf`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rushes.attention.patterns import TilePattern, TopK, Triple

# Where the tokens stand that are not the video's: text behind it or in front of it, further frames of the same size on
# either side (references); "" where nobody knows.
Place = Literal["after", "before", "frames", ""]

# Steps of a convolutional network: it has attention at several scales of its latent.
_STEPS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Layout:
    """grid: tokens (T, H, W) in raster order. others: further tokens, in front of the video or behind it."""

    grid: Triple
    others: int = 0
    others_first: bool = False

    @property
    def tokens(self) -> int:
        return math.prod(self.grid) + self.others

    def order(self, pattern: TilePattern | TopK) -> np.ndarray:
        """int64 [tokens]: `tokens[order]` is in the pattern's tile order with the others at the end."""
        order = pattern.order()
        if not self.others_first:
            return order
        video = math.prod(self.grid)
        return np.concatenate([order[:video] + self.others, np.arange(self.others, dtype=np.int64)])


def find_layout(
    sizes: tuple[int, ...], patch: Triple | None, tokens: int, place: Place = "", text: int | None = None
) -> Layout | str:
    """The layout of `tokens` tokens, or the reason why it cannot be told, as a sentence.

    sizes: the latent's after batch and channels, (T, H, W) or (H, W). patch: latent cells (t, h, w) of a token; None
    where the model does not say. place: of the tokens beyond the video. text: how many of them a model that has them
    "before" must have, so that further ones, such as a reference picture's, are not taken for it; None: any number.
    """
    if len(sizes) not in (2, 3):
        return f"the latent has {len(sizes)} sizes after batch and channels; (T, H, W) or (H, W) makes a grid"
    cells: Triple = (1, *sizes) if len(sizes) == 2 else tuple(sizes)  # type: ignore[assignment]
    if patch is None:
        return _by_trying(cells, tokens)
    grid = _grid(cells, patch)
    frame, video = grid[1] * grid[2], math.prod(grid)
    name = "x".join(map(str, grid))
    others = tokens - video
    if others < 0:
        return f"{tokens} tokens are fewer than the {video} of the grid {name}"
    if others == 0:
        return Layout(grid)
    if place == "frames" and others % frame == 0:
        return Layout((grid[0] + others // frame, grid[1], grid[2]))
    if not place:
        return f"where the {others} tokens beyond the grid {name} stand is not known for this model"
    if place == "before" and text not in (None, others):
        return f"{others} tokens stand beyond the grid {name} and the text has {text}"
    return Layout(grid, others, others_first=place == "before")


def _grid(cells: Triple, patch: Triple) -> Triple:
    return tuple(-(-n // step) for n, step in zip(cells, patch, strict=True))  # type: ignore[return-value]


def _by_trying(cells: Triple, tokens: int) -> Layout | str:
    """The one scale of the picture that has just so many tokens, each frame whole."""
    for step in _STEPS:
        grid = _grid(cells, (1, step, step))
        if math.prod(grid) == tokens:
            return Layout(grid)
    name = "x".join(map(str, cells))
    return f"no patch of a latent {name} makes {tokens} tokens"


@dataclass
class Shelf:
    """Buffers that are used again from layer to layer. limit: bytes above which nothing is kept.

    On a processor the pages of a fresh tensor take several times as long as what is written to them: 19 against 4 ms
    for 6,480 tokens of 1,536 float32. A card's allocator keeps its memory by itself.
    """

    limit: int = 512 * 2**20
    kept: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, like: Tensor) -> Tensor:
        """A tensor of this shape, dtype and device, contiguous, with anything in it."""
        found = self.kept.get(name)
        if found is not None and (found.shape, found.dtype, found.device) == (like.shape, like.dtype, like.device):
            return found
        made = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        if like.device.type == "cpu" and 3 * made.nbytes <= self.limit:
            self.kept[name] = made
        return made


def reorder(x: Tensor, index: Tensor, shelf: Shelf | None = None, name: str = "") -> Tensor:
    """x[:, :, index] of [batch, heads, length, head_dim], by whole rows of what lies together in memory."""
    by_tokens = x.stride(2) >= x.stride(1)  # it lies as [batch, length, heads, head_dim]
    lying = x.transpose(1, 2) if by_tokens else x
    out = (
        shelf.take(name, lying) if shelf is not None else torch.empty_like(lying, memory_format=torch.contiguous_format)
    )
    torch.index_select(lying, 1 if by_tokens else 2, index, out=out)
    return out.transpose(1, 2) if by_tokens else out


def tile_means(x: Tensor, starts: np.ndarray) -> np.ndarray:
    """Means over the tiles: [batch, heads, length, head_dim] in tile order -> float32 [batch * heads, tiles, head_dim].

    starts: int64 [tiles + 1]; tokens from the last on are no tile's. As bags of an embedding, which reads the memory
    once: a tenth of the time of a sum over an inner dimension.
    """
    x = x.detach()
    heads, head_dim = x.shape[1], x.shape[3]
    numbers = torch.arange(int(starts[-1]), device=x.device)
    offsets = torch.from_numpy(starts[:-1]).to(x.device)
    if x.stride(2) >= x.stride(1):
        tables = x.transpose(1, 2).flatten(2)  # [batch, length, heads * head_dim]
        bags = torch.stack([_bags(table, numbers, offsets) for table in tables])  # [batch, tiles, heads * head_dim]
        means = bags.unflatten(2, (heads, head_dim)).transpose(1, 2).flatten(0, 1)
    else:
        means = torch.stack([_bags(table, numbers, offsets) for table in x.flatten(0, 1)])
    return np.ascontiguousarray(means.cpu().numpy())  # [batch * heads, tiles, head_dim]


def _bags(table: Tensor, numbers: Tensor, offsets: Tensor) -> Tensor:
    # float32 whatever the inputs: in bfloat16 many tiles would tie
    return F.embedding_bag(numbers, table.float(), offsets, mode="mean")
