# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a node shows at a frame: float32 [height, width, 4] in the working space. RuntimeError where it is in error."""

from __future__ import annotations

from typing import Any

import numpy as np

from .array_knobs import Boolean_Knob, Double_Knob, Enumeration_Knob, Int_Knob
from .groups import Group, Input
from .knobs import Knob
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


def contact_sheet_knobs() -> list[Knob]:
    made: list[Knob] = [
        Double_Knob("width"), Double_Knob("height"), Int_Knob("rows"), Int_Knob("columns"), Int_Knob("gap"),
        Boolean_Knob("center"), Enumeration_Knob("roworder", None, ["TopBottom", "BottomTop"]),
        Enumeration_Knob("colorder", None, ["LeftRight", "RightLeft"]),
    ]  # fmt: skip
    values = {"width": 2048.0, "height": 1536.0, "rows": 3, "columns": 4, "roworder": 1}
    for knob in made:
        knob._value = values.get(knob._name, knob._value)
    return made


def _contact_sheet(node: Node, frame: float) -> Any:
    """Each input fitted into its cell; black between them."""
    value = {knob._name: node._knobs[knob._name].value() for knob in contact_sheet_knobs()}
    rows, columns, gap = value["rows"], value["columns"], value["gap"]
    sheet = np.zeros((int(value["height"]), int(value["width"]), 4), np.float32)
    cell_height = (sheet.shape[0] - gap * (rows + 1)) // rows
    cell_width = (sheet.shape[1] - gap * (columns + 1)) // columns
    for index, source in enumerate(node._inputs[: rows * columns]):
        if source is None:
            continue
        picture = render(source, frame)
        scale = min(cell_height / picture.shape[0], cell_width / picture.shape[1])
        height, width = max(1, int(picture.shape[0] * scale)), max(1, int(picture.shape[1] * scale))
        fitted = picture[np.arange(height) * picture.shape[0] // height][
            :, np.arange(width) * picture.shape[1] // width
        ]
        row, column = divmod(index, columns)
        row = row if value["roworder"] == "TopBottom" else rows - 1 - row
        top, left = gap + row * (cell_height + gap), gap + column * (cell_width + gap)
        if value["center"]:
            top, left = top + (cell_height - height) // 2, left + (cell_width - width) // 2
        sheet[top : top + height, left : left + width] = fitted
    return sheet


_DRAWN = {
    "Constant": _constant, "CheckerBoard2": _checkers, "Switch": _switch, "FrameHold": _frame_hold,
    "TimeOffset": _time_offset, "FrameRange": _frame_range, "Multiply": _multiply, "ContactSheet": _contact_sheet,
}  # fmt: skip
