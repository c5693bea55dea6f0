# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Write Plate: latents or images to files on disk, as they are decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import comfy.utils
import folder_paths
import numpy as np
import numpy.typing as npt
from comfy_api.latest import io

from rushes.media import color
from rushes.media.paths import COMPRESSIONS, DEPTHS, MAX_START_FRAME
from rushes.shot import ShotError, parse_fps

from . import latents, plates, records
from .decoding import Take, decode_ours, decode_theirs, frames_expected
from .host import Interrupt, plain, spoken_plainly
from .sockets import CATEGORY, ModelSocket, RecordSocket

SOURCES = {"latent": "LATENT", "images": "IMAGE", "model": "RUSHES_MODEL", "vae": "VAE", "record": "RUSHES_RECORD"}
IMAGES_AT_ONCE = 8


class RushesWritePlate(io.ComfyNode):
    """Writes while it decodes, so that memory depends on the size of a frame and not on the length of the clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesWritePlate",
            display_name="Rushes Write Plate",
            category=CATEGORY,
            description="Writes EXR, ProRes, MP4 or PNG into the output folder, each time as a new version.",
            is_output_node=True,
            inputs=[*_sources(), *_naming(), *_format()],
            outputs=[
                io.String.Output(
                    display_name="path", tooltip="The name of what was written; of a sequence with %04d for the number."
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        folder: str,
        name: str,
        format: str,
        colorspace: str,
        depth: str,
        compression: str,
        start_frame: int,
        input_types: Mapping[str, str],
    ) -> bool | str:
        try:
            _check_links(input_types)
            if None not in (folder, name, format):
                plates.place(folder, name, format)
            for what, value, allowed in (("depth", depth, DEPTHS), ("compression", compression, COMPRESSIONS)):
                if value is not None and value not in allowed:
                    raise ShotError(f"{what}: got {value!r}; allowed are {', '.join(allowed)}")
            if colorspace is not None:
                color.find_space(colorspace)
            if start_frame is not None and not 0 <= start_frame <= MAX_START_FRAME:
                raise ShotError(f"start_frame: got {start_frame}; 0 to {MAX_START_FRAME} is allowed")
        except ShotError as error:
            return plain(error)
        return True

    @classmethod
    def execute(
        cls,
        folder: str,
        name: str,
        format: str,
        start_frame: int,
        fps: float,
        colorspace: str,
        depth: str,
        compression: str,
        sidecar: bool,
        latent: Mapping[str, Any] | None = None,
        images: Any = None,
        model: Any = None,
        vae: Any = None,
        record: Mapping[str, Any] | None = None,
    ) -> io.NodeOutput:
        with spoken_plainly():
            source = _Source(latent, images, model, vae, record, parse_fps(fps) if fps else None)
            found = records.with_workflow(source.record, cls.hidden.prompt, cls.hidden.extra_pnginfo)
            plate = {"colorspace": colorspace, "depth": depth, "compression": compression} if format == "EXR" else {}
            return _write(source, plates.place(folder, name, format), found, start_frame, plate, sidecar)


class _Source:
    """What is written: its record, the number of its frames where that is known, and how to have them."""

    def __init__(
        self, latent: Any, images: Any, model: Any, vae: Any, record: Mapping[str, Any] | None, fps: Fraction | None
    ) -> None:
        if images is not None:
            size, self.frames = (images.shape[2], images.shape[1]), len(images)
            self.feed: Callable[[Take], None] = lambda take: _feed_images(images, take)
        elif model is not None:
            latents.check(model.card, latent)
            engine_vae = model.card.vae
            known = latents.made(latent)
            record = record or (known.record if known else None)
            shape, self.frames = latent["samples"].shape, engine_vae.frames(latent["samples"].shape[2])
            size = (shape[-1] * engine_vae.spatial_factor, shape[-2] * engine_vae.spatial_factor)
            self.feed = lambda take: decode_ours(model, latent, take)
        else:
            known = latents.made(latent)
            record = record or (known.record if known else None)
            samples = latent["samples"]
            factor = vae.spacial_compression_decode()
            size, self.frames = (samples.shape[-1] * factor, samples.shape[-2] * factor), frames_expected(vae, samples)
            self.feed = lambda take: decode_theirs(vae, samples, take)
        self.record = records.fitting(record, size, self.frames, fps)


def _feed_images(images: Any, take: Take) -> None:
    for start in range(0, len(images), IMAGES_AT_ONCE):
        take(images[start : start + IMAGES_AT_ONCE, ..., :3].numpy(force=True))


def _write(
    source: _Source,
    unversioned: str,
    record: Mapping[str, Any],
    start_frame: int,
    plate: Mapping[str, str],
    sidecar: bool,
) -> io.NodeOutput:
    from rushes.media import next_version, open_outputs

    path = next_version(unversioned)
    is_shown_itself = path.endswith(".mp4")
    bar, interrupt = comfy.utils.ProgressBar(source.frames or 1), Interrupt()
    done = 0
    with ExitStack() as stack:
        proxy = None if is_shown_itself else stack.enter_context(plates.Proxy(plates.rate(record)))
        outputs = stack.enter_context(open_outputs([path], record, start_frame=start_frame, **plate))

        def take(chunk: npt.NDArray[np.float32]) -> None:
            nonlocal done
            for frame in chunk:
                interrupt.check()
                outputs.write(frame[None])
                if proxy is not None:
                    proxy.write(frame)
                done += 1
                bar.update_absolute(done, source.frames or done + 1)

        source.feed(take)
    if sidecar:
        plates.write_sidecar(plates.sidecar_of(path), record, outputs.paths, start_frame)
    root = folder_paths.get_output_directory()
    shown = (
        {"images": [plates.shown_file(outputs.paths[0], "output", root)], "animated": (True,)}
        if proxy is None
        else proxy.shown()
    )
    return io.NodeOutput(path, ui={**shown, "text": (path,)})


def _check_links(types: Mapping[str, str]) -> None:
    """What is linked, by its types, which ComfyUI leaves to us as we ask for them. Raises ShotError."""
    for name, got in types.items():
        wanted = SOURCES.get(name)
        if wanted is not None and not {wanted, "*"} & set(got.split(",")):  # split: ComfyUI's own names compare oddly
            raise ShotError(f"{name}: got {got}; {wanted} is allowed")
    if ("latent" in types) == ("images" in types):
        got = "both are" if "latent" in types else "neither is"
        raise ShotError(f"latent, images: {got} linked; one of the two is allowed")
    if "latent" in types and ("model" in types) == ("vae" in types):
        got = "both are" if "model" in types else "neither is"
        raise ShotError(f"model, vae: {got} linked; a latent is decoded by one of the two")


def _sources() -> list[io.Input]:
    return [
        io.Latent.Input(
            "latent",
            optional=True,
            tooltip="A clip in latent space, with 'model' or 'vae'. It is decoded and written chunk by chunk.",
        ),
        ModelSocket.Input("model", optional=True, tooltip="Decodes the latent of Rushes Generate."),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="Decodes the latent of any other model. Wan's streams; other video VAEs decode a clip whole.",
        ),
        io.Image.Input(
            "images", optional=True, tooltip="Finished frames, sRGB, instead of a latent. Alpha is left out."
        ),
        RecordSocket.Input(
            "record",
            optional=True,
            tooltip="The record of the shot that made 'images'. A latent of Rushes Generate brings its own.",
        ),
    ]


def _naming() -> list[io.Input]:
    return [
        io.String.Input("folder", default="rushes", tooltip="Below ComfyUI's output folder, such as show/sh010."),
        io.String.Input(
            "name", default="plate", tooltip="File name; _v001, _v002 ... and the frame number are added to it."
        ),
        io.Combo.Input(
            "format",
            options=list(plates.KINDS),
            default="EXR",
            tooltip="EXR: scene-linear sequence and its manifest. ProRes MOV: 422 HQ, 10 bit. MP4: H.264, 8 bit. "
            "PNG: sequence, 8 bit.",
        ),
        io.Int.Input(
            "start_frame",
            default=1001,
            min=0,
            max=MAX_START_FRAME,
            tooltip="Number of the first file of a sequence, and its time code (0 to 10,000,000).",
        ),
        io.Float.Input(
            "fps",
            default=0.0,
            min=0.0,
            max=1000.0,
            step=0.001,
            round=False,
            tooltip="Frames a second (up to 1000). 0: the shot's own rate, or 24 where no shot is known.",
        ),
    ]


def _format() -> list[io.Input]:
    return [
        io.Combo.Input(
            "colorspace",
            options=list(color.EXAMPLES),
            default=color.DEFAULT_SPACE,
            tooltip="Of EXR only: display sRGB is converted to it, white stays 1.0. Movies are Rec.709, PNG is sRGB.",
        ),
        io.Combo.Input(
            "depth",
            options=list(DEPTHS),
            default=DEPTHS[0],
            tooltip="Of EXR only: half (16 bit) or float (32 bit) numbers.",
        ),
        io.Combo.Input(
            "compression",
            options=list(COMPRESSIONS),
            default=COMPRESSIONS[0],
            tooltip="Of EXR only: all are lossless but dwaa, which is small; zips reads fastest line by line.",
        ),
        io.Boolean.Input(
            "sidecar",
            default=True,
            tooltip="Also write the record and the workflow as name_v001.json beside it (they are in every file, too).",
        ),
    ]
