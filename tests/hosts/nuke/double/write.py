# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The Write, and nuke.execute: it renders what is upstream and puts files on the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import callbacks, colour, files
from .array_knobs import Boolean_Knob, Enumeration_Knob, Int_Knob
from .knobs import Knob
from .main_thread import guarded
from .nodes import Node
from .read import ColourSpace_Knob
from .session import current
from .text_knobs import File_Knob, Script_Knob

_TYPES = {".exr": "exr", ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".dpx": "dpx"}
_METADATA = ("no metadata", "default metadata", "default metadata and exr/*", "all metadata except input/*",
             "all metadata")  # fmt: skip
_OPTIONS = {
    "exr": (("datatype", ("16 bit half", "32 bit float")), ("metadata", _METADATA),
            ("compression", ("none", "Zip (1 scanline)", "Zip (16 scanlines)"))),
    "png": (("datatype", ("8 bit", "16 bit")),),
    "tiff": (("datatype", ("8 bit", "16 bit", "32 bit float")),),
    "dpx": (("datatype", ("8 bit", "10 bit", "12 bit", "16 bit")),),
}  # fmt: skip
_OPTION_NAMES = {name for options in _OPTIONS.values() for name, _ in options}
_LIMITED = ("timecode", "framesPerSecond", "timeCode", "expTime", "keyCode")  # what "default metadata" lets through


class Write_Render_Knob(Script_Knob):
    @guarded
    def execute(self) -> None:
        execute(self._node, self._node["first"].value(), self._node["last"].value())


def write_knobs() -> list[Knob]:
    made: list[Knob] = [
        File_Knob("file"), File_Knob("proxy"), Enumeration_Knob("channels", None, ["rgb", "rgba", "alpha", "all"]),
        Enumeration_Knob("file_type", None, [" ", *dict.fromkeys(_TYPES.values())]),
        ColourSpace_Knob("colorspace"), Boolean_Knob("raw"), Boolean_Knob("create_directories"),
        Boolean_Knob("use_limit"), Int_Knob("first"), Int_Knob("last"), Write_Render_Knob("Render"),
    ]  # fmt: skip
    for knob in made:
        knob._value = {"first": 1, "last": 1}.get(knob._name, knob._value)
    return made


class Write(Node):
    """The knobs of a type of file are there once the type is: by file_type, or by fromUserText. setValue of the name
    alone brings none.
    """

    def _knob_set(self, knob: Any) -> None:
        if knob._name == "file_type":
            kept = {name: each for name, each in self._knobs.items() if name not in _OPTION_NAMES}
            self._knobs = kept | {name: self._option(name, items) for name, items in _OPTIONS.get(knob.value(), ())}

    def _option(self, name: str, items: tuple[str, ...]) -> Enumeration_Knob:
        knob = Enumeration_Knob(name, None, list(items))
        knob._value = knob._default = 1 if name in ("metadata", "compression") else 0
        knob._node = self
        return knob

    def _file_chosen(self, knob: Any, frames: tuple[int, int] | None) -> None:
        if kind := self._kind_of_name():
            self._knobs["file_type"].setValue(kind)

    def _kind_of_name(self) -> str | None:
        return _TYPES.get(Path(self._knobs["file"]._value).suffix.lower())

    def _type(self) -> str:
        return str(self._knobs["file_type"].value()).strip() or self._kind_of_name() or ""

    def _chosen(self, name: str) -> str:
        """Of an option; its default where the type has none."""
        return str(self._knobs[name].value()) if name in self._knobs else ""

    def _kind(self) -> str:
        default = "half" if self._type() == "exr" else "uint8"
        kinds = {"16 bit": "uint16", "32 bit float": "float", "10 bit": "uint16", "12 bit": "uint16"}
        return kinds.get(self._chosen("datatype"), default)

    def _space(self) -> str:
        chosen = str(self._knobs["colorspace"].value())
        if chosen != "default":
            return chosen
        return colour.default(current(), self._type() == "exr")

    def _render(self, frame: int) -> Any:
        from .pictures import render

        if self.input(0) is None:
            raise RuntimeError(f"{self.fullName()}: there is no input")
        return render(self.input(0), frame)

    def _execute(self, frame: int) -> None:
        session = current()
        path = self._knobs["file"].evaluate(frame)
        if not path or not self._type():
            raise RuntimeError(f"{self.fullName()}: no file name with a known type, got {path!r}")
        if not os.path.isdir(os.path.dirname(path) or "."):
            if not self._knobs["create_directories"].value():
                raise RuntimeError(f"{self.fullName()}: there is no folder {os.path.dirname(path)}")
            os.makedirs(os.path.dirname(path))
        callbacks.run("BeforeFrameRender", self)
        pixels = self._render(frame)
        if not self._knobs["raw"].value():
            pixels = colour.convert(session, pixels, session.root["workingSpaceLUT"].value(), self._space())
        channels = self._knobs["channels"].value()
        pixels = {"rgb": pixels[..., :3], "alpha": pixels[..., 3:]}.get(channels, pixels)
        compression = {"none": "none", "Zip (1 scanline)": "zips"}.get(self._chosen("compression"), "zip")
        attributes = {"compression": compression} if self._type() == "exr" else {}
        files.write(path, pixels, self._kind(), attributes | self._written_metadata(frame))
        session.executed.append((self._name, frame))
        callbacks.run("AfterFrameRender", self)

    def _written_metadata(self, frame: int) -> dict[str, Any]:
        """The exr/… of upstream under their names in the file; the rest as nuke/…"""
        if self._type() != "exr":
            return {}
        how, found = self._chosen("metadata") or "default metadata", self._metadata(frame)
        if how == "no metadata":
            return {}
        kept = {}
        for key, value in found.items():
            room, _, name = key.partition("/")
            if isinstance(value, (str, int, float)) and name not in ("compression", "type", "channels", "dataWindow"):
                is_free = room == "exr" and how != "default metadata"
                if is_free or name in _LIMITED or (how == "all metadata" and room == "input"):
                    kept[name] = value
        return kept


@guarded
def execute(nameOrNode: Any, start: int, end: int, incr: int = 1,
            views: Any = None, continueOnError: bool = False) -> None:  # fmt: skip
    """Render a Write over a range. RuntimeError for what is upstream of it and for the disk."""
    node = nameOrNode if isinstance(nameOrNode, Node) else current().context.node(nameOrNode)
    if not isinstance(node, Write):
        raise RuntimeError(f"execute: {nameOrNode!r} is no Write")
    if node["disable"].value():
        raise RuntimeError(f"execute: {node.name()} is disabled")
    callbacks.run("BeforeRender", node)
    for frame in range(int(start), int(end) + 1, incr):
        try:
            node._execute(frame)
        except RuntimeError:
            if not continueOnError:
                raise
    callbacks.run("AfterRender", node)
