# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Where files lie: `rushes/` beside the script, or in the user's .nuke folder while the script is not saved."""

from __future__ import annotations

from pathlib import Path

from . import host

FOLDER = "rushes"


def user_folder() -> Path:
    """For the worker's log, the settings, and what unsaved scripts make."""
    return Path.home() / ".nuke" / FOLDER


def root() -> Path:
    path = host.script_path()
    return Path(path).parent / FOLDER if path else user_folder()


def jobs_home() -> str:
    """Where job folders go, so that they lie beside the script from the start."""
    return (root() / "jobs").as_posix()


def plate_pattern(name: str) -> str:
    """Where a node's plates go when it does not say: the worker puts the version in."""
    return (root() / "plates" / f"{name}.%04d.exr").as_posix()


def control(key: str) -> Path:
    return root() / "control" / key


def keyframe(key: str, which: str) -> Path:
    return root() / "keyframes" / f"{key}_{which}.png"
