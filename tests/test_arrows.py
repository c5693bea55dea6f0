# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The arrows between the rooms go one way, read from the source itself, lazy imports included."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from rushes.commands.package import VENDORED

_SPEC = importlib.util.find_spec("rushes")
assert _SPEC is not None and _SPEC.origin is not None
CORE = Path(_SPEC.origin).parent
CPP = Path(__file__).parent.parent / "cpp_ext"
# Data of the package, built into what hosts install: in the wheel inside it, in a checkout beside core/
PLUGINS = CORE / "plugins" if (CORE / "plugins").is_dir() else CORE.parent.parent / "plugins"

# Room -> rooms that it may read; itself always. cli, commands and doctor are the top and may read everything.
ARROWS = {
    "_version": set(),
    "shot": set(),
    "folders": set(),  # where the user's own files lie, which models and jobs both ask
    "hashing": set(),  # one rule of digests for models, plates and footage
    "replacing": set(),  # one way for a file to appear whole
    "attention": {"_version"},
    "model": {"attention", "shot", "folders", "hashing", "replacing", "_version"},
    "sampling": {"shot"},
    "speed": {"attention", "shot"},  # what the engine is told and not the shot, read for commands and jobs alike
    "media": {"shot", "hashing", "replacing", "_version"},
    "progress": set(),  # what the engine tells; a file of its own for the engine's length alone
    # parts of the engine, each of one idea
    "clip": {"media", "shot", "progress"},
    "control": {"model", "sampling", "media", "shot"},
    "conditions": {"control", "model", "sampling", "media", "shot", "progress"},
    "prompts": {"model"},
    "velocity": {"attention", "model", "sampling", "conditions", "progress"},
    "engine": {"attention", "model", "sampling", "media", "shot", "progress", "_version"}
    | {"clip", "conditions", "control", "prompts", "velocity"},
    "starter": {"model", "sampling", "media", "shot", "engine", "replacing", "_version"},
    "jobs": {"engine", "media", "shot", "speed", "progress", "folders", "replacing", "_version"},
    "publish": {"media", "jobs", "shot", "hashing", "_version"},
}
TOP = {"__init__", "__main__", "cli", "commands", "doctor"}

STDLIB_ONLY = [
    *("shot.py", "hashing.py", "replacing.py", "_version.py", "__init__.py", "jobs/__init__.py"),
    *(f"jobs/{name}" for name in VENDORED),
]
NO_TORCH = ["media", "commands/reporting.py", "commands/options.py", "commands/stopping.py", "cli.py"]
HOSTS = {"bpy", "nuke", "nukescripts", "hou", "maya", "comfy", "comfy_api", "comfy_extras", "folder_paths"}

# The house's rule is 400 and 60; beyond these hard limits a file or function has stopped being one idea.
FILE_LINES, FILE_LIMIT = 400, 450
FUNCTION_LINES, FUNCTION_LIMIT = 60, 80

SOURCES = sorted(path for path in CORE.rglob("*.py") if PLUGINS not in path.parents)
PLUGIN_SOURCES = sorted(PLUGINS.rglob("*.py"))
# What each plug-in may import beside the standard library and itself; these files of it not even that
PLUGIN_HOSTS = {
    "blender": {"bpy"},
    "nuke": {"nuke", "nukescripts", "PySide2", "PySide6", "rushes_nuke"},
    "comfyui": {
        "comfy",
        "comfy_api",
        "comfy_execution",
        "folder_paths",
        "numpy",
        "PIL",
        "torch",
        "rushes",
    },  # the engine runs in it
}
WITHOUT_HOST = {
    "blender/__init__.py", "blender/elements.py",
    "nuke/rushes_nuke/__init__.py", "nuke/rushes_nuke/refusal.py", "nuke/rushes_nuke/ranges.py",
    "nuke/rushes_nuke/places.py", "nuke/rushes_nuke/preferences.py",
    "comfyui/__init__.py",  # it says in one line what is missing where `rushes` is
}  # fmt: skip


def _name(path: Path) -> str:
    return path.relative_to(CORE).as_posix()


def _room(path: Path) -> str:
    return _name(path).partition("/")[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted module, whether only for the type checker) of each import, wherever in the file it stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    package = ["rushes", *path.relative_to(CORE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, id(node) in typing_only
            if module == "rushes" or (node.level and not node.module):
                for alias in node.names:  # `from rushes import engine` names a room in its second half
                    yield f"{module}.{alias.name}", id(node) in typing_only


def _rooms_read(path: Path) -> set[str]:
    """Rooms of ours that a file imports at run time."""
    front_door = {
        "Clip": "engine",
        "Engine": "engine",
        "generate": "engine",
        "Keyframe": "shot",
        "Shot": "shot",
    }
    rooms = set()
    for module, for_types in _imports(path):
        parts = module.split(".")
        if parts[0] == "rushes" and len(parts) > 1 and not for_types and parts[1] != "__version__":
            rooms.add(front_door.get(parts[1], parts[1]))
    return rooms


def test_every_room_is_in_the_plan() -> None:
    """A new room has to be given its arrows here first."""
    assert {_room(path) for path in SOURCES} <= ARROWS.keys() | TOP


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_room_reads_only_the_rooms_below_it(path: Path) -> None:
    """design.md: engine -> model, sampling, media -> attention; shot on the ground floor."""
    room = _room(path)
    if room not in TOP:
        wrong = _rooms_read(path) - ARROWS[room] - {room}
        assert not wrong, f"{_name(path)} reads {sorted(wrong)}; {room} may read {sorted(ARROWS[room])}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_host_is_imported(path: Path) -> None:
    """The core runs in a worker, on a farm, on a laptop: never does it need Nuke or Blender."""
    assert not {module.partition(".")[0] for module, _ in _imports(path)} & HOSTS


def _plugin_name(path: Path) -> str:
    return path.relative_to(PLUGINS).as_posix()


@pytest.mark.parametrize("path", PLUGIN_SOURCES, ids=_plugin_name)
def test_a_plugin_imports_its_host_and_the_standard_library(path: Path) -> None:
    """No package is installed into Blender or Nuke: what is not there is vendored. ComfyUI has `rushes` beside it."""
    name = _plugin_name(path)
    allowed = set() if name in WITHOUT_HOST else PLUGIN_HOSTS[name.partition("/")[0]]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    absolute = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    absolute += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    assert {module.partition(".")[0] for module in absolute} <= allowed | sys.stdlib_module_names


@pytest.mark.parametrize("name", STDLIB_ONLY)
def test_the_ground_floor_is_standard_library_only(name: str) -> None:
    """Hosts vendor these files into interpreters of their own."""
    path = CORE / name
    if not path.exists():
        pytest.skip(f"{name} is not there yet")
    allowed = sys.stdlib_module_names | {"rushes"}
    foreign = {module for module, _ in _imports(path) if module.partition(".")[0] not in allowed}
    assert not foreign
    if name != "__init__.py":
        assert _rooms_read(path) <= {"_version", "shot", "jobs"}


@pytest.mark.parametrize("name", NO_TORCH)
def test_torch_stays_out(name: str) -> None:
    """Pictures are numpy's business; refusals and bars must not wait for an import of seconds."""
    files = sorted((CORE / name).rglob("*.py")) if (CORE / name).is_dir() else [CORE / name]
    assert files
    for path in files:
        assert "torch" not in {module.partition(".")[0] for module, _ in _imports(path)}, _name(path)


def test_rooms_form_no_cycle() -> None:
    """Followed through every file as it runs, no room reaches itself again."""
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        if _room(path) not in TOP:
            graph.setdefault(_room(path), set()).update(_rooms_read(path) - {_room(path)})

    def reach(room: str, seen: frozenset[str]) -> None:
        assert room not in seen, f"a cycle through {sorted(seen)} back to {room}"
        for other in graph.get(room, ()):
            reach(other, seen | {room})

    for room in graph:
        reach(room, frozenset())


@pytest.mark.parametrize("path", [*SOURCES, *PLUGIN_SOURCES], ids=lambda path: path.name)
def test_a_file_and_its_functions_stay_short(path: Path) -> None:
    """Beyond the soft limit it is a warning, beyond the hard one it fails."""
    text = path.read_text(encoding="utf-8")
    lengths = {"file": len(text.splitlines())}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
            lengths[f"{node.name}() at line {node.lineno}"] = node.end_lineno - node.lineno + 1
    for what, lines in lengths.items():
        soft, hard = (FILE_LINES, FILE_LIMIT) if what == "file" else (FUNCTION_LINES, FUNCTION_LIMIT)
        if lines > soft:
            warnings.warn(f"{path.name}: {what} has {lines} lines, the house's rule is {soft}", stacklevel=1)
        assert lines <= hard, f"{path.name}: {what} has {lines} lines; up to {hard} are allowed"


def test_the_kernel_knows_neither_python_nor_torch() -> None:
    """Only cpp_ext/bindings includes pybind11; the rest must build without either installed."""
    if not CPP.is_dir():
        pytest.skip("the sources are not beside the tests")
    foreign = re.compile(r"#\s*include\s*[<\"](pybind11/|Python\.h|torch/|ATen/|c10/|numpy/)")
    files = [path for folder in ("src", "include") for path in (CPP / folder).rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert not foreign.search(path.read_text(encoding="utf-8")), path.name
    bindings = "".join(path.read_text(encoding="utf-8") for path in (CPP / "bindings").iterdir())
    assert foreign.search(bindings), "the pattern finds what it looks for"


def test_every_source_says_its_licence() -> None:
    """Two lines, and nothing longer."""
    for path in [*SOURCES, *PLUGIN_SOURCES, *Path(__file__).parent.rglob("*.py")]:
        if "__pycache__" not in path.parts and path.stat().st_size:
            first, second = path.read_text(encoding="utf-8").splitlines()[:2]
            assert first.endswith("SPDX-License-Identifier: Apache-2.0"), path
            assert second.endswith("Copyright Contributors to the Rushes project"), path
