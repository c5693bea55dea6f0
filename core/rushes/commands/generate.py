# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes generate`: from a sentence, or from an output made before, to files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from rushes.commands import making
from rushes.commands.making import Delivery
from rushes.commands.options import (
    check_output_options,
    check_text,
    output_options,
    parse_float,
    parse_int,
    parse_keyframe,
    parse_model,
)
from rushes.commands.reporting import Reporter, make_reporter
from rushes.commands.stopping import stop_on_signals
from rushes.shot import Shot, ShotError, parse_fps, parse_size


@click.command()
@click.argument("prompt", nargs=-1, metavar="[PROMPT]")
@click.option(
    "--from", "source", metavar="FILE", help="Make the shot that FILE carries again; other options change it."
)
@click.option("--model", metavar="NAME", help="A model's name, folder or .safetensors file (default: starter).")
@click.option("--size", metavar="WxH", help="Width and height in pixels.")
@click.option("--frames", metavar="N", help="Number of frames.")
@click.option("--fps", metavar="F", help="Frame rate: 24, 23.976, 24000/1001 ...")
@click.option("--seed", metavar="S", help="Same seed, same shot: same frames (default 0).")
@click.option("--steps", metavar="N", help="Denoising steps.")
@click.option("--guidance", metavar="G", help="How strictly the prompt is followed; 1 or less turns it off.")
@click.option("--negative", metavar="TEXT", help="What must not be seen.")
@click.option(
    "--keyframe",
    "keyframes",
    multiple=True,
    metavar="FRAME=IMAGE",
    help="Pass through IMAGE at FRAME; -1 is the last. Repeatable.",
)
@click.option("--fit", is_flag=True, help="Take the nearest size and number of frames that the model allows.")
@output_options
def generate(
    prompt: tuple[str, ...],
    source: str | None,
    outputs: tuple[str, ...],
    colorspace: str | None,
    overwrite: bool,
    device: str | None,
    as_json: bool,
    fit: bool,
    **options: Any,
) -> None:
    """Make a clip that follows PROMPT, one sentence in quotes.

    \b
    rushes generate "a red ball rolls to the right" -o shot.mp4 -o plate.%04d.exr
    """
    started = time.perf_counter()
    check_output_options(outputs, device)
    shot, expected = _read_shot(prompt, source, options)
    delivery = Delivery(outputs, colorspace, overwrite)
    delivery.check(shot)
    with make_reporter(as_json) as reporter, making.warnings_reported(reporter):
        shot, files, record = _make(shot, expected, delivery, device, fit, reporter)
    reporter.done(outputs, files, shot, record, time.perf_counter() - started)


def _make(
    shot: Shot,
    expected: Mapping[str, Any] | None,
    delivery: Delivery,
    device: str | None,
    fit: bool,
    reporter: Reporter,
) -> tuple[Shot, list[str], dict[str, Any]]:
    """The heavy half. Returns the resolved shot, the files' names and the record."""
    from rushes.engine import Engine

    engine = Engine.load(shot.model, device=device)
    shot = engine.resolve(shot, fit=fit)
    delivery.check(shot)
    record = engine.record(shot)
    if expected is not None:
        making.warn_of_other_model(expected, record, reporter)
    making.warn_of_unknown_words(record["unknown_words"], record["model"]["name"], reporter)
    for note in engine.notes(shot):
        reporter.warning(note)
    with stop_on_signals() as stop, making.cancelled_means_stopped(stop):
        latents = engine.denoise(shot, on_progress=reporter.progress, cancel=stop.event)
        files = delivery.write(engine, latents, record, reporter, stop)
    return shot, files, record


def _read_shot(
    prompt: tuple[str, ...], source: str | None, options: Mapping[str, Any]
) -> tuple[Shot, Mapping[str, Any] | None]:
    """The shot asked for and, with --from, the model that made the file. Raises ShotError."""
    if len(prompt) > 1:
        raise ShotError(f"prompt: got {len(prompt)} separate words; one sentence in quotes is allowed")
    changes = _read_changes(options)
    if prompt:
        changes["prompt"] = check_text("prompt", prompt[0])
    if source is not None:
        from rushes.media import read_record

        record = read_record(source)
        shot = Shot.from_dict(record["shot"]).replace(**changes)
        # With --model the artist asks for another model, which is no reason to warn
        return shot, None if "model" in changes else making.model_of(record)
    if "prompt" not in changes:
        raise ShotError("prompt: it is missing; a sentence in quotes, or --from FILE, is allowed")
    return Shot(**changes), None


def _read_changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Shot that the command line gives; those it does not give are absent. Raises ShotError."""
    readers = {
        "model": parse_model,
        "negative": lambda text: check_text("negative", text),
        "size": parse_size,
        "frames": lambda text: parse_int("frames", text),
        "fps": parse_fps,
        "seed": lambda text: parse_int("seed", text),
        "steps": lambda text: parse_int("steps", text),
        "guidance": lambda text: parse_float("guidance", text),
    }
    changes = {name: read(options[name]) for name, read in readers.items() if options[name] is not None}
    if options["keyframes"]:
        changes["keyframes"] = tuple(parse_keyframe(text) for text in options["keyframes"])
    return changes
