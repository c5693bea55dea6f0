# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Callbacks: lists by kind and class of node. The class's own run before those for all; the same one is kept once."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from .main_thread import guarded

KINDS = (
    "OnUserCreate", "OnCreate", "OnDestroy", "OnScriptLoad", "OnScriptSave", "OnScriptClose", "KnobChanged", "UpdateUI",
    "Autolabel", "BeforeRender", "BeforeFrameRender", "AfterFrameRender", "AfterRender", "FilenameFilter",
)  # fmt: skip
Entry = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


class Callbacks:
    def __init__(self) -> None:
        self.lists: dict[str, dict[str, list[Entry]]] = {kind: {} for kind in KINDS}

    def add(self, kind: str, call: Any, args: Any, kwargs: Any, node_class: str, node: Any = None) -> None:
        if not callable(call):
            raise ValueError("call must be a callable")
        if not isinstance(args, tuple):
            args = (args,)
        if not isinstance(kwargs, dict):
            raise ValueError("kwargs must be a dictionary")
        entry = (call, args, kwargs, node)
        entries = self.lists[kind].setdefault(node_class, [])
        if entry in entries:
            entries.remove(entry)
        entries.append(entry)

    def remove(self, kind: str, call: Any, args: Any, kwargs: Any, node_class: str, node: Any = None) -> None:
        if not isinstance(args, tuple):
            args = (args,)
        entries = self.lists[kind].get(node_class, [])
        if (entry := (call, args, kwargs, node)) in entries:
            entries.remove(entry)

    def matching(self, kind: str, node_class: str, node: Any = None) -> Iterator[Callable[[], Any]]:
        """The calls for this class, then those for every class; bound to their arguments."""
        for key in (node_class, "*"):
            for call, args, kwargs, only in list(self.lists[kind].get(key, [])):
                if only is None or only is node:
                    yield functools.partial(call, *args, **kwargs)


def run(kind: str, node: Any, knob: Any = None) -> None:
    """Run what is registered, with thisNode() and thisKnob() set. An exception is printed, the next one runs."""
    from .session import current

    session = current()
    session.running.append((node, knob))
    try:
        for call in session.callbacks.matching(kind, node.Class(), node):
            try:
                call()
            except Exception as error:
                traceback.print_exc()
                session.errors.append(error)
    finally:
        session.running.pop()


def run_text(code: str, node: Any, knob: Any = None, raises: bool = False) -> None:
    """Run the Python text of a knob in the namespace of __main__, with thisNode() and thisKnob() set."""
    from .session import current

    session = current()
    session.running.append((node, knob))
    session.contexts.append(node._script_context())
    try:
        exec(compile(code, f"<{node.fullName()}>", "exec"), session.main_namespace)
    except Exception as error:
        if raises:
            raise
        traceback.print_exc()
        session.errors.append(error)
    finally:
        session.running.pop()
        session.contexts.pop()


def functions() -> dict[str, Callable[..., None]]:
    """nuke.addOnCreate, nuke.removeOnCreate and so on."""
    made: dict[str, Callable[..., None]] = {}

    def make(kind: str) -> None:
        from .session import current

        if kind == "KnobChanged":

            def add(
                call: Any,
                args: Any = (),
                kwargs: Any = {},
                nodeClass: str = "*",
                node: Any = None,
            ) -> None:
                current().callbacks.add(kind, call, args, kwargs, nodeClass, node)

            def remove(
                call: Any,
                args: Any = (),
                kwargs: Any = {},
                nodeClass: str = "*",
                node: Any = None,
            ) -> None:
                current().callbacks.remove(kind, call, args, kwargs, nodeClass, node)
        else:
            default = "Root" if kind.startswith("OnScript") else "*"

            def add(call: Any, args: Any = (), kwargs: Any = {}, nodeClass: str = default) -> None:  # type: ignore[misc]
                current().callbacks.add(kind, call, args, kwargs, nodeClass)

            def remove(call: Any, args: Any = (), kwargs: Any = {}, nodeClass: str = default) -> None:  # type: ignore[misc]
                current().callbacks.remove(kind, call, args, kwargs, nodeClass)

        made[f"add{kind}"], made[f"remove{kind}"] = guarded(add), guarded(remove)

    for kind in KINDS:
        make(kind)
    return made
