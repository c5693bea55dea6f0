# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The benchmark of open weights: that it runs to its end and says what it promises. Never how fast anything is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(sys.platform == "win32", reason="a process's own peak memory is asked of POSIX")
def test_every_row_is_printed_and_diffusers_makes_the_same_latents(environment: dict[str, str], tmp_path: Path) -> None:
    """--quick prints each library's figures, each ratio with its goals, and that the outputs agree."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "wan.py"), "--quick"],
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1", "RUSHES_HOST_ENVS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for run in ("rushes float32", "diffusers float32", "rushes float32 density 0.2", "diffusers bfloat16"):
        assert re.search(rf"^{run}  .* MB +(\d+ MB|-) +\d+\.\d% +\S+e[-+]\d\d +\S+e[-+]\d\d$", done.stdout, re.M), run
    for ratio in ("float32 dense", "float32 density 0.2", "bfloat16 dense", "bfloat16 density 0.2"):
        assert re.search(
            rf"^{ratio} / diffusers .* >= \S+ +(met|MISSED) .* <= 0.7 +(met|MISSED) +(\d\.\d\d|-)$", done.stdout, re.M
        )
    assert "float32, dense: the outputs agree" in done.stdout
