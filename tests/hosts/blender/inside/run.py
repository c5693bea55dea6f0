# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Runs one body inside bpy: `python run.py BODY CONFIG REPORT`. Ends with os._exit, since bpy's own exit may hang or
crash; only a body that is about this very end is left to it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
BODIES = ("timeline", "crashes", "buttons", "pictures", "movies", "costs", "control", "speed")


def _body(name: str) -> Callable[[Any], dict[str, Any] | None]:
    """The function of this name; one that begins with an underscore is no body."""
    found = [getattr(module, name) for module in map(importlib.import_module, BODIES) if hasattr(module, name)]
    (body,) = found
    return body


def main() -> None:
    body, config, report = sys.argv[1:]
    told: dict[str, Any]
    try:
        from host import Host

        host = Host(json.loads(Path(config).read_text()))
        told = _body(body)(host) or {}
    except BaseException:
        told = {"error": traceback.format_exc()}
    temporary = Path(report).with_suffix(".tmp")
    temporary.write_text(json.dumps(told))
    temporary.replace(report)
    if told.get("is_leaving"):
        return
    with contextlib.suppress(Exception):  # the report is written; what a broken body has left must not stop the exit
        host.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if "error" in told else 0)


if __name__ == "__main__":
    main()
