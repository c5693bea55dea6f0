# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Attention for the layers of somebody else's model: decided call by call, counted, and handed on where it must be.

A host that lets its attention be replaced gives each call of a layer to `HostedAttention.serve`, and tells it by
`begin_pass` which latent and which step a pass through the model belongs to. Knows no host.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from rushes.attention import dispatch, torch_backend
from rushes.attention.dispatch import Precision
from rushes.attention.latest import backend as latest_backend
from rushes.attention.patterns import TileLists, TilePattern, TopK, Triple
from rushes.attention.tally import Row, Tally, mark
from rushes.attention.token_grid import Layout, Place, Shelf, find_layout, reorder, tile_means

Function = TypeVar("Function", bound=Callable[..., Any])
Mode = Literal["dense", "window", "density"]
SHORT = 512  # tokens below which a grid has too few tiles for a choice among them
_PLANS = 8  # that are kept; one sampling has one or two

# Why a call is dense where tiles were asked for. Everything else that keeps it from them is told in the log.
CROSS, FEW = "queries and keys differ", f"fewer than {SHORT} tokens"
FIRST_STEPS, LAST_STEPS, FIRST_LAYERS, LAST_LAYERS = "first steps", "last steps", "first layers", "last layers"
UNCOUNTED = "layers not counted before the first pass ends"
_EXPECTED = {"", CROSS, FEW, FIRST_STEPS, LAST_STEPS, FIRST_LAYERS, LAST_LAYERS, UNCOUNTED}


@dataclass(frozen=True)
class HostedSettings:
    """What the artist chose. mode "dense": the kernel alone; "window" and "density": of the video's own attention, the
    tiles around each tile, or those that fit it best. tile: tokens (t, h, w). window: tiles (t, h, w). density: above 0
    up to 1. first_steps ... last_layers: of each sampling and each pass, dense in any mode. place: where tokens stand
    that are not the video's; None as the host says. precision: None as the inputs.
    """

    mode: Mode = "dense"
    tile: Triple = (4, 4, 4)
    window: Triple = (3, 3, 3)
    density: float = 0.2
    wrap: bool = False
    first_steps: int = 0
    last_steps: int = 0
    first_layers: int = 0
    last_layers: int = 0
    place: Place | None = None
    precision: Precision | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode: got {self.mode!r}; dense, window or density is allowed")
        for name in ("first_steps", "last_steps", "first_layers", "last_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}; 0 and more are allowed")
        self.pattern((1, 1, 1), 0)  # refuses the others in its own sentences

    def pattern(self, grid: Triple, others: int) -> TilePattern | TopK:
        """Of a grid with so many tokens beyond it."""
        if self.mode == "density":
            return TopK(grid, self.tile, others, self.density)
        return TilePattern(grid, self.tile, others, self.window, self.wrap)


@dataclass(frozen=True)
class Call:
    """One call of a layer. q, k, v: [batch, length, heads * head_dim], or by_heads [batch, heads, length, head_dim].

    layer: names the block that calls, the same for all its calls; None: each call on the video is a layer of its own.
    exact: multiply in no less than the inputs' precision. upcast: multiply in float32. refusal: why the host's call is
    beyond us, as it sees it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    masked: bool = False
    by_heads: bool = False
    out_by_heads: bool = False
    scale: float | None = None
    exact: bool = False
    upcast: bool = False
    layer: Hashable | None = None
    refusal: str | None = None


@dataclass
class Pass:
    """One evaluation of the model. sizes: of its latent, (T, H, W) or (H, W). step: from 0."""

    tally: Tally
    sizes: tuple[int, ...]
    patch: Triple | None
    place: Place
    text: int | None
    step: int
    steps: int
    layers: int | None  # that another pass has counted
    layer: int = -1
    shelf: Shelf = field(default_factory=Shelf)
    _name: Hashable | None = None
    _layouts: dict[int, Layout | str] = field(default_factory=dict)

    def layout(self, tokens: int) -> Layout | str:
        """Where the video stands among so many tokens, or why that is not known."""
        if tokens not in self._layouts:
            self._layouts[tokens] = find_layout(self.sizes, self.patch, tokens, self.place, self.text)
        return self._layouts[tokens]

    def enter(self, name: Hashable | None) -> None:
        """A call on the video: count its layer."""
        if name is None or name != self._name or self.layer < 0:
            self.layer += 1
        self._name = name


@dataclass(frozen=True)
class _Plan:
    """What a sparse call needs and every other call on the same tokens needs again. starts: of the video's tiles."""

    pattern: TilePattern | TopK
    order: Tensor
    inverse: Tensor
    starts: np.ndarray
    name: str

    @classmethod
    def of(cls, pattern: TilePattern | TopK, layout: Layout, device: torch.device) -> _Plan:
        order = torch.from_numpy(layout.order(pattern)).to(device)
        tiles = math.prod(pattern.tiles)
        starts = pattern.starts()[: tiles + 1]
        others = (
            f" and {layout.others} tokens {'before' if layout.others_first else 'after'} it" if layout.others else ""
        )
        return cls(pattern, order, torch.argsort(order), starts, "x".join(map(str, layout.grid)) + others)


class HostedAttention:
    """settings, and what became of the calls. cancel: anything with is_set(), asked while the kernel runs. log: takes
    each distinct reason once."""

    def __init__(self, settings: HostedSettings, cancel: Any = None, log: Callable[[str], None] | None = None) -> None:
        self.settings = settings
        self.tally = Tally()
        self.runs = 0
        self._cancel = cancel
        self._log = log or logging.getLogger(__name__).info
        self._told: set[str] = set()
        self._layers: int | None = None
        self._plans: dict[tuple[Layout, torch.device], _Plan | None] = {}

    def begin_run(self) -> None:
        """A sampling begins: count anew."""
        self.tally = Tally()
        self.runs += 1

    def begin_pass(
        self,
        sizes: tuple[int, ...],
        *,
        patch: Triple | None = None,
        place: Place = "",
        text: int | None = None,
        sigma: Any = None,
        sigmas: Any = None,
    ) -> Pass:
        """The model is about to be evaluated; sizes, patch, place and text as in `find_layout`.

        sigma: the noise level, a tensor whose first counts or a number. sigmas: all levels of the sampling,
        [steps + 1]. Without them the step is not known, and every call dense if one of the first or last is to be.
        """
        self.tally.passes += 1
        chosen = self.settings.place
        where, known = (place, text) if chosen is None else (chosen, None)
        step, steps = _step(sigma, sigmas)
        return Pass(self.tally, sizes, patch, where, known, step, steps, self._layers)

    def end_pass(self, current: Pass) -> None:
        """It has been, to its end."""
        if current.layer >= 0:
            self._layers = current.layer + 1

    def serve(self, call: Call, current: Pass | None, otherwise: Callable[[], Tensor]) -> Tensor:
        """The call's answer, in the shape that it wants; that of `otherwise` where this cannot serve.

        Raises Cancelled.
        """
        tally = current.tally if current is not None else self.tally
        plan, why = self._plan(call, current)
        reason = call.refusal or _obstacle(call, self._precision(call), sparse=plan is not None)
        if reason is not None:
            tally.handed_on[reason] += 1
            self._tell(f"handed on to the attention that was there: {reason}")
            return otherwise()
        q, k, v = (_by_heads(x, call) for x in (call.q, call.k, call.v))  # [batch, heads, length, head_dim]
        if plan is not None and current is not None:
            out = self._sparse(call, q, k, v, plan, current)
        else:
            if why not in _EXPECTED:
                self._tell(f"dense: {why}")
            started = mark(q.device)
            out = self._attend(call, q, k, v, None)
            done = mark(q.device)
            tally.dense.setdefault((latest_backend() or "", why), Row()).add((started, started, done, done))
        return out if call.out_by_heads else out.transpose(1, 2).flatten(2)

    def report(self) -> str:
        """The latest sampling, as text."""
        chosen = self.settings
        tile = "x".join(map(str, chosen.tile))
        about = {
            "dense": "dense",
            "window": f"window of {'x'.join(map(str, chosen.window))} tiles of {tile} tokens",
            "density": f"density {chosen.density:.2%}, tiles of {tile} tokens",
        }[chosen.mode]
        if not self.tally.served and not self.tally.handed_on:
            return (
                f"Rushes Attention, {about}\nno calls: nothing was sampled, or another node's attention took its place"
            )
        return f"Rushes Attention, {about}, sampling {self.runs}\n{self.tally.text()}"

    def _plan(self, call: Call, current: Pass | None) -> tuple[_Plan | None, str]:
        """How to serve by tiles, or None and why densely."""
        if self.settings.mode == "dense":
            return None, ""
        tokens = call.q.shape[-2]
        if call.k.shape[-2] != tokens:
            return None, CROSS
        if tokens < SHORT:
            return None, FEW
        if current is None:
            return None, "the call belongs to no pass of the model"
        layout = current.layout(tokens)
        if isinstance(layout, str):
            return None, layout
        current.enter(call.layer)
        if why := self._dense_here(current):
            return None, why
        plan = self._plan_for(layout, call.q.device)
        return (plan, "") if plan is not None else (None, "the tiles that are kept are all tiles of the grid")

    def _dense_here(self, current: Pass) -> str:
        """Whether the artist wants this step or layer dense: why, or nothing."""
        if (self.settings.first_steps or self.settings.last_steps) and not current.steps:
            return "the host does not tell the step"
        return dense_reason(self.settings, current.step, current.steps, current.layer, current.layers)

    def _plan_for(self, layout: Layout, device: torch.device) -> _Plan | None:
        """None where the pattern keeps all."""
        if (layout, device) not in self._plans:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            pattern = self.settings.pattern(layout.grid, layout.others)
            full = pattern.density() >= 1 if isinstance(pattern, TilePattern) else pattern.density >= 1
            self._plans[layout, device] = None if full else _Plan.of(pattern, layout, device)
        return self._plans[layout, device]

    def _sparse(self, call: Call, q: Tensor, k: Tensor, v: Tensor, plan: _Plan, current: Pass) -> Tensor:
        """By tiles; q, k, v and the answer in the host's order."""
        started = mark(q.device)
        q, k, v = (reorder(x, plan.order, current.shelf, name) for name, x in (("q", q), ("k", k), ("v", v)))
        ordered = mark(q.device)
        if isinstance(plan.pattern, TopK):
            sign = 1.0 if call.scale is None else call.scale  # all that a scale can change of an order
            lists = plan.pattern.lists_of_means(tile_means(q, plan.starts), tile_means(k, plan.starts), sign)
        else:
            lists = plan.pattern.lists()
        out = self._attend(call, q, k, v, lists)
        done = mark(q.device)
        out = reorder(out, plan.inverse)
        current.tally.sparse.setdefault((latest_backend() or "", ""), Row()).add(
            (started, ordered, done, mark(q.device))
        )
        current.tally.density.add(lists, q.shape[0] * q.shape[1])
        current.tally.grids.add(plan.name)
        return out

    def _attend(self, call: Call, q: Tensor, k: Tensor, v: Tensor, lists: TileLists | None) -> Tensor:
        precision = self._precision(call)
        return dispatch.attention(
            q, k, v, scale=call.scale, pattern=lists, precision=precision, backend="rushes", cancel=self._cancel
        )

    def _precision(self, call: Call) -> Precision | None:
        """What to multiply in; None: as the inputs are."""
        wanted = self.settings.precision
        if call.upcast:
            # a card's kernel adds up in float32 in any case, and the scores are what the host fears for
            wanted = "fp32" if call.q.device.type == "cpu" else None
        elif call.exact:
            wanted = None
        return None if wanted == "fp32" and call.q.dtype == torch.float32 else wanted

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._log(f"Rushes Attention: {what}")


def dense_reason(settings: HostedSettings, step: int, steps: int, layer: int, layers: int | None) -> str:
    """Why a layer is to be dense in a step, both from 0, or nothing. layers: None where they are not counted yet."""
    if step < settings.first_steps:
        return FIRST_STEPS
    if settings.last_steps and step >= steps - settings.last_steps:
        return LAST_STEPS
    if layer < settings.first_layers:
        return FIRST_LAYERS
    if settings.last_layers and layers is None:
        return UNCOUNTED
    if layers is not None and settings.last_layers and layer >= layers - settings.last_layers:
        return LAST_LAYERS
    return ""


def untraced(function: Function) -> Function:
    """For torch.compile to call and not to look into: what is decided and counted here differs from call to call."""
    made: Function = torch.compiler.disable(function)
    return made


def _by_heads(x: Tensor, call: Call) -> Tensor:
    """[batch, heads, length, head_dim], a view."""
    return x if call.by_heads else x.unflatten(-1, (call.heads, -1)).transpose(1, 2)


def _obstacle(call: Call, precision: Precision | None, *, sparse: bool) -> str | None:
    """Why the kernel cannot serve this or should not; None when it is to."""
    if call.masked:
        return "mask: the call has one; none is allowed"
    for name, x in (("q", call.q), ("k", call.k), ("v", call.v)):
        if not call.by_heads and x.shape[-1] % call.heads:
            return f"{name}: its width is {x.shape[-1]}; a multiple of the {call.heads} heads is allowed"
    q, k, v = (_by_heads(x, call) for x in (call.q, call.k, call.v))
    try:
        forced = dispatch.forced_backend()
        found = dispatch.supports(q, k, v, precision=precision)
    except ValueError as error:
        return str(error)
    if forced not in (None, "rushes"):
        return f"RUSHES_ATTENTION asks for {forced}"
    if not found:
        return "; ".join(found.reasons)
    if sparse:
        return "a dispatch mode of torch follows the calls" if torch_backend.is_traced(q, k, v) else None
    if precision is not None or q.device.type == "cuda":
        return None
    return dispatch.slower(q, k)


def _step(sigma: Any, sigmas: Any) -> tuple[int, int]:
    """(step from 0, steps) of a noise level among all; (0, 0) when they are not known."""
    if sigma is None or sigmas is None or len(sigmas) < 2:
        return 0, 0
    levels = sigmas.tolist() if isinstance(sigmas, Tensor) else [float(level) for level in sigmas]
    now = float(sigma.flatten()[0]) if isinstance(sigma, Tensor) else float(sigma)
    slack = 1e-4 * abs(now)  # a host computes levels in float32, and some samplers in between two of them
    if levels[0] < levels[-1]:  # towards noise
        reached = sum(level <= now + slack for level in levels[:-1])
    else:
        reached = sum(level >= now - slack for level in levels[:-1])
    return max(reached - 1, 0), len(levels) - 1
