# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Control: footage and pictures of a graph that steer a shot."""

from __future__ import annotations

from typing import Any

import numpy as np
from comfy_api.latest import io

from rushes.shot import CONTROL_KINDS, MAX_CONTROL, MAX_FRAMES, Control, ShotError

from .host import spoken_plainly
from .pictures import CONTROL, stored
from .sockets import CATEGORY, ControlSocket

KINDS = [kind for kind in CONTROL_KINDS if kind != "reference"]


class RushesControl(io.ComfyNode):
    """A pass of control, or references; a chain of them is a list."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesControl",
            display_name="Rushes Control",
            category=CATEGORY,
            description="Steers a shot of a VACE model: by depth, normals and the like of each frame, by frames that "
            "are kept, or by pictures of what shall be seen.",
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=KINDS,
                    default="depth",
                    tooltip="What 'images' show. depth: white is near. source: frames that are kept where 'mask' is "
                    "black. grey: shapes without colour. pose, edges and flow: as drawn.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=MAX_CONTROL,
                    step=0.05,
                    tooltip="How strictly it is followed (0 to 10). 0: not at all.",
                ),
                io.Int.Input(
                    "start",
                    default=0,
                    min=0,
                    max=MAX_FRAMES,
                    tooltip="Frame of the clip, from 0, at which 'images' and 'mask' begin.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="One picture for each frame of the clip, of any size: scaled to fill it and cropped. A "
                    "single one holds for the whole clip.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where 'images' hold, or where frames of a source are made anew. A single one holds "
                    "for the whole clip.",
                ),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Pictures of what shall be seen (up to 16), each seen as a whole, on white.",
                ),
                ControlSocket.Input("previous", optional=True, tooltip="Further control, from another Rushes Control."),
            ],
            outputs=[
                ControlSocket.Output(display_name="control", tooltip="For Rushes Shot, or the next Rushes Control.")
            ],
        )

    @classmethod
    def execute(
        cls,
        kind: str,
        strength: float,
        start: int,
        images: Any = None,
        mask: Any = None,
        references: Any = None,
        previous: tuple[Control, ...] = (),
    ) -> io.NodeOutput:
        with spoken_plainly():
            if images is None and mask is not None:
                raise ShotError("mask: it is linked without images; images with it are allowed")
            if images is None and references is None:
                raise ShotError("images, references: neither is linked; one of them, or both, is allowed")
            pictures = [] if references is None else [stored(_pixels(one), CONTROL) for one in references.split(1)]
            control = Control(
                "reference" if images is None else kind,
                "" if images is None else stored(_measured(kind, _pixels(images)), CONTROL),
                strength,
                "" if mask is None else stored(_pixels(mask[..., None].repeat(1, 1, 1, 3)), CONTROL),
                tuple(pictures),
                0 if images is None else start,
            )
        return io.NodeOutput((*(previous or ()), control))


def _pixels(images: Any) -> np.ndarray:
    """[n, h, w, 3] of a batch; alpha is dropped."""
    return np.asarray(images[..., :3].numpy(force=True), np.float32)


def _measured(kind: str, pixels: np.ndarray) -> np.ndarray:
    """As an EXR holds them: depth is a distance, 0 where nothing is, and normals are -1 to 1."""
    if kind == "depth":
        return np.divide(1.0, pixels, out=np.zeros_like(pixels), where=pixels > 0)
    return pixels * 2 - 1 if kind == "normal" else pixels
