# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The node's inputs as pictures that the clip begins and ends with: a frame of each, rendered by a Write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nuke

from . import colour, host, places
from .node import INPUTS
from .refusal import Refusal


def render(node: Any, key: str, spaces: Sequence[colour.Space]) -> list[dict[str, Any]]:
    """A keyframe for each connected input, at the script's current frame. Raises Refusal.

    The Write turns the script's colours into sRGB, which is what models take; it is gone afterwards.
    """
    found = []
    for index, (name, frame) in enumerate(zip(INPUTS, (0, -1))):
        if node.input(index) is not None:
            path = places.keyframe(key, name)
            _render(node, name, path, spaces)
            found.append({"frame": frame, "image": path.as_posix()})
    return found


def _render(node: Any, name: str, path: Path, spaces: Sequence[colour.Space]) -> None:
    space = colour.find(spaces, colour.SRGB)
    if space is None:
        raise Refusal("keyframe: the worker has no sRGB; a worker of this version is allowed")
    path.parent.mkdir(parents=True, exist_ok=True)
    with host.no_undo(), node:
        write: Any = nuke.nodes.Write(inputs=[node.node(name)])
        try:
            write["file"].fromUserText(path.as_posix())
            write["file_type"].setValue("png")
            write["datatype"].setValue("16 bit")
            write["channels"].setValue("rgb")
            colour.put(write["colorspace"], space)
            nuke.execute(write, nuke.frame(), nuke.frame())
        except RuntimeError as error:
            raise Refusal(
                f"keyframe: the input {name!r} cannot be rendered at frame {nuke.frame()} ({error})"
            ) from error
        finally:
            nuke.delete(write)
    if not path.is_file():
        raise Refusal(f"keyframe: rendering the input {name!r} left no {path}; a folder that takes files is allowed")
