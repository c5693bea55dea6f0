# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Scripts as .nk text: written, read, copied and pasted. What a file cannot say is lost, as in the original."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import array_knobs, callbacks, text_knobs
from . import knobs as knobs_
from .classes import make
from .groups import Group, finish, place
from .knobs import FLAGS, Knob
from .main_thread import guarded
from .nodes import Node
from .session import current
from .tcl import commands, words

USER_KNOBS: dict[int, type[Knob]] = {
    kind.TYPE: kind
    for kind in (
        knobs_.Tab_Knob, knobs_.Text_Knob, knobs_.Link_Knob, text_knobs.String_Knob, text_knobs.File_Knob,
        text_knobs.Multiline_Eval_String_Knob, text_knobs.PyScript_Knob, array_knobs.Int_Knob, array_knobs.Double_Knob,
        array_knobs.Boolean_Knob, array_knobs.Enumeration_Knob, array_knobs.XY_Knob, array_knobs.WH_Knob,
        array_knobs.AColor_Knob,
    )
}  # fmt: skip


# --- writing


def _is_written(knob: Knob) -> bool:
    if knob.getFlag(FLAGS["DO_NOT_WRITE"]) or isinstance(knob, (knobs_.Tab_Knob, text_knobs.Script_Knob)):
        return False
    if knob._is_user and not isinstance(knob, (knobs_.Link_Knob, knobs_.Text_Knob)):
        is_choice = isinstance(knob, array_knobs.Enumeration_Knob)
        return is_choice or knob._value != type(knob).DEFAULT or knob._expression is not None
    return knob._is_changed()


def written_knobs(node: Node) -> list[str]:
    """The lines between a node's braces: its own knobs, then each user knob with its value below it."""
    lines = []
    for knob in node._knobs.values():
        if knob._is_user:
            if type(knob).TYPE not in USER_KNOBS:
                raise RuntimeError(f"{knob._name}: a {knob.Class()} cannot be written as a user knob")
            lines.append(f"addUserKnob {knob._user_definition()}")
        if _is_written(knob):
            lines.append(f"{knob._name} {knob.toScript()}")
    return lines


def _in_order(nodes: list[Node]) -> list[Node]:
    """Every node after those it hangs on."""
    ordered: list[Node] = []

    def visit(node: Node) -> None:
        if node in ordered or node not in nodes:
            return
        for source in node._inputs:
            if source is not None:
                visit(source)
        ordered.append(node)

    for node in nodes:
        visit(node)
    return ordered


def _node_text(node: Node, among: list[Node]) -> list[str]:
    sources = [source if source in among else None for source in node._inputs]
    lines = [f"push $N{source._number:x}" if source is not None else "push 0" for source in reversed(sources)]
    lines.append(f"{node._class} {{")
    if len(sources) != 1:
        lines.append(f" inputs {len(sources)}")
    lines += [f" name {node._name}", *(f" {line}" for line in written_knobs(node))]
    if node.isSelected():
        lines.append(" selected true")
    lines.append("}")
    if isinstance(node, Group):
        lines += [f" {line}" for line in nodes_text(node._children)] + ["end_group"]
    return [*lines, f"set N{node._number:x} [stack 0]"]


def nodes_text(nodes: list[Node]) -> list[str]:
    return [line for node in _in_order(nodes) for line in _node_text(node, nodes)]


def script_text() -> str:
    session = current()
    root = session.root
    lines = ["#! /usr/local/bin/nuke -nx", f"version {session.major}.0 v1", "Root {", " inputs 0"]
    lines += [f" {line}" for line in written_knobs(root)] + ["}", *nodes_text(root._children)]
    return "\n".join(lines) + "\n"


# --- reading


def set_knobs(node: Node, body: str) -> None:
    """Knobs and values in turn. A name that the node lacks is a warning, not an error."""
    parts = iter(words(body))
    for name in parts:
        value = next(parts, None)
        if value is None:
            raise RuntimeError(f"{node._class}: {name} has no value")
        if name == "addUserKnob":
            _add_user_knob(node, words(value))
        elif name == "selected":
            node._knobs["selected"]._store((value in ("true", "1"), None))
        elif name in ("inputs", "name") and node is not current().root:
            continue
        elif (knob := node._knobs.get(name)) is not None:
            knob.fromScript(value)
        elif name != "inputs":
            current().warnings.append(f"{node._name or node._class}: no such knob: {name}")


def _add_user_knob(node: Node, parts: list[str]) -> None:
    kind = USER_KNOBS.get(int(parts[0]))
    if kind is None:
        raise RuntimeError(f"{node._class}: the double knows no user knob of type {parts[0]}")
    name, options, flags = parts[1], {}, []
    rest = iter(parts[2:])
    for part in rest:
        if part[0] in "+-" and part[1:] in FLAGS:
            flags.append(part)
        elif part == "R":
            options[part] = f"{next(rest)} {next(rest)}"
        else:
            options[part] = next(rest)
    knob = kind(name, options.get("l"))
    knob.setTooltip(options.get("t", ""))
    if isinstance(knob, array_knobs.Enumeration_Knob):
        knob.setValues(words(options.get("M", "")))
    elif isinstance(knob, array_knobs.Array_Knob) and "R" in options:
        knob.setRange(*map(float, options["R"].split()))
    elif isinstance(knob, knobs_.Tab_Knob):
        knob.group = int(options.get("n", 0))
    elif "T" in options:
        knob._value = options["T"]
    for flag in flags:
        (knob.setFlag if flag[0] == "+" else knob.clearFlag)(FLAGS[flag[1:]])
    if node.knob(name) is None:
        node.addKnob(knob)


class _Reader:
    """One reading of a text: the stack of nodes, the names of `set`, and the groups that are open."""

    def __init__(self, into: Group) -> None:
        self.groups, self.stacks = [into], [[]]  # type: list[Group], list[list[Node | None]]
        self.variables: dict[str, Node | None] = {}
        self.made: list[Node] = []

    def read(self, text: str) -> None:
        for name, *arguments in commands(text):
            if name in ("version", "define_window_layout_xml", "add_layer"):
                continue
            if name == "Root":
                set_knobs(current().root, arguments[0])
            elif name == "set":
                self.variables[arguments[0]] = self.stacks[-1][-1] if self.stacks[-1] else None
            elif name == "push":
                self.stacks[-1].append(None if arguments[0] == "0" else self.variables[arguments[0].lstrip("$")])
            elif name == "end_group":
                self._end_group()
            else:
                self._node(name, arguments[0] if arguments else "")
        if len(self.groups) > 1:
            raise RuntimeError(f"{self.groups[-1]._name}: a Group without its end_group")

    def _node(self, node_class: str, body: str) -> None:
        node, stack = make(node_class), self.stacks[-1]
        parts = words(body)
        given = dict(zip(parts[::2], parts[1::2], strict=False))
        place(node, self.groups[-1], given.get("name", ""))
        set_knobs(node, body)
        takes = int(given.get("inputs", 1 if node_class not in ("Read", "Input", "StickyNote", "BackdropNode") else 0))
        sources = [stack.pop() if stack else None for _ in range(takes)]
        while sources and sources[-1] is None:
            sources.pop()
        node._inputs = sources
        stack.append(node)
        self.made.append(node)
        if isinstance(node, Group):
            self.groups.append(node)
            self.stacks.append([])
        else:
            finish(node)

    def _end_group(self) -> None:
        if len(self.groups) == 1:
            raise RuntimeError("end_group without a Group")
        self.stacks.pop()
        finish(self.groups.pop())


def read_text(text: str, into: Group) -> list[Node]:
    reader = _Reader(into)
    reader.read(text)
    return reader.made


# --- nuke's functions


@guarded
def scriptReadText(s: str) -> None:
    read_text(s, current().context)


@guarded
def scriptReadFile(s: str) -> None:
    if not os.path.isfile(s):
        raise RuntimeError(f"{s}: no such file")
    read_text(Path(s).read_text(encoding="utf-8"), current().context)


@guarded
def scriptClear(ignoreUnsavedChanges: bool = False) -> None:
    from .root import Root

    session = current()
    callbacks.run("OnScriptClose", session.root)
    for node in session.root._children:
        node._is_deleted = True
    session.root = Root()
    session.root._make_ready()
    session.contexts.clear()
    session.undo.clear()


@guarded
def scriptOpen(filename: str | None = None) -> None:
    """In place of what is open: the original starts a second Nuke where there is something to lose."""
    if filename is None or not os.path.isfile(filename):
        raise RuntimeError(f"{filename}: no such file")
    scriptClear()
    session = current()
    session.undo.disabled += 1
    try:
        read_text(Path(filename).read_text(encoding="utf-8"), session.root)
    finally:
        session.undo.clear()
    session.root["name"].setValue(str(filename))
    session.undo.clear()
    callbacks.run("OnScriptLoad", session.root)
    session.root.setModified(False)


@guarded
def scriptSaveAs(filename: str | None = None, overwrite: int = -1) -> None:
    if filename is None:
        raise RuntimeError("scriptSaveAs: the double opens no dialogue, a file name is needed")
    if os.path.exists(filename) and overwrite != 1:
        raise RuntimeError(f"{filename} exists already")
    session = current()
    session.root["name"].setValue(str(filename))
    callbacks.run("OnScriptSave", session.root)
    Path(filename).write_text(script_text(), encoding="utf-8")
    session.root.setModified(False)


@guarded
def scriptSave(filename: str | None = None) -> bool:
    scriptSaveAs(filename or scriptName(), 1)
    return True


@guarded
def scriptName() -> str:
    name = current().root["name"].getText()
    if not name:
        raise RuntimeError("no script name available")
    return str(name)


@guarded
def nodeCopy(s: str) -> None:
    """The selected nodes to a file, or to the clipboard with "%clipboard%"."""
    selected = [node for node in current().context._children if node.isSelected()]
    if not selected:
        raise RuntimeError("no node selected")
    text = "\n".join(["set cut_paste_input [stack 0]", *nodes_text(selected)]) + "\n"
    if s == "%clipboard%":
        current().clipboard = text
    else:
        Path(s).write_text(text, encoding="utf-8")


@guarded
def nodePaste(s: str) -> Any:
    """The nodes come selected, with names that are free; the last of them is returned."""
    session = current()
    text = session.clipboard if s == "%clipboard%" else Path(s).read_text(encoding="utf-8")
    for node in session.context._children:
        node.setSelected(False)
    made = read_text(text, session.context)
    tops = [node for node in made if node._parent is session.context]
    for node in tops:
        node.setSelected(True)
    return tops[-1] if tops else None
