# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a shot gives the model beside words: pictures and the clip before, as each form of Wan takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rushes.control import read_contexts, read_start
from rushes.model.bundle import Card
from rushes.model.clip import clip_pixels
from rushes.model.loading import Modules
from rushes.model.memory import clip_bytes, encode_bytes
from rushes.model.transformer import Control as Context
from rushes.progress import OnProgress, Progress
from rushes.sampling.known_frames import KnownFrames
from rushes.sampling.masks import grey_where_unknown, image_condition, image_mask
from rushes.shot import Keyframe, Shot, ShotError

Ready = Callable[[str, int], None]  # as progress.Prepare


@dataclass(frozen=True, eq=False)
class Conditions:
    """What the transformer gets beside the noisy latent and the words.

    known: latent frames that are given and held at every step. channels: [1, n, T, h, w] behind the noisy latent's.
    image: CLIP tokens [pictures, tokens, width]. control: VACE contexts. references: latent frames of theirs that lie
    before the clip's, and are dropped at the end.
    """

    known: KnownFrames | None = None
    channels: Tensor | None = None
    image: Tensor | None = None
    control: tuple[Context, ...] = ()
    references: int = 0


class Conditioner:
    """Makes the conditions of resolved shots. ready: called before a part works, with the bytes that it will need."""

    def __init__(self, card: Card, modules: Modules, ready: Ready, device: torch.device, dtype: torch.dtype) -> None:
        self._card, self._modules, self._ready = card, modules, ready
        self._device, self._dtype = device, dtype

    def read(self, shot: Shot, before: Tensor | None, tell: OnProgress) -> Conditions:
        """The conditions of a shot that may go on from latents `before` [1, C, n, h, w]. Raises ShotError."""
        start = None if before is None else self._start(before, shot)
        kind = self._card.kind
        if kind in ("image", "ends"):
            return self._image(shot, start, tell)
        if kind == "control":
            return self._control(shot, start, tell)
        if (footage := read_start(shot, self._device)) is not None:
            whole = (footage.shape[2] - 1) // self._card.vae.temporal_factor * self._card.vae.temporal_factor + 1
            self._ready_to_encode(shot)
            start = self._modules.vae.encode(footage[:, :, :whole].to(self._dtype)).float()
        return Conditions(known=self._known(shot, start, tell))

    def _known(self, shot: Shot, start: Tensor | None, tell: OnProgress) -> KnownFrames | None:
        """What is given, as clean latent frames: the clip before, then keyframes; None without any."""
        if start is None and not shot.keyframes:
            return None
        latents = torch.zeros(self._latent_shape(shot), device=self._device)
        mask = torch.zeros(latents.shape[2], dtype=torch.bool)
        if start is not None:
            latents[:, :, : start.shape[2]] = start
            mask[: start.shape[2]] = True
        for keyframe, picture in self._pictures(shot, start, tell):
            at = self._card.vae.latent_of(keyframe.frame)
            encoded = self._modules.vae.encode_keyframe(picture.to(self._dtype), first=at == 0)
            latents[:, :, at : at + 1] = encoded.float()  # [1, C, 1, h, w]
            mask[at] = True
        return KnownFrames(latents, mask)

    def _image(self, shot: Shot, start: Tensor | None, tell: OnProgress) -> Conditions:
        """Wan I2V and FLF2V: the given frames, grey elsewhere, encoded; which they are; and CLIP's view of the ends."""
        assert shot.size is not None and shot.frames is not None
        pictures = {keyframe.frame: picture for keyframe, picture in self._pictures(shot, start, tell)}
        given = self._frames(start) if start is not None else read_start(shot, self._device)  # [1, 3, n, H, W]
        video = torch.zeros(1, 3, shot.frames, shot.size[1], shot.size[0], device=self._device)
        known = torch.zeros(shot.frames, dtype=torch.bool)
        if given is not None:
            video[:, :, : given.shape[2]] = given
            known[: given.shape[2]] = True
        for frame, picture in pictures.items():
            video[:, :, frame] = picture
            known[frame] = True
        self._ready_to_encode(shot)
        latents = self._modules.vae.encode(grey_where_unknown(video, known).to(self._dtype)).float()
        if start is not None:
            latents[:, :, : start.shape[2]] = start  # as they are: another round through the VAE would shift them
        mask = image_mask(known, *latents.shape[3:]).to(self._device)
        ends = pictures if given is None else {0: given[:, :, 0], **pictures}
        held = None if start is None else self._held(latents, start.shape[2])
        return Conditions(held, image_condition(mask, latents), self._tokens(ends))

    def _control(self, shot: Shot, start: Tensor | None, tell: OnProgress) -> Conditions:
        """Wan VACE: the given frames, footage and references, as contexts of the control branch."""
        kept = {keyframe.frame: picture for keyframe, picture in self._pictures(shot, start, tell)}
        self._ready_to_encode(shot)
        if start is not None:
            kept |= dict(enumerate(self._frames(start).unbind(2)))

        def encode(video: Tensor) -> Tensor:
            return self._modules.vae.encode(video.to(self._dtype)).float()

        contexts, references = read_contexts(shot, kept, start, encode, self._device)
        held = None
        if start is not None:
            noisy = torch.zeros(self._latent_shape(shot), device=self._device)
            noisy[:, :, : start.shape[2]] = start
            held = self._held(F.pad(noisy, (0, 0, 0, 0, references, 0)), start.shape[2], references)
        return Conditions(held, control=contexts, references=references)

    def _held(self, latents: Tensor, frames: int, after: int = 0) -> KnownFrames:
        mask = torch.zeros(latents.shape[2], dtype=torch.bool)
        mask[after : after + frames] = True
        return KnownFrames(latents, mask)

    def _tokens(self, pictures: Mapping[int, Tensor]) -> Tensor | None:
        """CLIP tokens [pictures, tokens, width] of pictures [1, 3, H, W] by their frames; None without CLIP."""
        if self._card.vision is None:
            return None
        ordered = torch.cat([pictures[frame] for frame in sorted(pictures)])
        self._ready("clip", clip_bytes(self._card.vision, len(ordered), self._dtype.itemsize))
        tower = self._modules.clip
        place = tower.embeddings.class_embedding.device  # the processor, where the card is short of memory
        pixels = clip_pixels((ordered.to(place) + 1) / 2, self._card.vision.image_size)
        return tower(pixels).to(self._device)

    def _pictures(self, shot: Shot, start: Tensor | None, tell: OnProgress) -> Sequence[tuple[Keyframe, Tensor]]:
        """Each keyframe with its picture, float32 [1, 3, H, W] in [-1, 1] on the device."""
        from rushes.media import load_image

        assert shot.size is not None
        taken = 0 if start is None else start.shape[2]
        found = []
        for i, keyframe in enumerate(shot.keyframes):
            tell(Progress("keyframes", i, len(shot.keyframes)))
            if self._card.vae.latent_of(keyframe.frame) < taken:
                raise ShotError(f"keyframe: got frame {keyframe.frame}; the clip before already gives that part")
            picture = torch.from_numpy(load_image(keyframe.image, shot.size)).permute(2, 0, 1)[None]  # [1, 3, H, W]
            found.append((keyframe, (picture * 2 - 1).to(self._device)))
            tell(Progress("keyframes", i + 1, len(shot.keyframes)))
        if found:
            self._ready_to_encode(shot)
        return found

    def _frames(self, latents: Tensor) -> Tensor:
        """Frames [1, 3, n, H, W] in [-1, 1] of latents."""
        return self._modules.vae.decode(latents.to(self._dtype)).float()

    def _start(self, before: Tensor, shot: Shot) -> Tensor:
        B, C, T, h, w = self._latent_shape(shot)
        if before.ndim != 5 or before.shape[:2] != (B, C) or before.shape[3:] != (h, w) or before.shape[2] >= T:
            allowed = f"[{B}, {C}, up to {T - 1}, {h}, {w}]"
            raise ShotError(f"before: got latents {list(before.shape)}; {allowed} is allowed with this clip")
        return before.to(self._device, torch.float32)

    def _latent_shape(self, shot: Shot) -> tuple[int, int, int, int, int]:
        assert shot.size is not None and shot.frames is not None
        vae = self._card.vae
        width, height = (side // vae.spatial_factor for side in shot.size)
        return (1, vae.latent_channels, vae.latent_frames(shot.frames), height, width)

    def _ready_to_encode(self, shot: Shot) -> None:
        height, width = self._latent_shape(shot)[3:]
        self._ready("vae", encode_bytes(self._card.vae, height, width, self._dtype.itemsize))
