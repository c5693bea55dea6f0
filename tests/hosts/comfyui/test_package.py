# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The pack as a folder: what `rushes package comfyui` writes, and what its sources may not do. No ComfyUI is needed."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import rushes as package
from rushes.commands.package import comfyui_files


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return comfyui_files()


def trees(files: dict[str, bytes]) -> dict[str, ast.Module]:
    return {name: ast.parse(data) for name, data in files.items() if name.endswith(".py")}


def test_the_folder_is_ready_for_custom_nodes(rushes: Any, tmp_path: Path, files: dict[str, bytes]) -> None:
    """Sources, pages, locale, examples, metadata with this version; no caches. Written twice it is the same."""
    for _ in range(2):
        done = rushes("package", "comfyui", "-o", "custom_nodes")
        assert done.returncode == 0 and done.stdout.strip() == str(Path("custom_nodes/rushes"))
    found = {
        path.relative_to(tmp_path / "custom_nodes/rushes").as_posix(): path.read_bytes()
        for path in (tmp_path / "custom_nodes/rushes").rglob("*")
        if path.is_file()
    }
    assert found == files
    assert not [name for name in found if "__pycache__" in name or name.endswith(".pyc")]
    for name in ("__init__.py", "README.md", "pyproject.toml", "locales/en/nodeDefs.json", "web/docs/RushesShot.md"):
        assert name in found
    metadata = found["pyproject.toml"].decode()
    assert f'\nversion = "{package.__version__}"\n' in metadata and 'requires-comfyui = ">=0.3.75"' in metadata
    assert "\nweb" not in metadata  # together with WEB_DIRECTORY it would be served twice


def test_a_folder_that_cannot_be_written_is_refused(rushes: Any, tmp_path: Path) -> None:
    """Exit 2, one line."""
    (tmp_path / "file").write_text("")
    done = rushes("package", "comfyui", "-o", "file")
    assert done.returncode == 2 and "output: file cannot be written" in done.stderr


def test_the_start_loads_nothing_heavy(files: dict[str, bytes]) -> None:
    """The pack's __init__ imports typing at its top, and no old-style mapping hides the entry point."""
    tree = trees(files)["__init__.py"]
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {node.module for node in top if isinstance(node, ast.ImportFrom)} == {"__future__", "typing"}
    assert not [node for node in top if isinstance(node, ast.Import)]
    assert not any(b"NODE_CLASS_MAPPINGS" in data for name, data in files.items() if name.endswith(".py"))


def test_sources_import_no_node_of_comfyuis_and_keep_no_state(files: dict[str, bytes]) -> None:
    """Its node classes move between releases; weights belong to its manager, which alone moves them."""
    for name, tree in trees(files).items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for imported in names:
                root = imported.partition(".")[0]
                assert root not in ("nodes", "comfy_extras", "custom_nodes", "plugins"), f"{name} imports {imported}"
        assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)), name
        assert b"unload_all_models" not in files[name] and b'.to("cuda' not in files[name], name


def test_every_node_has_a_page_a_locale_and_short_files(files: dict[str, bytes]) -> None:
    """By node id; files under 400 lines, functions under 60."""
    ids = sorted(
        found for name, data in files.items() if name.endswith(".py") for found in re.findall(rb'node_id="(\w+)"', data)
    )
    assert len(ids) == 11
    definitions = json.loads(files["locales/en/nodeDefs.json"])
    assert sorted(definitions) == [node_id.decode() for node_id in ids]
    for node_id in ids:
        page = files[f"web/docs/{node_id.decode()}.md"].decode()
        assert page.startswith(f"# {definitions[node_id.decode()]['display_name']}\n")
    for name, tree in trees(files).items():
        assert len(files[name].splitlines()) < 400, name
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{name}: {node.name}"
