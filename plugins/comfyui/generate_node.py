# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Generate: a shot becomes frames, a movie, latents and the record."""

from __future__ import annotations

import json
import logging
from typing import Any

import comfy.utils
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from rushes.progress import Progress
from rushes.shot import Shot

from . import preview
from .host import Interrupt, linked_outputs, spoken_plainly
from .latents import as_latent
from .model import RushesModel
from .sockets import CATEGORY, ModelSocket, RecordSocket, ShotSocket
from .video import LazyVideo, decoded

WHEN_LINKED, ALWAYS = "when linked", "always"
IMAGE_SLOT = 0


class RushesGenerate(io.ComfyNode):
    """Denoises; decodes only what is wanted, as VIDEO and LATENT need no frames in memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesGenerate",
            display_name="Rushes Generate",
            category=CATEGORY,
            description="Makes the clip. Link a long one's 'latent' to Rushes Write Plate: frames then fill no memory.",
            inputs=[
                ModelSocket.Input("model", tooltip="From Rushes Load Model or Rushes Load LoRA."),
                ShotSocket.Input("shot", tooltip="From Rushes Shot or Rushes Shot from File."),
                io.Combo.Input(
                    "decode",
                    options=[WHEN_LINKED, ALWAYS],
                    default=WHEN_LINKED,
                    tooltip="When 'images' are decoded (12 bytes a pixel in memory). 'when linked' saves that where "
                    "only video or latent is used; linking 'images' later then makes the clip again.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="All frames: float32, sRGB in 0 to 1."),
                io.Video.Output(display_name="video", tooltip="The clip at its frame rate, decoded when it is saved."),
                io.Latent.Output(
                    display_name="latent", tooltip="In the VAE's own space, for Rushes Write Plate or VAE Decode."
                ),
                RecordSocket.Output(
                    display_name="record", tooltip="Shot, model and version, as every file of Rushes carries them."
                ),
                io.String.Output(display_name="record as JSON", tooltip="The record as JSON."),
            ],
        )

    @classmethod
    def validate_inputs(cls, decode: str) -> bool | str:
        if decode not in (WHEN_LINKED, ALWAYS, None):
            return f"decode: got {decode!r}; allowed are {WHEN_LINKED}, {ALWAYS}"
        return True

    @classmethod
    def fingerprint_inputs(cls, decode: str, **others: Any) -> Any:
        return _decodes(decode)

    @classmethod
    def execute(cls, model: RushesModel, shot: Shot, decode: str) -> io.NodeOutput:
        decodes = _decodes(decode)
        with spoken_plainly():
            engine, shot = model.engine, model.resolve(shot)
            record = engine.record(shot)
            for note in engine.notes(shot):
                logging.info("Rushes: %s", note)
            bar = _Bar(shot, engine.card.vae.latent_frames(shot.frames) if decodes else 0)
            latents = engine.denoise(shot, bar.progress, bar.preview if preview.is_wanted() else None, Interrupt())
            images = decoded(engine, latents, shot, bar.progress) if decodes else None
            latent = as_latent(engine, latents, record)
        video = LazyVideo(model, latents, shot)
        shown = ExecutionBlocker("images were not decoded; set decode to 'always'") if images is None else images
        return io.NodeOutput(shown, video, latent, record, json.dumps(record, indent=1))


def _decodes(decode: str) -> bool:
    linked = linked_outputs()
    return decode == ALWAYS or linked is None or IMAGE_SLOT in linked


class _Bar:
    """One bar for the whole node: a part for each step, then a part for each latent frame that is decoded."""

    def __init__(self, shot: Shot, latent_frames: int) -> None:
        assert shot.steps is not None and shot.frames is not None and shot.fps is not None
        self._steps, self._latent_frames = shot.steps, latent_frames
        self._seconds = float(shot.frames / shot.fps)
        self._bar = comfy.utils.ProgressBar(shot.steps + latent_frames)
        self._at = 0

    def progress(self, told: Progress) -> None:
        if told.phase == "denoise":
            self._at = told.step
        elif told.phase == "decode":
            self._at = self._steps + self._latent_frames * told.step // told.steps
        else:
            return
        self._bar.update_absolute(self._at)

    def preview(self, step: int, frames: Any) -> None:
        self._bar.update_absolute(self._at, preview=preview.preview(frames, self._seconds))
