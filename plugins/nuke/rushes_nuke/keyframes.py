# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The node's inputs as pictures: those that the clip begins and ends with, and what others need to render one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nuke

from . import colour, host, places
from .refusal import Refusal

INPUTS = ("first", "last")  # pictures that the clip begins and ends with


def render(node: Any, key: str, spaces: Sequence[colour.Space]) -> list[dict[str, Any]]:
    """A keyframe for each connected input, at the script's current frame. Raises Refusal.

    The Write turns the script's colours into sRGB, which is what models take; it is gone afterwards.
    """
    found = []
    for index, (name, frame) in enumerate(zip(INPUTS, (0, -1))):
        if node.input(index) is not None:
            path = places.keyframe(key, name)
            with writing(node, name, path, srgb(spaces)) as write:
                execute(write, name, path, nuke.frame())
            found.append({"frame": frame, "image": path.as_posix()})
    return found


def srgb(spaces: Sequence[colour.Space]) -> colour.Space:
    """What models take. Raises Refusal."""
    space = colour.find(spaces, colour.SRGB)
    if space is None:
        raise Refusal("keyframe: the worker has no sRGB; a worker of this version is allowed")
    return space


@contextmanager
def writing(node: Any, name: str, path: Path, space: colour.Space | None) -> Iterator[Any]:
    """A Write at one of the node's inputs, gone afterwards. space: None writes numbers as they are. Raises Refusal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_exr = path.suffix == ".exr"
    with host.no_undo(), node:
        write: Any = nuke.nodes.Write(inputs=[node.node(name)])
        try:
            write["file"].fromUserText(path.as_posix())
            write["file_type"].setValue("exr" if is_exr else "png")
            write["datatype"].setValue("32 bit float" if is_exr else "16 bit")
            write["channels"].setValue("rgb")
            if space is None:
                write["raw"].setValue(True)
            else:
                colour.put(write["colorspace"], space)
            yield write
        finally:
            nuke.delete(write)


def execute(write: Any, name: str, path: Path, frame: int) -> None:
    """Render one frame of such a Write into a file. Raises Refusal."""
    try:
        write["file"].setValue(path.as_posix())
        nuke.execute(write, frame, frame)
    except RuntimeError as error:
        raise Refusal(f"{name}: the input {name!r} cannot be rendered at frame {frame} ({error})") from error
    if not path.is_file():
        raise Refusal(f"{name}: rendering the input {name!r} left no {path}; a folder that takes files is allowed")
