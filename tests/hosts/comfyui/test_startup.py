# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""How the pack starts: with `rushes`, without it, and with one that is too old."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def started(start_server: Callable[..., Any]) -> Callable[[Path], str]:
    """started(package): the log of a ComfyUI that loads its nodes and ends."""

    def run(package: Path) -> str:
        server = start_server("--quick-test-for-ci", package=package)
        server.process.wait(120)
        return str(server.log)

    return run


@pytest.mark.parametrize(
    ("version", "says"),
    [(None, "the package rushes is not installed"), ("0.0.9", "the installed rushes 0.0.9 is too old")],
)
def test_without_a_fitting_rushes_one_line_says_so(
    started: Callable[[Path], str], tmp_path: Path, version: str | None, says: str
) -> None:
    """It names what to do; there is no stack trace, and ComfyUI goes on."""
    if version is not None:
        (tmp_path / "rushes").mkdir()
        (tmp_path / "rushes/__init__.py").write_text(f"__version__ = {version!r}\n")
    log = started(tmp_path)
    (line,) = [line for line in log.splitlines() if "Rushes" in line]
    assert says in line and "-m pip install --upgrade rushes" in line and "No Rushes nodes were added" in line
    assert "Traceback" not in log and "IMPORT FAILED" not in log


def test_the_pack_is_quick_to_import(server: Any) -> None:
    """By ComfyUI's own measure, with torch loaded already as ComfyUI does."""
    (seconds,) = re.findall(r"([\d.]+) seconds: \S+custom_nodes/rushes", server.log)
    print(f"import of the pack: {seconds} s")
    assert float(seconds) < 2
