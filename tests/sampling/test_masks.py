# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The extra channels of Wan I2V and VACE, against loops that spell out where each pixel goes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rushes.sampling.masks import (
    grey_where_unknown,
    image_condition,
    image_mask,
    vace_condition,
    vace_mask,
    vace_split,
)


def flags(frames: int, *known: int) -> Tensor:
    """bool [F], True at the given frames; negative ones count from the end."""
    mask = torch.zeros(frames, dtype=torch.bool)
    for frame in known:
        mask[frame] = True
    return mask


IMAGE_CASES = [
    (flags(17, 0), "image-to-video"),
    (flags(17, 0, -1), "first and last"),
    (flags(33, 0, 1, 2, 3, 4), "extend by whole latent frames"),
    (flags(33, 0, 1, 2), "extend by part of a latent frame"),
    (flags(9, 5), "a keyframe in the middle"),
    (flags(1, 0), "a single frame"),
    (flags(5), "nothing known"),
]


@pytest.mark.parametrize("known", [case[0] for case in IMAGE_CASES], ids=[case[1] for case in IMAGE_CASES])
def test_image_mask_names_the_pixel_frames_inside_each_latent_frame(known: Tensor) -> None:
    """Channel c of latent frame t > 0 is pixel frame 4 t - 3 + c; latent frame 0 is frame 0 four times."""
    mask = image_mask(known, 3, 5)
    assert mask.shape == (1, 4, (len(known) - 1) // 4 + 1, 3, 5) and mask.dtype == torch.float32
    for channel in range(4):
        for frame in range(mask.shape[2]):
            pixel_frame = 0 if frame == 0 else 4 * frame - 3 + channel
            assert (mask[0, channel, frame] == float(known[pixel_frame])).all()


def test_the_condition_video_is_grey_where_nothing_is_known() -> None:
    """0 in [-1, 1]; known frames keep their bits, unknown ones do not leak even a NaN."""
    video = torch.randn(1, 3, 9, 4, 6)
    video[:, :, 3] = torch.nan
    known = flags(9, 0, -1)
    condition = grey_where_unknown(video, known)
    for frame in range(9):
        expected = video[:, :, frame] if known[frame] else torch.zeros(1, 3, 4, 6)
        assert torch.equal(condition[:, :, frame], expected)


def test_image_condition_puts_the_mask_first() -> None:
    """[mask 4 | latent 16]."""
    latents = torch.randn(1, 16, 3, 2, 5)
    condition = image_condition(image_mask(flags(9, 0), 2, 5), latents)
    assert condition.shape == (1, 20, 3, 2, 5)
    assert torch.equal(condition[:, 4:], latents)
    assert condition[0, :4, 0].eq(1).all() and condition[0, :4, 1:].eq(0).all()


# 4 n + 1 frames as Wan makes them, and counts that are not, which the rule covers too
@pytest.mark.parametrize("frames", [1, 5, 9, 17, 81, 2, 4, 12, 30])
def test_vace_mask_moves_pixels_to_channels(frames: int) -> None:
    """Channel 8 y + x of latent pixel (i, j) is pixel (8 i + y, 8 j + x) of the frame under the middle."""
    mask = torch.rand(1, 1, frames, 16, 24)
    result = vace_mask(mask)
    latent_frames = (frames + 3) // 4
    assert result.shape == (1, 64, latent_frames, 2, 3)
    for t in range(latent_frames):
        source = mask[0, 0, int((t + 0.5) * frames / latent_frames)]
        for y in range(8):
            for x in range(8):
                assert torch.equal(result[0, 8 * y + x, t], source[y::8, x::8])


@pytest.mark.parametrize("frames", [*range(1, 40), 81, 121])
def test_vace_mask_picks_frames_as_torchs_nearest_exact(frames: int) -> None:
    """A mask whose value is its frame number shows which frames were taken."""
    numbers = torch.arange(frames, dtype=torch.float32)
    mask = numbers.view(1, 1, -1, 1, 1).expand(1, 1, frames, 8, 8)
    expected = torch.nn.functional.interpolate(numbers[None, None], size=(frames + 3) // 4, mode="nearest-exact")
    assert torch.equal(vace_mask(mask)[0, 17, :, 0, 0], expected[0, 0])


def test_vace_split_shares_out_the_pixels() -> None:
    """Kept pixels in one half, pixels to make anew in the other, zero elsewhere; 0.5 itself is kept."""
    video = torch.randn(1, 3, 5, 8, 16)
    mask = torch.rand(1, 1, 5, 8, 16)
    mask[..., 0] = 0.5
    inactive, reactive = vace_split(video, mask)
    for c, f, y, x in torch.cartesian_prod(*[torch.arange(size) for size in video.shape[1:]]).tolist():
        value = video[0, c, f, y, x]
        anew = mask[0, 0, f, y, x] > 0.5
        assert inactive[0, c, f, y, x] == (0 if anew else value)
        assert reactive[0, c, f, y, x] == (value if anew else 0)


@pytest.mark.parametrize("references", [0, 1, 3])
def test_vace_condition_puts_references_before_the_clip(references: int) -> None:
    """[inactive 16 | reactive 16 | mask 64]; a reference is inactive, has mask 0 and keeps its place."""
    inactive, reactive = torch.randn(2, 1, 16, 2, 3, 5)
    mask = torch.rand(1, 64, 2, 3, 5)
    pictures = [torch.randn(1, 16, 1, 3, 5) for _ in range(references)]
    condition = vace_condition(inactive, reactive, mask, pictures)
    assert condition.shape == (1, 96, references + 2, 3, 5)
    for index, picture in enumerate(pictures):
        assert torch.equal(condition[:, :16, index : index + 1], picture)
        assert condition[:, 16:, index].eq(0).all()
    clip = condition[:, :, references:]
    assert torch.equal(clip[:, :16], inactive) and torch.equal(clip[:, 16:32], reactive)
    assert torch.equal(clip[:, 32:], mask)


@pytest.mark.parametrize("known", [torch.ones(8).bool(), torch.ones(16).bool(), torch.ones(5), torch.ones(1, 5).bool()])
def test_frame_flags_of_a_wrong_shape_are_refused(known: Tensor) -> None:
    """4 n + 1 frames, bool, one dimension."""
    with pytest.raises(ValueError, match=r"^known: got .*; torch\.bool \[F\] with F = 4 n \+ 1 is allowed$"):
        image_mask(known, 2, 2)
    with pytest.raises(ValueError, match=r"^known: got "):
        grey_where_unknown(torch.zeros(1, 3, 9, 8, 8), flags(5, 0))


@pytest.mark.parametrize("shape", [(1, 1, 5, 12, 16), (1, 1, 5, 16, 20), (1, 3, 5, 16, 16), (2, 1, 5, 8, 8), (5, 8, 8)])
def test_vace_masks_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    """One channel, one clip, whole blocks of 8 pixels."""
    with pytest.raises(ValueError, match=r"^mask: got .* with H and W multiples of 8 is allowed$"):
        vace_mask(torch.zeros(shape))


def test_masks_that_do_not_fit_their_latents_are_refused() -> None:
    """A mask of another clip would be broadcast or fail deep inside torch."""
    latents = torch.zeros(1, 16, 3, 2, 5)
    with pytest.raises(ValueError, match=r"^mask: got \[1, 4, 2, 2, 5\]; \[1, 4, 3, 2, 5\] is allowed"):
        image_condition(torch.zeros(1, 4, 2, 2, 5), latents)
    with pytest.raises(ValueError, match=r"^mask: got \[1, 64, 3, 2, 4\]; \[1, 64, 3, 2, 5\] is allowed"):
        vace_condition(latents, latents, torch.zeros(1, 64, 3, 2, 4))


@pytest.fixture(scope="module")
def tiny_vae(diffusers: ModuleType) -> Any:
    """Wan's VAE with random weights and 8 base channels."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


@torch.no_grad()
def encode(vae: Any, video: Tensor) -> Tensor:
    """Model-space latents: (mode - mean) / std."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    return (vae.encode(video).latent_dist.mode() - mean) / std


@pytest.mark.parity
@pytest.mark.parametrize("with_last", [False, True])
@torch.no_grad()
def test_image_condition_is_that_of_diffusers_image_to_video(
    diffusers: ModuleType, tiny_vae: Any, with_last: bool
) -> None:
    """The 20 channels behind the noise, through the same VAE."""
    pipeline = diffusers.WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=tiny_vae, scheduler=diffusers.UniPCMultistepScheduler()
    )
    video = torch.rand(1, 3, 9, 16, 24) * 2 - 1
    known = flags(9, 0, -1) if with_last else flags(9, 0)
    _, theirs = pipeline.prepare_latents(
        video[:, :, 0],
        1,
        height=16,
        width=24,
        num_frames=9,
        dtype=torch.float32,
        device=torch.device("cpu"),
        last_image=video[:, :, -1] if with_last else None,
    )
    ours = image_condition(image_mask(known, 2, 3), encode(tiny_vae, grey_where_unknown(video, known)))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("with_reference", [False, True])
@torch.no_grad()
def test_vace_condition_is_that_of_diffusers_vace(diffusers: ModuleType, tiny_vae: Any, with_reference: bool) -> None:
    """The 96 channels, through the same VAE, with grey values in the mask."""
    transformer = diffusers.WanVACETransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, ffn_dim=8, num_layers=1, vace_layers=[0], text_dim=8
    )
    pipeline = diffusers.WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae,
        scheduler=diffusers.UniPCMultistepScheduler(),
        transformer=transformer,
    )
    video = torch.rand(1, 3, 9, 16, 32) * 2 - 1
    mask = torch.rand(1, 1, 9, 16, 32)
    picture = torch.rand(3, 16, 32) * 2 - 1
    references = [[picture]] if with_reference else [[]]
    theirs = torch.cat(
        [
            pipeline.prepare_video_latents(video, mask.expand_as(video), references, device=torch.device("cpu")),
            pipeline.prepare_masks(mask.expand_as(video), references),
        ],
        dim=1,
    )
    inactive, reactive = (encode(tiny_vae, half) for half in vace_split(video, mask))
    pictures = [encode(tiny_vae, picture[None, :, None])] if with_reference else []
    ours = vace_condition(inactive, reactive, vace_mask(mask), pictures)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
