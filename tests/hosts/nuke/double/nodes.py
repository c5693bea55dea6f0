# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Nodes: their names, knobs, connections and pictures."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import callbacks, knobs
from .array_knobs import Boolean_Knob, Disable_Knob, Double_Knob, Unsigned_Knob
from .knobs import Knob
from .session import current
from .text_knobs import Multiline_Eval_String_Knob, Name_Knob, PythonKnob, String_Knob

if TYPE_CHECKING:
    from .groups import Group

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def alive(function: Callable[..., Any]) -> Any:
    """A method for the main thread that refuses a node which was deleted."""

    @functools.wraps(function)
    def checked(self: Node, *args: Any, **kwargs: Any) -> Any:
        current().threads.check(function.__qualname__)
        if self._is_deleted:
            raise ValueError("A PythonObject is not attached to a node")
        return function(self, *args, **kwargs)

    return checked


def base_knobs() -> list[Knob]:
    """What every node has."""
    return [
        Name_Knob("name"), Multiline_Eval_String_Knob("label"), String_Knob("help"), PythonKnob("onCreate"),
        PythonKnob("onDestroy"), PythonKnob("knobChanged"), PythonKnob("updateUI"), PythonKnob("autolabel"),
        Unsigned_Knob("tile_color"), Unsigned_Knob("gl_color"), String_Knob("note_font"), String_Knob("icon"),
        Boolean_Knob("selected"), Double_Knob("xpos"), Double_Knob("ypos"), Boolean_Knob("hide_input"),
        Boolean_Knob("cached"), Disable_Knob("disable"), Boolean_Knob("postage_stamp"), Boolean_Knob("bookmark"),
    ]  # fmt: skip


def free_name(stem: str, taken: set[str]) -> str:
    """stem with the first number that is free."""
    number = 1
    while f"{stem}{number}" in taken:
        number += 1
    return f"{stem}{number}"


class Node:
    """A node of some class. inputs: how many it takes."""

    def __init__(self, node_class: str, inputs: int, made: list[Knob]) -> None:
        self._class, self._most = node_class, inputs
        self._name = ""
        self._number = knobs.next_number()
        self._parent: Group | None = None
        self._inputs: list[Node | None] = []
        self._knobs: dict[str, Any] = {}  # of Knobs
        self._is_being_made = True
        self._is_deleted = False
        self._is_shown = False
        self._is_changing = False
        for knob in [*base_knobs(), *made]:
            self._knobs[knob._name] = knob
            knob._node = self
            knob._default = knob._value
        for internal in ("selected", "name"):
            self._knobs[internal]._flags |= knobs.FLAGS["NO_UNDO"] | knobs.FLAGS["DO_NOT_WRITE"]

    def __repr__(self) -> str:
        return f"<{self._class} {self._name}>"

    # --- identity

    @alive
    def Class(self) -> str:
        return self._class

    @alive
    def name(self) -> str:
        return self._name

    @alive
    def fullName(self) -> str:
        group = self._parent
        return self._name if group is None or group._parent is None else f"{group.fullName()}.{self._name}"

    @alive
    def setName(self, name: str, uncollide: bool = True, updateExpressions: bool = True) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"setName: {name!r} is no name for a node")
        assert self._parent is not None
        taken = {node._name for node in self._parent._children if node is not self}
        if name in taken:
            if not uncollide:
                raise ValueError(f"setName: {name!r} is taken")
            name = free_name(name.rstrip("0123456789"), taken)
        before = self._name
        self._rename(name)
        current().undo.record(lambda: self._rename(before), lambda: self._rename(name))

    def _rename(self, name: str) -> None:
        self._name = self._knobs["name"]._value = name

    @alive
    def parent(self) -> Any:
        return self._parent

    @alive
    def rootNode(self) -> Any:
        return current().root

    def _script_context(self) -> Any:
        """The group that a script of this node's knobs works in."""
        return self._parent or current().root

    # --- knobs

    @alive
    def knob(self, p: Any, follow_link: bool = True) -> Any:
        if isinstance(p, int):
            return list(self._knobs.values())[p]
        return self._knobs.get(p)

    @alive
    def __getitem__(self, name: str) -> Any:
        if name not in self._knobs:
            raise NameError(f"knob {name} does not exist")
        return self._knobs[name]

    @alive
    def knobs(self) -> dict[str, Knob]:
        return dict(self._knobs)

    @alive
    def allKnobs(self) -> list[Knob]:
        return list(self._knobs.values())

    @alive
    def numKnobs(self) -> int:
        return len(self._knobs)

    @alive
    def addKnob(self, knob: Knob) -> None:
        if not isinstance(knob, Knob):
            raise TypeError(f"addKnob: {knob!r} is no knob")
        if knob._name in self._knobs:
            raise RuntimeError(f"addKnob: {self._name} has a knob {knob._name} already")
        if knob._node is not None:
            raise RuntimeError(f"addKnob: {knob._name} belongs to {knob._node._name}")
        knob._is_user = True

        def add() -> None:
            knob._node = self
            self._knobs[knob._name] = knob

        def remove() -> None:
            del self._knobs[knob._name]

        add()
        self._record(remove, add)

    @alive
    def removeKnob(self, knob: Knob) -> None:
        if not knob._is_user or self._knobs.get(knob._name) is not knob:
            raise ValueError(f"removeKnob: {knob._name} is no user knob of {self._name}")
        before = dict(self._knobs)
        after = {name: each for name, each in before.items() if each is not knob}
        self._knobs = after
        self._record(lambda: setattr(self, "_knobs", before), lambda: setattr(self, "_knobs", after))

    def _record(self, back: Callable[[], Any], again: Callable[[], Any]) -> None:
        if not self._is_being_made:
            current().undo.record(back, again)

    @alive
    def readKnobs(self, s: str) -> None:
        from .script import set_knobs

        set_knobs(self, s)

    @alive
    def writeKnobs(self, flags: int = 0) -> str:
        from .script import written_knobs

        return " ".join(line for line in written_knobs(self))

    def _knob_changed(self, knob: Any) -> None:
        """Tell the node's own script and the callbacks. What they change themselves is not told, unless asked for."""
        current().root._is_modified = True
        if self._is_changing and not knob.getFlag(knobs.FLAGS["KNOB_CHANGED_RECURSIVE"]):
            return
        self._is_changing, before = True, self._is_changing
        try:
            if code := self._knobs["knobChanged"]._value:
                callbacks.run_text(code, self, knob)
            callbacks.run("KnobChanged", self, knob)
        finally:
            self._is_changing = before

    def _knob_set(self, knob: Any) -> None:
        """A knob has another value now, also while the node is being made."""

    def _pseudo_knob(self, name: str) -> None:
        knob = Knob(name)
        knob._node = self
        self._knob_changed(knob)

    def _file_chosen(self, knob: Any, frames: tuple[int, int] | None) -> None:
        """A file name was typed into one of the knobs."""

    # --- connections

    @alive
    def maxInputs(self) -> int:
        return self._most

    maximumInputs = maxInputs

    @alive
    def inputs(self) -> int:
        return len(self._inputs)

    @alive
    def input(self, index: int) -> Any:
        return self._inputs[index] if 0 <= index < len(self._inputs) else None

    @alive
    def canSetInput(self, i: int, node: Any) -> bool:
        if not 0 <= i < self.maxInputs():
            return False
        return node is None or (node._parent is self._parent and not node._is_below(self))

    def _is_below(self, other: Node) -> bool:
        return self is other or any(node is not None and node._is_below(other) for node in self._inputs)

    @alive
    def setInput(self, i: int, node: Any) -> bool:
        if not self.canSetInput(i, node):
            return False
        before = list(self._inputs)
        after = [*before, *[None] * (i + 1 - len(before))]
        after[i] = node
        while after and after[-1] is None:
            after.pop()
        self._inputs = after
        self._record(lambda: setattr(self, "_inputs", before), lambda: setattr(self, "_inputs", after))
        if not self._is_being_made:
            self._pseudo_knob("inputChange")
        return True

    @alive
    def connectInput(self, i: int, node: Any) -> bool:
        return bool(self.setInput(i, node))

    @alive
    def dependencies(self, mask: int = 0) -> list[Any]:
        return [node for node in self._inputs if node is not None]

    @alive
    def dependent(self, mask: int = 0, forceEvaluate: bool = True) -> list[Any]:
        siblings = self._parent._children if self._parent else []
        return [node for node in siblings if self in node._inputs]

    # --- selection, place, panel

    @alive
    def isSelected(self) -> bool:
        return bool(self._knobs["selected"]._value)

    @alive
    def setSelected(self, selected: bool) -> None:
        self._knobs["selected"]._store((bool(selected), None))

    @alive
    def selectOnly(self) -> None:
        for node in self._parent._children if self._parent else []:
            node.setSelected(node is self)

    @alive
    def xpos(self) -> int:
        return int(self._knobs["xpos"]._value)

    @alive
    def ypos(self) -> int:
        return int(self._knobs["ypos"]._value)

    @alive
    def setXpos(self, x: int) -> None:
        self._knobs["xpos"].setValue(x)

    @alive
    def setYpos(self, y: int) -> None:
        self._knobs["ypos"].setValue(y)

    @alive
    def setXYpos(self, x: int, y: int) -> None:
        self.setXpos(x)
        self.setYpos(y)

    @alive
    def screenWidth(self) -> int:
        return 80

    @alive
    def screenHeight(self) -> int:
        return 18

    @alive
    def autoplace(self) -> None:
        below = self.input(0)
        if below is not None:
            self.setXYpos(below.xpos(), below.ypos() + 60)

    @alive
    def shown(self) -> bool:
        return self._is_shown

    @alive
    def showControlPanel(self, forceFloat: bool = False) -> None:
        if not current().gui:
            raise RuntimeError("showControlPanel: there are no panels in nuke -t")
        self._is_shown = True
        self._pseudo_knob("showPanel")

    @alive
    def hideControlPanel(self) -> None:
        self._is_shown = False
        self._pseudo_knob("hidePanel")

    # --- the picture

    @alive
    def metadata(self, key: str | None = None, time: float | None = None, view: str | None = None) -> Any:
        found = self._metadata(round(current().root.frame if time is None else time))
        return found if key is None else found.get(key)

    def _metadata(self, frame: int) -> dict[str, Any]:
        source = self.input(0)
        return source._metadata(frame) if source is not None else {}

    @alive
    def hasError(self) -> bool:
        from .pictures import render

        try:
            render(self, current().root.frame)
        except RuntimeError:
            return True
        return False

    error = hasError

    def _picture(self) -> Any:
        from .pictures import render

        return render(self, current().root.frame)

    @alive
    def width(self) -> int:
        return int(self._picture().shape[1])

    @alive
    def height(self) -> int:
        return int(self._picture().shape[0])

    @alive
    def format(self) -> Any:
        source = self.input(0)
        return source.format() if source is not None else current().root["format"].value()

    @alive
    def firstFrame(self) -> int:
        source = self.input(0)
        return int(source.firstFrame() if source is not None else current().root.firstFrame())

    @alive
    def lastFrame(self) -> int:
        source = self.input(0)
        return int(source.lastFrame() if source is not None else current().root.lastFrame())

    @alive
    def frameRange(self) -> Any:
        from .root import FrameRange

        return FrameRange(self.firstFrame(), self.lastFrame(), 1)
