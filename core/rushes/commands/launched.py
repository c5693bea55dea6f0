# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What torchrun told this process: `torchrun --nproc-per-node 2 -m rushes generate …` makes one clip on two cards."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """This process among those that make one clip. card: its number among those of this machine."""

    rank: int
    size: int
    card: int

    @property
    def leads(self) -> bool:
        """True in the one process that writes and prints."""
        return self.rank == 0

    def device(self, name: str | None) -> str | None:
        """The device for this process: cards are dealt out, one each; any other device is as asked for."""
        import torch

        return f"cuda:{self.card}" if name in (None, "cuda") and torch.cuda.is_available() else name


def find_place() -> Place | None:
    """None where torchrun started no others beside this one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return None
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
