# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The script as a whole: range, rate, format, colour management, views."""

from __future__ import annotations

import itertools
import re
from typing import Any

from . import colour
from .array_knobs import Boolean_Knob, Double_Knob, Enumeration_Knob, Format_Knob, Int_Knob
from .groups import Group
from .knobs import Knob
from .main_thread import guarded
from .nodes import alive
from .session import current
from .text_knobs import File_Knob, Multiline_Eval_String_Knob

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_CONFIGS = ("custom", "nuke-default", "fn-nuke_cg-config-v1.0.0_aces-v1.3_ocio-v2.1")


class Format:
    """Width, height, the box in it, and the shape of a pixel."""

    def __init__(self, width: int, height: int, x: int = 0, y: int = 0, r: int = 0, t: int = 0,
                 pixelAspect: float = 1.0, name: str = "") -> None:  # fmt: skip
        self._box = (int(width), int(height), int(x), int(y), int(r) or int(width), int(t) or int(height))
        self._aspect, self._name = float(pixelAspect), name

    def width(self) -> int:
        return self._box[0]

    def height(self) -> int:
        return self._box[1]

    def x(self) -> int:
        return self._box[2]

    def y(self) -> int:
        return self._box[3]

    def r(self) -> int:
        return self._box[4]

    def t(self) -> int:
        return self._box[5]

    def pixelAspect(self) -> float:
        return self._aspect

    def name(self) -> str:
        return self._name

    @guarded
    def setName(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return " ".join([*map(str, self._box), f"{self._aspect:g}", self._name]).strip()


def format_from_text(text: str) -> Format:
    """`w h`, then the box or not, then the aspect or not, then the name or not."""
    words = text.split()
    numbers = [float(word) for word in itertools.takewhile(_NUMBER.fullmatch, words)]
    name = " ".join(words[len(numbers) :])
    if len(numbers) not in (2, 3, 6, 7):
        raise RuntimeError(f"addFormat: {text!r}; 'width height [x y r t] [aspect] [name]' is allowed")
    aspect = numbers.pop() if len(numbers) in (3, 7) else 1.0
    width, height, x, y, r, t = [int(number) for number in numbers] + [0] * (6 - len(numbers))
    return Format(width, height, x, y, r, t, aspect, name)


@guarded
def addFormat(s: str) -> Format:
    made = format_from_text(s)
    session = current()
    session.formats[:] = [known for known in session.formats if not made.name() or known.name() != made.name()]
    session.formats.append(made)
    return made


class FrameRange:
    def __init__(self, first: int, last: int, increment: int = 1) -> None:
        self._range = (first, last, increment)

    def first(self) -> int:
        return self._range[0]

    def last(self) -> int:
        return self._range[1]

    def increment(self) -> int:
        return self._range[2]

    def frames(self) -> int:
        return (self._range[1] - self._range[0]) // self._range[2] + 1


def root_knobs() -> list[Knob]:
    made: list[Knob] = [
        File_Knob("name"), Multiline_Eval_String_Knob("project_directory"), Int_Knob("first_frame"),
        Int_Knob("last_frame"), Int_Knob("frame"), Boolean_Knob("lock_range"), Double_Knob("fps"),
        Format_Knob("format"), Boolean_Knob("proxy"), Enumeration_Knob("colorManagement", None, ["Nuke", "OCIO"]),
        Enumeration_Knob("OCIO_config", None, list(_CONFIGS)),
        File_Knob("customOCIOConfigPath"),
    ]  # fmt: skip
    values = {"first_frame": 1, "last_frame": 100, "frame": 1, "fps": 24.0, "OCIO_config": 2, "colorManagement": 1}
    for knob in made:
        if knob._name in values:
            knob._value = values[knob._name]
    return made


class Root(Group):
    """The group that all others are in. Its name is the script's path."""

    def __init__(self) -> None:
        super().__init__("Root", 0, root_knobs())
        self._name = "root"
        self._is_modified = False
        self._knobs["colorManagement"]._default = 0  # what the file leaves out is Nuke's own management

    def _make_ready(self) -> None:
        """What needs the session to be there already."""
        session = current()
        session.formats = [format_from_text(text) for text in (
            "640 480 PC_Video", "1920 1080 HD_1080", "2048 1556 2K_Super_35(full-ap)", "3840 2160 UHD_4K",
        )]  # fmt: skip
        self._knobs["format"]._value = session.formats[1]
        working = Enumeration_Knob("workingSpaceLUT", None, colour.menu(session))
        working._node = self
        # an item of its own in every configuration: OpenColorIO asks for the role
        linear = colour.default(session, True)
        working._value = next(i for i, item in enumerate(working._ids()) if item.split(" ")[0] == linear)
        if session.config == colour.NUKE:
            self._knobs["colorManagement"]._value = 0
        self._knobs["workingSpaceLUT"] = working
        self._is_being_made = False

    @property
    def frame(self) -> float:
        return float(self._knobs["frame"]._value)

    @alive
    def name(self) -> str:
        return str(self._knobs["name"]._value) or "Root"

    @alive
    def fullName(self) -> str:
        return "root"

    @alive
    def firstFrame(self) -> int:
        return int(self._knobs["first_frame"].value())

    @alive
    def lastFrame(self) -> int:
        return int(self._knobs["last_frame"].value())

    @alive
    def fps(self) -> int:
        return int(self._knobs["fps"].value())  # an integer, as in the original: realFps() is the rate

    @alive
    def realFps(self) -> float:
        return float(self._knobs["fps"].value())

    @alive
    def format(self) -> Any:
        return self._knobs["format"].value()

    @alive
    def setFrame(self, n: int) -> None:
        self._knobs["frame"].setValue(n)

    @alive
    def modified(self) -> bool:
        return self._is_modified

    @alive
    def setModified(self, modified: bool) -> None:
        self._is_modified = bool(modified)

    def _merge_range(self, first: int, last: int) -> None:
        """The first sequence that is read sets the range of a script whose range is not locked."""
        if not self._knobs["lock_range"]._value:
            self._knobs["first_frame"].setValue(first)
            self._knobs["last_frame"].setValue(last)
