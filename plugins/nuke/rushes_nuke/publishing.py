# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Review and publish, by the worker's own command line: the same as at a terminal, in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import contact, host, preferences, takes
from .refusal import Refusal
from .session import session, tell
from .vendor.client import clean_environment, find_worker


def review(node: Any, name: str, verdict: str) -> None:
    """Record that somebody has looked at the shown version, and what they think. Raises Refusal, WorkerMissing."""
    _run(node, ["review", str(_job(node)), "--by", name, "--verdict", verdict])


def publish(node: Any, root: str) -> None:
    """Publish the shown version below `root`. What is not as it should be is told on the node."""
    if not root:
        raise Refusal("publish to: it is empty; the folder of the publishes is allowed")
    _run(node, ["publish", str(_job(node)), "--to", root])


def _job(node: Any) -> Path:
    """The folder of the job whose plate the node shows."""
    pattern, tagged = contact.shown_plate(node), takes.read(node)
    for take in tagged.data["takes"] if tagged is not None else ():
        if take["pattern"] == pattern and take["job"]:
            return Path(take["home"]) / take["job"]
    raise Refusal(f"publish: {pattern} was made by no job of this node; a version that it has made is allowed")


def _run(node: Any, arguments: list[str]) -> None:
    command = [find_worker(preferences.get().worker), *arguments]
    with host.no_undo():
        tell(node, f"{arguments[0]}: under way")

    def work() -> Callable[[], None]:
        try:
            done = subprocess.run(
                command, env=clean_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()
            said = " ".join(lines[-3:]) or f"exit status {done.returncode}"
        except OSError as error:
            said = f"worker: {command[0]} cannot be used ({error.strerror})"

        def show() -> None:
            with host.no_undo():
                tell(node, f"{arguments[0]}: {said}")

        return show

    session().errand(work)
