# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What holds for all scripts: which worker, and how its paths read here. A JSON file in the user's .nuke folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from . import places
from .refusal import Refusal


class Preferences(NamedTuple):
    """worker: the executable `rushes`, "" to look for it. paths: (worker's prefix, this machine's prefix). memory:
    gigabytes of the graphics card that it keeps to, "" for most of what it has.
    """

    worker: str = ""
    paths: tuple[tuple[str, str], ...] = ()
    memory: str = ""


def file() -> Path:
    return places.user_folder() / "settings.json"


def get() -> Preferences:
    """Raises Refusal for a file that somebody has broken."""
    try:
        values = json.loads(file().read_text(encoding="utf-8"))
        paths = tuple((str(theirs), str(ours)) for theirs, ours in values.get("paths", ()))
        return Preferences(str(values.get("worker", "")), paths, str(values.get("memory", "")))
    except FileNotFoundError:
        return Preferences()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Refusal(
            f"settings: {file()} cannot be read ({error}); "
            '{"worker": "/path/rushes", "paths": [["/theirs", "/ours"]], "memory": "8"} is allowed'
        ) from error


def put(worker: str) -> None:
    """Name another worker; the rest stays."""
    values = get()._replace(worker=worker)._asdict()
    file().parent.mkdir(parents=True, exist_ok=True)
    temporary = file().with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file())
