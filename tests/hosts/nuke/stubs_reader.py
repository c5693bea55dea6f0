# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What types-nuke says that Nuke has: names, classes, methods, and how they may be called. Read from the .pyi files."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Calls:
    """How something may be called: how many positional arguments, and which names as keywords. None is: anything."""

    least: int
    most: int | None
    keywords: frozenset[str] | None

    def accepts(self, positional: int, keywords: set[str]) -> bool:
        if self.most is not None and positional > self.most:
            return False
        if self.keywords is not None and not keywords <= self.keywords:
            return False
        return positional + len(keywords) >= self.least


ANYTHING = Calls(0, None, None)


def calls_of(function: ast.FunctionDef, is_method: bool) -> Calls:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if is_method and names[:1] in (["self"], ["cls"]):
        names = names[1:]
    least = max(0, len(names) - len(arguments.defaults))
    keywords = None if arguments.kwarg else frozenset([*names, *(argument.arg for argument in arguments.kwonlyargs)])
    return Calls(least, None if arguments.vararg else len(names), keywords)


class Stubs:
    """functions and classes by name; a class is a table of methods. constants are the other names."""

    def __init__(self, folder: Path) -> None:
        self.functions: dict[str, list[Calls]] = {}
        self.classes: dict[str, dict[str, list[Calls]]] = {}
        self.constants: set[str] = set()
        self._bases: dict[str, list[str]] = {}
        for path in sorted(folder.glob("*.pyi")):
            for statement in ast.parse(path.read_text(encoding="utf-8")).body:
                self._read(statement)

    def _read(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.FunctionDef):
            self.functions.setdefault(statement.name, []).append(calls_of(statement, False))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            self.constants.add(statement.target.id)
        elif isinstance(statement, ast.ClassDef):
            self._bases[statement.name] = [base.id for base in statement.bases if isinstance(base, ast.Name)]
            methods = self.classes.setdefault(statement.name, {})
            for part in statement.body:
                if isinstance(part, ast.FunctionDef):
                    methods.setdefault(part.name, []).append(calls_of(part, True))

    def has(self, name: str) -> bool:
        return name in self.functions or name in self.classes or name in self.constants

    def method(self, class_name: str, name: str) -> list[Calls]:
        """Of the class or what it inherits from; empty where there is none."""
        if name in self.classes.get(class_name, {}):
            return self.classes[class_name][name]
        for base in self._bases.get(class_name, []):
            if found := self.method(base, name):
                return found
        return []

    def methods(self, name: str) -> list[Calls]:
        """Of any class."""
        return [calls for methods in self.classes.values() for calls in methods.get(name, [])]


def installed_stubs() -> Stubs:
    """Those of the package types-nuke. PackageNotFoundError without it."""
    files = importlib.metadata.files("types-nuke") or []
    (init,) = [file for file in files if file.name == "__init__.pyi"]
    return Stubs(Path(str(init.locate())).parent)
