# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A model as it stands on the shelf: which shots it takes, what an output of it carries, and what a shot costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rushes._version import __version__
from rushes.hashing import joint_digest
from rushes.model.bundle import Card, read_card
from rushes.model.digests import digest
from rushes.model.files import FilesCard, ModelFiles, files_card
from rushes.model.finding import find_model
from rushes.model.forms import check_control, check_keyframes
from rushes.model.rack import FEW_GUIDANCE, FEW_STEPS, Rack, Settings, has_few_steps
from rushes.model.tokenizer import Tokenizer
from rushes.shot import TRAINED_MEDIA, Keyframe, Lora, Shot, ShotError, format_guidance


class Work(NamedTuple):
    """What a shot costs: products and sums of the transformer, pixels of the decoder."""

    flops: float
    pixels: int


class Model:
    """What is known of a model without its weights: which shots it takes, and what they cost."""

    def __init__(self, card: Card, path: Path, tokenizer: Tokenizer | None = None) -> None:
        """path: the bundle, or the transformer of a set of files. tokenizer: the card's, if it is made already."""
        self.card, self.path = card, path
        self._tokenizer = tokenizer or card.tokenizer()
        self._sha256, self._digests = "", dict[str, str]()
        self._rack = Rack(card)

    @classmethod
    def open(cls, model: str | Path | ModelFiles = "starter") -> Model:
        """A model by name, folder or file, or by its files. Raises ShotError for one that is not there."""
        found = model if isinstance(model, ModelFiles) else find_model(model)
        if isinstance(found, ModelFiles):
            return Model(files_card(found), found.transformer)
        return Model(read_card(found), found)

    def resolve(self, shot: Shot, fit: bool = False, continues: bool = False) -> Shot:
        """The shot with the model's defaults filled in, checked against the model.

        fit: take the nearest allowed size and number of frames instead of refusing. continues: it goes on from a clip
        before, which an image-to-video model then needs no first picture for. Raises ShotError.
        """
        defaults = self.card.defaults
        if isinstance(shot.guidance, tuple) and self.card.boundary is None:
            got = format_guidance(shot.guidance)
            raise ShotError(f"guidance: got {got}; {self.card.name} has one transformer and takes one number")
        shot = shot.replace(negative=defaults.negative if shot.negative is None else shot.negative)
        size = self.card.allowed_size(shot.size or defaults.size, fit)
        frames = self.card.allowed_frames(shot.frames or defaults.frames, fit)
        for name, text in texts(shot).items():
            self._tokens(name, text)
        keyframes = self._keyframes(shot.keyframes, frames)
        shot = shot.replace(loras=self.loras(shot))
        steps, guidance = (FEW_STEPS, FEW_GUIDANCE) if has_few_steps(shot) else (defaults.steps, defaults.guidance)
        check_control(self.card, shot.control, frames, continues)
        starts = continues or any(control.kind == "source" for control in shot.control)
        check_keyframes(self.card, [keyframe.frame for keyframe in keyframes], frames, starts)
        return shot.replace(
            size=size,
            frames=frames,
            fps=shot.fps or defaults.rate,
            steps=shot.steps or steps,
            guidance=guidance if shot.guidance is None else shot.guidance,
            keyframes=keyframes,
            model=(self.card.files.reference or self.card.name) if isinstance(self.card, FilesCard) else shot.model,
        )

    def record(self, shot: Shot) -> dict[str, Any]:
        """What every output carries: the whole shot, the model's digest, and the words that it does not know."""
        size = shot.size or self.card.defaults.size
        if not self._sha256:
            paths = self.card.paths(self.path)
            found = {path: digest(path) for path in set(paths.values())}
            self._digests = {part: found[path] for part, path in paths.items()}
            self._sha256 = joint_digest(list(self._digests.values()))
        model = {"name": self.card.name, "sha256": self._sha256, **self.card.details(self._digests, size)}
        if shot.loras or shot.shift is not None:
            model |= self.settings(shot)._asdict()
        if shot.loras:
            model |= {"loras": self._rack.record(shot.loras)}
        unknown = [word for text in texts(shot).values() for word in self._tokenizer.encode(text)[1]]
        return {
            "rushes": __version__,
            "shot": shot.to_dict(),
            "model": model,
            "unknown_words": list(dict.fromkeys(unknown)),
            "digital_source_type": TRAINED_MEDIA,
        }

    def notes(self, shot: Shot) -> list[str]:
        """What the artist should know about a resolved shot before it is made: one sentence each, often none."""
        found = []
        if shot.frames is not None and shot.frames > self.card.trained_frames:
            found.append(
                f"frames: {self.card.name} was trained on up to {self.card.trained_frames} frames; "
                f"expect drift in a clip of {shot.frames}"
            )
        if shot.size is not None and shot.size not in self.card.trained_sizes:
            sizes = " and ".join(f"{width}x{height}" for width, height in self.card.trained_sizes)
            found.append(f"size: {self.card.name} was trained at {sizes}; other sizes are less exact")
        if shot.keyframes and not self.card.keeps_keyframes:
            found.append(f"keyframe: {self.card.name} was trained on text alone; expect a cut beside a given picture")
        return [*found, *self._rack.notes(shot.loras)]

    def loras(self, shot: Shot) -> tuple[Lora, ...]:
        """The shot's LoRAs with their digests. Raises ShotError for one that is gone, has changed or is not for this
        model."""
        return self._rack.resolve(shot.loras)

    def settings(self, shot: Shot) -> Settings:
        """Solver, schedule and shift of a resolved shot."""
        return self._rack.settings(shot)

    def limits(self) -> dict[str, Any]:
        """What a host's panel shows and offers, JSON-ready. Sizes are (width, height)."""
        return self.card.limits()

    def work(self, shot: Shot) -> Work:
        """What a resolved shot costs, counted from the model's shape."""
        assert shot.size is not None and shot.frames is not None and shot.steps is not None
        vae, transformer = self.card.vae, self.card.transformer
        h, w = shot.size[1] // vae.spatial_factor, shot.size[0] // vae.spatial_factor
        latent_frames = vae.latent_frames(shot.frames) + sum(len(control.references) for control in shot.control)
        tokens = latent_frames * (h // transformer.patch_size) * (w // transformer.patch_size)
        batch = 1 + shot.guided if shot.is_guided else 1
        flops = batch * shot.steps * transformer.flops(tokens)
        return Work(flops, shot.frames * shot.size[0] * shot.size[1])

    def _keyframes(self, keyframes: Sequence[Keyframe], frames: int) -> tuple[Keyframe, ...]:
        """Keyframes at frames counted from 0, sealed, in order. A control branch sees frames; others, latent frames."""
        placed: dict[int, Keyframe] = {}
        for keyframe in keyframes:
            frame = keyframe.frame + frames if keyframe.frame < 0 else keyframe.frame
            if not 0 <= frame < frames:
                raise ShotError(
                    f"keyframe: got frame {keyframe.frame}; {-frames} to {frames - 1} is allowed in this clip"
                )
            at = frame if self.card.kind == "control" else self.card.vae.latent_of(frame)
            if at in placed and placed[at].frame == frame:
                raise ShotError(f"keyframe: frame {frame} is given twice; one picture for a frame is allowed")
            if at in placed:
                raise ShotError(
                    f"keyframe: frames {placed[at].frame} and {frame} fall into one latent frame; "
                    f"{self.card.vae.temporal_factor} frames between them are enough"
                )
            placed[at] = Keyframe(frame, keyframe.image, keyframe.sha256).sealed()
        return tuple(placed[at] for at in sorted(placed))

    def _tokens(self, name: str, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text)[0]
        except ShotError as error:
            raise ShotError(str(error).replace("prompt", name, 1)) from error


def texts(shot: Shot) -> dict[str, str]:
    """The texts of a shot, by the names of its fields."""
    return {"prompt": shot.prompt, "negative": shot.negative or ""}
