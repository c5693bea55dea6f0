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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rushes import Control, Engine, Keyframe, Shot
from rushes.control import read_contexts
from rushes.model.clip import clip_pixels
from rushes.shot import ShotError

Make = Callable[..., Any]
WORDS = "a red ball rolls to the right"
SIZE, FRAMES = (64, 32), 9
RELATIVE = 2e-5
CPU = torch.device("cpu")
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


VACE = {"layers": 4, "vace_in_channels": 96, "vace_layers": (0, 2)}


@pytest.fixture
def footage(tmp_path: Path) -> Callable[..., str]:
    """footage(seed, frames): numbered pictures of noise in the shot's size, or of black and white squares of 8."""

    def draw(seed: int, frames: int = FRAMES, squares: bool = False) -> str:
        dice = np.random.default_rng(seed)
        for frame in range(frames):
            pixels = dice.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            if squares:
                cells = dice.integers(0, 2, (SIZE[1] // 8, SIZE[0] // 8)) * 255
                pixels = np.kron(cells, np.ones((8, 8))).astype(np.uint8)[..., None].repeat(3, 2)
            Image.fromarray(pixels).save(tmp_path / f"footage_{seed}.{frame:04d}.png")
        return str(tmp_path / f"footage_{seed}.%04d.png")

    return draw


def frames_of(pattern: str, frames: int = FRAMES) -> Tensor:
    """What is in the files, as diffusers takes it."""
    return batch(np.stack([np.asarray(Image.open(pattern % frame), np.float32) / 255 for frame in range(frames)]))


def batch(frames: np.ndarray) -> Tensor:
    """[1, F, 3, H, W] of [F, H, W, 3]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)[None]


@pytest.mark.parity
@pytest.mark.parametrize(
    "given", ["nothing", "guide", "source and mask", "references", "guide and references", "strength", "ends"]
)
def test_wan_21_vace_equals_diffusers(
    tiny_wan: Make,
    wan_pipeline: Make,
    trained_spiece: bytes,
    footage: Callable[..., str],
    picture: Callable[[int], str],
    given: str,
) -> None:
    """Footage, masks, references, strengths and keyframes, as one context of the control branch."""
    wan = tiny_wan(spiece=trained_spiece, **VACE)
    pipeline = wan_pipeline(wan, "WanVACEPipeline")
    guide, mask, pictures = footage(1), footage(2, squares=True), (picture(3), picture(4))
    reference = Control("reference", references=pictures)
    # diffusers has the last reference first
    theirs_reference = {"reference_images": [Image.open(path) for path in reversed(pictures)]}
    grey = np.full((FRAMES, SIZE[1], SIZE[0], 3), 0.5, np.float32)
    new = np.ones_like(grey)
    if given == "ends":
        grey[0], grey[-1] = (np.asarray(Image.open(path), np.float32) / 255 for path in pictures)
        new[0] = new[-1] = 0
    ours, theirs = {
        "nothing": ({}, {}),
        "guide": ({"control": (Control("pose", guide),)}, {"video": frames_of(guide)}),
        "source and mask": (
            {"control": (Control("source", guide, mask=mask),)},
            {"video": frames_of(guide), "mask": frames_of(mask)},
        ),
        "references": ({"control": (reference,)}, theirs_reference),
        "guide and references": (
            {"control": (Control("flow", guide), reference)},
            {"video": frames_of(guide), **theirs_reference},
        ),
        "strength": (
            {"control": (Control("pose", guide, 0.6),)},
            {"video": frames_of(guide), "conditioning_scale": 0.6},
        ),
        "ends": (
            {"keyframes": (Keyframe(0, pictures[0]), Keyframe(-1, pictures[1]))},
            {"video": batch(grey), "mask": batch(new)},
        ),
    }[given]
    one = shot(**ours)
    latents = engine_of(wan).denoise(one)
    expected = pipeline(**asked(one), **theirs).frames
    count = 2 if "references" in given else 0
    assert expected.shape[2] == latents.shape[2] + count
    assert_close(latents, expected[:, :, count:])
    if ours:
        assert (engine_of(wan).denoise(shot()) - latents).abs().max() > 1e-3


def test_several_contexts_have_their_own_strengths(tiny_wan: Make, footage: Callable[..., str]) -> None:
    """A second guide changes the clip, less with less strength, and not at all with none."""
    engine = engine_of(tiny_wan(**VACE))
    first = Control("pose", footage(1))
    alone, none, half, full = (
        engine.denoise(shot(control=(first, *(Control("flow", footage(2), how) for how in strengths))))
        for strengths in ((), (0.0,), (0.5,), (1.0,))
    )
    assert torch.equal(none, alone)
    changes = [(latents - alone).abs().max().item() for latents in (half, full)]
    assert 1e-3 < changes[0] < changes[1]


def sampled(video: Tensor) -> Tensor:
    """A stand-in for the encoder that can be looked through: every fourth frame, every eighth pixel."""
    return video[:, :, ::4, ::8, ::8]


def test_a_guide_holds_within_its_mask_and_not_after_its_end(footage: Callable[..., str]) -> None:
    """What lies outside of a white mask, or behind the footage, is as if it were not there."""
    guide, mask = footage(1), footage(2, squares=True)
    cut = frames_of(guide)[0] * (frames_of(mask)[0, :, :1] > 0.5)  # [F, 3, H, W]
    contexts, _ = read_contexts(shot(control=(Control("pose", guide, mask=mask),)), {}, None, sampled, CPU)
    grey = torch.where(frames_of(mask)[0, :, :1] > 0.5, cut * 2 - 1, torch.zeros(()))[::4, :, ::8, ::8]
    torch.testing.assert_close(contexts[0].latents[0, 3:6], grey.transpose(0, 1), atol=1e-6, rtol=0)
    for start, there in ((2, [False, True, False]), (6, [False, False, True])):
        contexts, _ = read_contexts(
            shot(control=(Control("pose", footage(3, frames=3), start=start),)), {}, None, sampled, CPU
        )
        assert [bool(frame.any()) for frame in contexts[0].latents[0, 3:6].unbind(1)] == there
        assert (contexts[0].latents[0, 6:] == 1).all()  # all of it is made anew


def test_kept_frames_stand_in_every_context(footage: Callable[..., str]) -> None:
    """A keyframe under a guide: there the guide's frame is replaced, and the mask is 0."""
    one = shot(control=(Control("pose", footage(1)), Control("flow", footage(2))))
    kept = {4: torch.rand(1, 3, SIZE[1], SIZE[0])}
    contexts, references = read_contexts(one, kept, None, sampled, CPU)
    assert references == 0 and len(contexts) == 2
    for context in contexts:
        torch.testing.assert_close(context.latents[:, :3, 1], kept[4][:, :, ::8, ::8])
        assert not context.latents[:, 3:6, 1].any()  # nothing to be made anew
        assert not context.latents[:, 6:, 1].any() and (context.latents[:, 6:, 2] == 1).all()


def test_a_vace_clip_goes_on_from_the_one_before(tiny_wan: Make, picture: Callable[[int], str]) -> None:
    """Bit for bit, with references before it in time; the rest depends on it, and a broken run goes on."""
    engine = engine_of(tiny_wan(**VACE))
    before = engine.encode(np.random.default_rng(5).random((5, SIZE[1], SIZE[0], 3), np.float32))
    one = shot(frames=17, control=(Control("reference", references=(picture(1),)),))
    states: list[Any] = []
    previews: list[Any] = []
    made = engine.denoise(
        one, before=before, on_state=states.append, on_preview=lambda step, frames: previews.append(frames.shape[0])
    )
    assert made.shape[2] == 5 and torch.equal(made[:, :, :2], before)
    assert previews == [5] * 4 and states[0].latents.shape[2] == 6
    assert torch.equal(engine.denoise(one, before=before, resume=states[1]), made)
    assert (engine.denoise(one, before=-before)[:, :, 2:] - made[:, :, 2:]).abs().max() > 1e-3


def test_footage_that_changed_or_cannot_be_read_is_refused(tiny_wan: Make, footage: Callable[..., str]) -> None:
    """Sealed when the shot is resolved; JSON keeps it, and another file of the same name is not taken."""
    engine = engine_of(tiny_wan(**VACE))
    guide = footage(1)
    sealed = engine.resolve(shot(control=(Control("pose", guide, mask=guide),)))
    assert [len(digest) for digest in sealed.control[0].sha256] == [64, 64]
    assert Shot.from_json(sealed.to_json()) == sealed
    Image.new("RGB", SIZE).save(guide % 3)
    with pytest.raises(ShotError, match=r"control: .*footage_1\.%04d\.png is not the footage this shot was made with"):
        engine.resolve(sealed)
    Path(guide % 3).write_bytes(b"no picture")
    with pytest.raises(ShotError, match=r"^control: .*footage_1\.0003\.png: it cannot be read"):
        engine.denoise(shot(control=(Control("pose", guide),)))
    Path(guide % 3).unlink()
    with pytest.raises(ShotError, match=r"of the frames 0 to 8, 3 .* is missing"):
        engine.resolve(sealed)


def test_control_is_refused_where_it_has_no_place(tiny_wan: Make, footage: Callable[..., str]) -> None:
    passes = (Control("depth", footage(1)),)
    with pytest.raises(ShotError, match=r"control: got depth; tiny_transformer takes no control passes, a VACE model"):
        engine_of(tiny_wan()).resolve(shot(control=passes))
    with pytest.raises(ShotError, match=r"control: got depth; starter takes no control passes"):
        Engine.load("starter", device="cpu").resolve(Shot(WORDS, control=passes))
    with pytest.raises(ShotError, match=r"control: got the start 9; 0 to 8 is allowed in this clip"):
        engine_of(tiny_wan(**VACE)).resolve(shot(control=(Control("pose", footage(1), start=9),)))


def test_a_controlled_shot_is_made_from_the_command_line_and_again(
    tiny_wan: Make, footage: Callable[..., str], picture: Callable[[int], str], rushes: Make, tmp_path: Path
) -> None:
    """--control, --mask, --reference and --keyframe; the record carries them, and --from makes the same bits."""
    wan = tiny_wan(**VACE)
    guide, mask = footage(1), footage(2, squares=True)
    name = Path(guide).name
    made = rushes(
        "generate", WORDS, "--model", str(wan.files.transformer), "--size", "64x32", "--frames", "9", "--steps", "2",
        "--control", f"pose:0.5@2={name}", "--control", f"source={name}", "--mask", mask, "--mask", guide,
        "--reference", picture(3), "--keyframe", f"-1={picture(4)}", "-o", "a.safetensors",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    found = rushes("inspect", "a.safetensors").stdout
    assert f"control pose       {guide} at 0.5 from frame 2 within {mask}" in found
    assert f"control reference  {picture(3)}" in found
    again = rushes("generate", "--from", "a.safetensors", "-o", "b.safetensors")
    assert again.returncode == 0, again.stderr
    from safetensors.torch import load_file

    assert torch.equal(
        load_file(tmp_path / "a.safetensors")["latents"], load_file(tmp_path / "b.safetensors")["latents"]
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--control", "depth"], "control: got 'depth'; KIND=FILE such as depth=z.%04d.exr is allowed"),
        (["--control", "colour=a.png"], "control: got 'colour=a.png'; KIND=FILE"),
        (["--control", "depth:much=a.png"], "control: the strength: got 'much'; a number is allowed"),
        (["--control", "depth:11=a.png"], "control: the strength is 11.0; a number from 0 to 10 is allowed"),
        (["--control", "depth@-1=a.png"], "control: the start: got -1; a whole number from 0"),
        (["--control", "depth@x=a.png"], "control: the start: got 'x'; a whole number is allowed"),
        (["--mask", "m.png"], "mask: got one without any --control"),
        (
            ["--control", "depth=a.png"] * 3 + ["--mask", "m.png"] * 2,
            "mask: got 2 for 3 --control; one, or one",
        ),
        (["--control", "depth=a.png"], "control: got depth; starter takes no control passes"),
        (["--guidance", "4,x"], "guidance: got '4,x'; a number, or two as in 4,3, is allowed"),
        (["--guidance", "4,3"], "guidance: got 4,3; starter has one transformer and takes one number"),
    ],
)
def test_bad_options_are_one_sentence(rushes: Make, options: list[str], sentence: str) -> None:
    done = rushes("generate", WORDS, "-o", "a.mp4", *options)
    assert done.returncode == 2 and done.stdout == ""
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1


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


def test_a_source_is_what_an_image_model_goes_on_from(
    tiny_wan: Make, footage: Callable[..., str], picture: Callable[[int], str]
) -> None:
    """One frame is the picture at frame 0; of several, each is known by the same mask, and CLIP sees the first."""
    engine = engine_of(tiny_wan(**CLIP))
    one = footage(1, frames=1) % 0
    by_source = engine.denoise(shot(control=(Control("source", one),)))
    assert torch.equal(by_source, engine.denoise(shot(keyframes=(Keyframe(0, one),))))
    given = engine._conditioner.read(
        engine.resolve(shot(control=(Control("source", footage(2, frames=3)),))), None, lambda progress: None
    )
    assert given.channels is not None and given.image is not None and given.image.shape[0] == 1
    known = given.channels[0, :4, :, 0, 0]  # [4, T]: pixel frames 4 (t - 1) + 1 + c
    assert known.T.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
    ends = engine_of(tiny_wan(names=EXPERTS, **IMAGE))
    joined = shot(control=(Control("source", footage(2, frames=3)),), keyframes=(Keyframe(-1, picture(3)),))
    channels = ends._conditioner.read(ends.resolve(joined), None, lambda progress: None).channels
    assert channels is not None and channels[0, :4, 2, 0, 0].tolist() == [0, 0, 0, 1]


def test_a_source_is_what_other_models_begin_with(tiny_wan: Make, footage: Callable[..., str]) -> None:
    """Its whole latent frames, as `before` takes them; frames beyond a multiple of four are left out."""
    engine = engine_of(tiny_wan("comfy", "2.2"))
    name = footage(1, frames=7)
    made = engine.denoise(shot(control=(Control("source", name),)))
    pixels = frames_of(name, 5)[0].permute(0, 2, 3, 1).contiguous().numpy()
    before = engine.encode(pixels)
    torch.testing.assert_close(made, engine.denoise(shot(), before=before), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made[:, :, :2], before, rtol=1e-5, atol=1e-5)


def test_a_source_that_cannot_be_gone_on_from_is_refused(
    tiny_wan: Make, footage: Callable[..., str], picture: Callable[[int], str]
) -> None:
    engine = engine_of(tiny_wan("comfy", "2.2"))
    name = footage(1)
    for control, words in (
        ((Control("source", name, start=2),), "one at frame 0, without a mask, is allowed"),
        ((Control("source", name, mask=name),), "one at frame 0, without a mask, is allowed"),
        ((Control("source", name),) * 2, "goes on from a source; one at frame 0"),
        ((Control("source", name), Control("depth", name)), "got depth; .* no control passes but a source"),
        ((Control("source", name),), "the source has all 9 frames of the clip; a shorter one is allowed"),
    ):
        with pytest.raises(ShotError, match=rf"^control: .*{words}"):
            engine.denoise(shot(control=control))
    before = engine.encode(np.zeros((1, SIZE[1], SIZE[0], 3), np.float32))
    with pytest.raises(ShotError, match=r"^control: got a source with a clip before"):
        engine.denoise(shot(control=(Control("source", name),)), before=before)
    short = (Control("source", footage(2, frames=5)),)
    with pytest.raises(ShotError, match=r"^keyframe: got frame 4; the clip before already gives that part"):
        engine.denoise(shot(control=short, keyframes=(Keyframe(4, picture(1)),)))


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
