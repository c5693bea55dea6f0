# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What the plug-in asks of Nuke in more than one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import nuke


@contextmanager
def undo_step(name: str) -> Iterator[None]:
    """All changes inside are one step of undo; after an exception none of them is left."""
    nuke.Undo.begin()
    nuke.Undo.name(name)  # begin(name) is of 17.1 alone
    try:
        yield
    except BaseException:
        nuke.Undo.cancel()
        raise
    nuke.Undo.end()


@contextmanager
def no_undo() -> Iterator[None]:
    """What happens by itself is no step of the artist's undo."""
    nuke.Undo.disable()
    try:
        yield
    finally:
        nuke.Undo.enable()


def is_gui() -> bool:
    return bool(nuke.GUI)


def has_pyside6() -> bool:
    """Nuke brings PySide2 up to 15, PySide6 from 16 on, and never both."""
    return bool(nuke.NUKE_VERSION_MAJOR >= 16)


def script_path() -> str:
    """The script's file, "" while it is not saved."""
    return str(nuke.root()["name"].value() or "")


def script_rate() -> Fraction:
    """The script's frame rate, exactly: its knob holds 23.976 for 24000/1001."""
    rate = float(nuke.root()["fps"].value())
    for nominal in (24, 30, 48, 60, 120):
        exact = Fraction(nominal * 1000, 1001)
        if rate != nominal and abs(rate - exact) < Fraction(1, 200):
            return exact
    return Fraction(rate).limit_denominator(1000)


def script_range() -> tuple[int, int]:
    root = nuke.root()
    return int(root["first_frame"].value()), int(root["last_frame"].value())


def script_size() -> tuple[int, int]:
    size = nuke.root().format()
    return int(size.width()), int(size.height())


def set_if_other(knob: Any, value: Any) -> None:
    """What is so already is not set again: every set marks the script as changed."""
    if knob.value() != value:
        knob.setValue(value)
