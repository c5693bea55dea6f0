# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Latents to frames, chunk by chunk: with our decoder, or with a VAE of ComfyUI's.

ComfyUI decodes a clip whole. Its causal video VAE (Wan) feeds its decoder with one or two latent frames at a time,
though, and only then joins what came out: a forward hook on the decoder takes each piece as it comes, and leaves
nothing to join. The frames are those of VAE Decode, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import numpy as np
import numpy.typing as npt
import torch

from rushes.model.vae import unpatchify
from rushes.shot import ShotError

from .host import Interrupt
from .latents import in_model_space
from .model import RushesModel

Take = Callable[[npt.NDArray[np.float32]], None]  # gets frames float32 [n, height, width, 3] in sRGB

PICTURES = 4  # of a batch of single pictures, how many are decoded at a time
STREAMING = ("comfy.ldm.wan.vae", "comfy.ldm.wan.vae2_2")  # modules of VAEs whose decoder works piece by piece


def decode_ours(model: RushesModel, latent: Mapping[str, Any], take: Take) -> None:
    engine = model.engine
    for chunk in engine.decode(in_model_space(engine, latent), cancel=Interrupt()):
        take(chunk)


def decode_theirs(vae: Any, samples: torch.Tensor, take: Take) -> None:
    """samples: [1, C, T, h, w], or [n, C, h, w] of single pictures, in the VAE's own space."""
    if samples.ndim == 4:
        for start in range(0, len(samples), PICTURES):
            Interrupt().check()
            take(_frames(vae.decode(samples[start : start + PICTURES])))
        return
    if samples.ndim != 5 or samples.shape[0] != 1:
        raise ShotError(f"latent: got {list(samples.shape)}; one clip [1, channels, frames, height, width] is allowed")
    channels = getattr(vae, "latent_channels", samples.shape[1])
    if samples.shape[1] != channels:
        raise ShotError(f"latent: it has {samples.shape[1]} channels and this VAE takes {channels}; link its own VAE")
    if type(vae.first_stage_model).__module__ in STREAMING:
        _stream(vae, samples, take)
        return
    logging.warning(
        "Rushes Write Plate: %s decodes a clip only whole, so all its frames are in memory at once.",
        type(vae.first_stage_model).__name__,
    )
    take(_frames(vae.decode(samples)))


def frames_expected(vae: Any, samples: torch.Tensor) -> int | None:
    """How many frames a VAE of ComfyUI's makes of samples, None where it does not say."""
    if samples.ndim == 4:
        return len(samples)
    ratio = getattr(vae, "upscale_ratio", None)
    grows = ratio[0] if isinstance(ratio, tuple) else None
    return int(grows(samples.shape[2])) if callable(grows) else None


def _stream(vae: Any, samples: torch.Tensor, take: Take) -> None:
    model = vae.first_stage_model
    comfy.model_management.load_models_gpu(
        [vae.patcher],
        memory_required=vae.memory_used_decode(samples.shape, vae.vae_dtype),
        force_full_load=getattr(vae, "disable_offload", False),
    )

    def taken(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        """Older releases return one piece, newer ones a list; what they get back has no frames in it."""
        pieces = output if isinstance(output, list) else [output]
        for piece in pieces:
            Interrupt().check()
            take(_shown(vae, piece))
        nothing = pieces[0].new_empty((*pieces[0].shape[:2], 0, *pieces[0].shape[3:]))
        return [nothing] if isinstance(output, list) else nothing

    hook = model.decoder.register_forward_hook(taken)
    try:
        model.decode(samples.to(vae.vae_dtype).to(vae.device))
    finally:
        hook.remove()


def _shown(vae: Any, piece: torch.Tensor) -> npt.NDArray[np.float32]:
    """Frames of what the decoder made, [1, 3 or 12, n, h, w] in -1 to 1, as VAE.decode ends: the same calls."""
    whole = unpatchify(piece, round((piece.shape[1] / 3) ** 0.5))
    values = whole.to(vae.output_device, torch.float32, copy=True)
    shown = vae.process_output(values)  # newer releases do it in place
    return _frames((values if shown is None else shown).movedim(1, -1))


def _frames(images: torch.Tensor) -> npt.NDArray[np.float32]:
    """IMAGE, or a batch of one clip of them, as frames [n, h, w, 3]."""
    array: npt.NDArray[np.float32] = images.numpy(force=True)
    return array.reshape(-1, *array.shape[-3:])[..., :3]
