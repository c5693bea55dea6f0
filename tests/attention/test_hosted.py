# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A host's attention calls: what they get, what is handed on and why, and what is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rushes.attention import Cancelled, kernel
from rushes.attention.extension import load_extension
from rushes.attention.hosted import (
    Call,
    HostedAttention,
    HostedSettings,
    untraced,
)
from rushes.attention.patterns import TopK
from rushes.attention.tally import Density

if load_extension().module is None:
    pytest.skip(load_extension().reason, allow_module_level=True)

GRID = (5, 11, 13)  # 715 tokens, ragged along each axis for tiles of 4
SIZES = (5, 22, 26)  # of its latent, with Wan's patch
PATCH = (1, 2, 2)
WINDOW = HostedSettings(mode="window", tile=(4, 4, 4), window=(1, 3, 1))
# Written out, not computed: tests of a model say the same numbers
HEADS, HEAD_DIM = 2, 64


def _call(
    tokens: int, keys: int | None = None, *, batch: int = 1, dtype: torch.dtype = torch.float32, **options: Any
) -> Call:
    """Random q, k, v [batch, tokens, heads * head_dim]; softmax prefers some keys to others."""
    q, k, v = (torch.randn(batch, n, HEADS * HEAD_DIM).to(dtype) for n in (tokens, keys or tokens, keys or tokens))
    return Call(1.5 * q, 1.5 * k, v, HEADS, **options)


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)


def _expected(call: Call, mask: Tensor | None = None) -> Tensor:
    """Torch's, in double precision. mask: bool, True is kept."""
    out = F.scaled_dot_product_attention(*(_heads(x).double() for x in (call.q, call.k, call.v)), attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def _refuse() -> Tensor:
    raise AssertionError("the call was handed on")


def _serve(hosted: HostedAttention, call: Call, sizes: tuple[int, ...] = SIZES, **about: Any) -> Tensor:
    """One call, in a pass of its own."""
    current = hosted.begin_pass(sizes, patch=PATCH, **about)
    out = hosted.serve(call, current, _refuse)
    hosted.end_pass(current)
    return out


def _near(out: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    assert out.shape == expected.shape
    assert (out.double() - expected).norm() / expected.norm() < tolerance


def _tiles(grid: tuple[int, int, int] = GRID, tile: int = 4) -> np.ndarray:
    """[tokens, 3]: the tile of each token in raster order, from the definition."""
    return np.array([[t // tile, h // tile, w // tile] for t, h, w in np.ndindex(*grid)])


def _window_mask(window: tuple[int, int, int], others: int, first: bool) -> Tensor:
    """bool [tokens, tokens]; without wrap, text dense."""
    tiles, video = _tiles(), len(_tiles())
    kept = np.ones((video, video), dtype=bool)
    for axis, width in enumerate(window):
        count = tiles[:, axis].max() + 1
        width = min(width, count)
        start = np.clip(tiles[:, axis] - (width - 1) // 2, 0, count - width)[:, None]
        kept &= (tiles[None, :, axis] >= start) & (tiles[None, :, axis] < start + width)
    at = slice(others, None) if first else slice(0, video)
    mask = np.ones((video + others, video + others), dtype=bool)
    mask[at, at] = kept
    return torch.from_numpy(mask)


@pytest.mark.parametrize("by_heads", [False, True])
@pytest.mark.parametrize("out_by_heads", [False, True])
@pytest.mark.parametrize("settings", [HostedSettings(), WINDOW, HostedSettings(mode="density", density=0.4)], ids=str)
def test_each_form_of_a_call_gets_the_same_answer(settings: HostedSettings, by_heads: bool, out_by_heads: bool) -> None:
    """ComfyUI's layers ask in four forms: heads apart or not, in the question and in the answer."""
    call = _call(715, batch=2)
    plain = _serve(HostedAttention(settings), call)
    asked = [_heads(x).contiguous() if by_heads else x for x in (call.q, call.k, call.v)]
    out = _serve(HostedAttention(settings), Call(*asked, HEADS, by_heads=by_heads, out_by_heads=out_by_heads))
    assert out.shape == ((2, HEADS, 715, HEAD_DIM) if out_by_heads else (2, 715, HEADS * HEAD_DIM))
    torch.testing.assert_close(out.transpose(1, 2).flatten(2) if out_by_heads else out, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("keys", [200, 20])
def test_dense_is_torch_s_answer(keys: int) -> None:
    """Also to a text of another length, whatever the mode."""
    call = _call(715, keys, batch=2)
    for settings in (HostedSettings(), WINDOW):
        _near(_serve(HostedAttention(settings), call), _expected(call))


def test_a_scale_of_the_host_s_own_is_taken() -> None:
    """Newer versions of ComfyUI give one."""
    call = _call(715, scale=0.05)
    q, k, v = (_heads(x).double() for x in (call.q, call.k, call.v))
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.05).transpose(1, 2).flatten(2)
    _near(_serve(HostedAttention(HostedSettings()), call), expected)


CASES: list[tuple[int, str]] = [
    (0, ""),  # the video alone
    (37, "after"),  # text behind it
    (37, "before"),  # text in front of it
]


@pytest.mark.parametrize(("others", "place"), CASES)
def test_a_window_is_the_masked_answer_in_the_host_s_order(others: int, place: Any) -> None:
    """Against torch with a mask made token by token; text is kept in rows and columns."""
    call = _call(715 + others, batch=2)
    hosted = HostedAttention(WINDOW)
    out = _serve(hosted, call, place=place)
    mask = _window_mask((1, 3, 1), others, place == "before")
    _near(out, _expected(call, mask))
    assert hosted.tally.density.mean == pytest.approx(mask.double().mean().item(), rel=1e-12)


@pytest.mark.parametrize(("others", "place"), CASES)
def test_density_keeps_the_best_tiles_by_mean_query_and_key(others: int, place: Any) -> None:
    """Chosen again one tile after another in double precision."""
    call = _call(715 + others)
    hosted = HostedAttention(HostedSettings(mode="density", density=0.3))
    out = _serve(hosted, call, place=place)
    tiles, tokens = _tiles(), 715 + others
    names = np.unique(tiles, axis=0)
    members = [np.flatnonzero((tiles == name).all(1)) + (others if place == "before" else 0) for name in names]
    mask = np.ones((HEADS, tokens, tokens), dtype=bool)
    q, k = (_heads(x)[0].double().numpy() for x in (call.q, call.k))
    for head in range(HEADS):
        for rows in members:
            scores = [float(q[head, rows].mean(0) @ k[head, keys].mean(0)) for keys in members]
            kept = others
            for best in np.argsort(scores)[::-1]:
                mask[head][np.ix_(rows, members[best])] = kept < 0.3 * tokens
                kept += len(members[best])
    _near(out, _expected(call, torch.from_numpy(mask)[None]))
    density = hosted.tally.density
    assert density.mean == pytest.approx(mask.mean(), rel=1e-12)
    assert (density.least, density.most) == pytest.approx((mask.mean((1, 2)).min(), mask.mean((1, 2)).max()), rel=1e-12)
    per_row = mask.sum(2)[:, np.concatenate(members)] / tokens
    assert (per_row >= 0.3).all()
    assert (per_row < 0.3 + 64 / tokens).all()


def test_density_of_several_calls_is_that_of_all_their_scores() -> None:
    """Each head counts once, and the extremes are of any call."""
    first, second = (TopK(grid=(2, 2, 4), tile=(1, 1, 1), density=share) for share in (0.5, 0.25))
    found = Density()
    found.add(first.lists(*torch.randn(2, 1, 1, 16, 8)), heads=1)
    found.add(second.lists(*torch.randn(2, 1, 3, 16, 8)), heads=3)
    assert (found.least, found.mean, found.most) == (0.25, (0.5 + 3 * 0.25) / 4, 0.5)


def test_answers_of_two_layers_share_no_memory() -> None:
    """Buffers are used again from layer to layer, and what was answered must outlive that."""
    hosted = HostedAttention(WINDOW)
    current = hosted.begin_pass(SIZES, patch=PATCH)
    calls = [_call(715) for _ in range(3)]
    answers = [hosted.serve(call, current, _refuse) for call in calls]
    for call, answer in zip(calls, answers, strict=True):
        _near(answer, _expected(call, _window_mask((1, 3, 1), 0, False)))


def _gradients() -> Call:
    call = _call(715)
    return Call(call.q.requires_grad_(), call.k, call.v, HEADS)


OBSTACLES: list[tuple[Callable[[], Call], str]] = [
    (lambda: _call(715, masked=True), "mask: the call has one"),
    (lambda: _call(715, dtype=torch.float64), "its dtype is float64"),
    (lambda: Call(*torch.randn(3, 1, 715, 2 * 20), 2), "its head_dim is 20"),
    (lambda: Call(*torch.randn(3, 1, 715, 129), 2), "its width is 129; a multiple of the 2 heads"),
    (lambda: Call(torch.randn(1, 4, 715, 64), *torch.randn(2, 1, 2, 715, 64), 4, by_heads=True), "k: its shape is"),
    (_gradients, "gradients are wanted"),
    (lambda: _call(715, refusal="sinks: the host asks for what Rushes does not know"), "sinks"),
    (lambda: _call(20, 715), "20 queries; the kernel is the faster one from 128 on"),
]


@pytest.mark.parametrize(("make", "sentence"), OBSTACLES)
@pytest.mark.parametrize("settings", [HostedSettings(), WINDOW], ids=["dense", "window"])
def test_what_the_kernel_cannot_do_is_handed_on_with_its_reason(
    settings: HostedSettings, make: Callable[[], Call], sentence: str
) -> None:
    """The other's answer comes back as it is; the reason is counted each time, and told once."""
    told: list[str] = []
    hosted = HostedAttention(settings, log=told.append)
    theirs, call = torch.randn(3), make()
    for _ in range(3):
        current = hosted.begin_pass(SIZES, patch=PATCH)
        assert hosted.serve(call, current, lambda: theirs) is theirs
    ((reason, count),) = hosted.tally.handed_on.items()
    assert sentence in reason
    assert count == 3
    assert [line for line in told if reason in line] == told[:1]
    assert reason in hosted.report()
    assert hosted.tally.served == 0


@pytest.mark.parametrize("word", ["torch", "nonsense"])
def test_the_environment_can_turn_it_off(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """RUSHES_ATTENTION holds in a host as everywhere; a word that it does not know stops no artist's render."""
    monkeypatch.setenv("RUSHES_ATTENTION", word)
    hosted = HostedAttention(WINDOW)
    theirs = torch.randn(3)
    assert hosted.serve(_call(715), hosted.begin_pass(SIZES, patch=PATCH), lambda: theirs) is theirs
    assert "RUSHES_ATTENTION" in hosted.report()


def test_a_dtype_in_which_torch_is_the_faster_one_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense only: by tiles the kernel wins in any case."""
    monkeypatch.setattr("rushes.attention.dispatch.FASTER", set())
    hosted = HostedAttention(HostedSettings())
    theirs = torch.randn(3)
    assert hosted.serve(_call(715), hosted.begin_pass(SIZES, patch=PATCH), lambda: theirs) is theirs
    assert "torch's attention is the faster one" in hosted.report()
    _serve(HostedAttention(WINDOW), _call(715))


def test_a_window_that_keeps_all_costs_no_order() -> None:
    """Then the dense kernel has less to do."""
    hosted = HostedAttention(HostedSettings(mode="window", tile=(4, 4, 4), window=(9, 9, 9)))
    _serve(hosted, _call(715))
    assert [why for _, why in hosted.tally.dense] == ["the tiles that are kept are all tiles of the grid"]


def test_where_the_grid_is_not_known_the_call_is_dense_and_the_log_says_why() -> None:
    """Never a guess: a wrong grid would be a wrong picture."""
    told: list[str] = []
    hosted = HostedAttention(WINDOW, log=told.append)
    call = _call(715 + 37)
    for _ in range(2):
        _near(_serve(hosted, call), _expected(call))
    assert told == [
        "Rushes Attention: dense: where the 37 tokens beyond the grid 5x11x13 stand is not known for this model"
    ]


def test_the_artist_s_word_on_the_place_wins() -> None:
    """For a model of which the host says nothing, or the wrong thing."""
    hosted = HostedAttention(HostedSettings(mode="window", window=(1, 3, 1), place="before"))
    call = _call(715 + 37)
    _near(_serve(hosted, call, place="after", text=5), _expected(call, _window_mask((1, 3, 1), 37, True)))


def test_cancel_stops_the_kernel() -> None:
    """The host turns it into its own word for it."""
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        _serve(HostedAttention(WINDOW, cancel=cancel), _call(715))


def test_precision_is_lowered_where_the_host_allows_it() -> None:
    """And the row of the report names what multiplied."""
    precise = kernel.backend_name(HEAD_DIM, "float32", None)
    for wanted in ("bf16", "int8"):
        fast = kernel.backend_name(HEAD_DIM, "float32", wanted)
        if fast is None:
            continue
        for settings, options, backend in (
            (HostedSettings(precision=wanted), {}, fast),
            (HostedSettings(precision=wanted), {"exact": True}, precise),
            (HostedSettings(precision=wanted), {"upcast": True}, precise),
            (HostedSettings(precision="fp32"), {}, precise),
        ):
            hosted = HostedAttention(settings)
            _serve(hosted, _call(715, **options))
            assert [name for name, _ in hosted.tally.dense] == [f"rushes {backend}"]


def test_bfloat16_that_is_to_be_widened_is() -> None:
    """ComfyUI asks so for models whose scores leave float16's range."""
    hosted = HostedAttention(HostedSettings())
    call = _call(715, dtype=torch.bfloat16, upcast=True)
    out = _serve(hosted, call)
    assert out.dtype == torch.bfloat16
    assert [name for name, _ in hosted.tally.dense] == [f"rushes {kernel.backend_name(HEAD_DIM, 'bfloat16', 'fp32')}"]
    _near(out, _expected(call), 4e-3)


def test_a_compiler_does_not_look_inside() -> None:
    """What is decided differs from call to call: traced, it would be compiled again and again, or frozen."""
    hosted = HostedAttention(WINDOW)
    call = _call(715)

    def ours(q: Tensor, k: Tensor, v: Tensor, current: Any) -> Tensor:
        return hosted.serve(Call(q, k, v, HEADS), current, _refuse)

    hidden = untraced(ours)
    layer = torch.compile(lambda q, k, v, current: hidden(q + 0, k, v, current) * 2, backend="eager")
    for _ in range(2):
        out = layer(call.q, call.k, call.v, hosted.begin_pass(SIZES, patch=PATCH))
        _near(out / 2, _expected(call, _window_mask((1, 3, 1), 0, False)))
    assert hosted.tally.served == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "sparse"}, "mode: got 'sparse'; dense, window or density is allowed"),
        ({"mode": "density", "density": 0.0}, "density: got 0.0; above 0 and up to 1 is allowed"),
        ({"mode": "window", "window": (0, 1, 1)}, r"window: got \(0, 1, 1\)"),
        ({"tile": (4, 4)}, r"tile: got \(4, 4\)"),
        ({"last_steps": -1}, "last_steps: got -1; 0 and more are allowed"),
    ],
)
def test_settings_refuse_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        HostedSettings(**options)


def test_means_given_choose_the_same_tiles() -> None:
    """TopK's own means and a host's are one selection."""
    pattern = TopK(grid=(3, 7, 6), tile=(2, 3, 4), text=9, density=0.3)
    q, k = torch.randn(2, 1, 3, pattern.length, 16)
    starts = pattern.starts()[:-1]
    means = [np.stack([x[0, :, a:b].numpy().mean(1) for a, b in pairwise(starts)], 1) for x in (q, k)]
    mine, theirs = pattern.lists_of_means(*means, 0.2), pattern.lists(q, k, 0.2)
    assert all(np.array_equal(a, b) for a, b in zip(mine.arrays, theirs.arrays, strict=True))
