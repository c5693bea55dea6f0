# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The benchmark of the main job: that it runs to its end and says what it promises. Never how fast anything is."""

from __future__ import annotations

import importlib
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture
def main_job(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("main_job")


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.timeout(600)
def test_the_whole_table_is_printed_and_diffusers_makes_the_same_frames(
    tiny_model: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """--quick prints every quantity with its ratio, and two clips that agree and are no flat grey."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "main_job.py"), "--model", str(tiny_model), "--quick"],
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},  # on a busy machine two threads wait for each other
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    quantities = (
        "1 cold start to MP4 of 5 frames",
        "2 warm clip of 17 frames",
        "2 warm clip of 33 frames",
        "3 VAE decode of 33 frames",
        "4 peak memory of 257 frames, against 33",
    )
    lines = done.stdout.splitlines()
    for quantity in quantities:
        row = next((line for line in lines if line.startswith(quantity)), "")
        assert re.search(r"  -?\d+\.\d\d  +(<= 4|>= 1\.3|<= 1\.3|-)", row), f"{quantity}: {row!r} in\n{done.stdout}"
    agreements = re.findall(r"(\d+) frames agree: largest difference (\S+) .* picture (\S+)", done.stdout)
    assert [int(frames) for frames, _, _ in agreements] == [17, 33]
    for _, difference, contrast in agreements:
        assert float(difference) <= 1e-2 < float(contrast)
    passes = re.search(r"passes through the transformer +(\d+) +(\d+)", done.stdout)
    assert passes is not None and [int(count) for count in passes.groups()] == [2, 4]


@pytest.mark.parametrize(
    ("ratio", "goal", "verdict"),
    [
        (1.3, {"at_most": 1.3}, "met"),
        (1.31, {"at_most": 1.3}, "MISSED"),
        (1.3, {"at_least": 1.3}, "met"),
        (1.29, {"at_least": 1.3}, "MISSED"),
        (math.nan, {"at_least": 1.3}, "MISSED"),
        (9.0, {}, ""),
    ],
)
def test_a_goal_is_met_on_its_own_side(
    main_job: ModuleType, ratio: float, goal: dict[str, float], verdict: str
) -> None:
    """A least ratio is missed from below, a greatest one from above, and without a goal there is no verdict."""
    assert main_job.Row("clip", "1 s", "1 s", ratio, **goal).cells()[-1] == verdict


@pytest.mark.parametrize(("difference", "holds"), [(0.0, True), (1e-2, True), (1.1e-2, False), (math.nan, False)])
def test_frames_agree_up_to_the_tolerance(main_job: ModuleType, difference: float, holds: bool) -> None:
    """A hundredth is the most, and frames with NaN in them agree with nothing."""
    assert main_job.Agreement(17, difference, 0.2).holds is holds


def test_a_childs_peak_memory_is_measured_in_bytes(environment: dict[str, str], tmp_path: Path) -> None:
    """A child that holds 200 MB more than another has a peak 200 MB higher."""
    # In a process of its own: on Linux the peak of a child begins with the memory of whoever starts it
    program = (
        "from pathlib import Path; from measuring import run_child; "
        "print(*(run_child(['-c', f'x = b\"x\" * {size}'], Path.cwd()).peak for size in (1, 200_000_000)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    small, large = map(int, done.stdout.split())
    assert 180e6 < large - small < 220e6  # the smaller one starts with what its parent held


def test_a_child_that_fails_is_not_measured(main_job: ModuleType, tmp_path: Path) -> None:
    """What it said is in the error."""
    with pytest.raises(RuntimeError, match="exit 3: too small"):
        main_job.run_child(["-c", "import sys; print('too small'); sys.exit(3)"], tmp_path)
