# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes estimate`: seconds and memory of a shot, before it is made."""

from __future__ import annotations

import json
from typing import Any

import click

from rushes.commands.asking import read_shot, shot_options


@click.command()
@shot_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def estimate(prompt: tuple[str, ...], source: str | None, fit: bool, as_json: bool, **options: Any) -> None:
    """Say how long PROMPT would take here and how much memory, by earlier jobs or else by a quick trial."""
    shot, _ = read_shot(prompt, source, options)
    from rushes.engine import Model
    from rushes.jobs.estimate import estimate as estimate_shot
    from rushes.jobs.folder import jobs_home

    model = Model.open(shot.model)
    found = estimate_shot(jobs_home(), model, model.resolve(shot, fit))
    if as_json:
        click.echo(json.dumps(found))
        return
    size = found["shot"]["size"]
    how = "by earlier jobs here" if found["measured"] else "a guess: no job of this model was made here yet"
    what = f"{model.card.name}, {size[0]}x{size[1]}, {found['shot']['frames']} frames"
    click.echo(f"{what}: about {_span(found['seconds'])} and {found['bytes'] / 1e9:.2g} GB ({how})")


def _span(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 2 else f"{seconds:.1f} s"
