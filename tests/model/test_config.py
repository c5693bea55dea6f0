# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a file's shapes say about the model in it, and what they refuse to say."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rushes.model import config as presets
from rushes.model.config import (
    TransformerConfig,
    VAEConfig,
    infer_transformer_config,
    infer_vae_config,
)
from rushes.model.transformer import Transformer
from rushes.model.vae import VideoVAE
from rushes.shot import ShotError

Shapes = dict[str, tuple[int, ...]]

KEYS = Path(__file__).parents[1] / "fixtures" / "wan_keys"
TRANSFORMERS = [
    ("WAN21_T2V_1_3B", "wan21_t2v_1.3b"),
    ("WAN21_T2V_14B", "wan21_t2v_14b"),
    ("WAN21_I2V_14B", "wan21_i2v_14b"),
    ("WAN21_FLF2V_14B", "wan21_flf2v_14b"),
    ("WAN22_T2V_A14B", "wan22_t2v_a14b"),
    ("WAN22_I2V_A14B", "wan22_i2v_a14b"),
    ("WAN22_TI2V_5B", "wan22_ti2v_5b"),
    ("WAN21_VACE_1_3B", "wan21_vace_1.3b"),
    ("WAN21_VACE_14B", "wan21_vace_14b"),
]
VAES = [("WAN21_VAE", "wan21_vae"), ("WAN22_VAE", "wan22_vae")]
TINY = TransformerConfig(dim=24, heads=2, layers=5, ffn_dim=40, in_channels=4, out_channels=6, freq_dim=8, text_dim=10)


def shapes_of(model: type[Transformer] | type[VideoVAE], config: TransformerConfig | VAEConfig) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in model(config).state_dict().items()}  # type: ignore[arg-type]


def published_shapes(name: str) -> Shapes:
    """Names and shapes of a published checkpoint."""
    with gzip.open(KEYS / f"original.{name}.json.gz", "rt", encoding="utf-8") as file:
        return {key: tuple(shape) for key, shape in json.load(file)["tensors"].items()}


@pytest.mark.parametrize(("preset", "name"), TRANSFORMERS)
def test_every_transformer_preset_is_its_checkpoint(preset: str, name: str) -> None:
    """Our modules have the published names and shapes, and both give back the preset."""
    config = getattr(presets, preset)
    ours = shapes_of(Transformer, config)
    assert ours == published_shapes(name)
    assert infer_transformer_config(ours) == config


@pytest.mark.parametrize(("preset", "name"), VAES)
def test_every_vae_preset_is_its_checkpoint(preset: str, name: str) -> None:
    """Our modules have the published names and shapes, and both give back the preset."""
    config = getattr(presets, preset)
    ours = shapes_of(VideoVAE, config)
    assert ours == published_shapes(name)
    assert infer_vae_config(ours) == config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patch_size": 1, "heads": 4},  # tokens of one latent cell
        {"text_len": 7, "image_dim": 12, "image_positions": 6},
        {"vace_in_channels": 3, "vace_layers": (0, 2, 4)},  # layers that the number of blocks does not divide
        {"vace_in_channels": 3, "vace_layers": (0,)},
    ],
)
def test_small_transformers_are_inferred(changes: dict[str, object]) -> None:
    """Odd small configurations come back; heads and text_len, which shapes do not tell, are stated."""
    config = replace(TINY, **changes)  # type: ignore[arg-type]
    found = infer_transformer_config(shapes_of(Transformer, config), heads=config.heads, text_len=config.text_len)
    assert found == config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"multipliers": (1, 3), "temporal_downsample": (True,), "blocks_per_stage": 1},
        {"multipliers": (1, 2, 2), "temporal_downsample": (True, False), "decoder_dim": 16},
        {"patch_size": 2, "shortcuts": True, "blocks_per_stage": 3, "multipliers": (1, 1, 2, 2)},
    ],
)
def test_small_vaes_are_inferred(changes: dict[str, object]) -> None:
    """Odd small VAEs come back; the statistics of their latents are stated."""
    mean, std = (0.5, -0.25), (2.0, 3.0)
    tiny = VAEConfig(latent_channels=2, encoder_dim=8, decoder_dim=8, latents_mean=mean, latents_std=std)
    config = replace(tiny, **changes)  # type: ignore[arg-type]
    assert infer_vae_config(shapes_of(VideoVAE, config), mean=mean, std=std) == config


@pytest.mark.parametrize(
    "name",
    [
        "head.modulation",
        "patch_embedding.weight",
        "head.head.weight",
        "blocks.0.ffn.0.weight",
        "time_embedding.0.weight",
        "text_embedding.0.weight",
        "vace_patch_embedding.weight",
    ],
)
def test_another_file_is_no_transformer(name: str) -> None:
    """A missing tensor, or one of another shape, is named in the refusal."""
    shapes = shapes_of(Transformer, replace(TINY, vace_in_channels=3, vace_layers=(0, 2, 4)))
    missing = {key: shape for key, shape in shapes.items() if key != name}
    with pytest.raises(ShotError, match=f"no tensor '{name}'.*not a Wan transformer"):
        infer_transformer_config(missing)
    with pytest.raises(ShotError, match=f"'{name}' has the shape .*Wan transformer"):
        infer_transformer_config({**shapes, name: (4, 3, 2, 1)})


@pytest.mark.parametrize(
    "name",
    [
        "conv2.weight",
        "encoder.conv1.weight",
        "decoder.head.0.gamma",
        "encoder.downsamples.0.residual.2.weight",
    ],
)
def test_another_file_is_no_vae(name: str) -> None:
    """A missing tensor, or one of another shape, is named in the refusal."""
    shapes = shapes_of(VideoVAE, presets.WAN21_VAE)
    with pytest.raises(ShotError, match=f"no tensor '{name}'.*not a Wan video VAE"):
        infer_vae_config({key: shape for key, shape in shapes.items() if key != name})
    with pytest.raises(ShotError, match=f"'{name}' has the shape .*Wan video VAE"):
        infer_vae_config({**shapes, name: (4, 3)})


def test_files_of_the_two_kinds_are_not_taken_for_each_other() -> None:
    """A VAE chosen as the transformer, and the reverse, are refused by name."""
    with pytest.raises(ShotError, match=r"head\.modulation"):
        infer_transformer_config(shapes_of(VideoVAE, presets.WAN21_VAE))
    with pytest.raises(ShotError, match=r"conv2\.weight"):
        infer_vae_config(shapes_of(Transformer, TINY))


def test_control_blocks_without_an_even_spacing_are_refused() -> None:
    """Four control blocks over five layers fit no spacing, so no guess is made."""
    shapes = shapes_of(Transformer, replace(TINY, vace_in_channels=3, vace_layers=(0, 1, 2, 4)))
    with pytest.raises(ShotError, match="'vace_blocks' are 4 for 5 layers"):
        infer_transformer_config(shapes)


def test_unknown_latents_need_statistics() -> None:
    """Two latent channels are neither Wan's 16 nor 48; without statistics the VAE is refused."""
    tiny = VAEConfig(latent_channels=2, encoder_dim=8, decoder_dim=8, latents_mean=(0, 0), latents_std=(1, 1))
    with pytest.raises(ShotError, match="2 latent channels"):
        infer_vae_config(shapes_of(VideoVAE, tiny))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "dim: 24 over 5 heads"),
        ({"heads": 8}, "dim: 24 over 8 heads"),  # an odd head has no pairs to rotate
        ({"vace_layers": (1, 3)}, "vace_layers: they start at 1"),
    ],
)
def test_impossible_transformers_are_refused(changes: dict[str, object], message: str) -> None:
    """The sentence holds the offending values."""
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temporal_downsample": (True,)}, "temporal_downsample: 1 flags for 4 stages"),
        ({"latents_std": (1.0,) * 15}, "latents_std: 15 values for 16 latent channels"),
    ],
)
def test_impossible_vaes_are_refused(changes: dict[str, object], message: str) -> None:
    """The sentence holds the offending values."""
    with pytest.raises(ValueError, match=message):
        replace(presets.WAN21_VAE, **changes)  # type: ignore[arg-type]


def test_frames_and_latent_frames_are_inverse() -> None:
    """81 frames are 21 latent frames, one is one; the factors are 4 in time and 8 or 16 in space."""
    for vae, space in ((presets.WAN21_VAE, 8), (presets.WAN22_VAE, 16)):
        assert (vae.temporal_factor, vae.spatial_factor) == (4, space)
        assert [vae.latent_frames(frames) for frames in (1, 5, 81)] == [1, 2, 21]
        assert [vae.frames(latents) for latents in (1, 2, 21)] == [1, 5, 81]
    assert presets.WAN21_T2V_1_3B.rope_dims == (44, 42, 42)


def test_lists_become_tuples() -> None:
    """A configuration read from JSON equals, and hashes like, the one that was written."""
    vae = replace(presets.WAN21_VAE, multipliers=[1, 2, 4, 4], latents_mean=list(presets.WAN21_VAE.latents_mean))  # type: ignore[arg-type]
    assert vae == presets.WAN21_VAE
    assert hash(vae) == hash(presets.WAN21_VAE)
    assert hash(replace(TINY, vace_layers=[0, 2])) == hash(replace(TINY, vace_layers=(0, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [1, 3])
def test_flops_are_those_that_torch_counts(layers: int) -> None:
    """Of one pass with the text's keys and values kept; norms and rotations, which torch does not count either, are
    left out."""
    config = TransformerConfig(dim=48, heads=2, layers=layers, ffn_dim=112, in_channels=4, out_channels=4, text_len=9)
    model = Transformer(config).eval().requires_grad_(False)
    latents, time = torch.randn(1, 4, 3, 8, 10), torch.full((1,), 500.0)
    context = model.context(torch.randn(1, 9, config.text_dim), cache=True)
    model(latents, time, context)
    with FlopCounterMode(display=False) as counter:
        model(latents, time, context)
    embedding = 2 * (config.freq_dim * 48 + 48 * 48 + 48 * 6 * 48)  # of the one timestep
    assert config.flops(3 * 4 * 5) == pytest.approx(counter.get_total_flops() - embedding, rel=0.01)
