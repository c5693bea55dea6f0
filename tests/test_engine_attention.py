# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Self-attention by tiles in our own models: dense steps and layers, the density that is reported, the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from rushes import Control, Engine, Shot
from rushes.attention import TilePattern, attention
from rushes.attention.layers import SparseAttention, SparseLayers

Make = Callable[..., Any]
GRID = (5, 8, 16)  # 640 tokens
SHOT = Shot("a red ball", size=(256, 128), frames=17, steps=3, guidance=1.0, seed=2)


def made(files: Any, settings: SparseAttention | None, shot: Shot = SHOT) -> tuple[torch.Tensor, dict[str, Any] | None]:
    engine = Engine.load(files, device="cpu", attention=settings)
    return engine.denoise(shot), engine.attention_report()


def test_all_tiles_are_dense_attention(tiny_wan: Make) -> None:
    """A window of the whole grid changes nothing but the order of sums; nor do steps that are all dense."""
    files = tiny_wan(heads=2, dim=64, layers=4).files
    dense, nothing = made(files, None)
    assert nothing is None
    for settings in (
        SparseAttention(mode="window", window=(9, 9, 9)),
        SparseAttention(density=0.2, first_steps=3),
        SparseAttention(density=0.2, last_steps=9),
        SparseAttention(mode="dense"),
    ):
        latents, report = made(files, settings)
        assert torch.equal(latents, dense)
        assert report is not None and report["density"] == 1 and report["layers"] == []
    latents, report = made(files, SparseAttention(density=0.3, first_layers=3, last_layers=1))
    torch.testing.assert_close(latents, dense, rtol=1e-4, atol=1e-4)  # in the order of tiles
    assert report is not None and report["density"] == 1 and len(report["layers"]) == 4


@pytest.mark.parametrize("density", [0.1, 0.4])
def test_the_density_reported_is_the_one_delivered(tiny_wan: Make, density: float) -> None:
    """Of each layer, its heads included; the first step and the last layer are dense, and the sum counts them."""
    files = tiny_wan(heads=2, dim=64, layers=3).files
    settings = SparseAttention(density=density, tile=(4, 4, 4), first_steps=1, last_layers=1)
    latents, report = made(files, settings)
    assert report is not None and report["dense_steps"] == {"first steps": [0]}
    first, second, last = report["layers"]
    for layer in (first, second):
        assert density <= layer["least"] <= layer["density"] <= layer["most"] < density + 64 / 640
    assert last["density"] == 1
    assert report["density"] == pytest.approx((first["density"] + second["density"] + 1) / 3)
    assert json.loads(json.dumps(report))["settings"]["first_steps"] == 1
    dense, _ = made(files, None)
    assert (latents - dense).abs().max() > 1e-3
    assert torch.equal(made(files, settings)[0], latents)


def test_control_layers_and_guidance_go_by_tiles_too(tiny_wan: Make, tmp_path: Path) -> None:
    """Two prompts in one batch, and VACE's own blocks by the numbers of the layers that they feed."""
    from PIL import Image

    Image.new("RGB", (256, 128), (200, 30, 90)).save(tmp_path / "a.png")
    files = tiny_wan(heads=2, dim=64, layers=4, vace_in_channels=96, vace_layers=(0, 2)).files
    shot = SHOT.replace(guidance=3.0, negative="the ball", control=(Control("pose", str(tmp_path / "a.png")),))
    latents, report = made(files, SparseAttention(density=0.3, first_layers=1), shot)
    assert report is not None and [layer["density"] == 1 for layer in report["layers"]] == [True, False, False, False]
    assert (latents - made(files, None, shot)[0]).abs().max() > 1e-4


def test_a_small_grid_is_dense(tiny_wan: Make) -> None:
    """So few tiles leave no choice, and the report says so."""
    files = tiny_wan(heads=2, dim=64).files
    shot = SHOT.replace(size=(64, 32), frames=5)
    latents, report = made(files, SparseAttention(density=0.1), shot)
    assert report is not None and report["dense_steps"] == {"fewer than 512 tokens": [0, 1, 2]}
    assert torch.equal(latents, made(files, None, shot)[0])


def test_a_layer_by_tiles_equals_the_pattern_itself() -> None:
    """Against attention() over the same pattern, and dense where the layer is to be dense."""
    settings = SparseAttention(mode="window", window=(1, 3, 1), first_layers=1)
    layers = SparseLayers(settings, 3, 2)
    layers.begin_step(1)
    pattern = layers.pattern(GRID)
    assert isinstance(pattern, TilePattern) and pattern.grid == GRID
    q, k, v = torch.randn(3, 1, 2, 640, 32).unbind(0)
    torch.testing.assert_close(layers.attend(1, pattern, q, k, v), attention(q, k, v, pattern=pattern))
    torch.testing.assert_close(layers.attend(0, pattern, q, k, v), attention(q, k, v))
    found = layers.report()["layers"]
    assert found[0]["density"] == 1 and found[1]["density"] == pytest.approx(pattern.density())


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("0.2", {"mode": "density", "density": 0.2}),
        ("density=0.3, first_steps=2,last_layers=1", {"density": 0.3, "first_steps": 2, "last_layers": 1}),
        ("window=3x5x5,tile=2x8x8", {"mode": "window", "window": (3, 5, 5), "tile": (2, 8, 8)}),
    ],
)
def test_settings_are_read_from_text_and_from_json(text: str, fields: dict[str, Any]) -> None:
    settings = SparseAttention.parse(text)
    assert {name: getattr(settings, name) for name in fields} == fields
    assert SparseAttention.from_dict(json.loads(json.dumps(asdict(settings)))) == settings


@pytest.mark.parametrize(
    "text", ["", "0", "1.1", "nan", "much", "density=", "window=3x3", "window=3x3x3,density=0.2", "tile=axbxc",
             "first_steps=-1", "first_steps=1.5", "colour=red", "tile=0x4x4", "density=0.2,=3"],
)  # fmt: skip
def test_bad_settings_are_one_sentence(rushes: Make, text: str) -> None:
    with pytest.raises(ValueError, match="allowed"):
        SparseAttention.parse(text)
    done = rushes("generate", "a red ball", "-o", "a.mp4", "--attention", text)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "attention: " in done.stderr


def test_the_command_line_says_what_was_delivered_and_makes_it_again(
    tiny_wan: Make, rushes: Make, tmp_path: Path
) -> None:
    """--attention, a line on stderr, an event for programs, and --from with the same bits."""
    from safetensors.torch import load_file

    wan = tiny_wan(heads=2, dim=64, layers=3)
    asked = [
        "generate", "a red ball", "--model", str(wan.files.transformer), "--size", "256x128", "--frames", "17",
        "--steps", "2", "--guidance", "1",
    ]  # fmt: skip
    done = rushes(*asked, "--attention", "density=0.2,first_steps=1", "-o", "a.safetensors")
    assert done.returncode == 0, done.stderr
    assert "of the scores in 3 layers; dense in step 1 (first steps)" in done.stderr
    again = rushes("generate", "--from", "a.safetensors", "-o", "b.safetensors", "--json")
    assert again.returncode == 0, again.stderr
    events = [json.loads(line) for line in again.stdout.splitlines()]
    found = next(event for event in events if event["event"] == "attention")
    assert [layer["layer"] for layer in found["layers"]] == [0, 1, 2]
    dense = rushes("generate", "--from", "a.safetensors", "--attention", "dense", "-o", "c.safetensors")
    assert dense.returncode == 0 and "attention" not in dense.stderr
    a, b, c = (load_file(tmp_path / f"{name}.safetensors")["latents"] for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
