# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The names of the module `nuke`."""

from __future__ import annotations

import os
from typing import Any

from . import (
    array_knobs,
    callbacks,
    classes,
    groups,
    knobs,
    main_thread,
    menus,
    nodes,
    progress,
    read,
    root,
    script,
    text_knobs,
    undo,
    write,
)
from .main_thread import guarded
from .session import Session, current


@guarded
def _root() -> Any:
    return current().root


@guarded
def frame(f: int | None = None) -> int:
    if f is not None:
        current().root.setFrame(f)
    return int(current().root.frame)


@guarded
def views() -> list[str]:
    return list(current().view_names)


@guarded
def addView(s: str) -> None:
    if s not in current().view_names:
        current().view_names.append(s)


@guarded
def formats() -> list[Any]:
    return list(current().formats)


@guarded
def modified(state: bool | None = None) -> bool:
    if state is not None:
        current().root.setModified(state)
    return bool(current().root.modified())


@guarded
def show(n: Any, forceFloat: bool = False) -> None:
    n.showControlPanel(forceFloat)


@guarded
def filename(node: Any, i: int = 0) -> Any:
    knob = node.knob("file")
    if knob is None or not knob.getText():
        return None
    return knob.evaluate() if i == REPLACE else knob.getEvaluatedValue()


@guarded
def connectViewer(inputNum: int, node: Any) -> None:
    session = current()
    if not session.gui:
        raise RuntimeError("connectViewer: there are no viewers in nuke -t")
    found = next((each for each in session.context.nodes() if each.Class() == "Viewer"), None)
    (found or classes.Constructor("Viewer")()).setInput(inputNum, node)


@guarded
def getColorspaceList(colorspaceKnob: Any) -> list[str]:
    return [item.split("\t")[0] for item in colorspaceKnob.values()]


@guarded
def delete(n: Any) -> None:
    groups.delete(n)


@guarded
def undo_() -> None:
    current().undo.back()


@guarded
def redo_() -> None:
    current().undo.again()


REPLACE = 1
_OWN = ("Name_Knob", "Reload_Knob", "Single_Knob")  # Nuke has them inside, its module has not
_CLASSES = (
    nodes.Node, groups.Group, root.Root, root.Format, root.FrameRange, menus.Menu, menus.MenuItem,
    *(kind for module in (knobs, text_knobs, array_knobs) for kind in vars(module).values()
      if isinstance(kind, type) and issubclass(kind, knobs.Knob) and kind.__name__ not in _OWN),
)  # fmt: skip
_FUNCTIONS = (
    main_thread.executeInMainThread, main_thread.executeInMainThreadWithResult, classes.createNode, classes.toNode,
    classes.allNodes, classes.selectedNode, classes.selectedNodes, classes.thisNode, classes.thisKnob,
    classes.thisGroup, classes.thisParent, classes.exists, classes.knobDefault, root.addFormat, read.getReadFileKnob,
    write.execute, script.scriptReadText, script.scriptReadFile, script.scriptClear, script.scriptOpen,
    script.scriptSave, script.scriptSaveAs, script.scriptName, script.nodeCopy, script.nodePaste, menus.menu,
    menus.toolbar, menus.message, menus.alert, menus.critical, menus.error, menus.warning, menus.debug, menus.tprint,
    menus.ask, menus.askWithCancel, menus.getInput, menus.getFilename, menus.getClipname, menus.choice,
    menus.pluginAddPath, menus.pluginAppendPath, menus.pluginPath, frame, views, addView, formats, modified, show,
    filename, connectViewer, getColorspaceList, delete,
)  # fmt: skip


def names(session: Session) -> dict[str, Any]:
    """Everything that `nuke.…` has in this session."""
    major = session.major
    made: dict[str, Any] = {kind.__name__: kind for kind in _CLASSES}
    made |= {function.__name__: function for function in _FUNCTIONS}
    made |= callbacks.functions()
    made |= knobs.FLAGS
    made |= {
        "root": _root, "undo": undo_, "redo": redo_, "nodes": classes.Nodes(), "GUI": session.gui,
        "INTERACTIVE": session.gui, "REPLACE": REPLACE, "untitled": "Untitled",
        "TABBEGINGROUP": 1, "TABBEGINCLOSEDGROUP": 2, "TABENDGROUP": -1, "TABKNOB": 0,
        "Undo": undo.UndoSince17 if major >= 17 else undo.UndoBefore17,
        "ProgressTask": progress.TaskSince17 if major >= 17 else progress.TaskBefore17,
        "NUKE_VERSION_MAJOR": major, "NUKE_VERSION_MINOR": 0, "NUKE_VERSION_RELEASE": 1,
        "NUKE_VERSION_STRING": f"{major}.0v1", "EXE_PATH": f"/usr/local/Nuke{major}.0v1/Nuke{major}.0",
        "NUM_CPUS": os.cpu_count() or 1, "THREADS": os.cpu_count() or 1,
        "env": {"gui": session.gui, "interactive": session.gui, "NukeVersionMajor": major, "NukeVersionMinor": 0,
                "NukeVersionString": f"{major}.0v1", "nc": False, "indie": False, "studio": False, "threads": 2,
                "ExecutablePath": f"/usr/local/Nuke{major}.0v1/Nuke{major}.0"},
    }  # fmt: skip
    return made
