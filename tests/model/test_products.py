# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Products by either library, whole or by rows: the same numbers up to rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.model import products
from rushes.model.packed import PackedLinear, kept_small

CASES = [  # rows, in, out
    (32, 40, 24),  # the fewest rows that go to oneDNN
    (113, 7, 3),  # no multiple of anything
    (1025, 129, 65),
]


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where MKL holds back."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_mkl_holds_back", lambda: True)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize(("rows", "wide", "out"), CASES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_onednn_gives_what_torch_gives(rows: int, wide: int, out: int, has_bias: bool) -> None:
    """Its distance from float64 is at most three times torch's own, for a batch of views with odd strides too."""
    weight, bias = torch.randn(out, wide), torch.randn(out) if has_bias else None
    whole = torch.randn(2, rows, wide + 5)
    for x in (whole[..., :wide].contiguous(), whole[..., 5:], torch.randn(rows, 2, wide).transpose(0, 1)):
        exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        with torch.no_grad():
            found = products.linear(x, weight, bias)
        assert found.shape == exact.shape and found.dtype is torch.float32
        assert relative(found, exact) <= 3 * relative(F.linear(x, weight, bias), exact) + 1e-8


@pytest.mark.usefixtures("onednn")
def test_gradients_few_rows_and_other_types_are_torchs() -> None:
    """The operator has no gradients, and for a row or a smaller type it would win nothing."""
    layer = products.Linear(24, 16)
    x = torch.randn(40, 24, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    with torch.no_grad():
        assert torch.equal(layer(x[:5]), F.linear(x[:5], layer.weight, layer.bias))
        assert layer.bfloat16()(x.bfloat16()).dtype is torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16


@pytest.mark.slow
@pytest.mark.usefixtures("onednn")
def test_a_compiled_layer_is_torchs() -> None:
    """torch.compile has no code for the operator when it meets it in a model."""
    layer, x = products.Linear(24, 16), torch.randn(40, 24)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("rows", [1, products.ROWS, products.ROWS + 1, 2 * products.ROWS + 333])
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_rows_at_a_time_are_all_rows(rows: int, kind: str) -> None:
    layers = nn.Sequential(products.Linear(8, 40), nn.GELU(approximate="tanh"), products.Linear(40, 8))
    if kind == "packed":
        for i in (0, 2):
            packed = kept_small(layers[i].weight.detach().bfloat16(), torch.float32)
            assert not isinstance(packed, Tensor)
            layers[i] = PackedLinear(packed, layers[i].bias)
    x = torch.randn(2, rows, 8)
    with torch.no_grad():
        torch.testing.assert_close(products.by_rows(layers, x), layers(x), rtol=1e-5, atol=1e-6)
