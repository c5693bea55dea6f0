# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Products in fp8: on the processor, whose torch has the same function as a card's; no card has run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rushes import Engine, Shot
from rushes.model.packed import Packed, PackedLinear, fp8_obstacle, multiply_fp8, use_fp8_products
from rushes.model.reuse import relative_error
from rushes.shot import ShotError

CPU = torch.device("cpu")


def _packed(out: int, width: int, scale: bool) -> Packed:
    data = (torch.randn(out, width) * 8).to(torch.float8_e4m3fn).view(torch.uint8)
    return Packed("F8_E4M3", data, (out, width), torch.tensor([0.02]) if scale else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("rows", [1, 17, 256])
def test_the_product_is_that_of_the_opened_weight(dtype: torch.dtype, scale: bool, rows: int) -> None:
    """But for the rounding of the input, which is that of three bits of a fraction; a zero input stays zero."""
    torch.manual_seed(rows)
    weight, x = _packed(48, 64, scale), torch.randn(2, rows, 64, dtype=dtype)
    bias = torch.randn(48, dtype=dtype)
    exact = x.double() @ weight.unpack(torch.float64).T + bias.double()
    found = multiply_fp8(x, weight, bias)
    assert found.dtype is dtype and found.shape == (2, rows, 48)
    assert relative_error(found.double(), exact) < 0.05
    assert torch.equal(multiply_fp8(torch.zeros_like(x), weight, None), torch.zeros(2, rows, 48, dtype=dtype))


def test_only_layers_that_can_do_so() -> None:
    """Not those with a scale for each row, of another kind or of odd sizes; nor one with a difference."""
    rows = Packed("F8_E4M3", torch.zeros(32, 32, dtype=torch.uint8), (32, 32), torch.ones(32))
    wide = Packed("F8_E5M2", torch.zeros(32, 32, dtype=torch.uint8), (32, 32))
    layers = [PackedLinear(weight, None) for weight in (_packed(32, 32, True), rows, wide, _packed(24, 32, True))]
    assert use_fp8_products(nn.ModuleList(layers)) == 1
    assert [layer.multiplies_fp8 for layer in layers] == [True, False, False, False]
    x = torch.randn(3, 32)
    plain = layers[0].packed.unpack(torch.float32)
    layers[0].adapt(None, None, torch.ones(32, 32))
    assert torch.allclose(layers[0](x), x @ (plain + 1).T, atol=1e-4)
    layers[0].adapt(torch.ones(32, 1), torch.ones(1, 32), None)
    assert relative_error(layers[0](x), x @ (plain + 1).T) < 0.05


def test_older_cards_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fp8_obstacle(CPU) is None and "mps multiplies no fp8" in str(fp8_obstacle(torch.device("mps")))
    for capability, refused in (((8, 6), True), ((8, 9), False), ((9, 0), False), ((12, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, found=capability: found)
        assert (fp8_obstacle(torch.device("cuda")) is not None) == refused
    monkeypatch.setattr("rushes.model.devices.fp8_obstacle", lambda place: "this card (sm_80) multiplies no fp8")
    with pytest.raises(ShotError, match=r"^fp8-products: got cpu; this card \(sm_80\) multiplies no fp8"):
        Engine.load("starter", device="cpu", fp8_products=True)


def test_a_model_in_fp8_multiplies_in_it_where_asked(tiny_wan: Callable[..., Any], nobody: Any) -> None:
    """Near the opened one, the same bits each time, and in the record; a file in float32 is untouched."""
    wan: SimpleNamespace = tiny_wan("original", dim=64, ffn_dim=64)
    state = {
        name: t.to(torch.float8_e4m3fn) if t.ndim == 2 and "blocks." in name else t
        for name, t in load_file(wan.files.transformer).items()
    }
    shot = Shot("a red ball", size=(64, 32), frames=5, steps=2, guidance=4.0, negative="")
    plain = Engine.load(wan.files, device="cpu").denoise(shot)
    idle = Engine.load(wan.files, device="cpu", fp8_products=True)
    assert torch.equal(idle.denoise(shot), plain)
    assert "this changes nothing" in " ".join(idle.notes(idle.resolve(shot)))
    save_file(state, wan.files.transformer, {"config": json.dumps({"transformer": {"num_heads": 2}})})
    opened = Engine.load(wan.files, device="cpu").denoise(shot)
    engine = Engine.load(wan.files, device="cpu", fp8_products=True)
    found = engine.denoise(shot)
    error = relative_error(found, opened)
    print(f"\nfp8 products against opened weights: {error:.4f}")
    assert 0 < error < 0.1 and torch.equal(engine.denoise(shot), found)
    assert engine.record(engine.resolve(shot))["model"]["fp8_products"] is True
    assert "this changes nothing" not in " ".join(engine.notes(engine.resolve(shot)))
