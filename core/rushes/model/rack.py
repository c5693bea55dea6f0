# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The LoRAs that shots ask for: found, proved to be of this model, and read once, before any of its weights is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rushes.model import lora as loras
from rushes.model.bundle import Card
from rushes.model.config import Shapes
from rushes.model.digests import digest
from rushes.model.experts import level
from rushes.model.files import FilesCard
from rushes.model.loading import part_shapes
from rushes.shot import Lora, Shot, ShotError

PARTS = {"high": "transformer", "low": "transformer_low"}
# What distillations to four steps were made with, and are used with everywhere
FEW_STEPS, FEW_GUIDANCE, FEW_SHIFT = 4, 1.0, 5.0


class Settings(NamedTuple):
    """How a shot is solved, beside its steps and guidance. See `sampling.schedules` for the names."""

    solver: str
    schedule: str
    shift: float


class Rack:
    """LoRAs of one model."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._shapes: Shapes = {}
        self._read: dict[str, loras.Lora] = {}  # by digest

    def resolve(self, asked: Sequence[Lora]) -> tuple[Lora, ...]:
        """With digests, and the experts that names tell. Raises ShotError for what is not there or not this model's."""
        return tuple(self._resolved(lora) for lora in asked)

    def _resolved(self, asked: Lora) -> Lora:
        path, card = Path(asked.path), self._card
        if asked.expert and card.boundary is None:
            raise ShotError(f"lora: got {asked.expert}={path.name}; {card.name} has one transformer, give {path.name}")
        try:
            found = digest(path)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ShotError(f"lora: {path} cannot be read ({reason}); put it back, or give another one") from error
        if asked.sha256 and asked.sha256 != found:
            raise ShotError(
                f"lora: {path} is not the file this shot was made with (its SHA-256 starts {found[:8]}, the shot's "
                f"{asked.sha256[:8]}); put the old file back or give the LoRA anew"
            )
        if found not in self._read:
            self._shapes = self._shapes or part_shapes(card, "transformer")
            self._read[found] = loras.read_lora(path, self._shapes, card.name)
        expert = asked.expert or (level(path) or "" if card.boundary is not None else "")
        return dataclasses.replace(asked, sha256=found, expert=expert)

    def on(self, part: str, resolved: Sequence[Lora]) -> list[tuple[loras.Lora, float]]:
        """Those for one transformer, "transformer" or "transformer_low", with their strengths."""
        return [(self._read[lora.sha256], lora.strength) for lora in resolved if PARTS.get(lora.expert, part) == part]

    def settings(self, shot: Shot) -> Settings:
        """How a shot is solved: as its model was published, or as a distillation that is on it was."""
        card = self._card
        defaults = card.defaults
        if not has_few_steps(shot) or not isinstance(card, FilesCard):
            shift = card.shift(shot.size or defaults.size) if shot.shift is None else shot.shift
            return Settings(defaults.solver, defaults.schedule, shift)
        given = card.files
        solver = given.solver or "euler"
        schedule = given.schedule or ("simple" if solver == "euler" else defaults.schedule)
        asked = given.shift if shot.shift is None else shot.shift
        return Settings(solver, schedule, FEW_SHIFT if asked is None else asked)

    def notes(self, resolved: Sequence[Lora]) -> list[str]:
        """What the artist should know, one sentence each."""
        found = []
        for lora in resolved:
            if unknown := self._read[lora.sha256].unknown:
                more = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
                found.append(f"lora: {self._card.name} has no place for {unknown[0]!r}{more} in {Path(lora.path).name}")
        experts = {lora.expert for lora in resolved}
        if len(experts) == 1 and (expert := experts.pop()):
            other = "low" if expert == "high" else "high"
            found.append(
                f"lora: the {expert}-noise expert has one and the {other}-noise expert none; expect less of it"
            )
        return found

    @staticmethod
    def record(resolved: Sequence[Lora]) -> list[dict[str, Any]]:
        """What a record's model says of them; where they lie is the shot's to say."""
        return [
            {"name": Path(lora.path).name, "sha256": lora.sha256, "strength": lora.strength}
            | ({"expert": lora.expert} if lora.expert else {})
            for lora in resolved
        ]


def has_few_steps(shot: Shot) -> bool:
    """Whether a distillation to a few steps is on the model."""
    return any(lora.strength > 0 and loras.is_few_steps(lora.path) for lora in shot.loras)
