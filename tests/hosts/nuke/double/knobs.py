# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The common part of knobs, and those without a value of their own: tabs, lines of text, links."""

from __future__ import annotations

import itertools
from typing import Any

from . import expressions, tcl
from .main_thread import guarded
from .session import current

FLAGS = {
    "DISABLED": 0x80, "NO_ANIMATION": 0x100, "DO_NOT_WRITE": 0x200, "INVISIBLE": 0x400, "STARTLINE": 0x1000,
    "ENDLINE": 0x2000, "NO_UNDO": 0x80000, "ALWAYS_SAVE": 0x100000, "KNOB_CHANGED_RECURSIVE": 0x8000000,
    "READ_ONLY": 0x10000000, "NO_MULTIVIEW": 0x40000000,
}  # fmt: skip
SAVED_FLAGS = ("INVISIBLE", "DISABLED", "READ_ONLY")
_numbers = itertools.count(1)


class Knob:
    """A named value of a node. Changes are undoable, announced to knobChanged, and made on the main thread only."""

    TYPE = 0  # in addUserKnob
    DEFAULT: Any = None
    STARTS_A_LINE = True  # in a panel, unless the flag says otherwise

    def __init__(self, name: str, label: str | None = None) -> None:
        for what, text in (("name", name), ("label", label)):
            if text is not None and not isinstance(text, str):
                raise TypeError(f"{type(self).__name__}: {what} must be a string, not {type(text).__name__}")
        self._name, self._label, self._tooltip = name, label, ""
        self._flags = FLAGS["STARTLINE"] if self.STARTS_A_LINE else 0
        self._node: Any = None
        self._value = self._default = self.DEFAULT
        self._expression: str | None = None
        self._is_user = False

    def Class(self) -> str:
        return type(self).__name__

    def name(self) -> str:
        return self._name

    @guarded
    def setName(self, name: str) -> None:
        self._name = name

    def label(self) -> str:
        return self._name if self._label is None else self._label

    @guarded
    def setLabel(self, label: str) -> None:
        if not isinstance(label, str):
            raise TypeError(f"setLabel: {label!r}; a string is allowed")
        self._label = label

    def tooltip(self) -> str:
        return self._tooltip

    @guarded
    def setTooltip(self, tooltip: str) -> None:
        self._tooltip = tooltip

    @guarded
    def node(self) -> Any:
        return self._node

    def fullyQualifiedName(self, channel: int = -1) -> str:
        return f"{self._node.fullName()}.{self._name}"

    @guarded
    def setFlag(self, flag: int) -> None:
        self._flags |= flag

    @guarded
    def clearFlag(self, flag: int) -> None:
        self._flags &= ~flag

    def getFlag(self, flag: int) -> bool:
        return bool(self._flags & flag)

    @guarded
    def setEnabled(self, enabled: bool) -> None:
        self._flags = self._flags & ~FLAGS["DISABLED"] if enabled else self._flags | FLAGS["DISABLED"]

    def enabled(self) -> bool:
        return not self._flags & FLAGS["DISABLED"]

    @guarded
    def setVisible(self, visible: bool) -> None:
        self._flags = self._flags & ~FLAGS["INVISIBLE"] if visible else self._flags | FLAGS["INVISIBLE"]

    def visible(self) -> bool:
        return not self._flags & FLAGS["INVISIBLE"]

    # --- the value

    @guarded
    def value(self) -> Any:
        return self._value

    @guarded
    def getValue(self) -> Any:
        return self._value

    @guarded
    def setValue(self, val: Any) -> bool:
        self._assign(self._coerced(val))
        return True

    def _coerced(self, value: Any) -> Any:
        raise TypeError(f"{self.Class()} {self._name}: has no value to set")

    def _assign(self, value: Any, expression: str | None = None) -> None:
        """Every change of a value goes through here."""
        before, after = (self._value, self._expression), (value, expression)
        if before == after:
            return
        self._put(after)
        if self._node is None or self._node._is_being_made:
            return
        if not self._flags & FLAGS["NO_UNDO"]:
            current().undo.record(lambda: self._put(before), lambda: self._put(after))
        self._node._knob_changed(self)

    def _put(self, state: tuple[Any, str | None]) -> None:
        self._store(state)
        if self._node is not None:
            self._node._knob_set(self)

    def _store(self, state: tuple[Any, str | None]) -> None:
        self._value, self._expression = state

    def _is_changed(self) -> bool:
        return bool(self._value != self._default or self._expression)

    # --- script

    @guarded
    def toScript(self, quote: bool = True, context: Any = None) -> str:
        if self._expression is not None:
            return "{{" + self._expression + "}}"
        text = self._text()
        return tcl.quote(text) if quote else text

    @guarded
    def fromScript(self, script: str) -> bool:
        if script.startswith("{") and script.endswith("}"):
            self._assign(self._value, script[1:-1])
        else:
            self._assign(self._parsed(script))
        return True

    def _text(self) -> str:
        return "" if self._value is None else str(self._value)

    def _parsed(self, text: str) -> Any:
        return text

    def _user_definition(self) -> str:
        """What stands after addUserKnob."""
        parts = [str(self.TYPE), tcl.quote(self._name)]
        if self._label is not None:
            parts += ["l", tcl.quote(self._label)]
        parts += self._definition_arguments()
        if self._tooltip:
            parts += ["t", tcl.quote(self._tooltip)]
        parts += [f"+{name}" for name in SAVED_FLAGS if self._flags & FLAGS[name]]
        if self.getFlag(FLAGS["STARTLINE"]) != self.STARTS_A_LINE:
            parts.append("-STARTLINE" if self.STARTS_A_LINE else "+STARTLINE")
        return "{" + " ".join(parts) + "}"

    def _definition_arguments(self) -> list[str]:
        return []

    # --- expressions and animation: constants and links to other knobs are what there is here

    @guarded
    def setExpression(self, expression: str, index: int = -1, view: Any = None) -> bool:
        self._assign(self._value, expression)
        return True

    def hasExpression(self, index: int = -1) -> bool:
        return self._expression is not None

    def isAnimated(self, channel: int = -1) -> bool:
        return self._expression is not None

    @guarded
    def clearAnimated(self, channel: int = -1) -> bool:
        self._assign(self.value())
        return True

    def _expressed(self) -> Any:
        """The value that an expression gives: a knob elsewhere, or arithmetic without names."""
        assert self._expression is not None
        knob = tcl.resolve(self._expression.strip(), self._node)
        if knob is not None:
            return knob.getValue()
        return expressions.evaluate(self._expression, {"frame": current().root.frame})


class Tab_Knob(Knob):
    """A tab, or with a number the start or end of a group of knobs (nuke.TABBEGINGROUP and its kin)."""

    TYPE = 20

    def __init__(self, name: str, label: str | None = None, flags: int = 0) -> None:
        super().__init__(name, label)
        self.group = flags

    def _definition_arguments(self) -> list[str]:
        return ["n", str(self.group)] if self.group else []


class BeginTabGroup_Knob(Tab_Knob):
    pass


class EndTabGroup_Knob(Tab_Knob):
    pass


class Text_Knob(Knob):
    """A line of text, or a divider where there is none."""

    TYPE = 26
    DEFAULT = ""

    def __init__(self, name: str, label: str | None = None, text: str = "") -> None:
        super().__init__(name, label)
        self._value = text

    def _coerced(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{self._name}: {value!r}; a string is allowed")
        return value

    def _definition_arguments(self) -> list[str]:
        return ["T", tcl.quote(self._value)] if self._value else []


class Link_Knob(Knob):
    """Another node's knob on this one. value() and setValue() are the other's."""

    TYPE = 41
    DEFAULT = ""

    @guarded
    def makeLink(self, s: str, t: str) -> None:
        self._assign(f"{s}.{t}")

    @guarded
    def setLink(self, s: str) -> None:
        self._assign(s)

    def getLink(self) -> str:
        return str(self._value)

    @guarded
    def getLinkedKnob(self) -> Any:
        if self._node is None or not self._value:
            return None
        node = self._node
        if hasattr(node, "node") and "." in self._value:  # links of a Group start inside it
            inner, name = self._value.rsplit(".", 1)
            if found := node.node(inner):
                return found.knob(name)
        return tcl.resolve(self._value, node)

    def _target(self) -> Any:
        knob = self.getLinkedKnob()
        if knob is None:
            raise RuntimeError(f"{self._name}: links to {self._value!r}, which is not there")
        return knob

    @guarded
    def value(self) -> Any:
        return self._target().value()

    @guarded
    def getValue(self) -> Any:
        return self._target().getValue()

    @guarded
    def setValue(self, val: Any) -> bool:
        return bool(self._target().setValue(val))

    def _definition_arguments(self) -> list[str]:
        return ["T", tcl.quote(self._value)] if self._value else []

    def _is_changed(self) -> bool:
        return False  # the definition says it all


def next_number() -> int:
    """A number that no knob or node of this process had before."""
    return next(_numbers)
