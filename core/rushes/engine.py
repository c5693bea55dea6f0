# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Engine: from a shot to a clip. The only place that knows the whole route.

prompt -> tokens -> text features; keyframes -> known latents; noise -> denoised latents; latents -> frames, streamed.
Everything before the decoder is drawn and summed on fixed paths, so one shot gives the same bits on one machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rushes.model.bundle import SHIPPED as SHIPPED
from rushes.model.bundle import Card, bundle_path, read_card, read_modules
from rushes.model.catalog import DECODE_BYTES
from rushes.model.catalog import Model as Model
from rushes.model.text import TextEncoder, summarize
from rushes.model.transformer import Context, Transformer
from rushes.model.vae import VideoVAE
from rushes.progress import Cancelled, Denoising, Frames, OnPreview, OnProgress, OnState, Progress, Steps
from rushes.sampling.guidance import classifier_free
from rushes.sampling.known_frames import KnownFrames, hold, put_back
from rushes.sampling.noise import initial_noise
from rushes.sampling.schedules import schedule
from rushes.sampling.solvers import euler, unipc
from rushes.shot import Keyframe, Shot, ShotError

SOLVERS = {"euler": euler, "unipc": unipc}
DECODE_COPIES = 15  # tensors of the last stage's size that live at once, measured with the convolutions' own buffers
MIN_TILE = 8  # latent cells; smaller tiles are mostly overlap


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames float32 [frames, height, width, 3], display-referred sRGB in [0, 1], with the shot that made them."""

    frames: Frames
    shot: Shot
    record: dict[str, Any]
    latents: Tensor

    def write(self, *paths: str | Path, colorspace: str | None = None, overwrite: bool = False) -> list[Path]:
        """Write outputs by name (mp4, mov, exr, png, otio, safetensors), all or none. Raises ShotError."""
        from rushes.media import open_outputs

        names = [str(path) for path in paths]
        latents = self.latents.numpy(force=True)
        with open_outputs(names, self.record, colorspace=colorspace, overwrite=overwrite, latents=latents) as outputs:
            outputs.write(self.frames)
        return list(outputs.paths)


class Engine(Model):
    """A loaded model, made by `Engine.load`. It keeps nothing between shots; one thread may use it at a time."""

    def __init__(
        self,
        card: Card,
        path: Path,
        transformer: Transformer,
        vae: VideoVAE,
        text: TextEncoder,
        decode_memory: int | None = None,
    ) -> None:
        super().__init__(card, path)
        self._decode_memory = decode_memory
        self._transformer, self._vae, self._text = transformer.eval(), vae.eval(), text.eval()

    @classmethod
    def load(
        cls,
        model: str | Path = "starter",
        device: str | None = None,
        dtype: torch.dtype | None = None,
        decode_memory: int | None = None,
    ) -> Engine:
        """Load a model: a name, a folder, or a .safetensors file.

        device: "cpu", "cuda", "mps" ...; the fastest there is when None. dtype: of the weights and the work, float32
        when None. decode_memory: bytes that the decoder's activations may take; pictures that need more are decoded in
        blended tiles. Raises ShotError for a model or device that is not there.
        """
        path = bundle_path(model)
        card = read_card(path)
        transformer, vae, text = read_modules(path, card, _device(device), dtype or torch.float32)
        return cls(card, path, transformer, vae, text, decode_memory)

    @property
    def device(self) -> torch.device:
        return self._transformer.patch_embedding.weight.device

    def generate(
        self,
        shot: Shot,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        cancel: threading.Event | None = None,
        before: Tensor | None = None,
    ) -> Clip:
        """Make the whole clip in memory. Raises ShotError for a shot the model does not allow, Cancelled on request.

        The arguments are those of `denoise`.
        """
        shot = self.resolve(shot)
        latents = self.denoise(shot, on_progress, on_preview, cancel, before)
        frames = np.concatenate(list(self.decode(latents, on_progress, cancel)))
        return Clip(frames, shot, self.record(shot), latents)

    @torch.inference_mode()
    def denoise(
        self,
        shot: Shot,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        cancel: threading.Event | None = None,
        before: Tensor | None = None,
        on_state: OnState | None = None,
        resume: Denoising | None = None,
    ) -> Tensor:
        """Latents float32 [1, channels, latent_frames, h, w] in model space, on the CPU, of a resolved or plain shot.

        on_preview(step, frames): after each step, the clip as it stands, [latent_frames, h, w, 3] in latent resolution.
        cancel: looked at before every transformer block. before: latents [1, channels, n, h, w], from `encode`, that
        the clip begins with; it goes on from there. on_state: gets, after each step, what `resume` takes to go on after
        an interruption; the shot must be the same. Raises Cancelled, ShotError.
        """
        shot = self.resolve(shot)
        assert shot.size is not None and shot.frames is not None and shot.steps is not None
        tell = on_progress or (lambda progress: None)
        tell(Progress("text", 0, 1))
        cond, uncond = self._contexts(shot)
        tell(Progress("text", 1, 1))
        factor = self.card.vae.spatial_factor
        height, width = shot.size[1] // factor, shot.size[0] // factor
        frames = self.card.vae.latent_frames(shot.frames)
        noise = initial_noise(self.card.vae.latent_channels, frames, height, width, shot.seed).to(self.device)
        known = self._known(shot, noise, before, tell)
        predict = _Predict(self._transformer, cancel)
        velocity = classifier_free(predict, cond, uncond, shot.guidance or 0.0, join=Context.join)
        plan = schedule(self.card.defaults.schedule, shot.steps, self.card.defaults.shift)
        at = resume or Denoising(0, noise, ())
        if at.latents.shape != noise.shape or at.step > shot.steps:
            raise ShotError(f"resume: got step {at.step} of latents {list(at.latents.shape)}; they are of another shot")
        x, *history = (t.to(self.device) for t in (at.latents, *at.history))
        callback = Steps(tell, on_preview, cancel, self.preview, on_state, at.step, history)
        solver = SOLVERS[self.card.defaults.solver]
        step = velocity if known is None else hold(velocity, known)
        latents = solver(step, x, plan, callback=callback, start=at.step, history=history)
        return (latents if known is None else put_back(latents, known)).float().cpu()

    @torch.inference_mode()
    def encode(self, frames: Frames) -> Tensor:
        """Latents float32 [1, channels, latent_frames, h, w] in model space, on the CPU, of a clip's frames.

        frames: [4n+1, height, width, 3], sRGB in [0, 1], in a size that the model takes. Raises ShotError.
        """
        n = self.card.vae.temporal_factor
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[0] % n != 1:
            raise ShotError(f"frames: got an array {list(frames.shape)}; [{n}n+1, height, width, 3] is allowed")
        self.card.allowed_size((frames.shape[2], frames.shape[1]), fit=False)
        video = torch.from_numpy(frames).to(self.device, self._transformer.patch_embedding.weight.dtype)
        return self._vae.encode((video * 2 - 1).permute(3, 0, 1, 2)[None]).float().cpu()

    @torch.inference_mode()
    def decode(
        self, latents: Tensor, on_progress: OnProgress | None = None, cancel: threading.Event | None = None
    ) -> Iterator[Frames]:
        """Frames float32 [n, height, width, 3] in [0, 1] as they come out of the decoder: the first alone, then chunks.

        Memory depends on the chunk, not on the length of the clip. Raises Cancelled between chunks.
        """
        latents = latents.to(self.device, self._transformer.patch_embedding.weight.dtype)
        total = self.card.vae.frames(latents.shape[2])
        done, started = 0, time.perf_counter()
        for part in self._vae.stream_decode(latents, *self._decode_plan(latents)):
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled while decoding")
            frames = ((part[0].float() + 1) / 2).clamp_(0, 1).permute(1, 2, 3, 0)  # [n, H, W, 3]
            done += len(frames)
            if on_progress is not None:
                seconds = (time.perf_counter() - started) / done
                on_progress(Progress("decode", done, total, seconds, seconds * (total - done)))
            yield frames.contiguous().cpu().numpy()

    def preview(self, latents: Tensor) -> Frames:
        """A rough picture of latents [1, C, T, h, w] by a linear map: float32 [T, h, w, 3] in [0, 1]."""
        table = torch.tensor(self.card.preview, dtype=torch.float32, device=latents.device)  # [C + 1, 3]
        rough = torch.einsum("cthw,cr->thwr", latents[0].float(), table[:-1]) + table[-1]
        return rough.clamp_(0, 1).cpu().numpy()

    def _contexts(self, shot: Shot) -> tuple[Context, Context | None]:
        """Embedded prompt and negative prompt; None instead of the second when guidance is off."""
        cond = self._context(self._tokens("prompt", shot.prompt))
        guided = (shot.guidance or 0.0) > 1
        return cond, self._context(self._tokens("negative", shot.negative)) if guided else None

    def _context(self, tokens: list[int]) -> Context:
        dtype = self._transformer.patch_embedding.weight.dtype
        features = self._text.encode([tokens], self.card.transformer.text_len).to(dtype)  # [1, text_len, text_dim]
        pooled = summarize(features) if self.card.transformer.pooled_dim else None
        return self._transformer.context(features, cache=True, pooled=pooled)

    def _known(self, shot: Shot, noise: Tensor, before: Tensor | None, tell: OnProgress) -> KnownFrames | None:
        """What is given, as clean latent frames: the clip before, then keyframes; None without any."""
        if before is None and not shot.keyframes:
            return None
        latents = torch.zeros_like(noise)
        mask = torch.zeros(noise.shape[2], dtype=torch.bool)
        if before is not None:
            start = self._start(before, noise)
            latents[:, :, : start.shape[2]] = start
            mask[: start.shape[2]] = True
        for i, keyframe in enumerate(shot.keyframes):
            tell(Progress("keyframes", i, len(shot.keyframes)))
            at = self._latent_of(keyframe.frame)
            if mask[at]:
                raise ShotError(f"keyframe: got frame {keyframe.frame}; the clip before already gives that part")
            latents[:, :, at : at + 1] = self._keyframe(keyframe, shot, first=at == 0)
            mask[at] = True
            tell(Progress("keyframes", i + 1, len(shot.keyframes)))
        return KnownFrames(latents, mask)

    def _keyframe(self, keyframe: Keyframe, shot: Shot, first: bool) -> Tensor:
        from rushes.media import load_image

        assert shot.size is not None
        picture = torch.from_numpy(load_image(keyframe.image, shot.size)).permute(2, 0, 1)  # [3, H, W]
        picture = (picture * 2 - 1).to(self.device, self._transformer.patch_embedding.weight.dtype)[None]
        return self._vae.encode_keyframe(picture, first=first).float()  # [1, C, 1, h, w]

    @staticmethod
    def _start(before: Tensor, noise: Tensor) -> Tensor:
        B, C, T, h, w = noise.shape
        if before.ndim != 5 or before.shape[:2] != (B, C) or before.shape[3:] != (h, w) or before.shape[2] >= T:
            allowed = f"[{B}, {C}, up to {T - 1}, {h}, {w}]"
            raise ShotError(f"before: got latents {list(before.shape)}; {allowed} is allowed with this clip")
        return before.to(noise)

    def _decode_plan(self, latents: Tensor) -> tuple[int, int | None]:
        """Latent frames per decoder chunk, and the side of spatial tiles in latent cells (None: whole pictures).

        Chunks follow a fixed allowance, not the memory that happens to be free, because other chunks round otherwise.
        """
        vae, (h, w) = self.card.vae, latents.shape[3:]
        cell = (vae.spatial_factor / vae.patch_size) ** 2 * vae.decoder_dim * vae.multipliers[0] * vae.temporal_factor
        each = DECODE_COPIES * latents.element_size() * cell * h * w  # bytes of the last stage, for one latent frame
        limit = self._decode_memory
        if limit is not None and each > limit:
            return 1, max(MIN_TILE, int((limit / each * h * w) ** 0.5))
        return max(1, min(latents.shape[2], int(min(limit or DECODE_BYTES, DECODE_BYTES) / each))), None


class _Predict:
    """The transformer as the sampler calls it; looks at the cancel event before every block."""

    def __init__(self, transformer: Transformer, cancel: threading.Event | None) -> None:
        self._transformer, self._cancel = transformer, cancel

    def __call__(self, x: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        return self._transformer(x, timesteps, context, on_block=self._check)

    def _check(self, block: int) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("cancelled while denoising")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        place = torch.device(name)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ShotError(f"device: got {name!r}; cpu, or an accelerator that this torch has, is allowed") from error
    return place


def generate(prompt: str | Shot, **fields: Any) -> Clip:
    """Load the shot's model and make one clip: `rushes.generate("a red ball …", seed=7).write("shot.mp4")`."""
    shot = prompt if isinstance(prompt, Shot) else Shot(prompt, **fields)
    return Engine.load(shot.model).generate(shot)
