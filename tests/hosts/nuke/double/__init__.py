# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A test double of Foundry's module `nuke`: what an integration needs of it, behaving as its makers and users describe.

Written from public documentation and from what public integrations have run into; the original was never run beside it.
A plug-in that works here is not proven to work in Nuke; one that fails here would fail there.

    session = install(major=16)      # sys.modules has nuke and nukescripts now
    import nuke
    …
    session.pump()                   # the main thread is idle for a moment
    assert not session.violations
    uninstall()
"""

from __future__ import annotations

import sys
import types

from . import qt, scripts
from .main_thread import ThreadViolation
from .menus import run_menus
from .module import names
from .root import Root
from .scripts import open_panel
from .session import CONFIG, Session, current, enter, leave

MAJORS = (13, 14, 15, 16, 17)
# One object for all sessions: a plug-in that was imported in an earlier one keeps its `nuke`.
_module = types.ModuleType("nuke", "A test double of Foundry's module.")
_replaced: dict[str, types.ModuleType | None] = {}


def install(major: int = 16, gui: bool = True, config: str = CONFIG) -> Session:
    """A fresh Nuke of this version as `nuke` and `nukescripts`; the calling thread becomes its main thread."""
    if major not in MAJORS:
        raise ValueError(f"major: {major}; one of {MAJORS} is allowed")
    uninstall()
    session = Session(major, gui, config)
    enter(session)
    session.root = Root()
    session.root._make_ready()
    for name in [name for name in vars(_module) if not name.startswith("__")]:
        delattr(_module, name)
    vars(_module).update(names(session))
    _module.__path__ = []  # type: ignore[attr-defined]
    session.nuke = _module
    session.main_namespace["nuke"] = _module
    modules = {"nuke": _module, **scripts.modules()}
    if major >= 16:
        modules["nuke_internal"] = _module
    for name, module in modules.items():
        _replaced[name] = sys.modules.get(name)
        sys.modules[name] = module
    return session


def uninstall() -> None:
    """Take the modules out again; the session is over."""
    for name, before in _replaced.items():
        if before is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before
    _replaced.clear()
    leave()


__all__ = [
    "CONFIG",
    "MAJORS",
    "Session",
    "ThreadViolation",
    "current",
    "install",
    "open_panel",
    "qt",
    "run_menus",
    "uninstall",
]
