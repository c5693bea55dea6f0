# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""--control, --mask and --reference: footage that steers a shot, read from the command line."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import click

from rushes.commands.options import Command, check_text, parse_float, parse_int
from rushes.shot import CONTROL_KINDS, Control, ShotError

_HEAD = re.compile(r"(?P<kind>[a-z]+)(?::(?P<strength>[^@=]*))?(?:@(?P<start>[^=]*))?")
_GIVEN = tuple(kind for kind in CONTROL_KINDS if kind != "reference")


def control_options(command: Command) -> Command:
    """What `read_control` reads."""
    options = [
        click.option(
            "--control",
            "controls",
            multiple=True,
            metavar="KIND[:STRENGTH][@FRAME]=FILE",
            help=f"Footage that steers a VACE model, from FRAME on: {', '.join(_GIVEN)}. Repeatable.",
        ),
        click.option(
            "--mask",
            "masks",
            multiple=True,
            metavar="FILE",
            help="Where --control holds, or a source is made anew: white. One for all, or one for each.",
        ),
        click.option(
            "--reference",
            "references",
            multiple=True,
            metavar="IMAGE",
            help="A picture of what shall be seen, for a VACE model. Repeatable.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def read_control(options: Mapping[str, Any]) -> tuple[Control, ...]:
    """The control passes that the command line gives, none if it gives none. Raises ShotError."""
    controls = [parse_control(text) for text in options["controls"]]
    masks = [_absolute("mask", text) for text in options["masks"]]
    if masks and len(masks) not in (1, len(controls)):
        raise ShotError(f"mask: got {len(masks)} for {len(controls)} --control; one, or one for each, is allowed")
    if masks and not controls:
        raise ShotError("mask: got one without any --control; --control KIND=FILE with it is allowed")
    masks = masks * len(controls) if len(masks) == 1 else masks or [""] * len(controls)
    controls = [dataclasses.replace(one, mask=mask) for one, mask in zip(controls, masks, strict=True)]
    if options["references"]:
        pictures = tuple(_absolute("reference", text) for text in options["references"])
        controls.append(Control("reference", references=pictures))
    return tuple(controls)


def parse_control(text: str) -> Control:
    """KIND[:STRENGTH][@FRAME]=FILE, such as depth=z.%04d.exr or source@24=next.mov. Raises ShotError."""
    head, _, path = text.partition("=")
    found = _HEAD.fullmatch(head)
    if found is None or not path or found["kind"] not in _GIVEN:
        raise ShotError(
            f"control: got {text!r}; KIND=FILE such as depth=z.%04d.exr is allowed, with one of {', '.join(_GIVEN)}"
        )
    strength = 1.0 if found["strength"] is None else parse_float("control: the strength", found["strength"])
    start = 0 if found["start"] is None else parse_int("control: the start", found["start"])
    return Control(found["kind"], _absolute("control", path), strength, start=start)


def describe(control: Control) -> str:
    """One line for people."""
    words = [control.path or ", ".join(control.references)]
    words += [f"at {control.strength:g}"] if control.strength != 1 else []
    words += [f"from frame {control.start}"] if control.start else []
    words += [f"within {control.mask}"] if control.mask else []
    return " ".join(words)


def _absolute(name: str, path: str) -> str:
    """As for keyframes: a shot made again from its record must find the same footage from any folder."""
    return os.path.abspath(check_text(name, path))
