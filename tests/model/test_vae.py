# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The video VAE: against diffusers, streamed in chunks, in little memory, causal, and in tiles."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rushes.model.checkpoint import vae_names_from_diffusers
from rushes.model.config import VAEConfig
from rushes.model.vae import VideoVAE, patchify, unpatchify

MEAN, STD = (0.1, -0.2, 0.3, -0.4), (1.5, 0.7, 1.1, 2.0)
WAN21 = VAEConfig(latent_channels=4, encoder_dim=8, decoder_dim=8, latents_mean=MEAN, latents_std=STD)
WAN22 = replace(WAN21, decoder_dim=12, patch_size=2, shortcuts=True)
# Time is doubled where the picture is not yet, and one residual block a stage: another depth of memory.
SMALL = replace(WAN22, multipliers=(1, 2, 2), temporal_downsample=(True, False), blocks_per_stage=1, decoder_dim=8)
# Time is doubled where channels halve, so that the two frames of a duplicated one differ.
EARLY = replace(WAN22, temporal_downsample=(True, True, False))
FORMS = {"2.1": WAN21, "2.2": WAN22, "small": SMALL}
config_by_name = pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)


def shake(model: nn.Module) -> None:
    """Move gains and biases away from the ones and small numbers that they start as."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.shape[1:].numel() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))


def build(config: VAEConfig) -> VideoVAE:
    model = VideoVAE(config).eval().requires_grad_(False)
    shake(model)
    quieten(model.decoder.head[2])
    return model


def draw_frames(config: VAEConfig, latent_frames: int, height: int = 3, width: int = 4) -> Tensor:
    """Frames of that many latent frames and cells, in [-1, 1]."""
    s = config.spatial_factor
    return 2 * torch.rand(2, 3, config.frames(latent_frames), height * s, width * s) - 1


def draw_latents(config: VAEConfig, latent_frames: int, height: int = 3, width: int = 5, batch: int = 2) -> Tensor:
    """Latents so small that tiny decoders stay within [-1, 1]."""
    return 0.3 * torch.randn(batch, config.latent_channels, latent_frames, height, width)


def quieten(last: nn.Module) -> None:
    """Make the decoder's last convolution smaller, so that its frames stay away from the clamp."""
    for parameter in last.parameters():
        parameter.mul_(0.3)


def difference(found: Tensor, expected: Tensor) -> float:
    """The larger of the relative differences in the L2 norm and in the maximum."""
    delta = found.double() - expected.double()
    return max((delta.norm() / expected.norm()).item(), (delta.abs().max() / expected.abs().max()).item())


# --- against diffusers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return pytest.importorskip("diffusers")


@pytest.fixture
def pair(diffusers: ModuleType) -> Callable[[VAEConfig], tuple[VideoVAE, Any]]:
    """Our VAE and diffusers' with the same weights, which go through our table of names."""

    def build_pair(config: VAEConfig) -> tuple[VideoVAE, Any]:
        options: dict[str, Any] = {
            "base_dim": config.encoder_dim, "decoder_base_dim": config.decoder_dim, "z_dim": config.latent_channels,
            "latents_mean": list(MEAN), "latents_std": list(STD), "is_residual": config.shortcuts,
            "scale_factor_spatial": config.spatial_factor, "dim_mult": list(config.multipliers),
            "temperal_downsample": list(config.temporal_downsample), "num_res_blocks": config.blocks_per_stage,
        }  # fmt: skip
        if config.patch_size > 1:
            options |= {"in_channels": 12, "out_channels": 12, "patch_size": config.patch_size}
        theirs = diffusers.AutoencoderKLWan(**options).eval().requires_grad_(False)
        shake(theirs)
        quieten(theirs.decoder.conv_out)
        state = theirs.state_dict()
        names = vae_names_from_diffusers(state)
        ours = VideoVAE(config).eval().requires_grad_(False)
        ours.load_state_dict({names[name]: tensor for name, tensor in state.items()}, strict=True)
        return ours, theirs

    return build_pair


def statistics(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    shape = (1, -1, 1, 1, 1)
    return torch.tensor(MEAN, dtype=dtype).view(shape), torch.tensor(STD, dtype=dtype).view(shape)


published = pytest.mark.parametrize("config", [WAN21, WAN22, EARLY], ids=["2.1", "2.2", "early time"])


@pytest.mark.parity
@published
def test_encode_is_that_of_diffusers(config: VAEConfig, pair: Callable[..., tuple[VideoVAE, Any]]) -> None:
    """Mean, log variance and normalised latents of 13 frames agree with diffusers' in float32."""
    ours, theirs = pair(config)
    frames = draw_frames(config, 4)
    posterior = theirs.encode(frames).latent_dist
    mean, log_variance = ours.posterior(frames)
    assert difference(mean, posterior.mean) <= 1e-5
    assert difference(log_variance, posterior.logvar) <= 1e-5
    shift, scale = statistics()
    assert difference(ours.encode(frames, chunk=2), (posterior.mode() - shift) / scale) <= 1e-5


@pytest.mark.parity
@published
def test_decode_is_that_of_diffusers(config: VAEConfig, pair: Callable[..., tuple[VideoVAE, Any]]) -> None:
    """Frames of four latent frames agree with diffusers' in float32, away from the clamp."""
    ours, theirs = pair(config)
    latents = draw_latents(config, 4)
    shift, scale = statistics()
    expected = theirs.decode(latents * scale + shift).sample
    assert expected.std() > 0.01 and expected.abs().max() < 1
    assert difference(ours.decode(latents), expected) <= 1e-5
    assert difference(ours.decode(latents, chunk=3), expected) <= 1e-5


@pytest.mark.parity
@published
def test_bfloat16_loses_no_more_than_diffusers(config: VAEConfig, pair: Callable[..., tuple[VideoVAE, Any]]) -> None:
    """In bfloat16 our distance to float32 is at most twice that of diffusers, both ways, over three models."""
    half, shift, scale = torch.bfloat16, *statistics(torch.bfloat16)
    errors: list[tuple[float, ...]] = []
    for _ in range(3):
        ours, theirs = pair(config)
        frames, latents = draw_frames(config, 2).to(half), draw_latents(config, 2).to(half)
        exact = ours.encode(frames.float()), ours.decode(latents.float())
        ours, theirs = ours.to(half), theirs.to(half)
        found = ours.encode(frames), ours.decode(latents)
        assert found[0].dtype == found[1].dtype == half
        posterior = theirs.encode(frames).latent_dist
        reference = (posterior.mode() - shift) / scale, theirs.decode(latents * scale + shift).sample
        errors.append(
            tuple(difference(*each) for answers in (found, reference) for each in zip(answers, exact, strict=True))
        )
    encode_ours, decode_ours, encode_theirs, decode_theirs = (sum(column) for column in zip(*errors, strict=True))
    assert encode_ours <= 2 * encode_theirs
    assert decode_ours <= 2 * decode_theirs


# --- chunks and time --------------------------------------------------------------------------------------------


@config_by_name
@pytest.mark.parametrize("chunk", [2, 3, 6, 100])
def test_chunks_do_not_change_the_result(config: VAEConfig, chunk: int) -> None:
    """Any number of latent frames at a time encodes and decodes to the same; 8 frames leave ragged tails."""
    model = build(config)
    frames, latents = draw_frames(config, 8, 2, 1), draw_latents(config, 8, 2, 1)
    assert difference(model.encode(frames, chunk), model.encode(frames)) <= 1e-5
    assert difference(model.decode(latents, chunk), model.decode(latents)) <= 1e-5


@config_by_name
def test_frames_come_as_they_are_ready(config: VAEConfig) -> None:
    """The first frame comes alone, then those of each chunk, then the tail's; together they are `decode`'s."""
    model, f = build(config), config.temporal_factor
    latents = draw_latents(config, 6)
    parts = list(model.stream_decode(latents, chunk=2))
    assert [part.shape[2] for part in parts] == [1, 2 * f, 2 * f, f]
    whole = torch.cat(parts, dim=2)
    s = config.spatial_factor
    assert whole.shape == (2, 3, config.frames(6), 3 * s, 5 * s)
    assert torch.equal(whole, model.decode(latents, chunk=2))
    assert model.encode(whole).shape == latents.shape


@config_by_name
def test_streams_do_not_share_their_past(config: VAEConfig) -> None:
    """Two clips decoded in turns, and one decoded again, give what each gives alone."""
    model = build(config)
    clips = draw_latents(config, 3), draw_latents(config, 3)
    alone = [model.decode(latents) for latents in clips]
    turns = list(zip(*(model.stream_decode(latents) for latents in clips), strict=True))
    for index, expected in enumerate(alone):
        assert torch.equal(torch.cat([parts[index] for parts in turns], dim=2), expected)


@config_by_name
def test_a_picture_is_the_first_latent_of_its_clip(config: VAEConfig) -> None:
    """One frame, encoded alone, is latent 0 of every clip that begins with it; decoded alone, its frame 0."""
    model = build(config)
    frames, latents = draw_frames(config, 3), draw_latents(config, 3)
    assert difference(model.encode(frames[:, :, :1]), model.encode(frames)[:, :, :1]) <= 1e-6
    assert difference(model.decode(latents[:, :, :1]), model.decode(latents)[:, :, :1]) <= 1e-6


@config_by_name
def test_a_keyframe_is_a_latent_of_a_still_clip(config: VAEConfig) -> None:
    """A picture for the first latent frame is encoded alone; for any later one as the second of a clip that stands."""
    model = build(config)
    picture = draw_frames(config, 1)
    assert torch.equal(model.encode_keyframe(picture[:, :, 0], first=True), model.encode(picture))
    still = picture.expand(-1, -1, config.frames(2), -1, -1)
    later = model.encode_keyframe(picture[:, :, 0], first=False)
    assert torch.equal(later, model.encode(still)[:, :, 1:])
    assert later.shape[2] == 1


@config_by_name
@pytest.mark.parametrize("chunk", [1, 2])
def test_the_future_changes_no_past(config: VAEConfig, chunk: int) -> None:
    """Other frames from some time on leave all earlier latents as they were, and the reverse; later ones change."""
    model, known = build(config), 2
    frames, latents = draw_frames(config, 5, 2, 1), draw_latents(config, 5, 2, 1)
    edge = config.frames(known)
    for run, clip, start, kept in (
        (model.encode, frames, edge, known),
        (model.decode, latents, known, edge),
    ):
        changed = clip.clone()
        changed[:, :, start:] = -changed[:, :, start:]
        before, after = run(clip, chunk), run(changed, chunk)
        torch.testing.assert_close(after[:, :, :kept], before[:, :, :kept], rtol=0, atol=1e-6)
        later = (after - before)[:, :, kept:].abs().amax(dim=(0, 1, 3, 4))
        assert (later > 1e-5).all()


# --- memory -----------------------------------------------------------------------------------------------------


streamed = pytest.mark.parametrize("config", [WAN21, SMALL], ids=["2.1", "small"])


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make and that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_of(run: Callable[[], Any]) -> int:
    with torch.no_grad(), LiveBytes() as live:
        run()
    return live.peak


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@streamed
@pytest.mark.parametrize("tile", [None, 2])
def test_decoding_needs_no_more_memory_for_longer_clips(config: VAEConfig, tile: int | None) -> None:
    """Apart from a few copies of the latents, the peak of 9 latent frames is that of 4; frames are handed out."""
    model = build(config)
    short, long = (draw_latents(config, count, 2, 3, batch=1) for count in (4, 9))

    def run(latents: Tensor) -> None:
        for frames in model.stream_decode(latents, tile=tile):
            assert frames.shape[0] == 1

    growth = peak_of(lambda: run(long)) - peak_of(lambda: run(short))
    assert growth <= 4 * (nbytes(long) - nbytes(short))
    kept = peak_of(lambda: list(model.stream_decode(long, tile=tile)))  # the meter does see frames that are kept
    assert kept - peak_of(lambda: run(long)) > nbytes(draw_frames(config, 5, 2, 3)[:1])


@streamed
def test_encoding_needs_no_more_memory_for_longer_clips(config: VAEConfig) -> None:
    """Apart from the frames and their fold into patches, the peak of 9 latent frames is that of 4."""
    model = build(config)
    short, long = (draw_frames(config, count, 2, 1)[:1].clone() for count in (4, 9))
    growth = peak_of(lambda: model.encode(long)) - peak_of(lambda: model.encode(short))
    assert growth <= 2.2 * (nbytes(long) - nbytes(short))


@streamed
def test_a_stream_holds_two_frames_of_each_layer(config: VAEConfig) -> None:
    """What is remembered does not grow with the chunk: no view keeps a whole chunk alive."""
    model = build(config)
    latents = draw_latents(config, 7, 2, 2)

    def held(chunk: int) -> int:
        stream: dict[nn.Module, Tensor] = {}
        model.decoder(latents[:, :, :1], stream)
        model.decoder(latents[:, :, 1 : 1 + chunk], stream)
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in stream.values()}
        return sum(storage.nbytes() for storage in storages.values())

    assert held(6) == held(1)


# --- tiles ------------------------------------------------------------------------------------------------------

ODD_SIZES = [(5, 7), (9, 13), (1, 9), (16, 3)]


class Enlarger(nn.Module):
    """Stands for a decoder: each latent cell becomes a square of the colour of its first channels."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.size, self.channels = size, channels
        self.seen: list[tuple[int, int]] = []

    def forward(self, x: Tensor, stream: dict[nn.Module, Tensor]) -> Tensor:
        self.seen.append((x.shape[3], x.shape[4]))
        return x[:, : self.channels].repeat_interleave(self.size, 3).repeat_interleave(self.size, 4)


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("tile", [2, 3, 4, 5, 8, 12])
def test_tiles_cover_every_pixel_once(size: tuple[int, int], tile: int) -> None:
    """Where overlapping tiles agree, their blend is what they agree on, everywhere: the weights add up to 1."""
    model = build(WAN21)
    stub = Enlarger(8, 3)
    model.decoder = stub  # type: ignore[assignment]
    model.conv2.weight.copy_(torch.eye(4).view(4, 4, 1, 1, 1))
    model.conv2.bias.zero_()
    latents = draw_latents(WAN21, 2, *size)
    shift, scale = statistics()
    expected = (latents * scale + shift)[:, :3].repeat_interleave(8, 3).repeat_interleave(8, 4).clamp(-1, 1)
    found = torch.cat(list(model.stream_decode(latents, tile=tile)), dim=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert all(height <= tile and width <= tile for height, width in stub.seen)
    constant = torch.cat(list(model.stream_decode(torch.zeros_like(latents), tile=tile)), dim=2)
    torch.testing.assert_close(constant, shift[:, :3].expand_as(constant), rtol=0, atol=1e-6)


@streamed
@pytest.mark.parametrize("size", ODD_SIZES[:2])
def test_a_tile_larger_than_the_picture_changes_nothing(config: VAEConfig, size: tuple[int, int]) -> None:
    """One tile, just as large as the picture or larger, gives the bits of the untiled decode."""
    model = build(config)
    latents = draw_latents(config, 1, *size, batch=1)
    whole = model.decode(latents)
    for tile in (max(size), 64):
        assert torch.equal(torch.cat(list(model.stream_decode(latents, tile=tile)), dim=2), whole)


def smooth_latents(config: VAEConfig, height: int, width: int) -> Tensor:
    """Latents of four pictures that change slowly from cell to cell, so that a seam would be seen."""
    coarse = torch.randn(4, config.latent_channels, 2, 2)
    fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return 0.3 * fine[:, :, None]


@pytest.mark.parametrize(
    ("config", "size", "tile"),
    [(WAN21, (5, 8), 4), (WAN21, (9, 13), 8), (SMALL, (11, 13), 10)],
    ids=["2.1, one cell over and just two tiles", "2.1", "small"],
)
def test_tiles_leave_no_seams(config: VAEConfig, size: tuple[int, int], tile: int) -> None:
    """Where one tile takes over from the next, neighbours differ much less than where tiles are cut hard."""
    model = build(config)
    latents = smooth_latents(config, *size)
    whole = model.decode(latents)
    tiled = torch.cat(list(model.stream_decode(latents, tile=tile)), dim=2)
    assert tiled.shape == whole.shape
    s, (height, width) = config.spatial_factor, size
    cut = torch.empty_like(whole)  # tiles side by side, without overlap
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            part = model.decode(latents[..., top : top + tile, left : left + tile])
            cut[..., top * s : top * s + part.shape[3], left * s : left * s + part.shape[4]] = part

    def jump(frames: Tensor) -> float:
        """The worst mean step from one row or column to the next, beyond the untiled picture's own."""
        extra = frames - whole
        steps = extra.diff(dim=3).abs().mean((0, 1, 2, 4)), extra.diff(dim=4).abs().mean((0, 1, 2, 3))
        return max(step.max().item() for step in steps)

    # Measured 0.03 to 0.20 over random models; equal weights instead of ramps give 0.27 to 0.75, no overlap 1.
    assert jump(tiled) < 0.3 * jump(cut)


@pytest.mark.parametrize("tile", [-1, 0, 1])
def test_tiles_that_cannot_overlap_are_refused(tile: int) -> None:
    """A tile of one cell has no quarter to share."""
    with pytest.raises(ValueError, match=f"tile: got {tile}; at least 2"):
        next(build(WAN21).stream_decode(draw_latents(WAN21, 1), tile=tile))


# --- refusals and small parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((16, 64, 64), "frames: got 16 frames of 64x64; 1 \\+ a multiple of 4 frames"),
        ((1, 64, 65), "got 1 frames of 65x64; .* multiples of 8"),
        ((1, 65, 64), "got 1 frames of 64x65; .* multiples of 8"),
        ((0, 64, 64), "got 0 frames"),
    ],
)
def test_clips_that_do_not_divide_are_refused(shape: tuple[int, int, int], message: str) -> None:
    """The sentence holds the clip's own numbers and those that are allowed; nothing is cut in silence."""
    model, frames = build(WAN21), torch.zeros(1, 3, *shape)
    for encode in (model.encode, model.posterior):
        with pytest.raises(ValueError, match=message):
            encode(frames)


@pytest.mark.parametrize("chunk", [0, -2])
def test_chunks_of_nothing_are_refused(chunk: int) -> None:
    """A chunk has at least one latent frame."""
    model = build(WAN21)
    with pytest.raises(ValueError, match=f"chunk: got {chunk}; at least 1"):
        model.encode(draw_frames(WAN21, 2), chunk)
    with pytest.raises(ValueError, match=f"chunk: got {chunk}; at least 1"):
        model.decode(draw_latents(WAN21, 2), chunk)


def test_patches_hold_columns_before_rows() -> None:
    """Pixel (row r, column c) of a 2x2 patch becomes channel 4 colour + 2 c + r, and comes back."""
    frames = torch.rand(1, 3, 2, 4, 6)
    folded = patchify(frames, 2)
    assert folded.shape == (1, 12, 2, 2, 3)
    for colour in range(3):
        for row in range(2):
            for column in range(2):
                pixels = frames[:, colour, :, row::2, column::2]
                assert torch.equal(folded[:, 4 * colour + 2 * column + row], pixels)
    assert torch.equal(unpatchify(folded, 2), frames)


def test_frames_are_clamped() -> None:
    """A decoder that overshoots gives frames in [-1, 1] and no further."""
    model = build(WAN21)
    model.decoder.head[2].weight.mul_(100)
    frames = model.decode(draw_latents(WAN21, 2))
    assert frames.min() == -1 and frames.max() == 1


@config_by_name
def test_every_parameter_learns(config: VAEConfig) -> None:
    """Training through encode and decode reaches each parameter but those of the unused log variance."""
    model = VideoVAE(config)
    decoded = model.decode(model.encode(draw_frames(config, 3, 1, 1)), chunk=2)
    decoded.mul(torch.randn_like(decoded)).sum().backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert not silent
