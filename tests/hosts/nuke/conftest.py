# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A Nuke for each test that asks: the double of double/, of several versions, which nobody may have used wrongly."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

NAME = "nuke_double"  # the double's package; what it puts into sys.modules is `nuke`
Install = Callable[..., Any]
WriteFrames = Callable[..., Path]


@pytest.fixture(scope="session")
def nuke_double() -> ModuleType:
    """The package double/, imported once."""
    folder = Path(__file__).parent / "double"
    spec = importlib.util.spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def install(nuke_double: ModuleType) -> Iterator[Install]:
    """install(major=16, gui=True, config=…): a fresh Nuke. At the end of the test nothing wrong may have been done to
    it: neither a thread violation nor an exception in a posted call or a callback. Who provokes one clears the list.
    """
    made: list[Any] = []
    before = list(sys.path)

    def begin(**options: Any) -> Any:
        made.append(nuke_double.install(**options))
        return made[-1]

    yield begin
    nuke_double.uninstall()
    sys.path[:] = before
    for session in made:
        assert session.violations == [], "Nuke was used off its main thread, or frozen"
        assert session.errors == [], "a posted call or a callback has raised"


@pytest.fixture(params=[13, 16, 17], ids=lambda major: f"Nuke {major}")
def session(request: pytest.FixtureRequest, install: Install) -> Any:
    """A Nuke with its window, of the oldest version, of the first with PySide6, and of the newest."""
    return install(major=request.param)


@pytest.fixture
def nuke(session: Any) -> Any:
    """What `import nuke` gives in that session."""
    return session.nuke


@pytest.fixture
def write_frames(tmp_path: Path) -> WriteFrames:
    """write_frames(numbers, size=(48, 27), name="plate.%04d.exr", attributes={…}): EXR files, each of one colour that
    grows with its number; the pattern.
    """
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it

    def write(
        numbers: Any, size: tuple[int, int] = (48, 27), name: str = "plate.%04d.exr", attributes: Any = None
    ) -> Path:
        for number in numbers:
            path = tmp_path / (name % number)
            spec = oiio.ImageSpec(*size, 3, "half")
            for key, value in (attributes or {}).items():
                spec.attribute(key, *value) if isinstance(value, tuple) else spec.attribute(key, value)
            output = oiio.ImageOutput.create(str(path))
            assert output.open(str(path), spec)
            assert output.write_image(np.full((size[1], size[0], 3), number / 2048, np.float32))
            output.close()
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def qt_application() -> Any:
    """A QApplication without a screen. Skips, and says why, where Qt is missing or does not load."""
    if importlib.util.find_spec("PySide6") is None:
        pytest.skip("Nuke's panel is NOT TESTED: PySide6 is missing; pip install '.[panel]'")
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    probe = [sys.executable, "-c", "from PySide6 import QtWidgets; QtWidgets.QApplication([])"]
    tried = subprocess.run(probe, env=environment, capture_output=True, text=True)  # Qt ends a process that it dislikes
    if tried.returncode:
        why = (tried.stderr.strip() or f"status {tried.returncode}").splitlines()[-1]
        pytest.skip(f"Nuke's panel is NOT TESTED: Qt does not load here ({why}); apt-get install libegl1 libgl1 helps")
    before = os.environ.get("QT_QPA_PLATFORM")
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    try:
        from PySide6 import QtWidgets

        return QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    finally:
        if before is None:
            del os.environ["QT_QPA_PLATFORM"]
        else:
            os.environ["QT_QPA_PLATFORM"] = before


@pytest.fixture
def qt(session: Any, qt_application: Any, nuke_double: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The application, and the bindings under the names that this session's version has, and no others."""
    for name, module in nuke_double.qt.bindings(session.major).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(builtins, "__import__", nuke_double.qt.importing(session.major, builtins.__import__))
    return qt_application


# --- the plug-in, with real workers -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `rushes package nuke` writes."""
    from rushes.cli import main

    folder = tmp_path_factory.mktemp("plug-ins")
    assert main(["package", "nuke", "-o", str(folder)]) == 0
    return folder / "rushes"


@pytest.fixture
def worker_command(tmp_path: Path) -> Path:
    """An executable `rushes` of this very installation or source tree, as an artist names it."""
    path = tmp_path / "bin ä" / "rushes"
    path.parent.mkdir()
    lines = ["#!/bin/sh", "export OMP_NUM_THREADS=1"]
    if source := os.environ.get("PYTHONPATH"):
        lines.append(
            f"export PYTHONPATH='{os.pathsep.join(os.path.abspath(part) for part in source.split(os.pathsep))}'"
        )
    path.write_text("\n".join([*lines, f"exec '{sys.executable}' -m rushes \"$@\"\n"]))
    path.chmod(0o755)
    return path


@pytest.fixture
def load_plugin(
    plugin_folder: Path, worker_command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Any], ModuleType]]:
    """load_plugin(session): the package rushes_nuke, loaded as by the line in init.py, for an artist of the test's own.

    Its worker is killed at the end, with whatever it still makes.
    """
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("RUSHES_WORKER", str(worker_command))
    loaded: list[ModuleType] = []

    def load(session: Any) -> ModuleType:
        session.nuke.pluginAddPath(str(plugin_folder))
        loaded.append(importlib.import_module("rushes_nuke"))
        for name in (
            "flow",
            "node",
            "session",
            "startup",
            "takes",
            "buttons",
            "contact",
            "readers",
            "colour",
            "knobs",
            "ranges",
        ):
            importlib.import_module(f"rushes_nuke.{name}")
        return loaded[-1]

    yield load
    for module in loaded[-1:]:
        module.session.session().controller.kill()
        module.session.end()
    for name in [name for name in sys.modules if name.partition(".")[0] == "rushes_nuke"]:
        del sys.modules[name]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Where a script is saved, under a name that shells trip over."""
    path = tmp_path / 'the "film" é 日本' / "sh010.nk"
    path.parent.mkdir()
    return path
