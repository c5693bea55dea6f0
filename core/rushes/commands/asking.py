# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a shot is asked for with: the prompt and the options that `generate` and `estimate` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from rushes.commands import making
from rushes.commands.controls import control_options, read_control
from rushes.commands.options import Command, check_text, parse_float, parse_int, parse_keyframe, parse_lora, parse_model
from rushes.shot import Shot, ShotError, parse_fps, parse_guidance, parse_size
from rushes.speed import Speed, read_attention


def shot_options(command: Command) -> Command:
    """PROMPT and every field of a shot; `read_shot` makes the shot of them."""
    options = [
        click.argument("prompt", nargs=-1, metavar="[PROMPT]"),
        click.option(
            "--from", "source", metavar="FILE", help="Make the shot that FILE carries again; other options change it."
        ),
        click.option("--model", metavar="NAME", help="A model's name, folder or .safetensors file (default: starter)."),
        click.option("--size", metavar="WxH", help="Width and height in pixels."),
        click.option("--frames", metavar="N", help="Number of frames."),
        click.option("--fps", metavar="F", help="Frame rate: 24, 23.976, 24000/1001 ..."),
        click.option("--seed", metavar="S", help="Same seed, same shot: same frames (default 0)."),
        click.option("--steps", metavar="N", help="Denoising steps."),
        click.option(
            "--guidance",
            metavar="G",
            help="How strictly the prompt is followed; 1 or less turns it off. HIGH,LOW for a model of two experts.",
        ),
        click.option(
            "--shift", metavar="S", help="How far the schedule is bent towards noise (default: the model's own)."
        ),
        click.option(
            "--negative", metavar="TEXT", help='What must not be seen; "" for nothing, where a model has some.'
        ),
        click.option(
            "--keyframe",
            "keyframes",
            multiple=True,
            metavar="FRAME=IMAGE",
            help="Pass through IMAGE at FRAME; -1 is the last. Repeatable.",
        ),
        click.option(
            "--lora",
            "loras",
            multiple=True,
            metavar="FILE[:STRENGTH]",
            help="Put a LoRA on the model; high=FILE or low=FILE for one of two experts. Repeatable.",
        ),
        control_options,
        click.option(
            "--reuse",
            metavar="SHARE",
            help="Faster, with an error: skip blocks while the first one changes by less, such as 0.1 (default 0).",
        ),
        click.option(
            "--guided",
            metavar="SHARE",
            help="Faster, with an error: share of the steps with guidance, such as 0.6 (default 1).",
        ),
        click.option("--fit", is_flag=True, help="Take the nearest size and number of frames that the model allows."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def speed_options(command: Command) -> Command:
    """What the engine is told and not the shot; `read_speed` reads it."""
    command = click.option(
        "--fp8-products", is_flag=True, help="Multiply in fp8 where the file is in it: faster, less exact."
    )(command)
    return click.option(
        "--attention",
        "sparse",
        metavar="DENSITY",
        help="Share of self-attention that is computed, such as 0.2, or fields: density=0.2,first_steps=2,"
        "last_layers=1, window=3x3x3, tile=4x4x4; dense for all of it.",
    )(command)


def read_speed(sparse: str | None, fp8_products: bool, expected: Mapping[str, Any] | None) -> Speed:
    """What the options say, and beyond them what the file was made with. Raises ShotError."""
    before = expected or {}
    products = fp8_products or bool(before.get("fp8_products"))
    if sparse is not None:
        return Speed(read_attention(sparse), products)
    try:
        return Speed(read_attention(before.get("attention")), products)
    except ShotError as error:
        raise ShotError("attention: the file's settings of it cannot be read; --attention is allowed") from error


def read_shot(
    prompt: tuple[str, ...], source: str | None, options: Mapping[str, Any]
) -> tuple[Shot, Mapping[str, Any] | None]:
    """The shot asked for and, with --from, the model that made the file. Raises ShotError."""
    if len(prompt) > 1:
        raise ShotError(f"prompt: got {len(prompt)} separate words; one sentence in quotes is allowed")
    changes = _read_changes(options)
    if prompt:
        changes["prompt"] = check_text("prompt", prompt[0])
    if source is not None:
        from rushes.media import read_record, shot_in

        shot, record = shot_in(read_record(source), source)
        shot = shot.replace(**changes)
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
        "guidance": parse_guidance,
        "shift": lambda text: parse_float("shift", text),
        "reuse": lambda text: parse_float("reuse", text),
        "guided": lambda text: parse_float("guided", text),
    }
    changes = {name: read(options[name]) for name, read in readers.items() if options[name] is not None}
    if options["keyframes"]:
        changes["keyframes"] = tuple(parse_keyframe(text) for text in options["keyframes"])
    if options["loras"]:
        changes["loras"] = tuple(parse_lora(text) for text in options["loras"])
    if control := read_control(options):
        changes["control"] = control
    return changes
