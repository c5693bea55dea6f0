# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""VACE: control passes, masks, references and sources through the engine, against diffusers' pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wan_kit as kit
from rushes import Control, Engine, Keyframe, Shot
from rushes.control import read_contexts
from rushes.media import read_pass
from rushes.shot import ShotError
from wan_kit import (
    CLIP,
    EXPERTS,
    FRAMES,
    IMAGE,
    SIZE,
    VACE,
    WORDS,
    asked,
    assert_close,
    batch,
    engine_of,
    frames_of,
    sampled,
    shot,
)

Make = Callable[..., Any]
CPU = torch.device("cpu")

picture, footage = kit.picture, kit.footage  # fixtures


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


@pytest.mark.parity
def test_wan_22_vace_equals_diffusers(
    tiny_wan: Make, wan_pipeline: Make, trained_spiece: bytes, footage: Callable[..., str]
) -> None:
    """Two experts, each with a control branch of its own, and a guidance for each."""
    wan = tiny_wan(spiece=trained_spiece, names=EXPERTS, **VACE)
    one = shot(control=(Control("pose", footage(1)),), guidance=(4.0, 3.0))
    latents = engine_of(wan).denoise(one)
    pipeline = wan_pipeline(wan, "WanVACEPipeline", boundary_ratio=0.875)
    assert_close(latents, pipeline(**asked(one), video=frames_of(footage(1))).frames)


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


def test_keyframes_of_a_control_branch_may_be_neighbours(tiny_wan: Make, picture: Callable[[int], str]) -> None:
    """Each is a frame of its video; the same frame twice is refused, and in latent frames neighbours are."""
    keyframes = (Keyframe(4, picture(1)), Keyframe(3, picture(2)))
    engine = engine_of(tiny_wan(**VACE))
    assert [key.frame for key in engine.resolve(shot(keyframes=keyframes)).keyframes] == [3, 4]
    made = engine.denoise(shot(keyframes=keyframes))
    assert (made - engine.denoise(shot(keyframes=keyframes[:1]))).abs().max() > 1e-4
    with pytest.raises(ShotError, match=r"keyframe: frame 4 is given twice"):
        engine.resolve(shot(keyframes=(*keyframes, Keyframe(-5, picture(3)))))
    with pytest.raises(ShotError, match=r"keyframe: frames 4 and 3 fall into one latent frame"):
        engine_of(tiny_wan("comfy", "2.2")).resolve(shot(keyframes=keyframes))


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


def test_footage_may_be_a_movie_and_what_does_not_fit_is_said(
    tiny_wan: Make, footage: Callable[..., str], tmp_path: Path
) -> None:
    """A movie of ours is its frames; another length or rate is a note, while a source may end, which it is for."""
    engine = engine_of(tiny_wan(**VACE))
    clip = engine.generate(shot(fps=16))
    movie, plate = str(tmp_path / "guide.mov"), str(tmp_path / "guide.%04d.png")
    clip.write(movie, plate)
    seen = [read_pass(name, "grey", SIZE, FRAMES) for name in (movie, plate)]
    assert seen[0].shape == seen[1].shape and np.abs(seen[0] - seen[1]).mean() < 0.02 < seen[1].std()
    assert not torch.equal(engine.denoise(shot(control=(Control("grey", movie),))), clip.latents)
    short = footage(1, frames=4)

    def notes(fps: int, *control: Control) -> list[str]:
        return [note for note in engine.notes(engine.resolve(shot(fps=fps, control=control))) if "control" in note]

    assert notes(16, Control("grey", movie)) == []
    assert notes(24, Control("grey", movie)) == [f"control: {movie} runs at 16 fps and the clip at 24"]
    assert notes(16, Control("grey", movie, start=3)) == [f"control: {movie} has 9 frames, of which the clip takes 6"]
    assert notes(16, Control("pose", short, start=1)) == [
        f"control: {short} ends at frame 5; from there the model is free"
    ]
    assert notes(16, Control("source", short), Control("pose", short % 0)) == []
