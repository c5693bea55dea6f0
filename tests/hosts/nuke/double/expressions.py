# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Arithmetic as Nuke's expression language has it: numbers, `frame`, a few functions. Division is of real numbers."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "floor": math.floor, "ceil": math.ceil, "int": int, "min": min, "max": max, "abs": abs, "clamp":
    lambda x, low=0, high=1: max(low, min(x, high)), "rint": lambda x: math.floor(x + 0.5),
}  # fmt: skip
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Mod: math.fmod, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def evaluate(text: str, names: dict[str, float]) -> float:
    """RuntimeError for what it does not know."""
    try:
        return float(_value(ast.parse(text.strip(), mode="eval").body, names))
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError) as error:
        raise RuntimeError(f"expression: {text!r} cannot be evaluated ({error})") from error


def _value(node: ast.expr, names: dict[str, float]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_value(node.operand, names))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _FUNCTIONS[node.func.id](*(_value(argument, names) for argument in node.args))
    raise TypeError(type(node).__name__)
