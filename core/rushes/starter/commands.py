# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`rushes train …`: the starter model, made again from nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rushes.starter.train.run import Options

VAE_SHARE = 0.3  # of the working time; the latents' own time is extra


@click.group()
def train() -> None:
    """Train the starter model: vae, then world (latents of rendered clips), then model, then evaluate."""


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--device", default="cpu", show_default=True, help="cpu or cuda."),
        click.option("--seed", default=0, show_default=True),
        click.option("--threads", default=1, show_default=True, help="Threads of each process."),
        click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 64)),
        click.argument("folder", type=click.Path(path_type=Path, file_okay=False)),
    ):
        command = option(command)
    return command


def _options(folder: Path, minutes: float, batch: int, rest: dict[str, Any]) -> Options:
    from rushes.starter.train.run import Options

    folder.mkdir(parents=True, exist_ok=True)
    return Options(folder=folder, minutes=minutes, batch=batch, **rest)


@train.command()
@_run_options
@click.option("--minutes", default=45.0, show_default=True, help="Working time in all; resumed runs go on.")
@click.option("--batch", default=4, show_default=True, help="Crops per process and step.")
def vae(folder: Path, minutes: float, batch: int, **rest: Any) -> None:
    """Train the video VAE. FOLDER keeps the state; the same command resumes."""
    from rushes.starter.train.run import launch
    from rushes.starter.train.vae import train_vae

    launch(_options(folder, minutes, batch, rest), train_vae)


@train.command()
@_run_options
@click.option("--clips", default=10_000, show_default=True, type=click.IntRange(1))
def world(folder: Path, clips: int, **rest: Any) -> None:
    """Render the world and encode it with FOLDER's VAE into FOLDER/latents."""
    from functools import partial

    from rushes.starter.train.latents import make_latents
    from rushes.starter.train.run import launch

    launch(_options(folder, 1.0, 1, rest), partial(make_latents, clips=clips))


@train.command()
@_run_options
@click.option("--minutes", default=90.0, show_default=True, help="Working time in all; resumed runs go on.")
@click.option("--batch", default=4, show_default=True, help="Clips per process and step at first; it grows three-fold.")
def model(folder: Path, minutes: float, batch: int, **rest: Any) -> None:
    """Train transformer and text encoder on FOLDER's latents, then write FOLDER/starter.safetensors."""
    from rushes.starter.train.model import train_model
    from rushes.starter.train.pack import pack
    from rushes.starter.train.run import launch

    options = _options(folder, minutes, batch, rest)
    launch(options, train_model)
    pack(folder, folder / "starter.safetensors")


@train.command()
@_run_options
@click.option("--minutes", default=60.0, show_default=True, help="Working time in all; resumed runs go on.")
@click.option("--batch", default=6, show_default=True, help="Clips per process and step.")
@click.option("--steps", default=8, show_default=True, type=click.IntRange(1, 16), help="That the student shall need.")
def distil(folder: Path, minutes: float, batch: int, steps: int, **rest: Any) -> None:
    """Train a student of FOLDER's model that needs few steps and no guidance, then write FOLDER/student.safetensors."""
    from functools import partial

    from rushes.starter.train.distil import train_student
    from rushes.starter.train.pack import pack
    from rushes.starter.train.run import launch

    launch(_options(folder, minutes, batch, rest), partial(train_student, steps=steps))
    pack(folder, folder / "student.safetensors", student=True)


@train.command(name="all")
@_run_options
@click.option("--minutes", default=180.0, show_default=True, help="Working time in all, shared out to the stages.")
@click.option("--clips", default=6_000, show_default=True, type=click.IntRange(1))
@click.option("--batch", default=4, show_default=True, help="Crops or clips per process and step.")
@click.pass_context
def everything(ctx: click.Context, minutes: float, clips: int, batch: int, **rest: Any) -> None:
    """All stages in order. The same command resumes where it stopped."""
    ctx.invoke(vae, minutes=minutes * VAE_SHARE, batch=batch, **rest)
    ctx.invoke(world, clips=clips, **rest)
    ctx.invoke(model, minutes=minutes * (1 - VAE_SHARE), batch=batch, **rest)


@train.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--model", "name", default="starter", show_default=True, help="A name, folder or .safetensors file.")
@click.option("--prompts", default=200, show_default=True, type=click.IntRange(8))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--frames", type=click.Choice(["9", "17", "25", "33", "49"]), help="Of each clip (default: the model's own)."
)
@click.option("--judge-minutes", default=8.0, show_default=True, help="Of training for the judge, if FOLDER has none.")
@click.option("--device", default="cpu", show_default=True)
def evaluate(
    folder: Path, name: str, prompts: int, seeds: int, frames: str | None, judge_minutes: float, device: str
) -> None:
    """Measure a model on held-out prompts; FOLDER gets report.txt and a sheet, and keeps the judge."""
    from rushes.engine import Engine
    from rushes.starter.train import evaluate as stage

    engine = Engine.load(name, device=device)
    report = stage.evaluate(
        engine, prompts, seeds, folder, judge_minutes, frames=int(frames) if frames else None, tell=click.echo
    )
    click.echo(report.to_text())
