# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A contact sheet of a node's finished versions, of Nuke's own nodes: it renders where the plug-in is missing."""

from __future__ import annotations

import math
from typing import Any

import nuke

from . import colour, host, readers, takes
from .refusal import Refusal
from .session import session

GAP = 8  # pixels
STEP = 120  # pixels in the node graph


def make(node: Any) -> Any:
    """A ContactSheet with a Read for each version, below the node; one step of undo. Raises Refusal."""
    tagged = takes.read(node)
    done = [take for take in tagged.data["takes"] if take["state"] == "done"] if tagged is not None else []
    if not done:
        raise Refusal("contact sheet: none of this node's versions is done; Generate makes one")
    columns = math.ceil(math.sqrt(len(done)))
    rows = math.ceil(len(done) / columns)
    width, height = done[0]["shot"]["size"]
    # a button of a group works inside it, and the sheet belongs beside it
    with host.undo_step("Rushes: contact sheet"), node.parent():
        reads = []
        for index, take in enumerate(done):
            read: Any = nuke.nodes.Read()
            read["file"].fromUserText(f"{take['pattern']} {take['start']}-{take['start'] + take['frames'] - 1}")
            colour.put(read["colorspace"], colour.chosen(take["space"], session().spaces))
            read["label"].setValue(f"seed {take['shot']['seed']}")
            read.setXYpos(node.xpos() + STEP * index, node.ypos() + STEP)
            reads.append(read)
        sheet = nuke.nodes.ContactSheet(inputs=reads)
        values = {"width": columns * (width + GAP) + GAP, "height": rows * (height + GAP) + GAP, "rows": rows,
                  "columns": columns, "gap": GAP, "center": True, "roworder": "TopBottom"}  # fmt: skip
        for name, value in values.items():
            sheet[name].setValue(value)
        sheet.setXYpos(node.xpos(), node.ypos() + 2 * STEP)
    return sheet


def plates(node: Any) -> list[str]:
    """The patterns of the finished versions, oldest first."""
    tagged = takes.read(node)
    return [take["pattern"] for take in tagged.data["takes"] if take["pattern"]] if tagged is not None else []


def shown_plate(node: Any) -> str:
    """The pattern that the node shows now. Raises Refusal while it is no plate."""
    pattern = str(readers.of(node)["file"].value())
    if not pattern.lower().endswith(".exr"):
        raise Refusal("plate: this node shows none yet; Generate makes one")
    return pattern
