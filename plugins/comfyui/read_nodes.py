# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Read Plate and Rushes Shot from File: what is on disk, back in the graph."""

from __future__ import annotations

import json
from typing import Any

import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io

from rushes.media import color
from rushes.shot import ShotError

from . import records
from .host import Interrupt, plain, spoken_plainly
from .places import files_of, found
from .sockets import CATEGORY, RecordSocket, ShotSocket

AS_TAGGED = "as the file says"
PATH_TOOLTIP = (
    "A file, or a sequence as plate.%04d.exr or plate.####.exr: below ComfyUI's input or output folder, or absolute."
)


class RushesReadPlate(io.ComfyNode):
    """EXR, PNG or a movie as IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesReadPlate",
            display_name="Rushes Read Plate",
            category=CATEGORY,
            description="Reads an EXR or PNG sequence, or a movie, as images in display sRGB.",
            inputs=[
                io.String.Input("path", default="", tooltip=PATH_TOOLTIP),
                io.Combo.Input(
                    "colorspace",
                    options=[AS_TAGGED, color.SRGB, *color.EXAMPLES],
                    default=AS_TAGGED,
                    tooltip="What the numbers in the file mean. They become display sRGB; values above white are kept.",
                ),
                io.Int.Input(
                    "first",
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip="Frames to leave out at the start, counted from the first file or the start of the movie.",
                ),
                io.Int.Input(
                    "count", default=0, min=0, max=100_000, tooltip="How many frames to read. 0: all that follow."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="Float32 in display sRGB: 12 bytes a pixel in memory."),
                io.Float.Output(display_name="fps", tooltip="Frames a second, 0 where the files do not say."),
                io.Int.Output(
                    display_name="start frame", tooltip="Number of the first frame that was read, 0 for a movie."
                ),
                RecordSocket.Output(
                    display_name="record", tooltip="What Rushes has stored in the file, else a stand-in."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, path: str, colorspace: str) -> bool | str:
        try:
            if path is not None:
                found(path)
            if colorspace not in (None, AS_TAGGED):
                color.find_space(colorspace)
        except ShotError as error:
            return plain(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, path: str, **others: Any) -> Any:
        return files_of(path)

    @classmethod
    def execute(cls, path: str, colorspace: str, first: int, count: int) -> io.NodeOutput:
        with spoken_plainly():
            file = found(path)
            images, reader = _read(file, None if colorspace == AS_TAGGED else colorspace, first, count)
            size = (images.shape[2], images.shape[1])
            record = records.fitting(_record(file), size, len(images), reader.fps)
        rate = float(reader.fps or 0)
        return io.NodeOutput(torch.from_numpy(images), rate, (reader.start_frame or 0) + first, record)


def _read(path: str, colorspace: str | None, first: int, count: int) -> tuple[Any, Any]:
    """Frames float32 [n, h, w, 3], and the reader they came from."""
    from rushes.media import read_frames

    interrupt = Interrupt()
    with read_frames(path, colorspace=colorspace) as reader:
        total = min(count or reader.frames, reader.frames - first)
        if total < 1:
            raise ShotError(
                f"first: got {first} of a clip with {reader.frames} frames; 0 to {reader.frames - 1} is allowed"
            )
        bar = comfy.utils.ProgressBar(total)
        images = np.empty((total, reader.size[1], reader.size[0], 3), np.float32)  # [n, h, w, 3]
        at = -first
        for chunk in reader:
            interrupt.check()
            wanted = chunk[max(0, -at) : total - at]
            images[max(0, at) : max(0, at) + len(wanted)] = wanted
            at += len(chunk)
            bar.update_absolute(max(0, min(at, total)))
            if at >= total:
                break
    return images[: max(0, at)], reader


def _record(path: str) -> dict[str, Any] | None:
    from rushes.media import read_record

    try:
        return read_record(path)
    except ShotError:
        return None  # not one of ours, which is allowed here


class RushesShotFromFile(io.ComfyNode):
    """The shot that made a file of Rushes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesShotFromFile",
            display_name="Rushes Shot from File",
            category=CATEGORY,
            description="The shot in a file that Rushes has written, in any host: the same frames can be made again.",
            inputs=[
                io.String.Input(
                    "path", default="", tooltip=PATH_TOOLTIP + " MP4, MOV, EXR, PNG, OTIO or latents in safetensors."
                )
            ],
            outputs=[
                ShotSocket.Output(
                    display_name="shot", tooltip="For Rushes Generate, with the model that the record names."
                ),
                io.String.Output(display_name="prompt", tooltip="The shot's prompt."),
                RecordSocket.Output(display_name="record", tooltip="The whole record in the file."),
                io.String.Output(display_name="record as JSON", tooltip="The record as JSON."),
            ],
        )

    @classmethod
    def validate_inputs(cls, path: str) -> bool | str:
        from rushes.media import read_record, shot_in

        try:
            if path is not None:
                shot_in(read_record(found(path)), path)
        except ShotError as error:
            return plain(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, path: str) -> Any:
        return files_of(path)

    @classmethod
    def execute(cls, path: str) -> io.NodeOutput:
        from rushes.media import read_record, shot_in

        with spoken_plainly():
            record = read_record(found(path))
            shot, _ = shot_in(record, path)
        return io.NodeOutput(shot, shot.prompt, record, json.dumps(record, indent=1))
