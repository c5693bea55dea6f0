# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What Nuke is told when its window is up: menus, the panel, and which changes we want to hear of."""

from __future__ import annotations

import nuke
import nukescripts

from . import buttons, takes
from .session import session

PANEL = "rushes_nuke.panel.QueuePanel"
PANEL_ID = "org.rushes.queue"
OURS = ("status", "plan", takes.KNOB)
PSEUDO = ("showPanel", "hidePanel", "inputChange", "selected", "xpos", "ypos")


def register() -> None:
    """Once a process; again it changes nothing."""
    for place, title in (("Nuke", "Rushes"), ("Nodes", "Rushes")):
        menu = nuke.menu(place).addMenu(title)
        menu.addCommand("Rushes Node", buttons.create)
        menu.addCommand("Rushes Node from Plate", buttons.create_from_plate)
        if place == "Nuke":
            for name, action in (
                ("Generate", buttons.generate),
                ("New Version", buttons.new_version),
                ("Cancel", buttons.cancel),
                ("Contact Sheet", buttons.contact_sheet),
                ("Review", buttons.review),
                ("Publish", buttons.publish),
            ):
                menu.addCommand(name, lambda action=action: buttons.on_selected(action))
    nukescripts.panels.registerWidgetAsPanel(PANEL, "Rushes", PANEL_ID)
    listen()


def listen() -> None:
    """To changes of our knobs, and to scripts that are opened."""
    nuke.addKnobChanged(knob_changed, nodeClass="Group")
    nuke.addOnScriptLoad(script_loaded)


def knob_changed() -> None:
    """A knob of ours, changed by the artist: what would come out now?"""
    node, knob = nuke.thisNode(), nuke.thisKnob()
    if knob.name() not in (*OURS, *PSEUDO) and node.knob(takes.KNOB) is not None and takes.read(node) is not None:
        session().want_quote(node)


def script_loaded() -> None:
    session().after_load()
