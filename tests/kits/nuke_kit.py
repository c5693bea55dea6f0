# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What the tests of the Nuke plug-in at work share: a session of one version, and the plug-in in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EVERYWHERE = pytest.mark.parametrize("session", [13, 16, 17], indirect=True)


@pytest.fixture
def session(request: pytest.FixtureRequest, install: Any) -> Any:
    """Nuke 16 with its window; where a test says EVERYWHERE, its oldest and newest version too."""
    return install(major=getattr(request, "param", 16))


@pytest.fixture
def plugin(session: Any, load_plugin: Callable[[Any], ModuleType], script: Path) -> ModuleType:
    """Loaded in a session with its window and a saved script."""
    session.nuke.scriptSaveAs(str(script))
    loaded = load_plugin(session)
    loaded.startup.listen()
    return loaded
