# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The double promises nothing that Nuke lacks, and the plug-in uses nothing that either lacks: against types-nuke."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PLUGIN = Path(__file__).parents[3] / "plugins" / "nuke"
SINCE_17 = {"Undo.begin", "ProgressTask"}  # the stubs are of Nuke 13
HANDLES = {"ProgressTask.cancel"}  # what a test does in the artist's place
# Where the stubs ask for an argument that everyone's code leaves out, or (the link) forget the value
LEFT_OUT = {
    "Node.dependencies", "Node.dependent", "Node.metadata", "MenuItem.setEnabled", "Array_Knob.value",
    "Link_Knob.setValue",
}  # fmt: skip


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


reader = _load("nuke_stubs_reader", Path(__file__).parent / "stubs_reader.py")


@pytest.fixture(scope="module")
def stubs() -> Any:
    return reader.installed_stubs()


def _calls(function: Any, is_method: bool) -> Any:
    """How the double's own may be called."""
    parameters = list(inspect.signature(function).parameters.values())
    if is_method:
        parameters = parameters[1:]
    plain = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    is_open = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    least = sum(1 for each in plain if each.default is each.empty)
    keywords = None if takes_any else frozenset(each.name for each in plain)
    return reader.Calls(least, None if is_open else len(plain), keywords)


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    for name in dir(kind):
        found = inspect.getattr_static(kind, name)
        if not name.startswith("_") and (inspect.isfunction(found) or isinstance(found, staticmethod)):
            is_method = not isinstance(found, staticmethod)
            yield name, _calls(found if is_method else found.__func__, is_method)


def _wider(ours: Any, theirs: list[Any]) -> bool:
    """Whether the double takes a call that the stubs do not."""
    most = [each.most for each in theirs]
    least = min(each.least for each in theirs)
    return ours.least < least or (None not in most and (ours.most is None or ours.most > max(most)))


@pytest.mark.parametrize("major", [13, 17])
def test_the_double_has_nothing_that_nuke_lacks(install: Any, stubs: Any, major: int) -> None:
    """Neither a name, nor a method, nor a way to call one."""
    nuke = install(major=major).nuke
    wrong = []
    for name, value in vars(nuke).items():
        if name.startswith("__"):
            continue
        if not stubs.has(name):
            wrong.append(f"nuke.{name}")
        elif inspect.isfunction(value) and _wider(_calls(value, False), stubs.functions.get(name, [reader.ANYTHING])):
            wrong.append(f"nuke.{name}{inspect.signature(value)}")
        elif inspect.isclass(value):
            for method, ours in _methods(value):
                full, theirs = f"{name}.{method}", stubs.method(name, method)
                if full in HANDLES or (major == 17 and full in SINCE_17):
                    continue
                owners = {f"{base.__name__}.{method}" for base in value.__mro__}
                if not theirs or (_wider(ours, theirs) and not owners & LEFT_OUT):
                    wrong.append(f"{full}: {ours}, not {theirs}")
    assert not wrong, "\n".join(wrong)


# --- what the plug-in uses


class Uses(ast.NodeVisitor):
    """The names of `nuke` in a file, the calls of them, and the methods that are called on anything."""

    def __init__(self, tree: ast.AST) -> None:
        self.aliases: set[str] = set()
        self.modules: set[str] = set()  # whose functions are not Nuke's methods
        self.names: list[tuple[str, int]] = []
        self.calls: list[tuple[str, int, ast.Call]] = []
        self.methods: list[tuple[str, int, ast.Call]] = []
        self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        self.aliases |= {name.asname or "nuke" for name in node.names if name.name == "nuke"}
        self.modules |= {(name.asname or name.name).split(".")[0] for name in node.names if name.name != "nuke"}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.modules |= {node.module.split(".")[0]} if node.module and not node.level else set()
        if node.module == "nuke" and not node.level:
            self.names += [(name.name, node.lineno) for name in node.names]

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id in self.aliases:
            self.names.append((node.attr, node.lineno))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute):
            owner = node.func.value
            is_nuke = isinstance(owner, ast.Name) and owner.id in self.aliases
            is_class = isinstance(owner, ast.Attribute) and owner.attr == "nodes"  # nuke.nodes.Read(...)
            if not is_class and not (isinstance(owner, ast.Name) and owner.id in self.modules):
                (self.calls if is_nuke else self.methods).append((node.func.attr, node.lineno, node))
        self.generic_visit(node)


def _accepted(call: ast.Call, ways: list[Any]) -> bool:
    if any(isinstance(each, ast.Starred) for each in call.args) or any(each.arg is None for each in call.keywords):
        return True  # only running it tells
    keywords = {each.arg for each in call.keywords if each.arg}
    return any(way.accepts(len(call.args), keywords) for way in ways)


def wrong_uses(source: str, nuke: Any, stubs: Any, own: Collection[str] = ()) -> list[str]:
    """The lines of a file that use of Nuke what the stubs or the double do not have, or call it otherwise.

    own: names of the plug-in's own functions. A method of such a name may be Nuke's too; only mypy tells then.
    """
    uses, wrong = Uses(ast.parse(source)), []
    for name, line in uses.names:
        wrong += [f"{line}: nuke.{name} is not in {where}" for where, there in (
            ("the stubs", stubs.has(name)), ("the double", hasattr(nuke, name))) if not there]  # fmt: skip
    for name, line, call in uses.calls:
        ours = getattr(nuke, name, None)
        if ours is not None and not _accepted(call, [_ways(ours)]):
            wrong.append(f"{line}: the double's nuke.{name} is not called like this")
        if name in stubs.functions and not _accepted(call, stubs.functions[name]):
            wrong.append(f"{line}: the stubs' nuke.{name} is not called like this")
    ours_by_name: dict[str, list[Any]] = {}
    for kind in {value for value in vars(nuke).values() if inspect.isclass(value)}:
        for method, ways in _methods(kind):
            ours_by_name.setdefault(method, []).append(ways)
    if uses.aliases:
        for name, line, call in uses.methods:
            theirs = stubs.methods(name)
            if not theirs or name in _EVERYWHERE or name in own:
                continue  # of another library, of Python or of the plug-in
            if uses.modules & _QT:
                continue  # a widget has namesakes of many a method; the panel's own test runs them
            if name not in ours_by_name:
                wrong.append(f"{line}: no class of the double has {name}()")
            elif not _accepted(call, ours_by_name[name]) or not _accepted(call, theirs):
                wrong.append(f"{line}: {name}() is not called like this")
    return wrong


_QT = {"PySide2", "PySide6"}
# Python's own types have methods of these names too
_PYTHON = (
    str,
    bytes,
    list,
    dict,
    set,
    tuple,
    int,
    float,
    Path,
    threading.Thread,
    threading.Event,
    re.Pattern,
    re.Match,
)
_EVERYWHERE = {name for kind in _PYTHON for name in dir(kind)}


def _ways(value: Any) -> Any:
    if inspect.isclass(value):
        return _calls(value.__init__, True)
    return _calls(value, False) if inspect.isfunction(value) else reader.ANYTHING


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nuke.creatNode('Read')", "nuke.creatNode is not in the stubs"),
        ("nuke.activeViewer()", "nuke.activeViewer is not in the double"),
        ("nuke.toNode('a', 'b')", "nuke.toNode is not called like this"),
        ("nuke.executeInMainThread(print, arguments=('x',))", "executeInMainThread is not called like this"),
        ("nuke.nodes.Read().setXYpos(1)", "setXYpos() is not called like this"),
        ("nuke.root().getOCIOColorspaceFamily('x')", "no class of the double has getOCIOColorspaceFamily()"),
        ("nuke.toNode(*names)", ""),
        ("nuke.toNode('x').setName('y', uncollide=False)", ""),
    ],
)
def test_the_check_sees_what_is_wrong(install: Any, stubs: Any, line: str, complaint: str) -> None:
    found = wrong_uses(f"import nuke\n{line}\n", install(major=13).nuke, stubs)
    assert (complaint in found[0]) if complaint else not found, found


def plugin_files() -> list[Path]:
    return sorted(path for path in PLUGIN.rglob("*.py") if "vendor" not in path.parts)


@pytest.mark.parametrize("major", [13, 17])
def test_the_plug_in_uses_what_nuke_has(install: Any, stubs: Any, major: int) -> None:
    """Every name and call, against the stubs and against the double of the oldest and the newest version."""
    nuke, files = install(major=major).nuke, plugin_files()
    sources = {path: path.read_text(encoding="utf-8") for path in files}
    assert any("import nuke" in source for source in sources.values()), "plugins/nuke does not import nuke anywhere"
    own = {
        each.name
        for source in sources.values()
        for each in ast.walk(ast.parse(source))
        if isinstance(each, ast.FunctionDef)
    }
    wrong = [
        f"{path.relative_to(PLUGIN)}:{complaint}"
        for path, source in sources.items()
        for complaint in wrong_uses(source, nuke, stubs, own)
    ]
    assert not wrong, "\n".join(wrong)
