# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes generate`: from a sentence, or from an output made before, to files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import click

from rushes.commands import making
from rushes.commands.asking import read_shot, read_speed, shot_options, speed_options
from rushes.commands.keeping import latents_kept
from rushes.commands.launched import Place, find_place
from rushes.commands.making import Delivery
from rushes.commands.options import check_output_options, memory_option, output_options, parse_memory, read_format
from rushes.commands.reporting import Reporter, make_reporter
from rushes.commands.stopping import stop_on_signals
from rushes.shot import Shot
from rushes.speed import Speed


@click.command()
@shot_options
@output_options
@speed_options
@memory_option
def generate(
    prompt: tuple[str, ...],
    source: str | None,
    outputs: tuple[str, ...],
    overwrite: bool,
    device: str | None,
    as_json: bool,
    fit: bool,
    sparse: str | None,
    memory: str | None,
    fp8_products: bool,
    **options: Any,
) -> None:
    """Make a clip that follows PROMPT, one sentence in quotes.

    \b
    rushes generate "a red ball rolls to the right" -o shot.mp4 -o plate.%04d.exr
    """
    started = time.perf_counter()
    check_output_options(outputs, device)
    budget = parse_memory(memory)
    shot, expected = read_shot(prompt, source, options)
    speed = read_speed(sparse, fp8_products, expected)
    delivery = Delivery(outputs, overwrite, read_format(options))
    delivery.check(shot)
    place = find_place()
    with (
        make_reporter(as_json, silent=place is not None and not place.leads) as reporter,
        making.warnings_reported(reporter),
    ):
        shot, files, record = _make(shot, expected, delivery, device, fit, speed, budget, reporter, place)
    reporter.done(outputs, files, shot, record, time.perf_counter() - started)


def _make(
    shot: Shot,
    expected: Mapping[str, Any] | None,
    delivery: Delivery,
    device: str | None,
    fit: bool,
    speed: Speed,
    memory: int | None,
    reporter: Reporter,
    place: Place | None,
) -> tuple[Shot, list[str], dict[str, Any]]:
    """The heavy half. Returns the resolved shot, the files' names and the record."""
    from rushes.engine import Engine
    from rushes.model.parallel import joined

    if place is not None:
        device = place.device(device)
    with nullcontext() if place is None else joined(place.rank, place.size) as team:
        engine = Engine.load(
            shot.model, device=device, team=team, memory=memory,
            attention=speed.attention, fp8_products=speed.fp8_products,
        )  # fmt: skip
        shot = engine.resolve(shot, fit=fit)
        delivery.check(shot)
        record = engine.record(shot)
        if expected is not None:
            making.warn_of_other_model(expected, record, reporter)
        making.warn_of_unknown_words(record["unknown_words"], record["model"]["name"], reporter)
        for note in engine.notes(shot):
            reporter.warning(note)
        with stop_on_signals() as stop, making.cancelled_means_stopped(stop):
            began = time.perf_counter()
            latents = engine.denoise(shot, on_progress=reporter.progress, cancel=stop.event)
            seconds = time.perf_counter() - began
            if (report := engine.attention_report()) is not None:
                reporter.attention(report)
            if (reused := engine.reuse_report()) is not None:
                reporter.reuse(reused)
            files = []
            if team is None or team.leads:
                with latents_kept(latents, record, seconds, reporter):
                    files = delivery.write(engine, latents, record, reporter, stop)
    return shot, files, record
