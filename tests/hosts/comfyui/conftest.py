# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A real ComfyUI with our nodes in it, started once; made under RUSHES_HOST_ENVS (kept) or in a temporary folder."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ENVIRONMENTS = "RUSHES_HOST_ENVS"
SUPPORT = "rushes_comfyui_support"


def _support(name: str) -> ModuleType:
    """A module of support/, which is a package although pytest's import mode makes none of this folder."""
    if SUPPORT not in sys.modules:
        folder = Path(__file__).parent / "support"
        spec = importlib.util.spec_from_file_location(
            SUPPORT, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[SUPPORT] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[SUPPORT])
    return importlib.import_module(f"{SUPPORT}.{name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Two gigabytes are not installed unasked: by `-m host`, or by naming the folder for them."""
    if "host" in config.getoption("markexpr") or os.environ.get(ENVIRONMENTS):
        return
    why = f"a real ComfyUI is not installed unasked; `pytest -m host` or {ENVIRONMENTS}=FOLDER does it"
    for item in items:
        if "comfyui" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ComfyUI on disk, with an interpreter that runs it and this rushes."""
    kept = os.environ.get(ENVIRONMENTS)
    return _support("environment").make(Path(kept).resolve() if kept else tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def in_comfyui(comfyui: Any) -> Callable[..., str]:
    """in_comfyui("-c", code): ComfyUI's interpreter with this rushes, in ComfyUI's folder; returns what it prints."""

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in (comfyui.python, *command)],
            cwd=comfyui.folder,
            env=_support("server").process_environment(comfyui.rushes),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def pack() -> Path:
    """Our nodes, as they are linked into custom_nodes."""
    from rushes.commands.package import plugin_folder

    return plugin_folder("comfyui")


@pytest.fixture(scope="session")
def start_server(comfyui: Any, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """start_server("--argument", package=None): a running ComfyUI with our nodes."""
    servers = []

    def start(*arguments: str, **options: Any) -> Any:
        server = _support("server").Server(comfyui, tmp_path_factory.mktemp("base"), pack, *arguments, **options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Any]) -> Any:
    """The one that most tests share."""
    server = start_server("--preview-method", "auto")
    server.wait_until_up()
    return server


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    client = _support("server").Client(server)
    yield client
    client.close()


@pytest.fixture(scope="session")
def support() -> Callable[[str], ModuleType]:
    """support("graphs"): a module of support/."""
    return _support


@pytest.fixture(scope="session")
def prompts() -> ModuleType:
    return _support("prompts")
