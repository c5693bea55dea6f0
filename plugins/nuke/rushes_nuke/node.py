# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The Rushes node: a Group whose picture is a plain Read, so that scripts render where the plug-in is missing."""

from __future__ import annotations

from typing import Any

import nuke

from . import controls, host, keyframes, knobs
from .readers import PLATE
from .session import session

NAME = "Rushes"
INPUTS = (*keyframes.INPUTS, controls.INPUT)


def create() -> Any:
    """A new node at the place where Nuke puts new ones, connected to nothing. One step of undo."""
    with host.undo_step("Rushes: new node"):
        for other in nuke.selectedNodes():  # an input is a keyframe here, and not what happens to be selected
            other.setSelected(False)
        node: Any = nuke.createNode("Group", inpanel=False)
        node.setName(NAME)
        with node:
            for number, name in enumerate(INPUTS):
                nuke.nodes.Input(name=name, number=number)
            nuke.nodes.Output(inputs=[nuke.nodes.Read(name=PLATE)])
        knobs.add_all(node)
        session().fill(node)
    if host.is_gui():
        node.showControlPanel()
    return node
