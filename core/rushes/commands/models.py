# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes models`: which models are here, what each of them takes, and which files make it."""

from __future__ import annotations

import json
import os
import textwrap
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rushes.commands.get import get
from rushes.commands.options import check_text, parse_model
from rushes.commands.reporting import format_fps
from rushes.jobs.plan import describe_bytes
from rushes.shot import ShotError, format_guidance

if TYPE_CHECKING:
    from rushes.model.bundle import Card
    from rushes.model.catalog import Model
    from rushes.model.shelf import Entry

_WRAP = 100


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List the starter and every model that the files found here make.

    Looked through are what `models add` has noted, ComfyUI's folders (RUSHES_COMFYUI, or where they usually are, with
    extra_model_paths.yaml) and the Hugging Face cache.
    """
    if ctx.invoked_subcommand is not None:
        return
    from rushes.model.shelf import look

    shelf = look()
    for note in shelf.notes:
        click.echo(f"rushes: warning: {note}", err=True)
    if as_json:
        click.echo(json.dumps([_row(entry) for entry in shelf.entries]))
        return
    for entry in shelf.entries:
        click.echo(f"{entry.name}: {_line(entry)}")


@models.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(name: str, as_json: bool) -> None:
    """Tell what the model NAME (a name, a folder or a file) takes and knows, and where it lies."""
    from rushes.model.catalog import Model

    model = Model.open(parse_model(name))
    facts = _facts(name, model)
    if as_json:
        click.echo(json.dumps(facts))
        return
    rows = _rows(model, facts)
    width = max(len(title) for title, _ in rows)
    for title, text in rows:
        first, *rest = textwrap.wrap(text, _WRAP, break_long_words=False, break_on_hyphens=False) or [""]
        click.echo(f"{title:<{width}}  {first}")
        for line in rest:
            click.echo(f"{'':<{width}}  {line}")


@models.command()
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option("--name", metavar="NAME", help="Make one model of the files, under this name.")
def add(paths: tuple[str, ...], name: str | None) -> None:
    """Put files or folders on the shelf; nothing is copied.

    Without --name, any number of models is found in them: a folder of weights, a repository's folder, or ComfyUI's.
    """
    from rushes.model.added import Added
    from rushes.model.finding import put

    if not paths:
        raise ShotError("path: it is missing; one or more files or folders of weights are allowed")
    if name is not None and (not check_text("name", name).strip() or any(c in name for c in "/\\\n")):
        raise ShotError(f"name: got {name!r}; one without slashes is allowed")
    absolute = tuple(Path(os.path.abspath(check_text("path", path))) for path in paths)
    for entry in put(Added(name or "", absolute)):
        click.echo(f"{entry.name}: {_line(entry)}")


@models.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget what was added under NAME, or as this path. No file of weights is touched."""
    from rushes.model.added import remove as take_off

    gone = take_off(check_text("name", name))
    click.echo(f"{name}: forgotten; {', '.join(str(path) for path in gone.paths)} stays where it is")


models.add_command(get)


def _line(entry: Entry) -> str:
    if entry.missing:
        return f"not whole: {'; '.join(entry.missing)}"
    if entry.limits is None:
        return f"cannot be used: {entry.refusal}"
    size, rate = entry.limits["size"], format_fps(Fraction(entry.limits["fps"]))
    kind = f"{entry.precision}, " if entry.precision else ""
    return (
        f"{entry.limits['frames']} frames, {size[0]}x{size[1]} at {rate} fps, {entry.limits['steps']} steps, "
        f"{kind}{describe_bytes(entry.bytes)}"
    )


def _row(entry: Entry) -> dict[str, Any]:
    """JSON-ready. `ready` says whether `--model NAME` runs; `missing` and `refusal` why not."""
    limits = entry.limits or {}
    return {
        "name": entry.name,
        "origin": entry.origin,
        "ready": entry.is_ready,
        "files": {part: str(path) for part, path in entry.paths.items()},
        "bytes": entry.bytes,
        "precision": entry.precision,
        "missing": list(entry.missing),
        "refusal": entry.refusal,
        **{key: value for key, value in limits.items() if key != "name"},
    }


def _rows(model: Model, facts: dict[str, Any]) -> list[tuple[str, str]]:
    card, size = model.card, f"{facts['size'][0]}x{facts['size'][1]}"
    rate = format_fps(card.defaults.rate)
    words = [("words", f"{len(card.vocabulary)}: {', '.join(sorted(card.vocabulary))}")] if card.vocabulary else []
    return [
        ("model", card.name),
        *([("form", card.form_name)] if card.form_name else []),
        ("takes", card.takes),
        *((part, f"{path}, {describe_bytes(Path(path).stat().st_size)}") for part, path in facts["files"].items()),
        *([("SHA-256", facts["sha256"])] if "sha256" in facts else []),
        ("default", f"{facts['frames']} frames, {size} at {rate} fps, {facts['steps']} steps"),
        ("guidance", format_guidance(card.defaults.guidance) + (" (high, low noise)" if card.boundary else "")),
        ("schedule", f"{card.defaults.schedule}, shift {_shifts(card)}, solver {card.defaults.solver}"),
        *([("negative", card.defaults.negative)] if card.defaults.negative else []),
        ("size", f"multiples of {card.pixel_step}, up to {card.max_pixels} pixels in area; trained at {_sizes(card)}"),
        ("frames", f"{facts['frame_step']}n+1 up to {card.max_frames}; trained on up to {card.trained_frames}"),
        *words,
        *((f"training {key}", str(value)) for key, value in card.training.items()),
    ]


def _sizes(card: Card) -> str:
    return ", ".join(f"{width}x{height}" for width, height in card.trained_sizes)


def _shifts(card: Card) -> str:
    """One shift, or that of each trained size where they differ."""
    found = {f"{width}x{height}": card.shift((width, height)) for width, height in card.trained_sizes}
    if len(set(found.values())) == 1:
        return f"{card.shift(card.defaults.size):g}"
    return ", ".join(f"{shift:g} at {size}" for size, shift in found.items())


def _facts(name: str, model: Model) -> dict[str, Any]:
    """JSON-ready. Of a bundle, the whole file is read for its digest; those of Wan's size take too long for that."""
    from rushes.model.bundle import digest

    card, defaults = model.card, model.card.defaults
    paths = card.paths(model.path)
    return {
        "name": name,
        "path": str(model.path),
        "files": {part: str(path) for part, path in paths.items()},
        "bytes": sum(path.stat().st_size for path in set(paths.values())),
        **({"sha256": digest(model.path)} if list(paths.values()) == [model.path] else {}),
        "size": list(defaults.size),
        "frames": defaults.frames,
        "fps": defaults.fps,
        "steps": defaults.steps,
        "guidance": defaults.guidance,
        "negative": defaults.negative,
        "schedule": defaults.schedule,
        "shift": card.shift(defaults.size),
        "solver": defaults.solver,
        "form": card.form_name,
        "kind": card.kind,
        "takes": card.takes,
        "trained_sizes": [list(size) for size in card.trained_sizes],
        "size_step": card.pixel_step,
        "frame_step": card.vae.temporal_factor,
        "max_frames": card.max_frames,
        "max_pixels": card.max_pixels,
        "trained_frames": card.trained_frames,
        "words": list(card.vocabulary),
        "training": dict(card.training),
    }
