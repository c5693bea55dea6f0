# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""One of several processes that test_parallel.py starts: `parallel_process.py FOLDER RANK SIZE JOB`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from rushes import Engine, Shot
from rushes.model.parallel import Team, TeamError, joined
from rushes.model.transformer import Transformer
from rushes.progress import Cancelled


def forward(team: Team, task: dict[str, Any]) -> list[torch.Tensor]:
    """Velocities of all cases."""
    model = Transformer(task["config"]).eval()
    model.load_state_dict(task["state"])
    found = []
    with torch.no_grad():
        for case in task["cases"]:
            model = model.to(case["dtype"])
            inputs = case["inputs"]
            context = model.context(inputs["text"], inputs["image"], cache=True)
            options = {"pattern": case["pattern"], "attend": case.get("attend"), "team": team}
            found.append(model(inputs["latents"], inputs["timestep"], context, inputs["control"], **options))
    return found


def lose(team: Team, task: dict[str, Any]) -> str:
    """The last process ends, or stops, before a block; what the others are told."""
    model = Transformer(task["config"]).eval()
    inputs = task["cases"][0]["inputs"]
    context = model.context(inputs["text"], inputs["image"])

    def on_block(block: int) -> None:
        if block == 1 and team.rank == team.size - 1:
            os.kill(os.getpid(), task["signal"])

    try:
        with torch.no_grad():
            model(inputs["latents"], inputs["timestep"], context, inputs["control"], on_block, team=team)
    except TeamError as error:
        return str(error)
    return ""


def cancel(team: Team, task: dict[str, Any]) -> str:
    """Only the last process is asked to stop; all do, before the same block."""
    asked, blocks = threading.Event(), 0
    engine = Engine.load(task["model"], device="cpu", team=team)
    transformer = engine.parts["transformer"]

    def count(*_: object) -> None:
        nonlocal blocks
        blocks += 1
        if team.rank == team.size - 1 and blocks == 3:
            asked.set()

    for block in transformer.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(count)
    try:
        # other seeds: that of the first process holds
        engine.denoise(Shot("a red ball", seed=team.rank), cancel=asked if team.rank == team.size - 1 else None)
    except Cancelled:
        return f"cancelled after {blocks} blocks"
    return "not cancelled"


def main() -> None:
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    signal.alarm(200)  # a process that hangs is no one's to find
    task = torch.load(folder / "task.pt", weights_only=False)
    with joined(rank, size, task["timeout"], (folder / f"store_{size}").as_uri()) as team:
        found = {"forward": forward, "lose": lose, "cancel": cancel}[sys.argv[4]](team, task)
        torch.save(found, folder / f"found_{rank}.pt")


if __name__ == "__main__":
    main()
