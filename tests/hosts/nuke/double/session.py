# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""One running Nuke, as far as the double goes: what its parts share. One at a time in a process, as in the original."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from .callbacks import Callbacks
from .main_thread import MainThread
from .undo import UndoStack

if TYPE_CHECKING:
    from .groups import Group
    from .menus import Menu
    from .nodes import Node
    from .progress import Task
    from .root import Format, Root

CONFIG = "ocio://cg-config-v1.0.0_aces-v1.3_ocio-v2.1"  # what Nuke 14 to 16 ship, under the name of its authors

_sessions: list[Session] = []


class Session:
    """What a test holds in its hands: pump(), violations, errors, messages, answers, tasks, and the parts behind them.

    major: 13 to 17; gui: False for `nuke -t`; config: an OCIO configuration, a path or an ocio:// name, or
    "nuke" for the curves of Nuke's own colour management.
    """

    def __init__(self, major: int, gui: bool, config: str) -> None:
        self.major, self.gui, self.config = major, gui, config
        self.threads = MainThread(gui)
        self.undo = UndoStack()
        self.callbacks = Callbacks()
        self.menus: dict[str, Menu] = {}
        self.messages: list[str] = []  # what nuke.message and its kin have shown
        self.answers: collections.deque[Any] = collections.deque()  # for nuke.ask and its kin, in order
        self.warnings: list[str] = []  # what loading a script has complained of
        self.tcl_errors: list[str] = []
        self.tasks: list[Any] = []  # weak references to ProgressTasks; see visible_tasks
        self.contexts: list[Group] = []  # the stack of `with group:`
        self.running: list[tuple[Node, Any]] = []  # (thisNode, thisKnob) of the callbacks that run
        self.formats: list[Format] = []
        self.view_names = ["main"]
        self.knob_defaults: dict[str, str] = {}
        self.plugin_path: list[str] = []
        self.panels: dict[str, tuple[str, str]] = {}  # id -> (expression of the widget, title)
        self.main_namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
        self.clipboard = ""
        self.deaf_to: set[str] = set()  # colour spaces that a knob takes without a word and without effect
        self.executed: list[tuple[str, int]] = []  # (name of a Write, frame) in the order of rendering
        self.root: Root
        self.nuke: Any = None  # the module

    @property
    def violations(self) -> list[str]:
        """Every use of Nuke that may crash or freeze the real one, each refused when it happened."""
        return self.threads.violations

    @property
    def errors(self) -> list[BaseException]:
        """What posted calls and callbacks have raised: Nuke prints these and goes on."""
        return self.threads.errors

    def pump(self, limit: int | None = None) -> int:
        """Let the main thread do what was posted so far; how many calls that were."""
        return self.threads.pump(limit)

    def visible_tasks(self) -> list[Task]:
        """The progress bars on the screen: those that somebody still holds."""
        alive = [task for reference in self.tasks if (task := reference()) is not None]
        return alive

    @property
    def context(self) -> Group:
        """The group that nuke.createNode and nuke.toNode work in."""
        return self.contexts[-1] if self.contexts else self.root


def current() -> Session:
    """The Nuke that is installed in this process."""
    if not _sessions:
        raise RuntimeError("no Nuke is installed in this process: double.install() comes first")
    return _sessions[-1]


def enter(session: Session) -> None:
    _sessions[:] = [session]


def leave() -> None:
    _sessions.clear()
