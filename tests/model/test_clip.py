# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The CLIP vision tower against a float64 loop and against transformers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from rushes.model.clip import VIT_H14, ClipVision, ClipVisionConfig, clip_pixels, infer_clip_config
from rushes.shot import ShotError

TINY = ClipVisionConfig(dim=24, heads=3, layers=3, ffn_dim=40, patch_size=7, image_size=21)


def restless(seed: int) -> ClipVision:
    """Random weights in which every tensor matters, norms and biases too."""
    torch.manual_seed(seed)
    model = ClipVision(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


def loop_tower(model: ClipVision, pixels: Tensor) -> Tensor:
    """One picture, patch by patch and head by head, float64. [tokens, dim]"""
    w = {name: value.double() for name, value in model.state_dict().items()}
    size, side = TINY.patch_size, TINY.image_size // TINY.patch_size

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + TINY.eps).sqrt()
        return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    tokens = [w["embeddings.class_embedding"]]
    for row in range(side):
        for column in range(side):
            patch = pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size].double()
            tokens.append(torch.einsum("dchw,chw->d", w["embeddings.patch_embedding.weight"], patch))
    x = norm(torch.stack(tokens) + w["embeddings.position_embedding.weight"], "pre_layrnorm")
    for layer in range(TINY.layers - 1):  # the last one is not read
        root = f"encoder.layers.{layer}"
        h = norm(x, f"{root}.layer_norm1")
        q, k, v = (linear(h, f"{root}.self_attn.{name}_proj") for name in "qkv")
        width = TINY.dim // TINY.heads
        heads = [
            (q[:, part] @ k[:, part].T / math.sqrt(width)).softmax(-1) @ v[:, part]
            for part in (slice(head * width, (head + 1) * width) for head in range(TINY.heads))
        ]
        x = x + linear(torch.cat(heads, -1), f"{root}.self_attn.out_proj")
        h = linear(norm(x, f"{root}.layer_norm2"), f"{root}.mlp.fc1")
        x = x + linear(h * 0.5 * (1 + torch.erf(h / math.sqrt(2))), f"{root}.mlp.fc2")
    return x


def test_tokens_equal_a_float64_loop() -> None:
    """The output of the last layer but one, without a norm."""
    model = restless(seed=1)
    pixels = torch.randn(2, 3, 21, 21)
    got = model(pixels)
    assert got.shape == (2, 10, 24)
    for row, picture in zip(got, pixels, strict=True):
        assert relative(row, loop_tower(model, picture)) <= 2e-6


@pytest.mark.parity
def test_tokens_equal_transformers() -> None:
    """hidden_states[-2] of transformers' CLIPVisionModel with the same weights and exact GELU."""
    transformers = pytest.importorskip("transformers")
    ours = restless(seed=2)
    theirs = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=TINY.dim, intermediate_size=TINY.ffn_dim, num_hidden_layers=TINY.layers, patch_size=7,
            num_attention_heads=TINY.heads, image_size=TINY.image_size, hidden_act="gelu",
        )
    ).eval()  # fmt: skip
    # before transformers 5 the tower was one level deeper
    getattr(theirs, "vision_model", theirs).load_state_dict(ours.state_dict())
    pixels = torch.randn(3, 3, 21, 21)
    with torch.no_grad():
        expected = theirs(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        assert relative(ours(pixels), expected) <= 1e-5


def test_bfloat16_weights_take_float32_pixels() -> None:
    """Pixels are brought to the weights' type; the error is that of bfloat16, not more."""
    model = restless(seed=3)
    pixels = torch.randn(1, 3, 21, 21)
    with torch.no_grad():
        expected = model(pixels)
        got = model.bfloat16()(pixels)
        floor = relative(model.float()(pixels.bfloat16().float()).bfloat16(), expected)
    assert got.dtype == torch.bfloat16
    assert relative(got, expected) <= 2 * floor


def test_pixels_are_the_whole_frame_squeezed_and_normalised() -> None:
    """A flat picture gives (value - mean) / deviation; the left edge of a wide one is not cropped away."""
    flat = clip_pixels(torch.full((1, 3, 40, 100), 0.5))
    assert flat.shape == (1, 3, 224, 224)
    published = [
        (0.5 - 0.48145466) / 0.26862954,
        (0.5 - 0.4578275) / 0.26130258,
        (0.5 - 0.40821073) / 0.27577711,
    ]
    for channel, value in enumerate(published):
        assert flat[0, channel].unique().tolist() == pytest.approx([value] * len(flat[0, channel].unique()), abs=1e-5)
    wide = torch.zeros(1, 3, 40, 100)
    wide[..., :10] = 1
    assert (clip_pixels(wide)[0, 0, :, :15] > 1.5).all()


def test_pixels_of_another_size_are_refused() -> None:
    """The sentence gives the size that came and the one that is allowed."""
    with pytest.raises(ValueError, match=r"pixels: got \(1, 3, 20, 21\); \[batch, 3, 21, 21\]"):
        ClipVision(TINY)(torch.zeros(1, 3, 20, 21))


def test_the_configuration_is_read_from_shapes() -> None:
    """All but the number of heads, which ViT-H's is taken for."""
    shapes = {name: tuple(value.shape) for name, value in ClipVision(TINY).state_dict().items()}
    assert infer_clip_config(shapes, heads=3) == TINY
    with pytest.raises(ShotError, match="24 channels"):
        infer_clip_config(shapes)
    with pytest.raises(ShotError, match="patch_embedding"):
        infer_clip_config({"shared.weight": (3, 4)})


@pytest.mark.parametrize(
    ("change", "words"),
    [({"heads": 7}, "heads: 7"), ({"patch_size": 15}, "patch_size: 15"), ({"layers": 1}, "layers: got 1")],
)
def test_impossible_configurations_are_refused(change: dict[str, int], words: str) -> None:
    """The sentence names the field and its value."""
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(VIT_H14, **change)


def test_vit_h_gives_wans_257_tokens() -> None:
    """16 x 16 patches and the class token."""
    assert VIT_H14.tokens == 257
