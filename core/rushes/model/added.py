# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Models and folders that the user has put on the shelf: one JSON file in the user's settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from rushes.folders import user_folder
from rushes.model.bundle import SHIPPED
from rushes.replacing import replacing
from rushes.shot import ShotError

_VERSION = 1


@dataclass(frozen=True)
class Added:
    """name: of the one model that the paths make; "" where they are looked through for any number of models."""

    name: str
    paths: tuple[Path, ...]


def added_file() -> Path:
    return user_folder("config") / "models.json"


def read_added() -> list[Added]:
    """What was added, oldest first. Raises ShotError for a settings file that is damaged."""
    file = added_file()
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["version"] > _VERSION:
            raise ValueError("it was written by a newer Rushes")
        return [Added(str(row["name"]), tuple(Path(path) for path in row["paths"])) for row in values["added"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ShotError(f"models: {file} cannot be read ({error}); repair or delete it") from error


def add(new: Added) -> None:
    """Put it on the shelf for good. Raises ShotError for a name that is taken and for paths that are there already."""
    if new.name in SHIPPED:
        raise ShotError(f"name: got {new.name!r}, which Rushes brings itself; another name is allowed")
    with _changing() as added:
        if new.name and any(old.name == new.name for old in added):
            raise ShotError(f"name: got {new.name!r}, which is taken; another name is allowed, or remove that first")
        if not new.name and any(set(new.paths) <= set(old.paths) for old in added if not old.name):
            raise ShotError(f"path: got {new.paths[0]}, which was added before; another one is allowed")
        added.append(new)


def remove(name: str) -> Added:
    """Take what was added under this name, or as this path, off the shelf; no file of weights is touched."""
    with _changing() as added:
        path = Path(os.path.abspath(name))
        found = [old for old in added if old.name == name or (not old.name and path in old.paths)]
        if not found:
            names = ", ".join(old.name or str(old.paths[0]) for old in added) or "nothing"
            raise ShotError(f"name: got {name!r}; what was added, that is {names}, is allowed")
        added.remove(found[0])
    return found[0]


@contextmanager
def _changing() -> Iterator[list[Added]]:
    """The list, written back as a whole at the end; two processes change it one after the other."""
    file = added_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=10):
            added = read_added()
            yield added
            rows = [{"name": one.name, "paths": [str(path) for path in one.paths]} for one in added]
            with replacing(file) as temporary:
                temporary.write_text(json.dumps({"version": _VERSION, "added": rows}, indent=1), encoding="utf-8")
    except Timeout as error:
        raise ShotError(f"models: {file} is in use by another process; try again when it has ended") from error
    except OSError as error:
        raise ShotError(f"models: {file} cannot be written ({error.strerror or error})") from error
