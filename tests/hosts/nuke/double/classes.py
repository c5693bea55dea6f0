# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The classes of nodes that the double knows, nuke.createNode, nuke.nodes and the functions that find nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import callbacks
from .array_knobs import (
    AColor_Knob,
    Boolean_Knob,
    Disable_Knob,
    Double_Knob,
    Enumeration_Knob,
    Format_Knob,
    Int_Knob,
)
from .groups import Group, Input, finish, place
from .knobs import Knob
from .main_thread import guarded
from .nodes import Node
from .pictures import contact_sheet_knobs
from .read import Read, read_knobs
from .session import current
from .text_knobs import Multiline_Eval_String_Knob, String_Knob
from .write import Write, write_knobs

Kind = tuple[type[Node], int, Callable[[], list[Knob]]]


def _with(*made: tuple[type[Knob], str]) -> Callable[[], list[Knob]]:
    return lambda: [kind(name) for kind, name in made]


def _size_knobs(*more: tuple[type[Knob], str]) -> Callable[[], list[Knob]]:
    return _with((Format_Knob, "format"), *more)


KINDS: dict[str, Kind] = {
    "Read": (Read, 0, read_knobs),
    "Write": (Write, 1, write_knobs),
    "Group": (Group, 0, list),
    "Input": (Input, 0, _with((Int_Knob, "number"))),
    "Output": (Node, 1, list),
    "Dot": (Node, 1, list),
    "NoOp": (Node, 1, list),
    "Viewer": (Node, 10, list),
    "Constant": (Node, 1, _size_knobs((AColor_Knob, "color"))),
    "CheckerBoard2": (Node, 1, _size_knobs()),
    "Switch": (Node, 20, _with((Int_Knob, "which"))),
    "FrameHold": (Node, 1, _with((Double_Knob, "first_frame"), (Double_Knob, "increment"))),
    "TimeOffset": (Node, 1, _with((Int_Knob, "time_offset"))),
    "FrameRange": (Node, 1, _with((Int_Knob, "first_frame"), (Int_Knob, "last_frame"))),
    "Multiply": (Node, 1, _with((Double_Knob, "value"))),
    "Reformat": (Node, 1, _size_knobs((Enumeration_Knob, "type"), (Enumeration_Knob, "resize"))),
    "ViewMetaData": (Node, 1, list),
    "ModifyMetaData": (Node, 1, _with((String_Knob, "metadata"))),
    "CopyMetaData": (Node, 2, list),
    "Merge2": (Node, 3, _with((Double_Knob, "mix"), (Disable_Knob, "invert_mask"))),
    "ContactSheet": (Node, 100, contact_sheet_knobs),
    "Text2": (Node, 1, _with((Multiline_Eval_String_Knob, "message"))),
    "StickyNote": (Node, 0, list),
    "BackdropNode": (Node, 0, _with((Double_Knob, "bdwidth"), (Double_Knob, "bdheight"), (Boolean_Knob, "z_order"))),
}


def make(node_class: str) -> Node:
    """A node that is in no group yet."""
    if node_class not in KINDS:
        raise RuntimeError(f"{node_class}: Unknown command")
    kind, inputs, made = KINDS[node_class]
    node = kind(node_class, inputs, made())
    for name, value in current().knob_defaults.items():
        where, _, knob = name.partition(".")
        if where == node_class and knob in node._knobs:
            node._knobs[knob].fromScript(value)
    return node


@guarded
def createNode(node: str, knobs: str = "", inpanel: bool = True) -> Node:
    """As the menu does: connected to the selection and spliced in, selected, its panel opened."""
    context = current().context
    selected = [each for each in context.nodes() if each.isSelected()]
    made = make(node)
    place(made, context)
    if knobs:
        made.readKnobs(knobs)
    if made.maxInputs() and selected:
        below = selected[0].dependent()
        made.setInput(0, selected[0])
        for other in below:
            for index, source in enumerate(list(other._inputs)):
                if source is selected[0] and other is not made:
                    other.setInput(index, made)
        made.autoplace()
    made.selectOnly()
    callbacks_of_a_user(made)
    if inpanel and current().gui:
        made.showControlPanel()
    return made


def callbacks_of_a_user(made: Node) -> None:
    made._is_being_made = False
    callbacks.run("OnUserCreate", made)
    finish(made)


class Constructor:
    """nuke.nodes.Read and so on: no selection, no panel, no defaults of the interface."""

    def __init__(self, node_class: str) -> None:
        self.node_class = node_class

    def __call__(self, **knobs: Any) -> Node:
        session = current()
        session.threads.check(f"nodes.{self.node_class}")
        made = make(self.node_class)
        place(made, session.context, knobs.pop("name", ""))
        for index, source in enumerate(knobs.pop("inputs", [])):
            if source is not None and not made.setInput(index, source):
                raise ValueError(f"nodes.{self.node_class}: input {index} cannot be set")
        for name, value in knobs.items():
            knob = made[name]
            if isinstance(value, str) and not isinstance(knob, String_Knob):
                knob.fromScript(value)
            else:
                knob.setValue(value)
        finish(made)
        return made


class Nodes:
    def __getattr__(self, node_class: str) -> Constructor:
        if node_class not in KINDS:
            raise AttributeError(f"nuke.nodes has no {node_class}")
        return Constructor(node_class)


@guarded
def toNode(s: str) -> Any:
    """From the context, or with `root.` before it from the root. (Should the original look further, which nobody has
    written down, then code that does without is right there too.)
    """
    session = current()
    if not isinstance(s, str):
        raise TypeError(f"toNode: {s!r}; a string is allowed")
    if s == "root":
        return session.root
    return session.root.node(s[5:]) if s.startswith("root.") else session.context.node(s)


@guarded
def allNodes(filter: str | None = None, group: Any = None, recurseGroups: bool = False) -> list[Node]:
    place_ = group if isinstance(group, Group) else current().context
    found = []
    for node in place_.nodes():
        if filter is None or node.Class() == filter:
            found.append(node)
        if recurseGroups and isinstance(node, Group):
            found += allNodes(filter, node, True)
    return found


@guarded
def selectedNodes(filter: str | None = None) -> list[Node]:
    return [node for node in current().context.selectedNodes() if filter is None or node.Class() == filter]


@guarded
def selectedNode() -> Node:
    found = current().context.selectedNodes()
    if not found:
        raise ValueError("no node selected")
    return found[0]


@guarded
def thisNode() -> Any:
    session = current()
    return session.running[-1][0] if session.running else session.context


@guarded
def thisKnob() -> Any:
    session = current()
    return session.running[-1][1] if session.running else None


@guarded
def thisGroup() -> Any:
    return current().context


@guarded
def thisParent() -> Any:
    node = thisNode()
    return node.parent() if node is not current().root else None


@guarded
def exists(s: str) -> bool:
    name, _, knob = s.partition(".")
    node = toNode(s) or toNode(name)
    return node is not None and (not knob or node.Class() == "Group" or knob in node.knobs())


@guarded
def knobDefault(classknob: str, value: str | None = None) -> Any:
    defaults = current().knob_defaults
    if value is None:
        return defaults.get(classknob)
    defaults[classknob] = value
    return None
