# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes estimate`: seconds and memory of a shot, before it is made."""

from __future__ import annotations

import json
from typing import Any

import click

from rushes.commands.asking import read_shot, read_speed, shot_options, speed_options
from rushes.commands.options import parse_memory
from rushes.jobs.plan import describe_bytes


@click.command()
@shot_options
@speed_options
@click.option("--memory", metavar="GB", help="Plan for a card with so many gigabytes, which need not be here.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def estimate(
    prompt: tuple[str, ...],
    source: str | None,
    fit: bool,
    sparse: str | None,
    fp8_products: bool,
    memory: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say how long PROMPT would take here, by earlier jobs or else by a quick trial, and how much memory, part by part.

    The memory is planned from the model's shapes alone; no weight is read.
    """
    budget = parse_memory(memory)
    shot, expected = read_shot(prompt, source, options)
    speed = read_speed(sparse, fp8_products, expected)
    from rushes.engine import Model
    from rushes.jobs.estimate import estimate as estimate_shot
    from rushes.jobs.folder import jobs_home

    model = Model.open(shot.model)
    found = estimate_shot(jobs_home(), model, model.resolve(shot, fit), speed=speed, card=budget)
    if as_json:
        click.echo(json.dumps(found))
        return
    size = found["shot"]["size"]
    how = "by earlier jobs here" if found["measured"] else "a guess: no such job of this model was made here yet"
    what = f"{model.card.name}, {size[0]}x{size[1]}, {found['shot']['frames']} frames"
    plan = found["memory"]
    click.echo(f"{what}: about {_span(found['seconds'])} ({how}) and {describe_bytes(found['bytes'])}")
    for need in plan["parts"]:
        place = {"device": "", "cpu": ", on the processor", "streamed": ", block by block"}[need["place"]]
        weights, work = describe_bytes(need["weights"]), describe_bytes(need["work"])
        click.echo(f"  {need['part']}: weights {weights}, work {work}{place}")
    click.echo(f"  {_placing(plan)}")


def _placing(plan: dict[str, Any]) -> str:
    if not plan["fits"]:
        return f"this does not fit into {describe_bytes(plan['budget'])}; a smaller size or fewer frames are needed"
    kept = "all parts stay in memory" if plan["keeps"] else "one part after the other"
    beside = f", {describe_bytes(plan['host'])} beside it in the computer's memory" if plan["host"] else ""
    tiles = f", decoded in tiles of {plan['tile']} latent cells" if plan["tile"] else ""
    return f"{kept}{beside}{tiles}"


def _span(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 2 else f"{seconds:.1f} s"
