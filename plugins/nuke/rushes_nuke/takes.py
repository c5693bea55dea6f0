# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What is written on a node about its clips. A node is found by that, never by a pointer.

The invisible knob `rushes` holds JSON in base64, in which TCL finds nothing to evaluate: {"version": 1, "take": index,
"takes": [take, ...]}. Undo, loading, copying and deletion may change or multiply a node at any time.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import nuke

from .vendor.controller import Job
from .vendor.plan import Wish

KNOB = "rushes"
VERSION = 1
Take = dict[str, Any]


class Tagged(NamedTuple):
    """A node of ours, valid until the script changes next."""

    node: Any
    data: dict[str, Any]

    @property
    def take(self) -> Take | None:
        return self.data["takes"][self.data["take"]] if self.data["takes"] else None


def new_take(key: str, wish: Wish, home: str, delivery: dict[str, Any], **plate: Any) -> Take:
    """A clip that has been asked for and has nothing yet. plate: start, length, space, script_fps."""
    return {
        "key": key, "wish": wish, "home": home, "delivery": delivery, **plate, "job": "", "shot": None, "pattern": "",
        "state": "planning", "message": "", "frames": 0, "is_shown": False,
    }  # fmt: skip


def encode(data: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(data).encode()).decode()


def decode(text: str) -> dict[str, Any] | None:
    """None for what is not ours, or what a later version wrote."""
    if not text:
        return {"version": VERSION, "take": 0, "takes": []}
    try:
        data = json.loads(base64.b64decode(text, validate=True))
    except ValueError:
        return None
    is_ours = isinstance(data, dict) and data.get("version") == VERSION and isinstance(data.get("takes"), list)
    return data if is_ours else None


def read(node: Any) -> Tagged | None:
    """What is written on a node; None for other people's nodes."""
    knob = node.knob(KNOB)
    data = decode(str(knob.getText())) if knob is not None and node.Class() == "Group" else None
    return Tagged(node, data) if data is not None else None


def write(tagged: Tagged) -> None:
    knob, text = tagged.node[KNOB], encode(tagged.data)
    if knob.getText() != text:
        knob.setValue(text)


def tagged_nodes() -> Iterator[Tagged]:
    """All nodes of ours in the script, in groups too."""
    for node in nuke.allNodes("Group", group=nuke.root(), recurseGroups=True):
        if (found := read(node)) is not None:
            yield found


def add(tagged: Tagged, take: Take) -> None:
    """One more take, which is shown from now on."""
    tagged.data["takes"].append(take)
    tagged.data["take"] = len(tagged.data["takes"]) - 1
    write(tagged)


def update(take: Take, job: Job) -> None:
    """What is known of the job by now."""
    take["job"], take["shot"] = job.id or take["job"], job.shot or take["shot"]
    take["state"], take["message"], take["length"] = job.state, job.message, job.length or take["length"]
    if job.id:
        take["home"] = job.home
    if job.state == "done":
        take["frames"] = job.frames
        take["pattern"] = (job.patterns or [take["pattern"]])[0].replace("\\", "/")
