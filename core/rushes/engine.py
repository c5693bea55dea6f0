# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Engine: from a shot to a clip. The only place that knows the whole route.

prompt -> tokens -> text features; keyframes -> conditions; noise -> denoised latents; latents -> frames, streamed.
Everything before the decoder is drawn and summed on fixed paths, so one shot gives the same bits on one machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rushes.attention.hosted import HostedSettings
from rushes.attention.layers import SparseLayers
from rushes.clip import Clip as Clip
from rushes.conditions import Conditioner, Conditions
from rushes.control import footage_notes
from rushes.model import bundle, files
from rushes.model.catalog import Model as Model
from rushes.model.catalog import texts
from rushes.model.devices import check_fp8_products as check_fp8_products
from rushes.model.devices import find_device as find_device
from rushes.model.devices import usual_dtype
from rushes.model.files import FilesCard, ModelFiles
from rushes.model.loading import Modules
from rushes.model.memory import SLACK, DecodePlan, decode_bytes, decode_plan, encode_bytes, give_back, transformer_bytes
from rushes.model.operations import Operations
from rushes.model.packed import use_fp8_products
from rushes.model.parallel import Team
from rushes.model.placement import Placer, Plan, Wear, budget_of, holds_fp8, is_roomy, make_plan
from rushes.model.preview import SIDE, fit_preview
from rushes.model.reuse import Reuse, saved_state
from rushes.model.shelf import look as look
from rushes.progress import (
    Cancel,
    Cancelled,
    Denoising,
    Frames,
    OnPreview,
    OnProgress,
    OnState,
    Prepare,
    Progress,
    Steps,
)
from rushes.prompts import PromptReader
from rushes.sampling.known_frames import hold, put_back
from rushes.sampling.noise import initial_noise
from rushes.sampling.schedules import schedule
from rushes.sampling.solvers import euler, unipc
from rushes.shot import Shot, ShotError
from rushes.velocity import HIGH, LOW, GuidedVelocity

SOLVERS = {"euler": euler, "unipc": unipc}


class Engine(Model):
    """A loaded model, made by `Engine.load`. It keeps nothing between shots; one thread may use it at a time."""

    def __init__(
        self,
        model: Model,
        modules: Modules,
        device: torch.device,
        dtype: torch.dtype,
        decode_memory: int | None = None,
        prepare: Prepare | None = None,
        attention: HostedSettings | None = None,
        team: Team | None = None,
        memory: int | None = None,
        fp8_products: bool = False,
        wear: Wear | None = None,
    ) -> None:
        super().__init__(model.card, model.path, model._tokenizer)
        self.device, self.dtype = device, dtype
        self._decode_memory, self._prepare, self._wear, self._team = decode_memory, prepare, wear, team
        self._modules, self._memory = modules, memory
        self._placer, self._fp8_products = Placer(modules, device, fp8_products), fp8_products
        self._plan: Plan | None = None  # of the shot that was denoised last
        self._conditioner = Conditioner(model.card, modules, self._ready, device, dtype)
        self._prompts = PromptReader(model.card, modules, self._ready, device, dtype, hosted=prepare is not None)
        self.attention = attention  # another one may be set between two shots; no weight depends on it
        self._sparse: SparseLayers | None = None  # of the latest sampling
        self._reuse: Reuse | None = None  # of the same
        self._rough = torch.tensor(model.card.preview, dtype=torch.float32)  # [C + 1, 3]; empty until it is fitted

    @classmethod
    def load(
        cls,
        model: str | Path | ModelFiles = "starter",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        decode_memory: int | None = None,
        operations: Operations | None = None,
        prepare: Prepare | None = None,
        attention: HostedSettings | None = None,
        team: Team | None = None,
        memory: int | None = None,
        fp8_products: bool = False,
        wear: Wear | None = None,
    ) -> Engine:
        """Load a model: a name on the shelf, its folder or file, or Wan's files.

        device: "cpu", "cuda", "mps" ...; the fastest there is when None. dtype: of the weights and the work, float32
        when None, but bfloat16 for Wan's files on a CUDA card; under float16 the text is read in bfloat16.
        decode_memory: bytes that the decoder's activations may take; pictures that need more are decoded in blended
        tiles. memory: bytes of the device that may be used, most of what it has when None; parts of Wan's files that
        do not fit together come one after the other, see `plan`.
        attention: what self-attention keeps, such as `rushes.attention.layers.SparseAttention(density=0.2)`; all of it
        when None.
        For a host that manages memory: operations is the namespace (torch.nn when None) whose Linear, Conv3d and
        Embedding the transformer and the text encoder are made of; with PackedLinear and PackedEmbedding, subclasses of
        those of `model.packed`, it takes quantised files. prepare(part, bytes) is called before one of `parts` works on
        the device, with the bytes of activations to expect; the weights are then loaded to the CPU and it is for the
        host to move them. wear(part, loras) is called before that for a transformer, with all LoRAs that have to be on
        it; without it such a host's shots have none.
        team: the processes, from `rushes.model.parallel.joined`, that denoise together; each loads the model, all make
        the same calls of `denoise`, and each gets the latents.
        fp8_products: transformers whose file is in fp8 multiply in it too, faster and less exactly; `notes` tells
        where none is.
        Raises ShotError for a model or device that is not there, and for a device that multiplies no fp8.
        """
        place, layers = find_device(device), operations or nn
        rest = place if prepare is None else torch.device("cpu")
        shelf = Model.open(model)
        kind = dtype or usual_dtype(shelf.card, place.type)
        if (card := shelf.card).defaults.solver not in SOLVERS:
            raise ShotError(f"solver: got {card.defaults.solver!r}; {' or '.join(SOLVERS)} is allowed")
        schedule(card.defaults.schedule, 4, card.defaults.shift)  # refuses a name or a shift that it does not allow
        if fp8_products:
            check_fp8_products(place)
        if team is not None:
            team.check_heads(card.transformer.heads)
        if isinstance(card, FilesCard):
            modules = files.read_modules(card, rest, kind, layers)
        else:
            modules = bundle.read_modules(shelf.path, card, rest, kind, layers)
        return cls(shelf, modules, place, kind, decode_memory, prepare, attention, team, memory, fp8_products, wear)

    def resolve(self, shot: Shot, fit: bool = False, continues: bool = False) -> Shot:
        """As `Model.resolve`, and with the digests of footage. Raises ShotError for footage that has changed."""
        shot = super().resolve(shot, fit, continues)
        if not shot.control:
            return shot
        from rushes.media import seal_footage

        return seal_footage(shot)

    def notes(self, shot: Shot) -> list[str]:
        """As `Model.notes`, and what is to know of footage and fp8. Raises ShotError for footage that is gone."""
        notes = [*super().notes(shot), *footage_notes(shot)]
        if self._fp8_products and not holds_fp8(self.card):
            notes.append(f"fp8-products: no matrix of {self.card.name}'s transformer is in fp8, this changes nothing")
        return notes

    def record(self, shot: Shot) -> dict[str, Any]:
        """As `Model.record`, with what self-attention keeps where that is not all."""
        record = super().record(shot)
        if self.attention is not None:
            record["model"] = {**record["model"], "attention": asdict(self.attention)}
        if self._fp8_products:
            record["model"] = {**record["model"], "fp8_products": True}
        return record

    def attention_report(self) -> dict[str, Any] | None:
        """The density that each layer delivered in the latest sampling, see `SparseLayers.report`; None without any."""
        return None if self._sparse is None else self._sparse.report()

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The modules by the names that `prepare` is called with."""
        return self._modules

    def generate(
        self,
        shot: Shot,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        cancel: Cancel | None = None,
        before: Tensor | None = None,
    ) -> Clip:
        """Make the whole clip in memory. Raises ShotError for a shot the model does not allow, Cancelled on request.

        The arguments are those of `denoise`.
        """
        shot = self.resolve(shot, continues=before is not None)
        latents = self.denoise(shot, on_progress, on_preview, cancel, before)
        frames = np.concatenate(list(self.decode(latents, on_progress, cancel)))
        return Clip(frames, shot, self.record(shot), latents)

    @torch.inference_mode()
    def denoise(
        self,
        shot: Shot,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        cancel: Cancel | None = None,
        before: Tensor | None = None,
        on_state: OnState | None = None,
        resume: Denoising | None = None,
    ) -> Tensor:
        """Latents float32 [1, channels, latent_frames, h, w] in model space, on the CPU, of a resolved or plain shot.

        on_preview(step, frames): after each step, the clip as it stands, [latent_frames, h, w, 3] in latent resolution.
        cancel: looked at before every transformer block. before: latents [1, channels, n, h, w], from `encode`, that
        the clip begins with; it goes on from there. on_state: gets, after each step, what `resume` takes to go on after
        an interruption; the shot must be the same. Of a team, the first process's shot is made, and a cancel of any
        holds for all. Raises Cancelled, ShotError; TeamError when another process of the team is lost.
        """
        shot = self.resolve(shot, continues=before is not None)
        if self._team is not None:
            shot, cancel = self._team.lead(shot), self._team.agree(cancel)
        assert shot.size is not None and shot.frames is not None and shot.steps is not None
        if shot.loras and self._prepare is not None and self._wear is None:
            raise ShotError("lora: got one in a host that moves the weights; the host's own LoRAs are allowed there")
        tell = on_progress or (lambda progress: None)
        tell(Progress("text", 0, 1))
        self._plan = self._fitted(shot)
        features = self._features(shot)
        tell(Progress("text", 1, 1))
        if on_preview is not None:
            self._fit_preview()  # now, lest the VAE drives the transformer out between two steps
        factor = self.card.vae.spatial_factor
        height, width = shot.size[1] // factor, shot.size[0] // factor
        given = self._conditioner.read(shot, before, tell)
        frames = given.references + self.card.vae.latent_frames(shot.frames)
        noise = initial_noise(self.card.vae.latent_channels, frames, height, width, shot.seed).to(self.device)
        settings = self.settings(shot)
        velocity = self._velocity(shot, features, given, noise, cancel)
        if on_state is not None and self._reuse is not None:  # what cannot be taken up bit for bit is not offered
            offer = on_state
            on_state = lambda now: offer(now) if saved_state(now.step) else None  # noqa: E731
        plan = schedule(settings.schedule, shot.steps, settings.shift)
        at = resume or Denoising(0, noise, ())
        if at.latents.shape != noise.shape or at.step > shot.steps:
            raise ShotError(f"resume: got step {at.step} of latents {list(at.latents.shape)}; they are of another shot")
        x, *history = (t.to(self.device) for t in (at.latents, *at.history))

        def preview(latents: Tensor) -> Frames:
            return self.preview(latents[:, :, given.references :])

        callback = Steps(tell, on_preview, cancel, preview, on_state, at.step, history)
        solver = SOLVERS[settings.solver]
        step = velocity if given.known is None else hold(velocity, given.known)
        latents = solver(step, x, plan, callback=callback, start=at.step, history=history)
        latents = latents if given.known is None else put_back(latents, given.known)
        return latents[:, :, given.references :].float().cpu()

    def _velocity(
        self, shot: Shot, features: list[Tensor], given: Conditions, noise: Tensor, cancel: Cancel | None
    ) -> GuidedVelocity:
        """What the solver asks at every step, with the shortcuts that the shot and the engine take."""
        assert shot.steps is not None
        kept, memory = self.attention, self._denoise_bytes(noise, len(features))
        self._sparse = None if kept is None else SparseLayers(kept, self.card.transformer.layers, shot.steps)
        self._reuse = Reuse(shot.reuse, self._team) if shot.reuse else None
        return GuidedVelocity(
            self._modules, features, given, shot.guidance_pair, self.card.boundary,
            lambda part: self._enter(part, memory, shot), cancel, self._sparse, self._team, self._reuse,
            None if shot.guided == 1 else round(shot.guided * shot.steps),
        )  # fmt: skip

    def reuse_report(self) -> dict[str, Any] | None:
        """What the latest sampling reused, see `model.reuse.Reuse.report`; None for a shot that reuses nothing."""
        return None if self._reuse is None else self._reuse.report()

    @torch.inference_mode()
    def encode(self, frames: Frames) -> Tensor:
        """Latents float32 [1, channels, latent_frames, h, w] in model space, on the CPU, of a clip's frames.

        frames: [4n+1, height, width, 3], sRGB in [0, 1], in a size that the model takes. Raises ShotError.
        """
        n = self.card.vae.temporal_factor
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[0] % n != 1:
            raise ShotError(f"frames: got an array {list(frames.shape)}; [{n}n+1, height, width, 3] is allowed")
        self.card.allowed_size((frames.shape[2], frames.shape[1]), fit=False)
        self._ready_to_encode(frames.shape[1], frames.shape[2])
        video = torch.from_numpy(frames).to(self.device, self.dtype)
        return self._modules.vae.encode((video * 2 - 1).permute(3, 0, 1, 2)[None]).float().cpu()

    @torch.inference_mode()
    def decode(
        self, latents: Tensor, on_progress: OnProgress | None = None, cancel: Cancel | None = None
    ) -> Iterator[Frames]:
        """Frames float32 [n, height, width, 3] in [0, 1] as they come out of the decoder: the first alone, then chunks.

        Memory depends on the chunk, not on the length of the clip. Raises Cancelled between chunks.
        """
        give_back()
        plan, (height, width) = self._decode_plan(latents), latents.shape[3:]
        self._ready("vae", decode_bytes(self.card.vae, plan, height, width, self.dtype.itemsize))
        latents = latents.to(self.device, self.dtype)
        total = self.card.vae.frames(latents.shape[2])
        done, started = 0, time.perf_counter()
        for part in self._modules.vae.stream_decode(latents, *plan):
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
        self._fit_preview()
        table = self._rough.to(latents.device)  # [C + 1, 3]
        rough = torch.einsum("cthw,cr->thwr", latents[0].float(), table[:-1]) + table[-1]
        return rough.clamp_(0, 1).cpu().numpy()

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents [1, C, T, h, w] in model space from the VAE's own numbers, which other programs pass on."""
        return self._modules.vae.scaled(latents.float())

    def unscaled(self, latents: Tensor) -> Tensor:
        """The inverse of `scaled`."""
        return self._modules.vae.unscaled(latents.float())

    def _features(self, shot: Shot) -> list[Tensor]:
        """Of the prompt and, where guidance is on, of the negative prompt: [1, text_len, text_dim] each."""
        asked = {name: text for name, text in texts(shot).items() if name == "prompt" or shot.is_guided}
        return self._prompts.read([self._tokens(name, text) for name, text in asked.items()])

    def plan(self, shot: Shot) -> Plan:
        """Where the parts lie while a resolved shot is made, and the memory that they need there."""
        return make_plan(self.card, shot, self.dtype, self.device.type, budget_of(self.device, self._memory))

    def _fitted(self, shot: Shot) -> Plan | None:
        """The plan where memory is short; None where there is room for everything, and where a host has the memory."""
        budget = budget_of(self.device, self._memory)
        if self._prepare is not None or not isinstance(self.card, FilesCard) or budget is None:
            return None
        return None if is_roomy(self.card, shot, self.dtype, budget) else self.plan(shot)

    def _enter(self, part: str, memory: int, shot: Shot) -> None:
        """A transformer is about to work, which needs so many bytes."""
        loras = self._rack.on(part, shot.loras)
        if self._prepare is None:
            self._placer.enter(part, self._plan, loras)
        else:
            if self._wear is not None:
                self._wear(part, loras)
            if self._fp8_products:
                use_fp8_products(self._modules[part])
        give_back()
        self._ready(part, memory)

    def _fit_preview(self) -> None:
        if not len(self._rough):
            side = SIDE * self.card.vae.spatial_factor
            self._ready_to_encode(side, side)
            with torch.inference_mode():
                self._rough = fit_preview(self._modules.vae, self.device, self.dtype)

    def _ready(self, part: str, memory: int) -> None:
        """A part is about to work, with so many bytes beside its weights; transformers come by `_enter`."""
        if self._prepare is not None:
            self._prepare(part, int(SLACK * memory))
        elif self._plan is not None and part not in (HIGH, LOW):
            self._placer.enter(part, self._plan)

    def _ready_to_encode(self, height: int, width: int) -> None:
        factor = self.card.vae.spatial_factor
        self._ready("vae", encode_bytes(self.card.vae, height // factor, width // factor, self.dtype.itemsize))

    def _denoise_bytes(self, noise: Tensor, batch: int) -> int:
        config = self.card.transformer
        tokens = noise.shape[2] * noise.shape[3] * noise.shape[4] // config.patch_size**2
        return transformer_bytes(config, batch, tokens, self.dtype.itemsize)

    def _decode_plan(self, latents: Tensor) -> DecodePlan:
        T, h, w = latents.shape[2:]
        limit = self._decode_memory or (self._plan.decode_limit if self._plan is not None else None)
        return decode_plan(self.card.vae, T, h, w, self.dtype.itemsize, limit)


def memory_plan(model: Model, shot: Shot, device: torch.device, memory: int | None = None) -> Plan:
    """The plan of a resolved shot on a device, "cuda" even where none is, of which memory, in bytes, may be used."""
    kind = device.type
    return make_plan(model.card, shot, usual_dtype(model.card, kind), kind, budget_of(device, memory))


def generate(prompt: str | Shot, **fields: Any) -> Clip:
    """Load the shot's model and make one clip: `rushes.generate("a red ball …", seed=7).write("shot.mp4")`."""
    shot = prompt if isinstance(prompt, Shot) else Shot(prompt, **fields)
    return Engine.load(shot.model).generate(shot)
