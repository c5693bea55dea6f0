# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Knobs that hold text: plain, evaluated by TCL, file names, and Python scripts behind buttons."""

from __future__ import annotations

import re
from typing import Any

from . import tcl
from .callbacks import run_text
from .knobs import Knob
from .main_thread import guarded
from .session import current


class String_Knob(Knob):
    TYPE = 1
    DEFAULT = ""

    def __init__(self, name: str, label: str | None = None, text: str = "") -> None:
        super().__init__(name, label)
        self._value = self._coerced(text)

    def _coerced(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{self._name}: {value!r}; a string is allowed")
        return value

    @guarded
    def getText(self, oc: Any = None) -> str:
        """What was typed, not evaluated."""
        return str(self._value)

    @guarded
    def setText(self, val: str) -> None:
        self.setValue(val)

    @guarded
    def setValue(self, val: Any, view: Any = None) -> bool:
        self._assign(self._coerced(val))
        return True

    @guarded
    def value(self, oc: Any = None) -> str:
        return str(self._value)

    @guarded
    def getValue(self, oc: Any = None) -> str:
        return str(self._value)

    @guarded
    def fromScript(self, script: str) -> bool:
        self._assign(script)  # braces are part of a text, not an expression
        return True


class Name_Knob(String_Knob):
    """A node's own name."""

    @guarded
    def setValue(self, val: Any, view: Any = None) -> bool:
        self._node.setName(self._coerced(val))
        return True


class PythonKnob(String_Knob):
    TYPE = 0


class EvalString_Knob(String_Knob):
    """Text whose value is what TCL makes of it."""

    @guarded
    def value(self, oc: Any = None) -> str:
        return tcl.evaluate(self._value, self._node)

    @guarded
    def evaluate(self, frame: float | None = None) -> str:
        return tcl.evaluate(self._value, self._node)


class Multiline_Eval_String_Knob(EvalString_Knob):
    TYPE = 43


_HASHES = re.compile(r"#+")
_RANGE = re.compile(r"^(?P<path>.*\S)\s+(?P<first>-?\d+)(?:-(?P<last>-?\d+))?$")


def normalised(path: str) -> str:
    """Hashes as Nuke turns them: plate.####.exr is plate.%04d.exr."""
    return _HASHES.sub(lambda match: f"%0{len(match[0])}d", path)


class File_Knob(EvalString_Knob):
    """A file or a sequence. setValue stores the text and looks at nothing; fromUserText opens the file."""

    TYPE = 2

    @guarded
    def value(self, oc: Any = None) -> str:
        return normalised(self._value)

    @guarded
    def getEvaluatedValue(self, oc: Any = None) -> str:
        return normalised(tcl.evaluate(self._value, self._node))

    @guarded
    def evaluate(self, frame: float | None = None) -> str:
        """The file of one frame."""
        path = self.getEvaluatedValue()
        number = round(current().root.frame if frame is None else frame)
        return re.sub(r"%0?(\d*)d", lambda match: f"{number:0{match[1] or 1}d}", path)

    @guarded
    def fromUserText(self, s: str) -> None:
        """As if it was typed or dropped: `path`, `path 1001-1033` or `path 7`."""
        text = self._coerced(s)
        match = _RANGE.match(text)
        frames = None
        if match:
            text = match["path"]
            frames = int(match["first"]), int(match["last"] or match["first"])
        self._assign(text)
        if self._node is not None:
            self._node._file_chosen(self, frames)


class Script_Knob(String_Knob):
    """A button."""

    def command(self) -> str:
        return str(self._value)

    @guarded
    def value(self) -> str:  # type: ignore[override]
        return str(self._value)

    @guarded
    def setValue(self, cmd: str) -> bool:  # type: ignore[override]
        self._assign(self._coerced(cmd))
        return True

    @guarded
    def setCommand(self, cmd: str) -> None:
        self.setValue(cmd)

    @guarded
    def execute(self) -> None:
        raise RuntimeError(f"{self._name}: the double runs no TCL scripts of knobs")


class PyScript_Knob(Script_Knob):
    """A button that runs Python, with thisNode() its node. execute() passes the exception on."""

    TYPE = 22
    STARTS_A_LINE = False

    @guarded
    def execute(self) -> None:
        if not self.enabled():
            return
        run_text(self._value, self._node, self, raises=True)

    def _definition_arguments(self) -> list[str]:
        return ["T", tcl.quote(self._value)] if self._value else []

    def _is_changed(self) -> bool:
        return False  # the definition says it all


class Reload_Knob(Script_Knob):
    """The Read's own button."""

    @guarded
    def execute(self) -> None:
        self._node._reload()
