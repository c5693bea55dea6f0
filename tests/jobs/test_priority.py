# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A worker's priority, as the system reports it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rushes.jobs.priority import NICE

CODE = """
import os
from pathlib import Path
from rushes.jobs.priority import step_behind
before = os.nice(0)
step_behind()
step_behind()
group = Path("/proc/self/autogroup")
print(before, os.nice(0), *(group.read_text().split()[-1:] if group.exists() else []))
"""

# Where sessions share time first, every new one is a group; a system's first session is in none, and its file is empty.
BY_SESSION = Path("/proc/sys/kernel/sched_autogroup_enabled")


def _run(own_session: bool) -> tuple[int, int, list[str]]:
    """Nice value before and after, and the nice value of the session's group if it is one."""
    out = subprocess.check_output([sys.executable, "-c", CODE], start_new_session=own_session, text=True)
    before, after, *group = out.split()
    return int(before), int(after), group


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has classes of priority and no nice values")
def test_a_worker_is_nicer_than_its_host_and_only_once() -> None:
    """Two calls lower it as one does; what is nicer already stays as it is."""
    before, after, _ = _run(own_session=True)
    assert after == max(before, NICE)


@pytest.mark.skipif(
    not BY_SESSION.exists() or BY_SESSION.read_text().strip() != "1", reason="this system shares time by process"
)
def test_a_session_is_lowered_only_by_its_leader() -> None:
    """The terminal in which somebody types `rushes worker` keeps its priority."""
    before = Path("/proc/self/autogroup").read_text().split()[-1:]
    assert _run(own_session=False)[2] == before
    assert _run(own_session=True)[2] == [str(NICE)]
