# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Self-attention by tiles in the layers of a model of ours, dense where the artist wants it, and what each delivered.

The tokens lie in tile order from the first block to the last, so that no layer pays for it, dense ones included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from rushes.attention.dispatch import Precision, attention
from rushes.attention.hosted import FEW, FIRST_STEPS, LAST_STEPS, SHORT, HostedSettings, Mode, dense_reason
from rushes.attention.patterns import TilePattern, TopK, Triple
from rushes.attention.tally import Density
from rushes.attention.token_grid import Place, tile_means

_TRIPLES = ("tile", "window")
_WHOLE = ("first_steps", "last_steps", "first_layers", "last_layers")
_CHOICES: dict[str, tuple[object, ...]] = {
    "wrap": (True, False), "place": (*get_args(Place), None), "precision": (*get_args(Precision), None),
    "mode": get_args(Mode),
}  # fmt: skip


@dataclass(frozen=True)
class SparseAttention(HostedSettings):
    """What self-attention keeps, as `HostedSettings` has it; by density unless mode says "window"."""

    mode: Mode = "density"

    @classmethod
    def parse(cls, text: str) -> SparseAttention:
        """From a density, such as 0.2, or from fields, such as density=0.2,first_steps=2,tile=4x4x4 or window=3x3x3.

        Raises ValueError that names the field, what was got and what is allowed.
        """
        values: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = part.strip().partition("=")
            if not equals:
                name, value = "density", name
            if name not in ("density", *_TRIPLES, *_WHOLE):
                allowed = ", ".join(("density", *_TRIPLES, *_WHOLE))
                raise ValueError(f"attention: got {part.strip()!r}; a density, or {allowed} = a value, is allowed")
            values[name] = _value(name, value)
        if "window" in values:
            if "density" in values:
                raise ValueError(f"attention: got {text!r}; density or window, one of them, is allowed")
            values["mode"] = "window"
        return cls(**values)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SparseAttention:
        """From what `dataclasses.asdict` gave, JSON between. Raises ValueError for anything else."""
        known = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"attention: got {name!r}; {', '.join(known)} are allowed")
            if not _is_fit(name, value):
                raise ValueError(f"attention: {name} is {value!r}; {_allowed(name)} is allowed")
        return cls(**values)


def _is_fit(name: str, value: object) -> bool:
    """Whether a field's value out of JSON has the right type; `HostedSettings` looks at what it says."""
    if name in _TRIPLES:
        return isinstance(value, tuple) and len(value) == 3 and all(type(part) is int for part in value)
    if name in _WHOLE:
        return type(value) is int
    if name == "density":
        return type(value) in (int, float)
    return isinstance(value, bool) if name == "wrap" else value in _CHOICES[name]


def _allowed(name: str) -> str:
    if name in _CHOICES:
        return " or ".join(map(str, _CHOICES[name]))
    if name in _TRIPLES:
        return "T x H x W such as 4x4x4"
    return "a whole number" if name in _WHOLE else "a number"


def _value(name: str, text: str) -> float | int | Triple:
    try:
        if name in _TRIPLES:
            t, h, w = (int(part) for part in text.split("x"))
            return t, h, w
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        raise ValueError(f"attention: {name} is {text!r}; {_allowed(name)} is allowed") from None


class SparseLayers:
    """The self-attention of one sampling. layers: how many the model has, control layers not counted."""

    def __init__(self, settings: HostedSettings, layers: int, steps: int) -> None:
        self._settings, self._layers, self._steps = settings, layers, steps
        self._step = 0
        self._patterns: dict[Triple, TilePattern | TopK | None] = {}
        self._densities: dict[int, Density] = {}
        self._whole_steps: dict[str, set[int]] = {}  # why dense -> steps

    def begin_step(self, step: int) -> None:
        """The passes to come belong to this step, from 0."""
        self._step = step

    def pattern(self, grid: Triple) -> TilePattern | TopK | None:
        """What layers keep of a grid of tokens in this step; None: all of it, in all layers."""
        settings = self._settings
        why = FEW if math.prod(grid) < SHORT else dense_reason(settings, self._step, self._steps, 0, None)
        if settings.mode == "dense" or why in (FEW, FIRST_STEPS, LAST_STEPS):
            self._whole_steps.setdefault(why or "dense", set()).add(self._step)
            return None
        if grid not in self._patterns:
            found = settings.pattern(grid, 0)
            share = found.density() if isinstance(found, TilePattern) else found.density
            self._patterns[grid] = found if share < 1 else None
        return self._patterns[grid]

    def attend(self, layer: int, pattern: TilePattern | TopK, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One layer's attention; q, k, v: [batch, heads, length, head_dim] in the pattern's order."""
        heads, density = q.shape[0] * q.shape[1], self._densities.setdefault(layer, Density())
        if dense_reason(self._settings, self._step, self._steps, layer, self._layers):
            density.add_all(float(q.shape[2]) * k.shape[2] * heads)
            return attention(q, k, v, precision=self._settings.precision)
        if isinstance(pattern, TopK):
            starts = pattern.starts()
            lists = pattern.lists_of_means(tile_means(q, starts), tile_means(k, starts))
        else:
            lists = pattern.lists()
        density.add(lists, heads)
        return attention(q, k, v, pattern=lists, precision=self._settings.precision)

    def report(self) -> dict[str, Any]:
        """JSON-ready: the settings; the share of all scores that was computed in the steps by tiles, over all layers
        and of each; and steps that were dense as a whole, by the reason.
        """
        found = self._densities
        scores = sum(density.scores for density in found.values())
        return {
            "settings": dataclasses.asdict(self._settings),
            "density": sum(density.kept for density in found.values()) / scores if scores else 1.0,
            "layers": [
                {"layer": layer, "density": found[layer].mean, "least": found[layer].least, "most": found[layer].most}
                for layer in sorted(found)
            ],
            "dense_steps": {why: sorted(steps) for why, steps in self._whole_steps.items()},
        }
