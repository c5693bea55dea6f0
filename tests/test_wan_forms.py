# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Every form of Wan through the engine, against diffusers' pipelines on the same random weights: whole routes of four
steps in float32, latents compared."""

from __future__ import annotations

import dataclasses
import json
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import wan_kit as kit
from rushes import Control, Engine, Keyframe, Shot
from rushes.model.clip import clip_pixels
from rushes.shot import ShotError
from wan_kit import CLIP, ENDS, EXPERTS, IMAGE, SIZE, VACE, WORDS, asked, assert_close, engine_of, shot

Make = Callable[..., Any]
CPU = torch.device("cpu")

picture, footage = kit.picture, kit.footage  # fixtures


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

    def watched(part: str, place: torch.device) -> Any:
        if part.startswith("transformer"):
            order.append(part)
            assert all(module() is None for name, module in alive.items() if name != part)
            module = load(part, place)
            alive[part] = weakref.ref(module)
            return module
        return load(part, place)

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


@pytest.mark.parametrize("form", ["experts", "image", "ends", "image experts", "vace", "vace experts"])
def test_every_form_is_the_same_from_every_layout(
    tiny_wan: Make, picture: Callable[[int], str], footage: Callable[..., str], form: str
) -> None:
    """Wan's own names, ComfyUI's and diffusers', each with its tokenizer where it lies: the same bits."""
    names = EXPERTS if "experts" in form else ("tiny_transformer",)
    fields = {"experts": {}, "image": CLIP, "ends": ENDS, "image experts": IMAGE}.get(form, VACE)
    ends = (Keyframe(0, picture(1)), Keyframe(-1, picture(2)))
    one = shot(
        steps=2,
        keyframes=ends[: 2 if form == "ends" else 1 if "image" in form else 0],
        control=(Control("pose", footage(3)),) if "vace" in form else (),
    )
    made = [
        Engine.load(tiny_wan(layout, names=names, **fields).files, device="cpu").denoise(one)
        for layout in ("original", "comfy", "diffusers")
    ]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_a_shots_own_shift_comes_first(tiny_wan: Make, rushes: Make) -> None:
    """Over the model's and the files', with the same bits as theirs; the record and --from have it."""
    files = tiny_wan().files
    engine = Engine.load(dataclasses.replace(files, shift=2.0), device="cpu")
    made = engine.denoise(shot(shift=7.0))
    assert torch.equal(made, Engine.load(dataclasses.replace(files, shift=7.0), device="cpu").denoise(shot()))
    assert engine.record(engine.resolve(shot(shift=7.0)))["model"]["shift"] == 7.0
    assert engine.record(engine.resolve(shot()))["model"]["shift"] == 2.0
    small = ("--size", "32x32", "--frames", "1", "--steps", "1", "--guidance", "1")
    done = rushes("generate", WORDS, "--model", str(files.transformer), "--shift", "7", *small, "-o", "a.safetensors")
    assert done.returncode == 0 and "shift          7" in rushes("inspect", "a.safetensors").stdout
    assert "shift: got 0.0; a number from 0.01" in rushes("generate", WORDS, "--shift", "0", "-o", "a.mp4").stderr


def test_models_show_tells_a_form_and_its_settings(tiny_wan: Make, rushes: Make) -> None:
    """Which it is, what it takes, and every number that a shot gets where it does not say; as JSON too."""
    experts = tiny_wan(names=EXPERTS, **IMAGE).files
    done = rushes("models", "show", str(experts.transformer))
    assert done.returncode == 0, done.stderr
    for row in (
        r"form +Wan 2\.2 I2V A14B", r"takes +a picture at frame 0, and one at the last frame",
        r"guidance +3\.5,3\.5 \(high, low noise\)", r"schedule +wan_unipc, shift 5, solver unipc",
        r"negative +色调艳丽", r"default +81 frames, 832x480 at 16 fps, 40 steps",
    ):  # fmt: skip
        assert re.search(rf"^{row}", done.stdout, re.MULTILINE), row
    clip = tiny_wan(**CLIP).files
    assert "shift 3 at 832x480, 5 at 1280x720" in rushes("models", "show", str(clip.transformer)).stdout
    facts = json.loads(rushes("models", "show", str(clip.transformer), "--json").stdout)
    assert (facts["form"], facts["kind"], facts["shift"], facts["steps"]) == ("Wan 2.1 I2V", "image", 3.0, 40)


@pytest.mark.parametrize("form", ["image", "experts", "vace"])
def test_every_form_is_made_in_little_memory_with_the_same_bits(
    tiny_wan: Make, picture: Callable[[int], str], footage: Callable[..., str], form: str
) -> None:
    """Parts come one after the other: the VAE and CLIP for what is given too, and at no time two of them."""
    fields, names = {"image": (CLIP, ("tiny_transformer",)), "experts": (IMAGE, EXPERTS)}.get(
        form, (VACE, ("tiny_transformer",))
    )
    files = tiny_wan(names=names, **fields).files
    one = shot(
        keyframes=() if form == "vace" else (Keyframe(0, picture(1)),),
        control=(Control("pose", footage(2)),) if form == "vace" else (),
    )
    whole = Engine.load(files, device="cpu").generate(one)
    short = Engine.load(files, device="cpu", memory=1)
    seen: list[frozenset[str]] = []
    load = short._modules._load

    def watched(part: str, place: torch.device) -> Any:
        seen.append(short._modules.loaded | {part})
        return load(part, place)

    short._modules._load = watched  # type: ignore[method-assign]
    made = short.generate(one)
    assert torch.equal(made.latents, whole.latents) and np.array_equal(made.frames, whole.frames)
    assert all(len(parts) == 1 for parts in seen)
    assert {part for parts in seen for part in parts} == set(short.card.parts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["image", "ends", "experts", "vace"])
def test_half_precision_stays_near_float32_in_every_form(
    tiny_wan: Make, picture: Callable[[int], str], footage: Callable[..., str], form: str, dtype: torch.dtype
) -> None:
    """Pictures, CLIP's tokens and contexts meet weights of the half type."""
    fields = {"image": CLIP, "ends": ENDS, "experts": IMAGE, "vace": VACE}[form]
    files = tiny_wan(names=EXPERTS if form == "experts" else ("tiny_transformer",), **fields).files
    ends = (Keyframe(0, picture(1)), Keyframe(-1, picture(2)))
    one = shot(
        keyframes={"vace": (), "ends": ends}.get(form, ends[:1]),
        control=(Control("pose", footage(3)),) if form == "vace" else (),
        guidance=1.0,
    )
    exact = Engine.load(files, device="cpu").denoise(one)
    error = (Engine.load(files, device="cpu", dtype=dtype).denoise(one) - exact).norm() / exact.norm()
    assert 1e-5 < error < 2e-2
