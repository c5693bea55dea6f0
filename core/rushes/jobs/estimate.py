# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a shot will take, before it runs: its counted work over the pace of earlier jobs."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rushes.engine import Model, find_device, memory_plan
from rushes.jobs.folder import list_jobs
from rushes.shot import Shot

LOOK_BACK = 20  # jobs
PIXEL_FLOPS = 5e4  # of a decoder, for a machine that has made nothing yet


def estimate(
    home: Path, model: Model, shot: Shot, device: str | None = None, memory: int | None = None
) -> dict[str, Any]:
    """Seconds and bytes for a resolved shot on a device, the fastest there is when None.

    memory: bytes of a card, whether it is here or not, that the plan has to keep to. In the answer, measured tells
    seconds by earlier jobs of this model here from those by a quick trial; `memory` is the plan, see
    `model.placement.Plan`, and bytes its peak on the device. Raises ShotError for a device that is not there.
    """
    work, place = model.work(shot), find_device(device)
    plan = memory_plan(model, shot, place, memory)
    paces: dict[str, list[float]] = {"flops": [], "pixels": []}
    for job in list_jobs(home)[-LOOK_BACK:]:
        for event in job.events():
            if event["event"] == "pace" and (event.get("model"), event.get("device")) == (model.card.name, place.type):
                paces[event["unit"]].append(event["rate"])
    measured = all(paces.values())
    if not measured:
        trial = _trial(place)
        paces = {"flops": [trial], "pixels": [trial / PIXEL_FLOPS]}
    seconds = work.flops / median(paces["flops"]) + work.pixels / median(paces["pixels"])
    return {
        "seconds": round(seconds, 4), "bytes": plan.peak, "measured": measured, "memory": plan.to_dict(),
        "shot": shot.to_dict(),
    }  # fmt: skip


def _trial(device: torch.device) -> float:
    """Products and sums a second of one large matrix product, halved: a model also does other things."""
    n = 1024
    a = torch.randn(n, n, device=device)
    float((a @ a)[0, 0])
    started = time.perf_counter()
    float((a @ a)[0, 0])  # waits for a card too
    return n**3 / (time.perf_counter() - started)
