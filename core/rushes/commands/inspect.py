# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes inspect`: the shot that an output carries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from rushes.commands.controls import describe
from rushes.commands.making import model_of
from rushes.commands.reporting import format_fps
from rushes.shot import Shot, format_guidance


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="The record as it is stored.")
def inspect(file: str, as_json: bool) -> None:
    """Print the shot that FILE (a movie, frame, still or latents made by Rushes) carries."""
    from rushes.media import read_record

    record = read_record(file)
    if as_json:
        click.echo(json.dumps(record))
        return
    rows = _rows(record)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def _rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, text) for each thing worth reading; the shot is checked on the way. Raises ShotError."""
    shot = Shot.from_dict(record["shot"])
    model = model_of(record)
    rows = [
        ("prompt", shot.prompt),
        ("negative", shot.negative or ""),
        ("size", "" if shot.size is None else f"{shot.size[0]}x{shot.size[1]}"),
        ("frames", "" if shot.frames is None else str(shot.frames)),
        ("fps", "" if shot.fps is None else f"{format_fps(shot.fps)} ({shot.fps})"),
        ("seed", str(shot.seed)),
        ("steps", "" if shot.steps is None else str(shot.steps)),
        ("guidance", "" if shot.guidance is None else format_guidance(shot.guidance)),
        ("shift", "" if shot.shift is None else f"{shot.shift:g}"),
        *((f"keyframe {keyframe.frame}", keyframe.image) for keyframe in shot.keyframes),
        *((f"lora {lora.expert}".strip(), f"{lora.path} at {lora.strength:g}") for lora in shot.loras),
        *((f"control {control.kind}", describe(control)) for control in shot.control),
        ("model", f"{model.get('name', shot.model)} (SHA-256 {model.get('sha256', 'unknown')})"),
        ("unknown words", ", ".join(record.get("unknown_words") or [])),
        ("made by", f"Rushes {record['rushes']}"),
    ]
    return [(name, text) for name, text in rows if text]
