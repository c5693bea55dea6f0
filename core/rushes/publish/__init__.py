# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Publishing: a reviewed plate becomes a version that others rely on, checked by plug-ins of pyblish.

The names below are the room's whole promise, loaded on first use: reviews and settings need no pyblish. The plug-ins
themselves are in `plugins/`, a folder for `register` or for the environment variable PYBLISHPLUGINPATH.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rushes.publish.report import Report
    from rushes.publish.review import Review, add_review, last_review, read_reviews
    from rushes.publish.runner import plugin_folder, register, run
    from rushes.publish.settings import Settings, find_settings
    from rushes.publish.subject import Subject, find_subject

__all__ = [
    "Report",
    "Review",
    "Settings",
    "Subject",
    "add_review",
    "find_settings",
    "find_subject",
    "last_review",
    "plugin_folder",
    "read_reviews",
    "register",
    "run",
]

_HOME = {
    "Report": "report",
    "Review": "review",
    "Settings": "settings",
    "Subject": "subject",
    "add_review": "review",
    "find_settings": "settings",
    "find_subject": "subject",
    "last_review": "review",
    "plugin_folder": "runner",
    "read_reviews": "review",
    "register": "runner",
    "run": "runner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
