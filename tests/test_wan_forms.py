# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Every form of Wan through the engine, against diffusers' pipelines on the same random weights: whole routes of four
steps in float32, latents compared."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rushes import Engine, Keyframe, Shot
from rushes.model.clip import clip_pixels
from rushes.shot import ShotError

Make = Callable[..., Any]
WORDS = "a red ball rolls to the right"
SIZE, FRAMES = (64, 32), 9
RELATIVE = 2e-5
IMAGE = {"in_channels": 36}
CLIP = {**IMAGE, "image_dim": 24}
ENDS = {**CLIP, "image_positions": 10}


def shot(**changes: Any) -> Shot:
    fields = {"size": SIZE, "frames": FRAMES, "seed": 6, "steps": 4, "guidance": 5.0, "negative": "wet sand"}
    return Shot(f"{WORDS}, close-up café", **(fields | changes))


def asked(shot: Shot) -> dict[str, Any]:
    """The same of a pipeline."""
    assert shot.size is not None and shot.seed is not None
    high, low = shot.guidance_pair
    return {
        "prompt": shot.prompt, "negative_prompt": shot.negative, "width": shot.size[0], "height": shot.size[1],
        "num_frames": shot.frames, "num_inference_steps": shot.steps, "guidance_scale": high, "output_type": "latent",
        "generator": torch.Generator("cpu").manual_seed(shot.seed),
        **({"guidance_scale_2": low} if isinstance(shot.guidance, tuple) else {}),
    }  # fmt: skip


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Relative to the largest value, and the two are no constant."""
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"\nlargest difference, relative: {error:.1e}")
    assert ours.shape == theirs.shape and theirs.std() > 0.1
    assert error <= RELATIVE


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[int], str]:
    """picture(seed): a file of noise in the shot's size, so that nothing is scaled."""

    def draw(seed: int) -> str:
        path = tmp_path / f"picture_{seed}.png"
        pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return str(path)

    return draw


def engine_of(wan: Any, shift: float = 5.0) -> Engine:
    """With diffusers' schedule, of the fixture's files."""
    return Engine.load(dataclasses.replace(wan.files, schedule="diffusers_unipc", shift=shift), device="cpu")


def views(pipeline: Any, *paths: str) -> Tensor:
    """What transformers' CLIP sees in pictures cut as Wan does it; diffusers' own processor cuts them otherwise."""
    pixels = [torch.from_numpy(np.asarray(Image.open(path), np.float32)).permute(2, 0, 1) / 255 for path in paths]
    inputs = clip_pixels(torch.stack(pixels), pipeline.image_encoder.config.image_size)
    with torch.inference_mode():
        return pipeline.image_encoder(inputs, output_hidden_states=True).hidden_states[-2]


@pytest.mark.parity
@pytest.mark.parametrize(("fields", "layout"), [(CLIP, "comfy"), (CLIP, "diffusers"), (ENDS, "comfy")])
def test_wan_21_image_to_video_equals_diffusers(
    tiny_wan: Make, wan_pipeline: Make, trained_spiece: bytes, picture: Callable[[int], str], fields: Any, layout: str
) -> None:
    """The first picture, or the first and the last, as further channels and through CLIP."""
    wan = tiny_wan(layout, spiece=trained_spiece, **fields)
    pipeline, paths = wan_pipeline(wan, "WanImageToVideoPipeline"), [picture(1), picture(2)][: 1 + (fields is ENDS)]
    if layout != "comfy":
        pipeline.tokenizer.backend_tokenizer.save(str(wan.files.text.with_name("tokenizer.json")))
    one = shot(keyframes=tuple(Keyframe(-i, path) for i, path in enumerate(paths)))
    ours = engine_of(wan).denoise(one)
    assert_close(ours, image_latents(pipeline, one, *paths))
    other = engine_of(wan).denoise(one.replace(keyframes=(Keyframe(0, picture(3)), *one.keyframes[1:])))
    assert (other - ours).abs().max() > 1e-2  # the picture matters more than the tolerance


def image_latents(pipeline: Any, one: Shot, *paths: str) -> Tensor:
    """diffusers takes pictures or CLIP's view of them, not both: so its CLIP is made to give the view."""
    if pipeline.image_encoder is not None:
        tokens = views(pipeline, *paths)
        pipeline.encode_image = lambda images, device=None: tokens
    pictures = dict(zip(("image", "last_image"), map(Image.open, paths), strict=False))
    return pipeline(**asked(one), **pictures).frames


EXPERTS = ("tiny_i2v_high_noise", "tiny_i2v_low_noise")


@pytest.mark.parity
@pytest.mark.parametrize("ends", [1, 2])
def test_wan_22_image_to_video_equals_diffusers(
    tiny_wan: Make, wan_pipeline: Make, trained_spiece: bytes, picture: Callable[[int], str], ends: int
) -> None:
    """Two experts, no CLIP, and a guidance for each; with a picture at the end too."""
    wan = tiny_wan(spiece=trained_spiece, names=EXPERTS, **IMAGE)
    paths = [picture(1), picture(2)][:ends]
    one = shot(keyframes=tuple(Keyframe(-i, path) for i, path in enumerate(paths)), guidance=(5.0, 2.0))
    pipeline = wan_pipeline(wan, "WanImageToVideoPipeline", boundary_ratio=0.9)
    ours = engine_of(wan).denoise(one)
    assert_close(ours, image_latents(pipeline, one, *paths))
    assert (engine_of(wan).denoise(one.replace(guidance=5.0)) - ours).abs().max() > 1e-3


@pytest.mark.parity
def test_wan_22_text_to_video_equals_diffusers(tiny_wan: Make, wan_pipeline: Make, trained_spiece: bytes) -> None:
    """Two experts along the same schedule; the low-noise one has the last two of four steps."""
    wan = tiny_wan(spiece=trained_spiece, names=("wan2.2_t2v_high_noise_14B", "wan2.2_t2v_low_noise_14B"))
    one = shot(guidance=(4.0, 3.0))
    ours = engine_of(wan).denoise(one)
    assert_close(ours, wan_pipeline(wan, "WanPipeline", boundary_ratio=0.875)(**asked(one)).frames)


@pytest.mark.parity
def test_wan_22_5b_image_to_video_equals_diffusers(
    tiny_wan: Make, wan_pipeline: Make, trained_spiece: bytes, picture: Callable[[int], str]
) -> None:
    """The first latent frame is the picture's at every step, with a timestep of 0 for its tokens."""
    wan = tiny_wan("original", "2.2", spiece=trained_spiece)
    pipeline = wan_pipeline(wan, "WanImageToVideoPipeline", expand_timesteps=True)
    pipeline.tokenizer.backend_tokenizer.save(str(wan.files.text.with_name("tokenizer.json")))
    one = shot(keyframes=(Keyframe(0, picture(4)),))
    ours = engine_of(wan).denoise(one)
    assert_close(ours, image_latents(pipeline, one, picture(4)))
    assert (engine_of(wan).denoise(one.replace(keyframes=())) - ours).abs().max() > 1e-2


def test_a_clip_goes_on_from_the_one_before(tiny_wan: Make, picture: Callable[[int], str]) -> None:
    """Known start frames by the same mask: the given latents stay bit for bit, and what follows depends on them."""
    for fields, names in ((IMAGE, EXPERTS), (CLIP, ("tiny_transformer",))):
        wan = tiny_wan(names=names, **fields)
        engine = Engine.load(wan.files, device="cpu")
        before = engine.encode(np.random.default_rng(5).random((5, SIZE[1], SIZE[0], 3), np.float32))
        made = engine.denoise(shot(frames=17), before=before)
        assert torch.equal(made[:, :, :2], before)
        other = engine.denoise(shot(frames=17), before=before.flip(-1))
        assert (made[:, :, 2:] - other[:, :, 2:]).abs().max() > 1e-3
        with pytest.raises(ShotError, match=r"keyframe: got frame 0; .* takes a picture at frame (16|none) of this"):
            engine.denoise(shot(frames=17, keyframes=(Keyframe(0, picture(1)),)), before=before)


@pytest.mark.parametrize(
    ("fields", "at", "sentence"),
    [
        (CLIP, (), r"keyframe: got none; tiny_transformer needs a picture at frame 0 to start from \(--keyframe 0="),
        (CLIP, (4,), r"keyframe: got frame 4; tiny_transformer needs a picture at frame 0 to start from"),
        (CLIP, (0, -1), r"keyframe: got frame 8; tiny_transformer takes a picture at frame 0 of this clip"),
        (ENDS, (0,), r"keyframe: got frame 0; tiny_transformer needs a picture at frame 8 to end at \(--keyframe -1="),
        (ENDS, (0, 4, 8), r"keyframe: got frame 4; tiny_transformer takes a picture at frame 0 and 8 of this clip"),
        (IMAGE, (0, 4), r"keyframe: got frame 4; tiny_i2v_high_noise takes a picture at frame 0 and 8 of this clip"),
    ],
)
def test_pictures_that_a_form_cannot_take_are_refused(
    tiny_wan: Make, picture: Callable[[int], str], fields: Any, at: tuple[int, ...], sentence: str
) -> None:
    """Before anything is made, with the frames that it does take."""
    wan = tiny_wan(names=EXPERTS if fields is IMAGE else ("tiny_transformer",), **fields)
    engine = Engine.load(wan.files, device="cpu")
    with pytest.raises(ShotError, match=sentence):
        engine.resolve(shot(keyframes=tuple(Keyframe(frame, picture(frame % 9)) for frame in at)))


def test_two_numbers_of_guidance_need_two_experts(tiny_wan: Make) -> None:
    engine = Engine.load(tiny_wan().files, device="cpu")
    with pytest.raises(ShotError, match=r"guidance: got 4,3; tiny_transformer has one transformer and takes one"):
        engine.resolve(shot(guidance=(4.0, 3.0)))


def test_experts_are_never_in_memory_together(tiny_wan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of one are gone when those of the other are read, in the first shot and in the next."""
    engine = Engine.load(tiny_wan(names=EXPERTS).files, device="cpu")
    alive: dict[str, weakref.ref[Any]] = {}
    order: list[str] = []
    load = engine._modules._load

    def watched(part: str) -> Any:
        if part.startswith("transformer"):
            order.append(part)
            assert all(module() is None for name, module in alive.items() if name != part)
            module = load(part)
            alive[part] = weakref.ref(module)
            return module
        return load(part)

    monkeypatch.setattr(engine._modules, "_load", watched)
    first = engine.denoise(shot())
    assert torch.equal(engine.denoise(shot()), first)
    assert order == ["transformer", "transformer_low"] * 2


def test_a_host_is_asked_for_each_expert(tiny_wan: Make, picture: Callable[[int], str]) -> None:
    """It moves them itself; CLIP comes before the transformer too."""
    asked: list[str] = []
    prepare = lambda part, memory: asked.append(part)  # noqa: E731
    Engine.load(tiny_wan(names=EXPERTS).files, device="cpu", prepare=prepare).denoise(shot())
    assert asked == ["text", "transformer", "transformer_low"]
    asked.clear()
    one = shot(keyframes=(Keyframe(0, picture(1)),))
    Engine.load(tiny_wan(**CLIP).files, device="cpu", prepare=prepare).denoise(one)
    assert list(dict.fromkeys(asked)) == ["text", "vae", "clip", "transformer"]


@pytest.mark.parametrize("at", [1, 3])
def test_a_broken_denoising_of_two_experts_goes_on(tiny_wan: Make, at: int) -> None:
    """In the step of either of them, with the same bits."""
    engine = Engine.load(tiny_wan(names=EXPERTS).files, device="cpu")
    states: list[Any] = []
    whole = engine.denoise(shot(), on_state=states.append)
    assert torch.equal(engine.denoise(shot(), resume=states[at - 1]), whole)
