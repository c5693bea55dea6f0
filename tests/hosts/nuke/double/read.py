# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The Read: a sequence on disk, a range, and what to show where a frame is missing."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from . import colour, expressions, files
from .array_knobs import Boolean_Knob, Enumeration_Knob, Format_Knob, Int_Knob
from .knobs import Knob
from .main_thread import guarded
from .nodes import Node, alive
from .root import Format
from .session import current
from .text_knobs import EvalString_Knob, File_Knob, Reload_Knob

_OUTSIDE = ["hold", "loop", "bounce", "black"]
_POLICIES = ("on\ton", "fromAutoLocalizePath\tfrom auto-localize path", "onDemand\ton demand", "off\toff")
_LINEAR = (".exr",)


class ColourSpace_Knob(Enumeration_Knob):
    """ "default" and what the configuration has."""

    def __init__(self, name: str) -> None:
        session = current()
        default = "default\tdefault" if session.major >= 16 else "default"
        super().__init__(name, None, [default, *colour.menu(session)])

    def Class(self) -> str:
        return "Enumeration_Knob"

    def _coerced(self, value: Any) -> int:
        """Some versions with some configurations keep what they had for names that stand in the menu."""
        index = super()._coerced(value)
        return int(self._value) if self._ids()[index] in current().deaf_to else index


def read_knobs() -> list[Knob]:
    made: list[Knob] = [
        File_Knob("file"), File_Knob("proxy"), Format_Knob("format"),
        Enumeration_Knob("localizationPolicy", None, list(_POLICIES)),
        Int_Knob("first"), Enumeration_Knob("before", None, _OUTSIDE), Int_Knob("last"),
        Enumeration_Knob("after", None, _OUTSIDE),
        Enumeration_Knob("frame_mode", None, ["expression", "start at", "offset"]), EvalString_Knob("frame"),
        Int_Knob("origfirst"), Int_Knob("origlast"), Boolean_Knob("origset"),
        Enumeration_Knob("on_error", None, ["error", "black", "checkerboard", "nearest frame"]),
        Reload_Knob("reload"), ColourSpace_Knob("colorspace"), Boolean_Knob("premultiplied"), Boolean_Knob("raw"),
        Boolean_Knob("auto_alpha"), Int_Knob("version"),
    ]  # fmt: skip
    values = {"first": 1, "last": 1, "origfirst": 1, "origlast": 1, "localizationPolicy": 1}
    for knob in made:
        knob._value = values.get(knob._name, knob._value)
    return made


class Read(Node):
    """Pixels are read once and kept until reload, as a file that changes behind Nuke's back stays unseen."""

    def __init__(self, node_class: str, inputs: int, made: list[Knob]) -> None:
        super().__init__(node_class, inputs, made)
        self._seen: dict[str, Any] = {}

    def _file_chosen(self, knob: Any, frames: tuple[int, int] | None) -> None:
        """The range comes with the text or from the disk, the format from a header."""
        if knob._name != "file":
            return
        self._seen.clear()
        pattern = knob.getEvaluatedValue()
        on_disk = files.frames_on_disk(pattern)
        if frames is None and on_disk:
            frames = on_disk[0], on_disk[-1]
        elif frames is None and "%" not in pattern:
            frames = 1, 1
        if frames is not None:
            for name, value in zip(("first", "last", "origfirst", "origlast"), frames * 2, strict=True):
                self._knobs[name].setValue(value)
            self._knobs["origset"].setValue(True)
            if self._is_only_read():
                current().root._merge_range(*frames)
        try:
            spec = files.header(self._path(on_disk[0] if on_disk else 1))
        except RuntimeError:
            return  # the node is in error until a file is there and the text is given again
        aspect = spec.get_float_attribute("PixelAspectRatio", 1.0)
        self._knobs["format"]._assign(self._known_format(spec.full_width, spec.full_height, aspect))

    def _is_only_read(self) -> bool:
        root = current().root
        return self._parent is root and not any(node._class == "Read" and node is not self for node in root._children)

    @staticmethod
    def _known_format(width: int, height: int, aspect: float) -> Format:
        session = current()
        for known in session.formats:
            if (known.width(), known.height(), known.pixelAspect()) == (width, height, aspect):
                return known
        session.formats.append(Format(width, height, pixelAspect=aspect))
        return session.formats[-1]

    def _path(self, frame: int) -> str:
        pattern = self._knobs["file"].getEvaluatedValue()
        return re.sub(r"%0?(\d*)d", lambda match: f"{frame:0{match[1] or 1}d}", pattern)

    def _reload(self) -> None:
        self._seen.clear()
        self._knobs["version"].setValue(self._knobs["version"].value() + 1)

    def _mapped(self, frame: int) -> int | None:
        """The number in the file's name for a frame of the script; None is black."""
        first, last = self._knobs["first"].value(), self._knobs["last"].value()
        mode, text = self._knobs["frame_mode"].value(), self._knobs["frame"].value().strip()
        if text and mode == "start at":
            frame = frame - int(text) + first
        elif text and mode == "offset":
            frame = frame + int(text)
        elif text:
            frame = math.floor(expressions.evaluate(text, {"frame": frame}))
        if first <= frame <= last:
            return frame
        how = self._knobs["before" if frame < first else "after"].value()
        length = last - first + 1
        if how == "black":
            return None
        if how == "hold":
            return int(first if frame < first else last)
        step = (frame - first) % (length if how == "loop" else max(1, 2 * length - 2))
        return int(first + (step if step < length else 2 * length - 2 - step))

    def _pixels(self, path: str) -> Any:
        if path not in self._seen:
            try:
                self._seen[path] = files.read(path)
            except RuntimeError as error:
                self._seen[path] = error
        return self._seen[path]

    def _render(self, frame: int) -> Any:
        number = self._mapped(frame)
        if number is None:
            return self._flat(0.0)
        pixels = self._pixels(self._path(number))
        if isinstance(pixels, RuntimeError):
            pixels = self._instead(number, pixels)
        if self._knobs["auto_alpha"].value() and not pixels[..., 3].any():
            pixels = np.concatenate([pixels[..., :3], np.ones_like(pixels[..., 3:])], axis=-1)
        return pixels if self._knobs["raw"].value() else self._to_working(pixels)

    def _instead(self, number: int, error: RuntimeError) -> Any:
        how = self._knobs["on_error"].value()
        if how == "error":
            raise RuntimeError(f"{self.fullName()}: {error}")
        if how == "nearest frame":
            found = files.frames_on_disk(self._knobs["file"].getEvaluatedValue())
            for near in sorted(found, key=lambda each: (abs(each - number), each)):
                pixels = self._pixels(self._path(near))
                if not isinstance(pixels, RuntimeError):
                    return pixels
            raise RuntimeError(f"{self.fullName()}: {error}")
        if how == "checkerboard":
            board = self._flat(0.1)
            rows, columns = np.indices(board.shape[:2])
            board[(rows // 8 + columns // 8) % 2 == 0] = 0.5
            return board
        return self._flat(0.0)

    def _flat(self, value: float) -> Any:
        size = self.format()
        return np.full((size.height(), size.width(), 4), value, np.float32)

    def _space(self) -> str:
        chosen = str(self._knobs["colorspace"].value())
        if chosen != "default":
            return chosen
        path = self._knobs["file"].value().lower()
        return colour.default(current(), path.endswith(_LINEAR))

    def _to_working(self, pixels: Any) -> Any:
        session = current()
        return colour.convert(session, pixels, self._space(), session.root["workingSpaceLUT"].value())

    def _metadata(self, frame: int) -> dict[str, Any]:
        number = self._mapped(frame)
        if number is None:
            return {}
        try:
            found = files.metadata(self._path(number))
        except RuntimeError:
            return {}
        return found | {"input/frame": number}

    @alive
    def format(self) -> Any:
        return self._knobs["format"].value() or current().root["format"].value()

    @alive
    def firstFrame(self) -> int:
        return int(self._knobs["first"].value())

    @alive
    def lastFrame(self) -> int:
        return int(self._knobs["last"].value())


@guarded
def getReadFileKnob(node: Node) -> Any:
    return node._knobs.get("file") if node._class == "Read" else None
