# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Configurations of the transformer and the video VAE: Wan 2.1, Wan 2.2, and what a file's shapes say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rushes.shot import ShotError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of one transformer. Token grids come from latents by a patch of (1, patch_size, patch_size).

    image_dim: width of CLIP image tokens (Wan 2.1 image-to-video), None without them.
    image_positions: rows of the learned position table of first-and-last-frame models, 0 without.
    vace_in_channels, vace_layers: control branch (VACE), 0 and () without.
    pooled_dim: width of a pooled text vector added to the time embedding, 0 without. Not in Wan; see starter/README.
    preconditioned: the head tells what is left of the velocity after a guess from each channel's variance, of which the
    weights have a table. Not in Wan; see `precondition`.
    """

    dim: int
    heads: int
    layers: int
    ffn_dim: int
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    eps: float = 1e-6
    image_dim: int | None = None
    image_positions: int = 0
    vace_in_channels: int = 0
    vace_layers: tuple[int, ...] = ()
    pooled_dim: int = 0
    preconditioned: bool = False

    def __post_init__(self) -> None:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(
                f"dim: {self.dim} over {self.heads} heads gives an odd or broken head; an even one is allowed"
            )
        if self.vace_layers and self.vace_layers[0] != 0:
            raise ValueError(f"vace_layers: they start at {self.vace_layers[0]}; the first control block feeds layer 0")
        object.__setattr__(self, "vace_layers", tuple(self.vace_layers))

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def rope_dims(self) -> tuple[int, int, int]:
        """Channels of a head that rotate with time, height and width: h = w = 2 (d // 6), time takes the rest."""
        side = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * side, side, side

    def flops(self, tokens: int) -> float:
        """Products and sums of one pass over one clip of so many tokens, with the text's keys and values kept."""
        projections = 6 * self.dim**2 + 2 * self.dim * self.ffn_dim  # q, k, v, o; q, o of the text; feed-forward
        scores = 2 * self.dim * (tokens + self.text_len)
        blocks = self.layers + len(self.vace_layers)
        return 2.0 * tokens * (blocks * (projections + scores) + 2 * self.dim * self.patch_size**2 * self.in_channels)


@dataclass(frozen=True)
class VAEConfig:
    """Shape of one causal video VAE.

    multipliers: channel multiple of each stage, over encoder_dim and decoder_dim; all but the last halve the picture.
    temporal_downsample: for each halving, whether it halves time too.
    patch_size: pixels folded into channels before the encoder (Wan 2.2: 2).
    shortcuts: averaging and duplicating shortcuts around each stage (Wan 2.2).
    latents_mean, latents_std: one value per latent channel; model space is (latent - mean) / std.
    """

    latent_channels: int
    encoder_dim: int
    decoder_dim: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_stage: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    patch_size: int = 1
    shortcuts: bool = False

    def __post_init__(self) -> None:
        for name in ("multipliers", "temporal_downsample", "latents_mean", "latents_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.temporal_downsample) != len(self.multipliers) - 1:
            raise ValueError(
                f"temporal_downsample: {len(self.temporal_downsample)} flags for {len(self.multipliers)} stages; "
                "one per halving, that is one fewer than stages, is allowed"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.latent_channels:
                raise ValueError(
                    f"{name}: {len(getattr(self, name))} values for {self.latent_channels} latent channels"
                )

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell, in each direction."""
        return self.patch_size * 2 ** (len(self.multipliers) - 1)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame, after the first."""
        return 2 ** sum(self.temporal_downsample)

    def latent_frames(self, frames: int) -> int:
        return (frames - 1) // self.temporal_factor + 1

    def latent_of(self, frame: int) -> int:
        """The latent frame that a frame falls into, both from 0."""
        return -(-frame // self.temporal_factor)

    def frames(self, latent_frames: int) -> int:
        return (latent_frames - 1) * self.temporal_factor + 1


def _wan(dim: int, heads: int, layers: int, ffn_dim: int, **extra: Any) -> TransformerConfig:
    return TransformerConfig(dim=dim, heads=heads, layers=layers, ffn_dim=ffn_dim, **extra)


WAN21_T2V_1_3B = _wan(1536, 12, 30, 8960)
WAN21_T2V_14B = _wan(5120, 40, 40, 13824)
WAN21_I2V_14B = _wan(5120, 40, 40, 13824, in_channels=36, image_dim=1280)
WAN21_FLF2V_14B = _wan(5120, 40, 40, 13824, in_channels=36, image_dim=1280, image_positions=514)
WAN22_T2V_A14B = WAN21_T2V_14B  # each of the two experts; told apart by name only
WAN22_I2V_A14B = _wan(5120, 40, 40, 13824, in_channels=36)
WAN22_TI2V_5B = _wan(3072, 24, 30, 14336, in_channels=48, out_channels=48)
WAN21_VACE_1_3B = _wan(1536, 12, 30, 8960, vace_in_channels=96, vace_layers=tuple(range(0, 30, 2)))
WAN21_VACE_14B = _wan(5120, 40, 40, 13824, vace_in_channels=96, vace_layers=tuple(range(0, 40, 5)))

# fmt: off
# latents_mean and latents_std belong to the published weights: the statistics of their latents.
WAN21_VAE = VAEConfig(
    latent_channels=16,
    encoder_dim=96,
    decoder_dim=96,
    latents_mean=(
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    latents_std=(
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
    ),
)
WAN22_VAE = VAEConfig(
    latent_channels=48,
    encoder_dim=160,
    decoder_dim=256,
    latents_mean=(
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
        -0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825,
        -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123,
        -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748,
        0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
    latents_std=(
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013,
        0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
        0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
        0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
        0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
    patch_size=2,
    shortcuts=True,
)
# fmt: on


def count_indices(shapes: Shapes, prefix: str) -> int:
    """Number of distinct integers that follow `prefix` in the names."""
    return len({name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)})


def required_shape(shapes: Shapes, name: str, what: str, dims: int | None = None) -> tuple[int, ...]:
    """Shape of a tensor that a `what` has, with so many dimensions if they are given."""
    if name not in shapes:
        raise ShotError(f"model: the file has no tensor {name!r}, so it is not a {what}; choose another file")
    shape = tuple(shapes[name])
    if dims is not None and len(shape) != dims:
        raise ShotError(
            f"model: tensor {name!r} has the shape {list(shape)}, but a {what} has {dims} dimensions there; "
            "choose another file"
        )
    if 0 in shape:
        raise ShotError(f"model: tensor {name!r} is empty, with the shape {list(shape)}; choose another file")
    return shape


def infer_transformer_config(shapes: Shapes, *, heads: int | None = None, text_len: int = 512) -> TransformerConfig:
    """The configuration that a state dict's shapes (original names) imply. Raises ShotError if they are not Wan's.

    heads: by Wan's rule of 128 channels a head when None; small models state it in their metadata.
    """
    what = "Wan transformer"
    dim = required_shape(shapes, "head.modulation", what, 3)[-1]
    patch = required_shape(shapes, "patch_embedding.weight", what, 5)
    head = required_shape(shapes, "head.head.weight", what, 2)
    layers = count_indices(shapes, "blocks.")
    has_image = "img_emb.proj.1.weight" in shapes
    vace_layers = _vace_layers(layers, count_indices(shapes, "vace_blocks."))
    return TransformerConfig(
        dim=dim,
        heads=heads or max(1, dim // 128),
        layers=layers,
        ffn_dim=required_shape(shapes, "blocks.0.ffn.0.weight", what, 2)[0],
        in_channels=patch[1],
        out_channels=head[0] // (patch[2] * patch[3] * patch[4]),
        patch_size=patch[-1],
        freq_dim=required_shape(shapes, "time_embedding.0.weight", what, 2)[1],
        text_dim=required_shape(shapes, "text_embedding.0.weight", what, 2)[1],
        text_len=text_len,
        image_dim=required_shape(shapes, "img_emb.proj.1.weight", what, 2)[1] if has_image else None,
        image_positions=_optional(shapes, "img_emb.emb_pos", what, 3),
        pooled_dim=_optional(shapes, "pooled_embedding.1.weight", what, 2),
        vace_in_channels=required_shape(shapes, "vace_patch_embedding.weight", what, 5)[1] if vace_layers else 0,
        vace_layers=vace_layers,
    )


def _optional(shapes: Shapes, name: str, what: str, dims: int) -> int:
    """The second size of a tensor that some models have; 0 for the others."""
    return required_shape(shapes, name, what, dims)[1] if name in shapes else 0


def _vace_layers(layers: int, blocks: int) -> tuple[int, ...]:
    """The layers that control blocks feed, from how many there are: every n-th, from the first one on."""
    if not blocks:
        return ()
    found = tuple(range(0, layers, -(-layers // blocks)))
    if len(found) != blocks:
        raise ShotError(
            f"model: 'vace_blocks' are {blocks} for {layers} layers, which no even spacing gives; choose another file"
        )
    return found


def infer_vae_config(
    shapes: Shapes, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> VAEConfig:
    """The VAE configuration that shapes (original names) imply. Raises ShotError if they are not Wan's.

    mean, std: statistics of the latents; Wan's own by the number of channels when None.
    """
    what = "Wan video VAE"
    channels = required_shape(shapes, "conv2.weight", what, 5)[0]
    encoder_dim, channels_in = required_shape(shapes, "encoder.conv1.weight", what, 5)[:2]
    shortcuts = any(name.startswith("encoder.downsamples.0.downsamples.") for name in shapes)
    stages, resamples = _vae_stages(shapes, shortcuts)
    patch_size = round((channels_in / 3) ** 0.5)
    published = {16: WAN21_VAE, 48: WAN22_VAE}.get(channels)
    if (mean is None or std is None) and published is None:
        raise ShotError(f"model: this VAE has {channels} latent channels and no statistics of them; 16 or 48 are Wan's")
    return VAEConfig(
        latent_channels=channels,
        encoder_dim=encoder_dim,
        decoder_dim=required_shape(shapes, "decoder.head.0.gamma", what, 4)[0],
        multipliers=tuple(width // encoder_dim for width, _ in stages),
        blocks_per_stage=stages[0][1],
        temporal_downsample=resamples,
        patch_size=patch_size,
        shortcuts=shortcuts,
        latents_mean=mean if mean is not None else published.latents_mean,  # type: ignore[union-attr]
        latents_std=std if std is not None else published.latents_std,  # type: ignore[union-attr]
    )


def _vae_stages(shapes: Shapes, nested: bool) -> tuple[list[tuple[int, int]], tuple[bool, ...]]:
    """[(width, residual blocks)] of each encoder stage and whether each halving halves time, from the names."""
    root = "encoder.downsamples."
    flat: list[str]
    if nested:
        flat = [
            f"{root}{stage}.downsamples.{index}."
            for stage in range(count_indices(shapes, root))
            for index in range(count_indices(shapes, f"{root}{stage}.downsamples."))
        ]
    else:
        flat = [f"{root}{index}." for index in range(count_indices(shapes, root))]
    stages: list[tuple[int, int]] = []
    temporal: list[bool] = []
    width = blocks = 0
    for prefix in flat:
        if f"{prefix}resample.1.weight" in shapes:
            temporal.append(f"{prefix}time_conv.weight" in shapes)
            stages.append((width, blocks))
            blocks = 0
        else:
            width = required_shape(shapes, f"{prefix}residual.2.weight", "Wan video VAE", 5)[0]
            blocks += 1
    stages.append((width, blocks))
    return stages, tuple(temporal)
