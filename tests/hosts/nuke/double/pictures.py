# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a node shows at a frame: float32 [height, width, 4] in the working space. RuntimeError where it is in error."""

from __future__ import annotations

from typing import Any

import numpy as np

from .groups import Group, Input
from .nodes import Node
from .session import current

_PASSES = ("Dot", "NoOp", "Output", "Viewer", "ModifyMetaData", "CopyMetaData", "AddTimeCode", "ViewMetaData")


def render(node: Any, frame: float) -> Any:
    """Classes that the double cannot compute are refused, never passed through."""
    if node is None:
        raise RuntimeError("a node without input has no picture")
    kind = node._class
    if node._knobs["disable"].value():
        return render(node.input(0), frame)
    if hasattr(node, "_render"):
        return node._render(round(frame))
    if isinstance(node, Input):
        return render(node._outside(), frame)
    if isinstance(node, Group):
        return render(node.output(), frame)
    if kind in _PASSES:
        return render(node.input(0), frame)
    if kind in _DRAWN:
        return _DRAWN[kind](node, frame)
    raise RuntimeError(f"{node.fullName()}: the double cannot draw a {kind}")


def _size(node: Node) -> tuple[int, int]:
    size = node._knobs["format"].value() or current().root["format"].value()
    return size.height(), size.width()


def _constant(node: Node, frame: float) -> Any:
    picture = np.empty((*_size(node), 4), np.float32)
    picture[:] = node._knobs["color"].value()
    return picture


def _checkers(node: Node, frame: float) -> Any:
    rows, columns = np.indices(_size(node))
    picture = np.where(((rows // 16 + columns // 16) % 2)[..., None], 0.5, 0.1).astype(np.float32)
    return np.concatenate([np.repeat(picture, 3, axis=-1), np.ones_like(picture)], axis=-1)


def _switch(node: Node, frame: float) -> Any:
    which = int(node._knobs["which"].value())
    return render(node.input(which), frame)


def _frame_hold(node: Node, frame: float) -> Any:
    return render(node.input(0), node._knobs["first_frame"].value())


def _time_offset(node: Node, frame: float) -> Any:
    return render(node.input(0), frame - node._knobs["time_offset"].value())


def _frame_range(node: Node, frame: float) -> Any:
    return render(node.input(0), frame)


def _multiply(node: Node, frame: float) -> Any:
    return (render(node.input(0), frame) * np.float32(node._knobs["value"].value())).astype(np.float32)


_DRAWN = {
    "Constant": _constant, "CheckerBoard2": _checkers, "Switch": _switch, "FrameHold": _frame_hold,
    "TimeOffset": _time_offset, "FrameRange": _frame_range, "Multiply": _multiply,
}  # fmt: skip
