# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Options that several commands share, and the reading of their text.

Numbers are read here and not by click, so that each refusal has the same form:
argument, what was got, what is allowed.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from rushes.model.places import is_weights
from rushes.shot import Keyframe, Lora, ShotError
from rushes.shot import parse_lora as parse_shot_lora

Command = TypeVar("Command", bound=Callable[..., Any])

_DEVICE = re.compile(r"cpu|mps|(cuda|xpu)(:\d+)?")

memory_option = click.option(
    "--memory", metavar="GB", help="Memory of the device to keep to (default: most of what it has)."
)


def output_options(command: Command) -> Command:
    """-o and how to write it, --device, --json: how and where the clip is made and written."""
    options = [
        click.option(
            "-o",
            "--output",
            "outputs",
            multiple=True,
            metavar="OUT",
            help="File to write, repeatable: .mp4, .mov, plate.%04d.exr, .png, .otio, .safetensors.",
        ),
        click.option("--colorspace", metavar="NAME", help="Colour space of an EXR plate (default ACEScg)."),
        click.option("--depth", metavar="DEPTH", help="Numbers in an EXR plate: half (default) or float."),
        click.option("--compression", metavar="NAME", help="Of an EXR plate: zip (default), zips, piz, dwaa or none."),
        click.option(
            "--alpha", metavar="KIND", help="Of an EXR plate: none (default), or solid, which is 1 everywhere."
        ),
        click.option(
            "--inverse-view",
            metavar="VIEW",
            help="EXR that looks like the clip through VIEW: default (ACES 1.0 SDR), or a name in the OCIO config.",
        ),
        click.option("--cap", metavar="X", help="With --inverse-view: light is bent to stay below X (default 8)."),
        click.option("--start-frame", metavar="N", help="Number of the first file of a sequence (default 1001)."),
        click.option("--timecode", metavar="HH:MM:SS:FF", help="Of the first frame (default: the frame number)."),
        click.option("--handles", metavar="N", help="Frames at each end that are no part of the cut (default 0)."),
        click.option(
            "--overscan", metavar="N", help="Pixels at each side outside an EXR's display window (default 0)."
        ),
        click.option("--slate", is_flag=True, help="A picture that tells of the plate, one number before its first."),
        click.option(
            "--codec",
            metavar="NAME",
            help="Of a .mov: prores-422hq (default), prores-4444, dnxhr-hqx; of .mov and .mp4: h264, h264-10bit.",
        ),
        click.option(
            "--manifest/--no-manifest",
            default=None,
            help="Write hashes beside the pictures for `rushes verify` (default: beside plates).",
        ),
        click.option("--overwrite", is_flag=True, help="Replace files that exist."),
        click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps ... (default: the best one here)."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object per line on stdout."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def read_format(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of media's OutputFormat that the command line gives. Raises ShotError for what is no number."""
    texts = ("colorspace", "depth", "compression", "alpha", "inverse_view", "timecode", "codec", "manifest")
    given: dict[str, Any] = {name: options[name] for name in texts if options[name] is not None}
    for name in ("start_frame", "handles", "overscan"):
        if options[name] is not None:
            given[name] = parse_int(name.replace("_", " "), options[name])
    if options["cap"] is not None:
        given["cap"] = parse_float("cap", options["cap"])
    return {**given, "slate": True} if options["slate"] else given


def check_output_options(outputs: Sequence[str], device: str | None) -> None:
    """Raise ShotError for what needs no look at the disk."""
    if not outputs:
        raise ShotError("-o: no output is given; shot.mp4, plate.%04d.exr or another file name is allowed")
    for output in outputs:
        check_text("-o", output)
    if device is not None and not _DEVICE.fullmatch(device):
        raise ShotError(f"device: got {device!r}; cpu, cuda, cuda:N, xpu or mps is allowed")


def check_text(name: str, text: str) -> str:
    """`text`, if it is Unicode: bytes of another encoding arrive as lone surrogates, which no file holds."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ShotError(f"{name}: got bytes that are not UTF-8; text in UTF-8 is allowed") from None
    return text


def parse_int(name: str, text: str) -> int:
    """A whole number; its range is Shot's to check."""
    try:
        return int(text)
    except ValueError:
        raise ShotError(f"{name}: got {text!r}; a whole number is allowed") from None


def parse_float(name: str, text: str) -> float:
    """A number; its range is Shot's to check."""
    try:
        return float(text)
    except ValueError:
        raise ShotError(f"{name}: got {text!r}; a number is allowed") from None


def parse_memory(text: str | None) -> int | None:
    """Gigabytes, "8" or "23.5", as bytes; None for none."""
    if text is None:
        return None
    gigabytes = parse_float("memory", text.removesuffix("GB").strip())
    if not 0 < gigabytes < 1e6:
        raise ShotError(f"memory: got {text!r}; gigabytes such as 8 or 23.5 are allowed")
    return int(gigabytes * 1e9)


def parse_model(text: str) -> str:
    """A model's name as it is, a path made absolute, so that a shot can be made again from any folder."""
    is_path = is_weights(Path(text)) or any(mark in text for mark in (os.sep, os.altsep) if mark)
    return os.path.abspath(check_text("model", text)) if is_path else check_text("model", text)


def parse_keyframe(text: str) -> Keyframe:
    """FRAME=IMAGE, such as -1=last.png, with the picture's digest.

    The path becomes absolute: a shot made again from its record must find the same picture from any folder.
    """
    frame, equals, image = text.partition("=")
    try:
        number = int(frame)
    except ValueError:
        equals = ""
        number = 0
    if not equals or not image:
        raise ShotError(f"keyframe: got {text!r}; FRAME=IMAGE such as 0=first.png or -1=last.png is allowed")
    return Keyframe(number, os.path.abspath(check_text("keyframe", image))).sealed()


def parse_lora(text: str) -> Lora:
    """[high=|low=]FILE[:STRENGTH], its path made absolute for the same reason."""
    lora = parse_shot_lora(check_text("lora", text))
    return dataclasses.replace(lora, path=os.path.abspath(lora.path))
