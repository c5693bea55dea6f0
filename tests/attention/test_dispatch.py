# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""attention(): against the formula written out in double precision, and everything it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from rushes.attention import TilePattern, TopK, attention, dispatch, extension, kernel, last_backend, supports
from rushes.attention.extension import Extension, load_extension

has_kernel = pytest.mark.skipif(load_extension().module is None, reason=load_extension().reason)


@pytest.fixture(autouse=True)
def _no_wish_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUSHES_ATTENTION", raising=False)


# batch, heads, length_q, length_k, head_dim
CASES = [
    (1, 1, 1, 1, 1),  # the smallest there is
    (2, 3, 17, 17, 64),  # self-attention
    (1, 4, 113, 40, 48),  # cross-attention, ragged, a head that is no power of two
    (3, 1, 5, 799, 128),  # few queries, many keys
    (1, 2, 130, 1, 32),  # one key: every query gets its value
]


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """One query at a time, in double precision."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.empty(q.shape, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                scores = (k[b, h] @ q[b, h, i]) * scale  # [length_k]
                weights = torch.exp(scores - scores.max())
                out[b, h, i] = (weights / weights.sum()) @ v[b, h]
    return out


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """The formula in the inputs' own precision: how exact one may expect it to be."""
    return torch.softmax(q @ k.transpose(-1, -2) * scale, -1) @ v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [None, 0.37])
def test_it_is_the_formula(case: tuple[int, ...], dtype: torch.dtype, scale: float | None) -> None:
    """Error against double precision at most twice the plain formula's, plus the rounding of the result."""
    batch, heads, length_q, length_k, head_dim = case
    q = torch.randn(batch, heads, length_q, head_dim).to(dtype)
    k, v = torch.randn(2, batch, heads, length_k, head_dim).to(dtype)
    used = head_dim**-0.5 if scale is None else scale
    out = attention(q, k, v, scale=scale)
    expected = _reference(q, k, v, used)
    assert out.shape == q.shape and out.dtype == dtype
    rounding = 2 * torch.finfo(dtype).eps * expected.abs().max()
    allowed = 2 * (_plain(q, k, v, used).double() - expected).abs().max() + rounding
    assert (out.double() - expected).abs().max() <= allowed


def test_strides_do_not_matter() -> None:
    """Models hand over [batch, length, heads, head_dim] with two dimensions swapped: same numbers."""
    q, k, v = (torch.randn(2, 33, 3, 40).transpose(1, 2) for _ in range(3))
    packed = attention(q.contiguous(), k.contiguous(), v.contiguous())
    torch.testing.assert_close(attention(q, k, v), packed, rtol=1e-5, atol=1e-6)


def test_the_same_input_gives_the_same_bits() -> None:
    """Repeats are equal, which the whole house relies on."""
    q, k, v = torch.randn(3, 1, 2, 257, 64)
    first = attention(q, k, v)
    assert all(torch.equal(attention(q, k, v), first) for _ in range(5))


def _tensor(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(shape, **options)


GOOD = (1, 2, 5, 8)
REFUSED = [
    (_tensor(2, 5, 8), _tensor(*GOOD), _tensor(*GOOD), "q: its shape is [2, 5, 8]"),
    (_tensor(*GOOD), _tensor(1, 2, 5, 8, 1), _tensor(*GOOD), "k: its shape is [1, 2, 5, 8, 1]"),
    (_tensor(*GOOD, dtype=torch.int64), _tensor(*GOOD), _tensor(*GOOD), "q: its dtype is torch.int64"),
    (_tensor(*GOOD), _tensor(*GOOD).half(), _tensor(*GOOD), "k: its dtype is torch.float16"),
    (_tensor(*GOOD), _tensor(*GOOD), _tensor(*GOOD).double(), "v: its dtype is torch.float64"),
    (_tensor(*GOOD), _tensor(*GOOD, device="meta"), _tensor(*GOOD), "k: it is on meta"),
    (_tensor(1, 2, 0, 8), _tensor(*GOOD), _tensor(*GOOD), "q: its shape is [1, 2, 0, 8]"),
    (
        _tensor(*GOOD),
        _tensor(1, 2, 0, 8),
        _tensor(1, 2, 0, 8),
        "k: its shape is [1, 2, 0, 8]",
    ),  # no key at all
    (
        _tensor(*GOOD),
        _tensor(3, 2, 5, 8),
        _tensor(3, 2, 5, 8),
        "k: its shape is [3, 2, 5, 8]",
    ),  # would broadcast
    (
        _tensor(*GOOD),
        _tensor(1, 1, 5, 8),
        _tensor(1, 1, 5, 8),
        "k: its shape is [1, 1, 5, 8]",
    ),  # would broadcast
    (_tensor(*GOOD), _tensor(1, 2, 5, 4), _tensor(1, 2, 5, 4), "k: its shape is [1, 2, 5, 4]"),
    (_tensor(*GOOD), _tensor(*GOOD), _tensor(1, 2, 6, 8), "v: its shape is [1, 2, 6, 8]"),
    (_tensor(*GOOD), _tensor(*GOOD), _tensor(1, 2, 5, 4), "v: its shape is [1, 2, 5, 4]"),
]


@pytest.mark.parametrize(("q", "k", "v", "words"), REFUSED)
def test_what_does_not_fit_is_refused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, words: str) -> None:
    """With the argument, what was got and what is allowed; nothing is broadcast or cast."""
    with pytest.raises(ValueError, match=re.escape(words) + ".*allowed"):
        attention(q, k, v)


def test_the_backend_is_named_per_thread() -> None:
    """A thread that has computed nothing does not see what another one used."""
    attention(*torch.randn(3, 1, 1, 4, 8))
    seen: list[str | None] = []

    def look() -> None:
        seen.append(last_backend())
        attention(*torch.randn(3, 1, 1, 4, 8))
        seen.append(last_backend())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert last_backend() == "torch" and seen == [None, "torch"]


def _qkv(length: int = 40, head_dim: int = 64, **options: Any) -> list[torch.Tensor]:
    return [torch.randn(1, 2, length, head_dim, **options) for _ in range(3)]


def _served(*arguments: Any, **options: Any) -> str:
    attention(*arguments, **options)
    return str(last_backend()).partition(" ")[0]


@has_kernel
def test_each_call_goes_where_it_is_served_best() -> None:
    """Without a wish few queries are torch's, and patterns and NumPy arrays the kernel's; gradients are kept."""
    q, k, v = _qkv()
    assert _served(q, k, v) == "torch"
    assert _served(q.double(), k.double(), v.double()) == "torch"
    assert _served(*_qkv(head_dim=36)) == "torch"
    assert _served(q.numpy(), k.numpy(), v.numpy()) == "rushes"
    pattern = TilePattern(grid=(2, 4, 5), tile=(2, 2, 2), window=(1, 3, 3))
    assert _served(q, k, v, pattern=pattern) == "rushes"
    wanted = q.clone().requires_grad_()
    assert attention(wanted, k, v).requires_grad
    assert attention(wanted, k, v, pattern=pattern).requires_grad


@has_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_many_queries_go_to_the_faster_code(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """By the table of what was measured, for the engine that serves here; never for a processor without an entry."""
    monkeypatch.setattr(dispatch, "MIN_PRODUCTS", dict.fromkeys(dispatch.MIN_PRODUCTS, 0))
    q, k, v = (x.to(dtype) for x in _qkv(length=dispatch.MIN_QUERIES))
    engine = str(kernel.backend_name(64, str(dtype).removeprefix("torch."), None))
    entry = (str(dtype).removeprefix("torch."), engine)
    assert _served(q, k, v) == ("rushes" if entry in dispatch.FASTER else "torch")
    assert _served(q[:, :, 1:], k, v) == "torch"
    monkeypatch.setattr(dispatch, "FASTER", {entry})
    assert _served(q, k, v) == "rushes"
    monkeypatch.setattr(dispatch, "FASTER", set())
    assert _served(q, k, v) == "torch"


@has_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_little_work_is_not_shared_among_threads(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Each of several threads must have its products; alone a thread takes what there is."""
    engine = str(kernel.backend_name(64, str(dtype).removeprefix("torch."), None))
    monkeypatch.setattr(dispatch, "FASTER", {(str(dtype).removeprefix("torch."), engine)})
    q, k, v = (x.to(dtype) for x in _qkv(length=200))  # 2 * 2 * 200 * 200 * 64 products
    products = 2 * 2 * 200 * 200 * 64
    monkeypatch.setitem(dispatch.MIN_PRODUCTS, str(dtype).removeprefix("torch."), products / 3)
    assert [_served(q, k, v, threads=n) for n in (1, 2, 3, 4)] == ["rushes", "rushes", "rushes", "torch"]
    assert _served(q[:, :1], k[:, :1], v[:, :1], threads=2) == "torch"
    assert _served(q, k[:, :, :20], v[:, :, :20], threads=2) == "torch"
    assert _served(q, k[:, :, :20], v[:, :, :20], threads=1) == "rushes"


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (37, 61), (200, 40), (513, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_those_of_the_formula(dtype: torch.dtype, queries: int, keys: int) -> None:
    """Long or short, under autocast or not: against double precision, no worse than eight times torch's own."""
    q, k, v = (torch.randn(2, 3, n, 40, dtype=dtype) for n in (queries, keys, keys))
    weight = torch.randn(2, 3, queries, 40, dtype=dtype)

    def learnt(compute: Callable[..., torch.Tensor], wide: bool = False) -> list[torch.Tensor]:
        leaves = [x.double() if wide else x.clone() for x in (q, k, v)]
        out = compute(*(x.requires_grad_() for x in leaves), scale=0.3)
        assert out.dtype == leaves[0].dtype
        return [out.detach(), *torch.autograd.grad(out, leaves, weight.to(out.dtype))]

    def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        return (scale * q @ k.transpose(-1, -2)).softmax(-1) @ v

    exact, peer = learnt(formula, wide=True), learnt(F.scaled_dot_product_attention)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours = learnt(attention)
    for mine, theirs, right in zip(ours, peer, exact, strict=True):
        rounding = torch.finfo(dtype).eps * right.abs().max()
        assert (mine - right).abs().max() <= 8 * (theirs - right).abs().max() + 2 * rounding


@has_kernel
def test_a_wish_is_granted_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By argument or environment; an argument goes first; nothing falls back in silence."""
    q, k, v = _qkv()
    assert _served(q, k, v, backend="torch") == "torch"
    assert _served(q[:, :, :3], k, v, backend="rushes") == "rushes"
    monkeypatch.setenv("RUSHES_ATTENTION", "torch")
    assert _served(q, k, v) == "torch"
    assert _served(q, k, v, backend="rushes") == "rushes"
    monkeypatch.setenv("RUSHES_ATTENTION", "rushes")
    with pytest.raises(ValueError, match="dtype is float64; float32, bfloat16 or float16 is allowed"):
        attention(q.double(), k.double(), v.double())
    monkeypatch.setenv("RUSHES_ATTENTION", "flash")
    with pytest.raises(ValueError, match="RUSHES_ATTENTION: got 'flash'; torch, flex or rushes is allowed"):
        attention(q, k, v)


UNSUPPORTED = [
    (lambda: _qkv(head_dim=36), "q: its head_dim is 36; 8 to 256 in steps of 8 is allowed"),
    (lambda: _qkv(head_dim=264), "q: its head_dim is 264; 8 to 256 in steps of 8 is allowed"),
    (lambda: _qkv(dtype=torch.float64), "v: its dtype is float64; float32, bfloat16 or float16 is allowed"),
    (lambda: _qkv(device="meta"), "q: it is on meta; the kernel computes on cpu"),
    (lambda: _qkv(requires_grad=True), "gradients are wanted; the kernel computes none"),
    (lambda: [_Odd(x) for x in _qkv()], "q: it is a _Odd"),
]


class _Odd(torch.Tensor):
    """A subclass may keep its numbers elsewhere."""

    def __new__(cls, data: torch.Tensor) -> _Odd:
        return data.as_subclass(cls)


@has_kernel
@pytest.mark.parametrize(("arrays", "sentence"), UNSUPPORTED)
def test_supports_and_the_call_say_the_same(arrays: Any, sentence: str) -> None:
    """supports() gives the reasons, the forced call refuses with them, the free call is served by torch."""
    q, k, v = arrays()
    found = supports(q, k, v)
    assert not found and sentence in "; ".join(found.reasons)
    with pytest.raises(ValueError, match=re.escape("; ".join(found.reasons))):
        attention(q, k, v, backend="rushes")
    attention(q, k, v)
    assert last_backend() == "torch"


@has_kernel
def test_supported_means_no_reason() -> None:
    """True, and empty."""
    found = supports(*_qkv(), TilePattern(grid=(2, 4, 5), tile=(2, 2, 2)))
    assert found and found.reasons == ()


WISHES = [
    ({"precision": "fp16"}, "precision: got 'fp16'; fp32, bf16 or int8 is allowed"),
    ({"backend": "flash"}, "backend: got 'flash'; torch, flex or rushes is allowed"),
    ({"backend": "torch", "precision": "bf16"}, "precision: got 'bf16' with torch's attention"),
    ({"scale": float("nan")}, "scale: got nan; a finite number is allowed"),
]


@pytest.mark.parametrize(("options", "words"), WISHES)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    """As sentences."""
    with pytest.raises(ValueError, match=re.escape(words)):
        attention(*_qkv(), **options)


def test_arrays_of_two_libraries_are_refused() -> None:
    """NumPy and torch are not mixed in one call, and lists are neither."""
    q, k, v = _qkv()
    with pytest.raises(ValueError, match="k: it is a ndarray; that of q, Tensor, is allowed"):
        attention(q, k.numpy(), v)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="v: it is a list; a torch tensor or a NumPy array is allowed"):
        attention(q, k, v.tolist())


@has_kernel
def test_numpy_arrays_of_odd_make_are_refused() -> None:
    """Swapped bytes and fields of records are not read as if they were plain numbers."""
    q = np.zeros((1, 2, 20, 8), dtype=">f4")
    with pytest.raises(ValueError, match="q: its bytes are swapped or its elements not aligned"):
        attention(q, q, q)
    record = np.zeros((1, 2, 20, 8), dtype=[("a", "i1"), ("x", "<f4")])["x"]
    with pytest.raises(ValueError, match="q: its bytes are swapped or its elements not aligned"):
        attention(record, record, record)


def test_without_the_module_torch_serves_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pure install works; only the one who insists on the kernel is refused, with the reason."""
    monkeypatch.setattr(kernel, "load_extension", lambda: Extension(None, "it was not built, so there"))
    kernel.backend_name.cache_clear()
    q, k, v = _qkv()
    assert _served(q, k, v) == "torch"
    with pytest.raises(ValueError, match="the compiled module is missing: it was not built, so there"):
        attention(q, k, v, backend="rushes")
    with pytest.raises(ValueError, match="the compiled module is missing"):
        attention(q.numpy(), k.numpy(), v.numpy())
    kernel.backend_name.cache_clear()
    assert extension.load_extension() is load_extension()


@has_kernel
def test_bf16_is_offered_for_float32() -> None:
    """With the error of bfloat16 where the processor multiplies it, refused in a sentence where it does not."""
    q, k, v = _qkv(300)
    if not supports(q, k, v, precision="bf16"):
        with pytest.raises(ValueError, match="precision: got 'bf16'"):
            attention(q, k, v, precision="bf16")
        return
    out = attention(q, k, v, precision="bf16")
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    halves = F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    error = (out - exact).abs().max()
    assert out.dtype == torch.float32 and 1e-5 < error <= 3 * (halves - exact).abs().max()


@has_kernel
@pytest.mark.parametrize(
    "pattern",
    [None, TilePattern(grid=(2, 4, 5), tile=(2, 2, 2), window=(1, 1, 3)), TopK(grid=(2, 4, 5), tile=(2, 2, 2))],
    ids=["dense", "window", "top_k"],
)
def test_torch_compile_sees_it(pattern: Any) -> None:
    """As one operator in one graph, with the strides of the real answer, and the same bits."""
    q, k, v = _qkv(40)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=keep, fullgraph=True)
    def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q * 2, k, v, pattern=pattern).transpose(1, 2).flatten(2) + 1

    with torch.no_grad():
        found = model(q, k, v)
        expected = attention(q * 2, k, v, pattern=pattern).transpose(1, 2).flatten(2) + 1
    assert torch.equal(found, expected)
    (graph,) = graphs
    assert "rushes.attention" in graph.code or "rushes_attention" in graph.code
    arguments = (q, k, v, 0.125, [], 0.0, None, None)
    torch.library.opcheck(torch.ops.rushes.attention.default, arguments, test_utils=["test_schema", "test_faketensor"])


@has_kernel
@pytest.mark.skipif(torch.__version__.startswith("2.4."), reason="torch 2.4 looks up formulas under another key")
def test_whoever_counts_torch_calls_counts_this_one() -> None:
    """A dispatch mode sees the operator, and the flop counter knows what it costs, by the pattern's density too."""
    pattern = TilePattern(grid=(2, 4, 5), tile=(2, 2, 2), window=(1, 1, 1))
    q, k, v = _qkv(40)
    for used, share in ((None, 1.0), (pattern, pattern.density())):
        with FlopCounterMode(display=False) as flops:
            attention(q, k, v, pattern=used)
        assert flops.get_total_flops() == round(4 * 1 * 2 * 40 * 40 * 64 * share)


def test_importing_it_loads_no_torch() -> None:
    """Hosts call it with NumPy arrays."""
    code = "import sys, rushes.attention; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
