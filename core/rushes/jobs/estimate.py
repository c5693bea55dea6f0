# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a shot will take, before it runs: its counted work over the pace of earlier jobs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rushes.engine import Model, find_device, memory_plan
from rushes.jobs.folder import list_jobs
from rushes.shot import Shot
from rushes.speed import PLAIN, Speed

LOOK_BACK = 20  # jobs
PIXEL_FLOPS = 5e4  # of a decoder, for a machine that has made nothing yet


def estimate(
    home: Path,
    model: Model,
    shot: Shot,
    device: str | None = None,
    memory: int | None = None,
    speed: Speed = PLAIN,
    card: int | None = None,
) -> dict[str, Any]:
    """Seconds and bytes for a resolved shot on a device, the fastest there is when None.

    memory: bytes of the device that may be used. card: bytes of a CUDA card, whether it is here or not, that the memory
    is planned for instead. In the answer, measured tells seconds by earlier jobs here of this model and `pace_kind`
    from those by other jobs of it, or by a quick trial; `memory` is the plan, see `model.placement.Plan`, and bytes its
    peak on the device. Raises ShotError for a device that is not there.
    """
    work, place = model.work(shot), find_device(device)
    plan = memory_plan(model, shot, *((place, memory) if card is None else (torch.device("cuda"), card)))
    alike, plain, pixels = _paces(home, model, place, pace_kind(shot, speed))
    measured, flops = bool(alike and pixels), alike or plain
    if not (flops and pixels):
        trial = _trial(place)
        flops, pixels = [trial], [trial / PIXEL_FLOPS]
    seconds = work.flops / median(flops) + work.pixels / median(pixels)
    return {
        "seconds": round(seconds, 4), "bytes": plan.peak, "measured": measured, "memory": plan.to_dict(),
        "shot": shot.to_dict(),
    }  # fmt: skip


def pace_kind(shot: Shot, speed: Speed) -> dict[str, Any]:
    """What changes how much of the counted work a device does in a second, JSON-ready; empty for a plain shot."""
    means = {**speed.to_dict(), "reuse": shot.reuse}
    return dict(json.loads(json.dumps({name: value for name, value in means.items() if value})))


def _paces(
    home: Path, model: Model, place: torch.device, kind: dict[str, Any]
) -> tuple[list[float], list[float], list[float]]:
    """Of the latest jobs of a model on a device: products a second of this kind, those of plain jobs, and pixels."""
    alike, plain, pixels = list[float](), list[float](), list[float]()
    for job in list_jobs(home)[-LOOK_BACK:]:
        for event in job.events():
            if event["event"] != "pace" or (event.get("model"), event.get("device")) != (model.card.name, place.type):
                continue
            if event["unit"] == "pixels":
                pixels.append(event["rate"])
                continue
            theirs = event.get("kind", {})  # an older Rushes made plain jobs alone
            if theirs == kind:
                alike.append(event["rate"])
            if not theirs:
                plain.append(event["rate"])
    return alike, plain, pixels


def _trial(device: torch.device) -> float:
    """Products and sums a second of one large matrix product, halved: a model also does other things."""
    n = 1024
    a = torch.randn(n, n, device=device)
    float((a @ a)[0, 0])
    started = time.perf_counter()
    float((a @ a)[0, 0])  # waits for a card too
    return n**3 / (time.perf_counter() - started)
