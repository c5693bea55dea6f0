# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A host's whole sampling: which steps and layers are dense, and what the report says afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rushes.attention import TilePattern, kernel
from rushes.attention.extension import load_extension
from rushes.attention.hosted import (
    CROSS,
    FEW,
    FIRST_LAYERS,
    FIRST_STEPS,
    LAST_LAYERS,
    LAST_STEPS,
    UNCOUNTED,
    Call,
    HostedAttention,
    HostedSettings,
)

if load_extension().module is None:
    pytest.skip(load_extension().reason, allow_module_level=True)

SIZES, PATCH = (5, 22, 26), (1, 2, 2)  # a grid of 5x11x13 tokens
HEADS, HEAD_DIM = 2, 64


def _call(tokens: int, keys: int | None = None, layer: Any = None) -> Call:
    q, k, v = (torch.randn(1, n, HEADS * HEAD_DIM) for n in (tokens, keys or tokens, keys or tokens))
    return Call(q, k, v, HEADS, layer=layer)


def _refuse() -> Tensor:
    raise AssertionError("the call was handed on")


def _sampled(settings: HostedSettings, steps: int = 5, layers: int = 4, named: bool = False) -> HostedAttention:
    """A sampling whose passes have `layers` blocks of attention to the video and to a text."""
    hosted = HostedAttention(settings)
    hosted.begin_run()
    sigmas = torch.linspace(1, 0, steps + 1)
    for step in range(steps):
        current = hosted.begin_pass(SIZES, patch=PATCH, sigma=sigmas[step].expand(2), sigmas=sigmas)
        for layer in range(layers):
            for _ in range(2 if named else 1):  # twice in one block
                hosted.serve(_call(715, layer=("double", layer) if named else None), current, _refuse)
            hosted.serve(_call(715, 130), current, _refuse)
            hosted.serve(_call(300), current, _refuse)
        hosted.end_pass(current)
    return hosted


def _dense(hosted: HostedAttention) -> dict[str, int]:
    found = {why: row.calls for (_, why), row in hosted.tally.dense.items()}
    assert found.pop(CROSS) + found.pop(FEW) == 2 * 20
    return found


@pytest.mark.parametrize("named", [False, True])
def test_first_and_last_steps_and_layers_stay_dense(named: bool) -> None:
    """Counted by block where the host names them, by call otherwise."""
    by_layer = 2 if named else 1
    hosted = _sampled(
        HostedSettings(mode="window", window=(1, 1, 1), first_steps=2, last_steps=1, first_layers=1, last_layers=1),
        named=named,
    )
    assert _dense(hosted) == {
        FIRST_STEPS: 2 * 4 * by_layer,
        LAST_STEPS: 1 * 4 * by_layer,
        FIRST_LAYERS: 2 * by_layer,
        LAST_LAYERS: 2 * by_layer,
    }
    assert sum(row.calls for row in hosted.tally.sparse.values()) == 2 * 2 * by_layer


def test_last_layers_are_known_after_the_first_pass() -> None:
    """Until then nobody knows which is the last, so that all are dense; a second sampling knows from its start."""
    hosted = _sampled(HostedSettings(mode="window", window=(1, 1, 1), last_layers=1))
    assert _dense(hosted) == {UNCOUNTED: 4, LAST_LAYERS: 4}


def test_a_step_that_the_host_does_not_tell_is_dense() -> None:
    """Where dense steps are asked for, all are."""
    hosted = HostedAttention(HostedSettings(mode="window", first_steps=1, window=(1, 1, 1)))
    hosted.serve(_call(715), hosted.begin_pass(SIZES, patch=PATCH), _refuse)
    assert [why for _, why in hosted.tally.dense] == ["the host does not tell the step"]


LEVELS = [1.0, 0.7, 0.4, 0.1, 0.0]


@pytest.mark.parametrize(
    ("sigma", "sigmas", "step"),
    [
        (1.0, LEVELS, 0),
        (0.7, LEVELS, 1),
        (0.69999, LEVELS, 1),  # rounding of the host
        (0.55, LEVELS, 1),  # a second-order sampler, between two levels
        (0.1, LEVELS, 3),
        (0.0, LEVELS, 3),  # the last level belongs to the last step
        (1.3, LEVELS, 0),  # noise added on top
        (0.0, LEVELS[::-1], 0),  # towards noise
        (0.4, LEVELS[::-1], 2),
    ],
)
def test_a_noise_level_names_its_step(sigma: float, sigmas: list[float], step: int) -> None:
    """As tensors or as numbers."""
    hosted = HostedAttention(HostedSettings())
    for made in (lambda x: x, torch.tensor):
        current = hosted.begin_pass(SIZES, sigma=made(sigma), sigmas=made(sigmas))
        assert (current.step, current.steps) == (step, 4)


def test_a_sampling_counts_anew() -> None:
    """And what an earlier pass still counts goes to the earlier one."""
    hosted = HostedAttention(HostedSettings())
    assert "no calls" in hosted.report()
    old = hosted.begin_pass(SIZES)
    hosted.serve(_call(715), old, _refuse)
    hosted.begin_run()
    hosted.serve(_call(715), old, _refuse)
    assert (hosted.tally.served, old.tally.served) == (0, 2)


def test_the_report_says_what_was_done() -> None:
    """In plain lines: grid, calls, seconds, density."""
    hosted = _sampled(HostedSettings(mode="window", window=(1, 1, 1), first_steps=2))
    text = hosted.report()
    backend = f"rushes {kernel.backend_name(HEAD_DIM, 'float32', None)}"
    for part in (
        "window of 1x1x1 tiles of 4x4x4 tokens, sampling 1",
        "60 calls in 5 passes, ",
        "grid: 5x11x13",
        f"sparse by {backend}: 12 calls, ",
        f"dense by {backend} (first steps): 8 calls, ",
        f"density delivered: {TilePattern((5, 11, 13), (4, 4, 4), window=(1, 1, 1)).density():.2%} ",
    ):
        assert part in text
    assert hosted.tally.seconds > 0
