# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes models`: which models are here, and what each of them takes and knows."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import click

from rushes.commands.options import check_text
from rushes.commands.reporting import format_fps
from rushes.shot import format_guidance

if TYPE_CHECKING:
    from pathlib import Path

    from rushes.model.bundle import Card

_WRAP = 100


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List the models that Rushes brings; `models show NAME` tells more."""
    if ctx.invoked_subcommand is not None:
        return
    from rushes.model.bundle import SHIPPED, bundle_path, read_card

    found = [(name, path, read_card(path)) for name, path in ((name, bundle_path(name)) for name in SHIPPED)]
    if as_json:
        click.echo(json.dumps([_facts(name, path, card) for name, path, card in found]))
        return
    for name, path, card in found:
        click.echo(f"{name}: {_summary(card)}, {path.stat().st_size / 1e6:.1f} MB")


@models.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(name: str, as_json: bool) -> None:
    """Tell what the model NAME (a name, folder or .safetensors file) takes and knows, and where it lies."""
    from rushes.model.bundle import bundle_path, read_card

    path = bundle_path(check_text("model", name))
    card = read_card(path)
    facts = _facts(name, path, card)
    if as_json:
        click.echo(json.dumps(facts))
        return
    rows = [
        ("model", card.name),
        ("file", f"{path}, {path.stat().st_size / 1e6:.1f} MB"),
        ("SHA-256", facts["sha256"]),
        ("default", _summary(card)),
        ("guidance", format_guidance(card.defaults.guidance)),
        ("schedule", f"{card.defaults.schedule}, shift {card.defaults.shift:g}, solver {card.defaults.solver}"),
        ("size", f"multiples of {card.pixel_step}, up to {card.max_pixels} pixels in area"),
        (
            "frames",
            f"{facts['frame_step']}n+1 up to {card.max_frames}; trained on up to {card.trained_frames}",
        ),
        ("words", f"{len(card.vocabulary)}: {', '.join(sorted(card.vocabulary))}"),
        *((f"training {key}", str(value)) for key, value in card.training.items()),
    ]
    width = max(len(title) for title, _ in rows)
    for title, text in rows:
        first, *rest = textwrap.wrap(text, _WRAP, break_long_words=False, break_on_hyphens=False) or [""]
        click.echo(f"{title:<{width}}  {first}")
        for line in rest:
            click.echo(f"{'':<{width}}  {line}")


def _summary(card: Card) -> str:
    defaults = card.defaults
    size = f"{defaults.size[0]}x{defaults.size[1]}"
    return f"{defaults.frames} frames, {size} at {format_fps(defaults.rate)} fps, {defaults.steps} steps"


def _facts(name: str, path: Path, card: Card) -> dict[str, Any]:
    """JSON-ready. Reads the whole file for its digest."""
    from rushes.model.bundle import digest

    defaults = card.defaults
    return {
        "name": name,
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": digest(path),
        "size": list(defaults.size),
        "frames": defaults.frames,
        "fps": defaults.fps,
        "steps": defaults.steps,
        "guidance": defaults.guidance,
        "size_step": card.pixel_step,
        "frame_step": card.vae.temporal_factor,
        "max_frames": card.max_frames,
        "max_pixels": card.max_pixels,
        "trained_frames": card.trained_frames,
        "words": list(card.vocabulary),
        "training": dict(card.training),
    }
