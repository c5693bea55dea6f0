# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""One clip over several processes: sequence parallel by exchanging heads for tokens (Ulysses, arXiv:2309.14509).

Each process has all weights and a run of the tokens, in the order that the blocks keep them in. Around self-attention
the processes trade: each then has whole sequences for some of the heads, so that attention, dense or by tiles, is the
same call as in one process. Neither tokens nor heads need be a multiple of the processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rushes.shot import ShotError

Value = TypeVar("Value")
TIMEOUT = 600.0  # seconds; one process may read its weights from a slower disk than another


class TeamError(Exception):
    """Another process of the team ended or stopped answering."""


class Flag(Protocol):
    """What a cancel event answers."""

    def is_set(self) -> bool: ...


class Team:
    """The processes that share one clip. All of them make the same calls in the same order.

    Every method that talks to the others raises TeamError when one has gone or is silent for longer than the timeout.
    """

    def __init__(self, rank: int, size: int, timeout: float = TIMEOUT) -> None:
        self.rank, self.size = rank, size
        self._timeout = timeout

    @property
    def leads(self) -> bool:
        """True in the one process that writes and tells."""
        return self.rank == 0

    def check_heads(self, heads: int) -> None:
        """Raise ShotError where there are more processes than heads."""
        if self.size > heads:
            raise ShotError(f"processes: got {self.size}; 1 to {heads}, the model's attention heads, are allowed")

    def share(self, count: int) -> range:
        """Which of so many tokens or heads are this process's."""
        return self._shares(count)[self.rank]

    def rows(self, order: Tensor) -> Tensor:
        """This process's part of the tokens in the order of the blocks. Raises ShotError where there are too few."""
        if len(order) < self.size:
            raise ShotError(
                f"processes: got {self.size}; 1 to {len(order)}, the tokens of a clip of this size and length, are "
                "allowed"
            )
        mine = self.share(len(order))
        return order[mine.start : mine.stop]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, tokens: int, attention: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Self-attention of this process's tokens to all. q, k, v: [B, heads, own tokens, head_dim]; as is the answer.

        attention: computes it for whole sequences, [B, own heads, tokens, head_dim].
        """
        B, heads, own, width = q.shape
        shares, mine = self._shares(heads), len(self.share(heads))
        together = torch.stack((q, k, v))  # [3, B, heads, own, head_dim]
        parts = [together[:, :, share.start : share.stop] for share in shares]
        pieces = self._exchange(parts, [(3, B, mine, len(run), width) for run in self._shares(tokens)])
        del together, parts
        whole = torch.cat(pieces, dim=3)  # [3, B, own heads, tokens, head_dim]
        out = attention(*whole)
        parts = [out[:, :, run.start : run.stop] for run in self._shares(tokens)]
        return torch.cat(self._exchange(parts, [(B, len(share), own, width) for share in shares]), dim=1)

    def gather(self, x: Tensor, tokens: int) -> Tensor:
        """All tokens [B, tokens, dim], in every process, of each one's own [B, own tokens, dim]."""
        shapes = [(x.shape[0], len(run), x.shape[2]) for run in self._shares(tokens)]
        return torch.cat(self._exchange([x] * self.size, shapes), dim=1)

    def lead(self, value: Value) -> Value:
        """The first process's value, in every process."""
        box = [value]
        with self._together():
            dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        return box[0]

    def agree(self, flag: Flag | None) -> Flag:
        """An event that is set everywhere when it is set anywhere, so that all stop before the same block."""
        return _Agreed(self, flag)

    def any(self, value: bool) -> bool:
        """Whether it is true in any process."""
        found = torch.tensor(int(value))
        with self._together():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def _shares(self, count: int) -> list[range]:
        """What each process has of so many: runs whose lengths differ by one at most."""
        ends = [count * rank // self.size for rank in range(self.size + 1)]
        return [range(start, end) for start, end in pairwise(ends)]

    def _exchange(self, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Send each process its part; what came from each, of these shapes."""
        sent = torch.cat([part.reshape(-1) for part in parts])
        sizes = [math.prod(shape) for shape in shapes]
        got = sent.new_empty(sum(sizes))
        with self._together():
            dist.all_to_all_single(got, sent, sizes, [part.numel() for part in parts])
        return [piece.view(shape) for piece, shape in zip(got.split(sizes), shapes, strict=True)]

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch's backends raise, for a lost connection and for silence
            raise TeamError(
                f"one of the {self.size} processes of this shot ended, or did not answer within {self._timeout:g} s; "
                "what it said itself is the reason"
            ) from error


class _Agreed:
    def __init__(self, team: Team, flag: Flag | None) -> None:
        self._team, self._flag = team, flag

    def is_set(self) -> bool:
        return self._team.any(self._flag is not None and self._flag.is_set())


@contextmanager
def joined(rank: int, size: int, timeout: float = TIMEOUT, address: str = "env://") -> Iterator[Team]:
    """The team of so many processes, of which this is number `rank`. Raises TeamError if the others do not come.

    timeout: seconds that one may wait for another. address: where they meet, as torch.distributed takes it.
    """
    team = Team(rank, size, timeout)
    # what is on the processor, votes among it, goes over gloo in any case
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with team._together():
        dist.init_process_group(
            backend, init_method=address, timeout=timedelta(seconds=timeout), rank=rank, world_size=size
        )
    try:
        yield team
    finally:
        dist.destroy_process_group()
