# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The Blender extension: packaged once, imported without Blender, and run inside real bpy.

Each version of bpy gets a virtual environment of its own, under RUSHES_HOST_ENVS (kept) or in a temporary folder (not).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rushes.commands.package import blender_files

BPY = ("4.2.23", "4.5.15", "5.0.1")  # two long-term releases and the first of the new sequencer
ENVIRONMENTS = "RUSHES_HOST_ENVS"
INSIDE = Path(__file__).parent / "inside"
MODULE = "rushes_blender"  # the extension's name outside Blender

Inside = Callable[..., "dict[str, Any]"]


@pytest.fixture(scope="session")
def extension(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The packaged extension, imported where there is no bpy. Its modules by importlib.import_module."""
    folder = tmp_path_factory.mktemp("extension") / MODULE
    for name, data in blender_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    spec = importlib.util.spec_from_file_location(
        MODULE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def plan_module(extension: ModuleType) -> ModuleType:
    return importlib.import_module(f"{extension.__name__}.vendor.plan")


@pytest.fixture(scope="session")
def elements_module(extension: ModuleType) -> ModuleType:
    return importlib.import_module(f"{extension.__name__}.elements")


@pytest.fixture(scope="session")
def controller_module(extension: ModuleType) -> ModuleType:
    return importlib.import_module(f"{extension.__name__}.vendor.controller")


@pytest.fixture
def worker_command(tmp_path: Path, environment: dict[str, str]) -> Path:
    """An executable `rushes` of this very installation or source tree, as an artist names it in the preferences."""
    path = tmp_path / "bin ä" / "rushes"
    path.parent.mkdir()
    lines = ["#!/bin/sh", "export OMP_NUM_THREADS=1"]
    if source := environment.get("PYTHONPATH"):
        lines.append(f"export PYTHONPATH='{source}'")
    path.write_text("\n".join([*lines, f"exec '{sys.executable}' -m rushes \"$@\"\n"]))
    path.chmod(0o755)
    return path


@pytest.fixture
def fresh_home(tmp_path: Path) -> Path:
    path = tmp_path / 'the "film" 日本' / "rushes" / "jobs"
    path.parent.mkdir(parents=True)
    return path


# --- real bpy ---------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Three gigabytes are not installed unasked: by `-m host`, or by naming the folder for them."""
    if "host" in config.getoption("markexpr") or os.environ.get(ENVIRONMENTS):
        return
    why = f"real bpy is not installed unasked; `pytest -m host` or {ENVIRONMENTS}=FOLDER does it"
    for item in items:
        if "bpy_python" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=why))


def _python_for_bpy() -> str:
    """These versions of bpy exist for Python 3.11 only."""
    if sys.version_info[:2] == (3, 11):
        return sys.executable
    found = shutil.which("python3.11")
    if found is None:
        pytest.fail("bpy 4.2 to 5.0 need python3.11, which is not on PATH")
    return found


@pytest.fixture(scope="session", params=BPY, ids=lambda version: f"bpy {version}")
def bpy_python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment that has this version of bpy and nothing of ours."""
    version = request.param
    kept = os.environ.get(ENVIRONMENTS)
    folder = (Path(kept) if kept else tmp_path_factory.mktemp("bpy")) / f"bpy-{version}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([_python_for_bpy(), "-m", "venv", str(folder)], check=True, timeout=120)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_CONSTRAINT")}
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir", f"bpy=={version}"]
        subprocess.run(install, check=True, timeout=900, env=environment)
        (folder / "complete").touch()
    return python


@pytest.fixture(scope="session")
def package_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip as `rushes package blender` builds it."""
    from rushes.cli import main

    folder = tmp_path_factory.mktemp("dist")
    assert main(["package", "blender", "-o", str(folder)]) == 0
    (path,) = folder.glob("*.zip")
    return path


@pytest.fixture
def blender_home(tmp_path: Path) -> Path:
    path = tmp_path / "blender home"
    path.mkdir()
    return path


@pytest.fixture
def start_inside(
    bpy_python: Path, package_zip: Path, worker_command: Path, blender_home: Path, tmp_path: Path, tiny_model: Path
) -> Callable[..., tuple[subprocess.Popen[str], Path]]:
    """start_inside("body", **config): the body in a bpy process of its own, and the file that it will report to."""

    def start(body: str, **config: Any) -> tuple[subprocess.Popen[str], Path]:
        given = {
            "zip": str(package_zip), "worker": str(worker_command), "model": str(tiny_model), "folder": str(tmp_path),
            **config,
        }  # fmt: skip
        (tmp_path / f"{body}.config.json").write_text(json.dumps(given))
        report = tmp_path / f"{body}.report.json"
        report.unlink(missing_ok=True)
        keep = ("PATH", "LANG")
        environment = {name: os.environ[name] for name in keep if name in os.environ}
        # Blender leaves its own temporary folders behind when a process ends as these must
        environment |= {"BLENDER_USER_RESOURCES": str(blender_home), "HOME": str(blender_home), "TMPDIR": str(tmp_path)}
        command = [bpy_python, INSIDE / "run.py", body, tmp_path / f"{body}.config.json", report]
        with (tmp_path / f"{body}.log").open("w") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return process, report

    return start


@pytest.fixture
def inside(start_inside: Callable[..., tuple[subprocess.Popen[str], Path]], tmp_path: Path) -> Inside:
    """inside("body", timeout, **config): what the body has reported; fails with its traceback when it failed."""

    def run(body: str, timeout: float = 180, **config: Any) -> dict[str, Any]:
        process, report = start_inside(body, **config)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = "none; it was killed for its time"
        log = (tmp_path / f"{body}.log").read_text(errors="replace")[-3000:]
        assert report.is_file(), f"{body}: no report, exit status {status}\n{log}"
        told = json.loads(report.read_text())
        assert "error" not in told, f"{body}:\n{told['error']}\n{log}"
        assert status == 0, f"{body}: exit status {status}\n{log}"
        return told

    return run
