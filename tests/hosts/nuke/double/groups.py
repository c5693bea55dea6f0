# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Groups, the context that `with group:` sets, and how nodes come into a group and leave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import callbacks
from .knobs import Knob
from .main_thread import guarded
from .nodes import Node, alive, free_name
from .session import current


class Group(Node):
    """Nodes in a node. Its inputs are the Input nodes inside."""

    def __init__(self, node_class: str, inputs: int, made: list[Knob]) -> None:
        super().__init__(node_class, inputs, made)
        self._children: list[Node] = []

    def _script_context(self) -> Any:
        return self  # a button of a group makes nodes inside it: code that wants the outside has to say so

    @alive
    def maxInputs(self) -> int:
        return len(self._input_nodes())

    maximumInputs = maxInputs

    def _input_nodes(self) -> list[Node]:
        found = [node for node in self._children if node._class == "Input"]
        return sorted(found, key=lambda node: node._knobs["number"]._value)

    @alive
    def nodes(self) -> list[Node]:
        return list(reversed(self._children))  # the newest first, as Nuke has it

    @alive
    def numNodes(self) -> int:
        return len(self._children)

    @alive
    def node(self, s: str) -> Any:
        place: Any = self
        for part in s.split("."):
            children = getattr(place, "_children", ())
            place = next((node for node in children if node._name == part), None)
            if place is None:
                return None
        return place

    @alive
    def output(self) -> Any:
        return next((node for node in self._children if node._class == "Output"), None)

    @alive
    def selectedNodes(self) -> list[Node]:
        return [node for node in self.nodes() if node.isSelected()]

    @alive
    def selectedNode(self) -> Any:
        return next(iter(self.selectedNodes()), None)

    @alive
    def begin(self) -> Any:
        current().contexts.append(self)
        return self

    @alive
    def end(self) -> None:
        if not current().contexts:
            raise RuntimeError("Group.end without Group.begin")
        current().contexts.pop()

    @alive
    def run(self, callable: Callable[[], Any]) -> Any:
        with self:
            return callable()

    @alive
    def __enter__(self) -> Any:
        return self.begin()

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        current().contexts.pop()

    def _metadata(self, frame: int) -> dict[str, Any]:
        output = self.output()
        return output._metadata(frame) if output is not None else {}

    @alive
    def firstFrame(self) -> int:
        output = self.output()
        return int(output.firstFrame() if output is not None else current().root.firstFrame())

    @alive
    def lastFrame(self) -> int:
        output = self.output()
        return int(output.lastFrame() if output is not None else current().root.lastFrame())


class Input(Node):
    """What comes into the group."""

    def _outside(self) -> Any:
        assert self._parent is not None
        return self._parent.input(self._parent._input_nodes().index(self))

    def _metadata(self, frame: int) -> dict[str, Any]:
        outside = self._outside()
        return outside._metadata(frame) if outside is not None else {}


def place(node: Node, group: Group, name: str = "") -> None:
    """Put a new node into a group: named, undoable."""
    taken = {each._name for each in group._children}
    node._parent = group
    if name and name not in taken:
        node._rename(name)
    else:
        node._rename(free_name((name or node._class).rstrip("0123456789") or node._class, taken))

    def put() -> None:
        group._children.append(node)
        node._is_deleted = False

    def take() -> None:
        group._children.remove(node)
        node._is_deleted = True

    put()
    current().undo.record(take, put)


def finish(node: Node) -> None:
    """The node is there with its knobs: its onCreate runs."""
    node._is_being_made = False
    current().root._is_modified = True
    if code := node._knobs["onCreate"]._value:
        callbacks.run_text(code, node)
    callbacks.run("OnCreate", node)


@guarded
def delete(n: Node) -> None:
    """Take it out of its group; what hung on it hangs on nothing then."""
    if n._is_deleted:
        raise ValueError("A PythonObject is not attached to a node")
    callbacks.run("OnDestroy", n)
    for other in n.dependent():
        for index, source in enumerate(list(other._inputs)):
            if source is n:
                other.setInput(index, None)
    group = n._parent
    assert group is not None
    index = group._children.index(n)

    def take() -> None:
        group._children.remove(n)
        n._is_deleted = True

    def put() -> None:
        group._children.insert(index, n)
        n._is_deleted = False

    take()
    current().undo.record(put, take)
    current().root._is_modified = True
