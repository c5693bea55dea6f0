# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Engine: from a shot to a clip. The only place that knows the whole route.

prompt -> tokens -> text features; keyframes -> known latents; noise -> denoised latents; latents -> frames, streamed.
Everything before the decoder is drawn and summed on fixed paths, so one shot gives the same bits on one machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rushes._version import __version__
from rushes.model.bundle import SHIPPED as SHIPPED
from rushes.model.bundle import Card, bundle_path, digest, read_card, read_modules
from rushes.model.text import TextEncoder, summarize
from rushes.model.tokenizer import WordTokenizer
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
DECODE_BYTES = 160 * 2**20  # what a decoder chunk may take; larger chunks are slower too, by page faults
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


class Work(NamedTuple):
    """What a shot costs: products and sums of the transformer, pixels of the decoder, bytes while it is made."""

    flops: float
    pixels: int
    bytes: int


class Model:
    """What is known of a model without its weights: which shots it takes, and what they cost."""

    def __init__(self, card: Card, path: Path) -> None:
        self.card, self.path = card, path
        self._tokenizer = WordTokenizer(card.vocabulary, card.transformer.text_len)
        self._sha256 = ""

    @classmethod
    def open(cls, model: str | Path = "starter") -> Model:
        """A model by name, folder or .safetensors file. Raises ShotError for one that is not there."""
        path = bundle_path(model)
        return Model(read_card(path), path)

    def resolve(self, shot: Shot, fit: bool = False) -> Shot:
        """The shot with the model's defaults filled in, checked against the model.

        fit: take the nearest allowed size and number of frames instead of refusing. Raises ShotError.
        """
        defaults = self.card.defaults
        size = self.card.allowed_size(shot.size or defaults.size, fit)
        frames = self.card.allowed_frames(shot.frames or defaults.frames, fit)
        for name, text in (("prompt", shot.prompt), ("negative", shot.negative)):
            self._tokens(name, text)
        return shot.replace(
            size=size,
            frames=frames,
            fps=shot.fps or defaults.rate,
            steps=shot.steps or defaults.steps,
            guidance=defaults.guidance if shot.guidance is None else shot.guidance,
            keyframes=self._keyframes(shot.keyframes, frames),
        )

    def record(self, shot: Shot) -> dict[str, Any]:
        """What every output carries: the whole shot, the model's digest, and the words that it does not know."""
        self._sha256 = self._sha256 or digest(self.path)
        unknown = [word for text in (shot.prompt, shot.negative) for word in self._tokenizer.encode(text)[1]]
        return {
            "rushes": __version__,
            "shot": shot.to_dict(),
            "model": {"name": self.card.name, "sha256": self._sha256},
            "unknown_words": list(dict.fromkeys(unknown)),
        }

    def notes(self, shot: Shot) -> list[str]:
        """What the artist should know about a resolved shot before it is made: one sentence each, often none."""
        found = []
        if shot.frames is not None and shot.frames > self.card.trained_frames:
            found.append(
                f"frames: {self.card.name} was trained on up to {self.card.trained_frames} frames; "
                f"expect drift in a clip of {shot.frames}"
            )
        if shot.size is not None and shot.size != self.card.defaults.size:
            width, height = self.card.defaults.size
            found.append(f"size: {self.card.name} was trained at {width}x{height}; other sizes are less exact")
        return found

    def limits(self) -> dict[str, Any]:
        """What a host's panel shows and offers, JSON-ready. Sizes are (width, height)."""
        card, defaults = self.card, self.card.defaults
        return {
            "name": card.name, "size": list(defaults.size), "size_step": card.pixel_step, "max_pixels": card.max_pixels,
            "frames": defaults.frames, "frames_step": card.vae.temporal_factor, "max_frames": card.max_frames,
            "trained_frames": card.trained_frames, "fps": defaults.fps, "steps": defaults.steps,
            "guidance": defaults.guidance,
        }  # fmt: skip

    def work(self, shot: Shot) -> Work:
        """What a resolved shot costs, counted from the model's shape."""
        assert shot.size is not None and shot.frames is not None and shot.steps is not None
        vae, transformer = self.card.vae, self.card.transformer
        h, w = shot.size[1] // vae.spatial_factor, shot.size[0] // vae.spatial_factor
        latent_frames = vae.latent_frames(shot.frames)
        tokens = latent_frames * (h // transformer.patch_size) * (w // transformer.patch_size)
        batch = 2 if (shot.guidance or 0.0) > 1 else 1
        flops = batch * shot.steps * transformer.flops(tokens)
        weights = self.path.stat().st_size
        # float32: the widest tensors of a block (time's six, q, k, v, the feed-forward), and the decoder's allowance
        peak = 4 * batch * tokens * (12 * transformer.dim + transformer.ffn_dim) + DECODE_BYTES
        return Work(flops, shot.frames * shot.size[0] * shot.size[1], 2 * weights + peak)

    def _keyframes(self, keyframes: Sequence[Keyframe], frames: int) -> tuple[Keyframe, ...]:
        """Keyframes at frames counted from 0, sealed, in order."""
        placed: dict[int, Keyframe] = {}
        for keyframe in keyframes:
            frame = keyframe.frame + frames if keyframe.frame < 0 else keyframe.frame
            if not 0 <= frame < frames:
                raise ShotError(
                    f"keyframe: got frame {keyframe.frame}; {-frames} to {frames - 1} is allowed in this clip"
                )
            at = self._latent_of(frame)
            if at in placed:
                raise ShotError(
                    f"keyframe: frames {placed[at].frame} and {frame} fall into one latent frame; "
                    f"{self.card.vae.temporal_factor} frames between them are enough"
                )
            placed[at] = Keyframe(frame, keyframe.image, keyframe.sha256).sealed()
        return tuple(placed[at] for at in sorted(placed))

    def _latent_of(self, frame: int) -> int:
        return -(-frame // self.card.vae.temporal_factor)

    def _tokens(self, name: str, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text)[0]
        except ShotError as error:
            raise ShotError(str(error).replace("prompt", name, 1)) from error


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
