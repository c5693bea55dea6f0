# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Runs one body inside bpy: `python run.py BODY CONFIG REPORT`. Ends with os._exit: bpy's own exit hangs or crashes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    body, config, report = sys.argv[1:]
    told: dict[str, Any]
    try:
        import bodies
        from host import Host

        host = Host(json.loads(Path(config).read_text()))
        told = getattr(bodies, body)(host) or {}
    except BaseException:
        told = {"error": traceback.format_exc()}
    temporary = Path(report).with_suffix(".tmp")
    temporary.write_text(json.dumps(told))
    temporary.replace(report)
    with contextlib.suppress(Exception):  # the report is written; what a broken body has left must not stop the exit
        host.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if "error" in told else 0)


if __name__ == "__main__":
    main()
