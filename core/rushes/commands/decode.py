# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes decode`: from latents.safetensors to any of the other outputs."""

from __future__ import annotations

import time
from typing import Any

import click

from rushes.commands import making
from rushes.commands.making import Delivery
from rushes.commands.options import check_output_options, output_options, parse_model, read_format
from rushes.commands.reporting import make_reporter
from rushes.commands.stopping import stop_on_signals
from rushes.shot import Shot, ShotError


@click.command()
@click.argument("latents_file", metavar="LATENTS")
@click.option("--model", metavar="NAME", help="Decode with this model instead of the one the file names.")
@output_options
def decode(
    latents_file: str,
    model: str | None,
    outputs: tuple[str, ...],
    overwrite: bool,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn LATENTS (written by `generate -o latents.safetensors`) into a movie, a plate or a still."""
    from rushes.media import read_latents

    started = time.perf_counter()
    check_output_options(outputs, device)
    array, source = read_latents(latents_file)  # [1, channels, latent_frames, h, w]
    shot = Shot.from_dict(source["shot"])
    if model is not None:
        shot = shot.replace(model=parse_model(model))
    delivery = Delivery(outputs, overwrite, read_format(options))
    delivery.check(shot)

    import torch

    from rushes.engine import Engine

    with make_reporter(as_json) as reporter, making.warnings_reported(reporter):
        engine = Engine.load(shot.model, device=device)
        channels = engine.card.vae.latent_channels
        if array.shape[1] != channels:
            raise ShotError(
                f"model: the latents have {array.shape[1]} channels and {engine.card.name} has {channels}; "
                "the model that made them is allowed"
            )
        record = engine.record(shot)
        if model is None:
            making.warn_of_other_model(making.model_of(source), record, reporter)
        with stop_on_signals() as stop, making.cancelled_means_stopped(stop):
            files = delivery.write(engine, torch.from_numpy(array), record, reporter, stop)
    reporter.done(outputs, files, shot, record, time.perf_counter() - started)
