# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes generate`: from a sentence, or from an output made before, to files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from rushes.commands import making
from rushes.commands.asking import read_shot, shot_options
from rushes.commands.making import Delivery
from rushes.commands.options import check_output_options, output_options, read_format
from rushes.commands.reporting import Reporter, make_reporter
from rushes.commands.stopping import stop_on_signals
from rushes.shot import Shot


@click.command()
@shot_options
@output_options
def generate(
    prompt: tuple[str, ...],
    source: str | None,
    outputs: tuple[str, ...],
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
    shot, expected = read_shot(prompt, source, options)
    delivery = Delivery(outputs, overwrite, read_format(options))
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
