# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Knobs that hold numbers, choices and formats."""

from __future__ import annotations

from typing import Any

from . import tcl
from .knobs import Knob
from .main_thread import guarded
from .session import current


class Array_Knob(Knob):
    """Numbers: one, or SIZE of them."""

    SIZE = 1
    DEFAULT: Any = 0.0

    def __init__(self, name: str, label: str | None = None) -> None:
        super().__init__(name, label)
        self._range: tuple[float, float] | None = None

    def _number(self, value: Any) -> Any:
        if isinstance(value, str) or not isinstance(value, (int, float)):
            raise TypeError(f"{self._name}: {value!r}; a number is allowed")
        return float(value)

    def _coerced(self, value: Any) -> Any:
        if self.SIZE == 1:
            return self._number(value)
        if isinstance(value, (list, tuple)):
            if len(value) != self.SIZE:
                raise TypeError(f"{self._name}: {len(value)} numbers; {self.SIZE} are allowed")
            return tuple(self._number(each) for each in value)
        return (self._number(value),) * self.SIZE

    @guarded
    def setValue(self, val: Any, chan: int = -1) -> bool:
        if chan >= 0 and self.SIZE > 1:
            changed = list(self._value)
            changed[chan] = self._number(val)
            self._assign(tuple(changed))
        else:
            self._assign(self._coerced(val))
        return True

    @guarded
    def value(self, index: int = -1) -> Any:
        value = self._coerced(self._expressed()) if self._expression is not None else self._value
        return value[index] if index >= 0 and self.SIZE > 1 else value

    @guarded
    def getValue(self, index: int = -1) -> Any:
        value = self.value()
        return value[index] if index >= 0 and self.SIZE > 1 else value

    @guarded
    def setRange(self, f1: float, f2: float) -> None:
        """The slider's ends; what is typed may lie outside."""
        self._range = (float(f1), float(f2))

    def notDefault(self) -> bool:
        return self._is_changed()

    def min(self) -> float:
        return self._range[0] if self._range else 0.0

    def max(self) -> float:
        return self._range[1] if self._range else 1.0

    @guarded
    def setDefaultValue(self, s: Any) -> None:
        self._default = self._coerced(s[0] if self.SIZE == 1 else s)

    def _text(self) -> str:
        values = self._value if self.SIZE > 1 else (self._value,)
        return " ".join(f"{value:.9g}" for value in values)

    @guarded
    def toScript(self, quote: bool = True, context: Any = None) -> str:
        if self._expression is not None:
            return "{{" + self._expression + "}}"
        return "{" + self._text() + "}" if self.SIZE > 1 else self._text()

    def _parsed(self, text: str) -> Any:
        numbers = [float(word) for word in tcl.words(text)]
        return self._coerced(numbers[0] if self.SIZE == 1 else numbers)

    def _definition_arguments(self) -> list[str]:
        return ["R", f"{self._range[0]:g}", f"{self._range[1]:g}"] if self._range else []


class Double_Knob(Array_Knob):
    TYPE = 7


class Single_Knob(Array_Knob):
    """The kinds that never have more than one number: their methods take no index."""

    @guarded
    def setValue(self, val: Any) -> bool:  # type: ignore[override]
        self._assign(self._coerced(val))
        return True

    @guarded
    def value(self) -> Any:  # type: ignore[override]
        return self._coerced(self._expressed()) if self._expression is not None else self._value


class Int_Knob(Single_Knob):
    """A float is cut to an integer, as Nuke does."""

    TYPE = 3
    DEFAULT = 0

    def _number(self, value: Any) -> int:
        return int(super()._number(value))

    def _text(self) -> str:
        return str(self._value)


class Boolean_Knob(Single_Knob):
    TYPE = 6
    DEFAULT = False
    STARTS_A_LINE = False

    def __init__(self, name: str, label: str | None = None, value: bool = False) -> None:
        super().__init__(name, label)
        self._value = bool(value)

    def _number(self, value: Any) -> bool:
        return bool(super()._number(value))

    @guarded
    def getValue(self, index: int = -1) -> float:
        return float(self.value())

    def _text(self) -> str:
        return "true" if self._value else "false"

    def _parsed(self, text: str) -> bool:
        return text.lower() in ("1", "true", "yes", "on")


class Disable_Knob(Boolean_Knob):
    pass


class Unsigned_Knob(Int_Knob):
    def _number(self, value: Any) -> int:
        return max(0, super()._number(value))


class XY_Knob(Array_Knob):
    TYPE, SIZE, DEFAULT = 12, 2, (0.0, 0.0)


class WH_Knob(Array_Knob):
    TYPE, SIZE, DEFAULT = 14, 2, (1.0, 1.0)


class AColor_Knob(Array_Knob):
    TYPE, SIZE, DEFAULT = 19, 4, (0.0, 0.0, 0.0, 0.0)


class Enumeration_Knob(Unsigned_Knob):
    """A menu. Items are ids, or an id, a tab and a label. What is not in the menu is a TypeError.

    An item with < or > reads as empty, as it does in the original, which takes it for markup.
    """

    TYPE = 4

    def __init__(self, name: str, label: str | None = None, values: Any = ()) -> None:
        Knob.__init__(self, name, label)
        self._range = None
        self._items: list[str] = self._checked(values)
        self._value = self._default = 0

    def _checked(self, values: Any) -> list[str]:
        if isinstance(values, str) or not all(isinstance(item, str) for item in values):
            raise TypeError(f"{self._name}: {values!r}; a list of strings is allowed")
        return ["" if "<" in item or ">" in item else item for item in values]

    def _ids(self) -> list[str]:
        return [item.split("\t")[0] for item in self._items]

    def _coerced(self, value: Any) -> int:
        if isinstance(value, str):
            for texts in (self._ids(), self._items):
                if value in texts:
                    return texts.index(value)
            raise TypeError(f"{self._name}: {value!r} is not in the menu")
        index = int(Array_Knob._number(self, value))
        if not 0 <= index < len(self._items):
            raise TypeError(f"{self._name}: {index}; the menu has {len(self._items)} items")
        return index

    @guarded
    def value(self) -> str:  # type: ignore[override]
        chosen = int(self._expressed()) if self._expression is not None else self._value
        return self._ids()[chosen] if self._items else ""

    @guarded
    def getValue(self, index: int = -1) -> float:
        return float(self._expressed() if self._expression is not None else self._value)

    @guarded
    def values(self) -> list[str]:
        return list(self._items)

    def numValues(self) -> int:
        return len(self._items)

    def enumName(self, n: int) -> str:
        return self._ids()[n]

    @guarded
    def setValues(self, items: Any) -> None:
        """Another menu. The chosen item stays chosen if it is in there too, otherwise the first one is."""
        before, was = self._items, self._value
        chosen = self._ids()[was] if before else ""
        after = self._checked(items)
        ids = [item.split("\t")[0] for item in after]
        now = ids.index(chosen) if chosen in ids else 0

        def put(items: list[str], index: int) -> None:
            self._items, self._value = items, index

        put(after, now)
        if self._node is not None and not self._node._is_being_made:
            current().undo.record(lambda: put(before, was), lambda: put(after, now))

    def _is_changed(self) -> bool:
        return bool(self._items) and (self._value != self._default or self._expression is not None)

    def _text(self) -> str:
        return self._ids()[self._value] if self._items else ""

    @guarded
    def toScript(self, quote: bool = True, context: Any = None) -> str:
        return Knob.toScript(self, quote, context)

    def _parsed(self, text: str) -> int:
        try:
            return self._coerced(text)
        except TypeError:
            if text.isdigit():
                return self._coerced(int(text))
            current().warnings.append(f"{self._name}: {text!r} is not in the menu")
            return int(self._value)

    def _definition_arguments(self) -> list[str]:
        return ["M", tcl.braced(self._items)]


class Pulldown_Knob(Enumeration_Knob):
    pass


class Format_Knob(Knob):
    """A Format, set as one or by its name."""

    def _coerced(self, value: Any) -> Any:
        from .root import Format

        if isinstance(value, Format):
            return value
        if isinstance(value, str):
            for known in current().formats:
                if known.name() == value:
                    return known
        raise TypeError(f"{self._name}: {value!r} is no format")

    def name(self) -> str:
        return self._name

    def _text(self) -> str:
        return str(self._value)

    def _parsed(self, text: str) -> Any:
        from .root import format_from_text

        if text in [known.name() for known in current().formats]:
            return self._coerced(text)
        made = format_from_text(text)
        for known in current().formats:
            if str(known) == str(made):
                return known
        current().formats.append(made)
        return made
