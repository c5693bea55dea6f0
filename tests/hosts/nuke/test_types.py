# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The packaged plug-in agrees with the types of Nuke 13, from types-nuke and our few lines for nukescripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STUBS = Path(__file__).parent / "stubs"
# Qt is checked by running the panel; reading the types of PySide6 takes longer than all the rest
CONFIG = """
[mypy]
python_version = 3.10
check_untyped_defs = True
disallow_untyped_defs = True
strict_equality = True
warn_redundant_casts = True
[mypy-PySide2.*,PySide6.*,rushes.*]
ignore_missing_imports = True
follow_imports = skip
follow_imports_for_stubs = True
"""


def _mypy(folder: Path, cache: Path, *what: str) -> subprocess.CompletedProcess[str]:
    config = cache / "mypy.ini"
    config.write_text(CONFIG)
    environment = {**os.environ, "MYPYPATH": os.pathsep.join([str(STUBS), str(folder)])}
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(cache / "cache"), *what]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def test_the_plug_in_agrees_with_the_stubs(plugin_folder: Path, tmp_path: Path) -> None:
    done = _mypy(plugin_folder, tmp_path, "-p", "rushes_nuke")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no issues found in" in done.stdout


def test_the_types_are_really_read(tmp_path: Path) -> None:
    """Four mistakes, each found in its line."""
    wrong = {
        "nuke.toNode('x').name()": '"None" of "Node | None"',
        "nuke.selectedNode().setXYpos(1)": 'Missing positional argument "y"',
        "nuke.createNod('Read')": 'has no attribute "createNod"',
        "nukescripts.panels.registerWidgetAsPanel(print, 'a', 'b')": "incompatible type",
    }
    (tmp_path / "wrong.py").write_text("\n".join(["import nuke", "import nukescripts", *wrong]) + "\n")
    found = _mypy(tmp_path, tmp_path, "wrong.py").stdout
    for number, complaint in enumerate(wrong.values(), 3):
        (line,) = [line for line in found.splitlines() if line.startswith(f"wrong.py:{number}: error")]
        assert complaint in line, found
