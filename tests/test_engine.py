# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The route from a shot to a clip: bits, keyframes, cancelling, refusals. A tiny random model stands in for the starter
where only the route matters."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from rushes import Engine, Keyframe, Shot
from rushes.attention import dispatch, kernel
from rushes.model.bundle import read_card, read_modules
from rushes.progress import Cancelled, Denoising, Progress
from rushes.shot import ShotError

WORDS = "a red ball rolls to the right"


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.load(tiny_model, device="cpu")


def _png(path: Path, width: int, height: int, seed: int) -> str:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def test_a_shot_gives_frames_of_the_asked_shape_and_range(engine: Engine) -> None:
    """Frames are float32 [frames, height, width, 3] in [0, 1], also for odd grids."""
    clip = engine.generate(Shot(WORDS, size=(48, 80), frames=9, seed=5))
    assert clip.frames.shape == (9, 80, 48, 3)
    assert clip.frames.dtype == np.float32
    assert clip.frames.min() >= 0 and clip.frames.max() <= 1
    assert np.isfinite(clip.frames).all()
    assert clip.shot.steps == 3 and clip.shot.size == (48, 80)


def test_one_frame_is_a_still(engine: Engine) -> None:
    """frames=1 is allowed: the first latent frame alone."""
    assert engine.generate(Shot(WORDS, frames=1)).frames.shape == (1, 16, 16, 3)


def test_the_same_shot_gives_the_same_bits_in_another_process(engine: Engine, tiny_model: Path) -> None:
    """Seed, not process, decides."""
    shot = Shot(WORDS, frames=9, seed=2**40 + 7)
    here = hashlib.sha256(engine.generate(shot).frames.tobytes()).hexdigest()
    code = (
        "import hashlib, sys, rushes; from rushes import Shot;"
        "e = rushes.Engine.load(sys.argv[1], device='cpu');"
        f"c = e.generate(Shot({WORDS!r}, frames=9, seed=2**40 + 7));"
        "print(hashlib.sha256(c.frames.tobytes()).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model)], capture_output=True, text=True, check=True, timeout=120
    )
    assert there.stdout.strip() == here


def test_seed_prompt_and_negative_all_change_the_clip(engine: Engine) -> None:
    """Nothing of the shot is ignored."""
    base = Shot(WORDS, seed=1)
    first = engine.generate(base).frames
    assert np.array_equal(first, engine.generate(base).frames)
    for changed in (base.replace(seed=2), base.replace(prompt="the ball"), base.replace(negative="left"),
                    base.replace(guidance=1.0), base.replace(steps=2)):  # fmt: skip
        assert not np.array_equal(first, engine.generate(changed).frames), changed


def test_the_first_noise_is_the_field_s(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.randn([1, C, T, h, w]) from a CPU generator with the seed, as diffusers and ComfyUI draw it."""
    seen: list[torch.Tensor] = []
    forward = engine._modules.transformer().forward

    def spy(latents: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        seen.append(latents.clone())
        return forward(latents, *args, **kwargs)

    monkeypatch.setattr(engine._modules.transformer(), "forward", spy)
    engine.denoise(Shot(WORDS, frames=9, seed=11))
    generator = torch.Generator("cpu").manual_seed(11)
    expected = torch.randn([1, 4, 3, 2, 2], generator=generator, dtype=torch.float32)
    assert torch.equal(seen[0][:1], expected)


def test_progress_counts_steps_and_says_what_remains(engine: Engine) -> None:
    """Every phase ends complete, with seconds per step and the time that remains."""
    events: list[Progress] = []
    engine.generate(Shot(WORDS, frames=9, steps=4), on_progress=events.append)
    steps = [event for event in events if event.phase == "denoise"]
    assert [event.step for event in steps] == [1, 2, 3, 4]
    assert all(event.steps == 4 and event.seconds_per_step > 0 for event in steps)
    assert steps[0].remaining > 0 and steps[-1].remaining == 0
    assert events[-1].phase == "decode" and events[-1].step == events[-1].steps == 9


def test_a_preview_comes_with_every_step(engine: Engine) -> None:
    """In latent resolution, float32 in [0, 1]."""
    seen: list[tuple[int, np.ndarray]] = []
    engine.denoise(Shot(WORDS, frames=9, size=(32, 16)), on_preview=lambda step, picture: seen.append((step, picture)))
    assert [step for step, _ in seen] == [0, 1, 2]
    assert all(picture.shape == (3, 2, 4, 3) and picture.dtype == np.float32 for _, picture in seen)
    assert all(picture.min() >= 0 and picture.max() <= 1 for _, picture in seen)


def test_cancel_takes_hold_within_one_block(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the event is set inside block 0, block 1 never runs."""
    cancel, ran = threading.Event(), []
    for i, block in enumerate(engine._modules.transformer().blocks):
        forward = block.forward

        def spy(*args: object, i: int = i, forward=forward) -> torch.Tensor:  # type: ignore[no-untyped-def]
            ran.append(i)
            cancel.set()
            return forward(*args)

        monkeypatch.setattr(block, "forward", spy)
    with pytest.raises(Cancelled):
        engine.denoise(Shot(WORDS), cancel=cancel)
    assert ran == [0]


def test_cancel_stops_the_decoder_between_chunks(engine: Engine) -> None:
    """Frames that were made are kept by the caller; no more come."""
    cancel = threading.Event()
    latents = engine.denoise(Shot(WORDS, frames=17))
    chunks = engine.decode(latents, cancel=cancel)
    assert next(chunks).shape[0] == 1
    cancel.set()
    with pytest.raises(Cancelled):
        next(chunks)


def test_decoding_in_a_stream_equals_decoding_at_once(engine: Engine) -> None:
    """The chunks put together are the clip, frame by frame."""
    latents = engine.denoise(Shot(WORDS, frames=33, seed=3))
    whole = engine._modules.vae.decode(latents, chunk=1)
    expected = ((whole[0] + 1) / 2).permute(1, 2, 3, 0).numpy()
    assert np.abs(np.concatenate(list(engine.decode(latents))) - expected).max() < 1e-5


def test_a_memory_limit_decodes_in_tiles(engine: Engine, tiny_model: Path) -> None:
    """Only what does not fit is tiled; the picture stays close to the whole one, and no chunk grows."""
    shot = Shot(WORDS, size=(128, 128), frames=9, seed=3)
    whole = engine.generate(shot).frames
    latents = engine.denoise(shot)
    assert engine._decode_plan(latents)[1] is None
    small = Engine.load(tiny_model, device="cpu", decode_memory=500_000)
    chunk, tile = small._decode_plan(latents)
    assert chunk == 1 and tile is not None and 8 <= tile < 16
    tiled = np.concatenate(list(small.decode(latents)))
    assert tiled.shape == whole.shape
    assert not np.array_equal(tiled, whole)
    assert np.abs(tiled - whole).mean() < 0.1
    roomy = Engine.load(tiny_model, device="cpu", decode_memory=2**40)
    assert np.array_equal(np.concatenate(list(roomy.decode(latents))), whole)


def test_a_first_keyframe_is_held_bit_for_bit(engine: Engine, tmp_path: Path) -> None:
    """The first latent frame of the result is the picture's own encoding; other frames are made."""
    image = _png(tmp_path / "first.png", 16, 16, seed=1)
    free = engine.denoise(Shot(WORDS, frames=9, seed=4))
    held = engine.denoise(Shot(WORDS, frames=9, seed=4, keyframes=(Keyframe(0, image),)))
    from rushes.media import load_image

    picture = torch.from_numpy(load_image(image, (16, 16))).permute(2, 0, 1)[None, :, None] * 2 - 1
    assert torch.equal(held[:, :, :1], engine._modules.vae.encode(picture))
    assert not torch.allclose(held[:, :, 1:], free[:, :, 1:])


def test_first_and_last_keyframes_connect(engine: Engine, tmp_path: Path) -> None:
    """-1 is the last frame; each keyframe fixes its own latent frame and no other."""
    keyframes = (
        Keyframe(-1, _png(tmp_path / "b.png", 40, 20, 3)),
        Keyframe(0, _png(tmp_path / "a.png", 16, 16, 2)),
    )
    shot = engine.resolve(Shot(WORDS, frames=17, keyframes=keyframes))
    assert [keyframe.frame for keyframe in shot.keyframes] == [0, 16]
    assert all(len(keyframe.sha256) == 64 for keyframe in shot.keyframes)
    one, other = (engine.denoise(shot.replace(seed=seed)) for seed in (1, 2))
    assert torch.equal(one[:, :, [0, 4]], other[:, :, [0, 4]])
    assert not torch.allclose(one[:, :, 1:4], other[:, :, 1:4])


def test_a_keyframe_file_that_changed_is_refused(engine: Engine, tmp_path: Path) -> None:
    """A shot made again from its record must not quietly use another picture."""
    path = tmp_path / "first.png"
    shot = engine.resolve(Shot(WORDS, keyframes=(Keyframe(0, _png(path, 16, 16, 1)),)))
    _png(path, 16, 16, 2)
    with pytest.raises(ShotError, match=r"^keyframe: .*first\.png is not the picture"):
        engine.resolve(shot)


@pytest.mark.parametrize(
    ("shot", "sentence"),
    [
        (Shot(WORDS, frames=10), r"frames: got 10; tiny takes 4n\+1, the neighbours are 9 and 13"),
        (Shot(WORDS, frames=2), r"frames: got 2; .* 1 and 5"),
        (Shot(WORDS, frames=405), r"frames: got 405; tiny takes up to 401"),
        (Shot(WORDS, size=(24, 16)), r"size: got 24x16; tiny takes multiples of 16, such as 16x16 or 32x16"),
        (Shot(WORDS, size=(160, 160)), r"size: got 160x160; tiny takes up to 128x128 pixels in area"),
        (Shot(" ".join(["ball"] * 40)), r"prompt: .*up to 12"),
        (Shot(WORDS, negative=" ".join(["ball"] * 40)), r"negative: .*up to 12"),
        (Shot(WORDS, keyframes=(Keyframe(5, "x.png"),)), r"keyframe: got frame 5; -5 to 4 is allowed"),
        (Shot(WORDS, keyframes=(Keyframe(0, "missing.png"),)), r"keyframe: missing\.png cannot be read"),
    ],
)  # fmt: skip
def test_what_the_model_does_not_allow_is_refused_in_one_sentence(engine: Engine, shot: Shot, sentence: str) -> None:
    """The argument, what was got, what is allowed."""
    with pytest.raises(ShotError, match=sentence) as caught:
        engine.resolve(shot)
    assert "\n" not in str(caught.value)


def test_two_keyframes_in_one_latent_frame_are_refused(engine: Engine, tmp_path: Path) -> None:
    """Frames 5 and 8 share latent frame 2."""
    image = _png(tmp_path / "a.png", 16, 16, 1)
    with pytest.raises(ShotError, match=r"frames 5 and 8 fall into one latent frame"):
        engine.resolve(Shot(WORDS, frames=9, keyframes=(Keyframe(5, image), Keyframe(8, image))))


def test_fit_takes_the_nearest_size_and_length(engine: Engine) -> None:
    """With fit nothing is refused that has a neighbour."""
    shot = engine.resolve(Shot(WORDS, size=(41, 7 + 8), frames=12), fit=True)
    assert shot.size == (48, 16) and shot.frames == 13


def test_words_that_the_model_does_not_know_are_in_the_record(engine: Engine) -> None:
    """Each once, in the order of the prompt."""
    record = engine.record(engine.resolve(Shot("a glowing ball, glowing castle rolls", negative="blurry")))
    assert record["unknown_words"] == ["glowing", "castle", "blurry"]
    assert record["shot"]["prompt"] == "a glowing ball, glowing castle rolls"
    assert len(record["model"]["sha256"]) == 64


def test_a_long_clip_is_announced(engine: Engine) -> None:
    """What the model was not trained on is said, not refused."""
    assert engine.notes(engine.resolve(Shot(WORDS))) == []
    (note,) = engine.notes(engine.resolve(Shot(WORDS, frames=65)))
    assert note.startswith("frames: tiny was trained on up to 33 frames")


def test_a_model_that_is_not_there_or_broken_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    """A name, a truncated file, a file of something else: one sentence each."""
    with pytest.raises(ShotError, match=r"model: got 'nosuch'"):
        Engine.load("nosuch")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(tiny_model.read_bytes()[:-1000])
    with pytest.raises(ShotError, match=r"model: .*broken\.safetensors is damaged"):
        Engine.load(broken)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ShotError, match=r"in which no part of a model is"):
        Engine.load(tmp_path / "other.safetensors")
    with pytest.raises(ShotError, match=r"device: got 'nosuch'"):
        Engine.load(tiny_model, device="nosuch")


def test_a_clip_writes_itself(engine: Engine, tmp_path: Path) -> None:
    """Several outputs from one clip; each carries the shot."""
    from rushes.media import read_record

    clip = engine.generate(Shot(WORDS, frames=5, seed=9))
    paths = clip.write(tmp_path / "shot.mp4", tmp_path / "plate.%04d.exr", tmp_path / "l.safetensors")
    assert len(paths) == 7
    assert read_record(str(tmp_path / "shot.mp4")) == clip.record == read_record(str(tmp_path / "plate.1003.exr"))
    again = engine.generate(Shot.from_dict(read_record(str(tmp_path / "l.safetensors"))["shot"]))
    assert np.array_equal(again.frames, clip.frames)


def test_the_starter_gives_the_subject_its_colour(starter: str) -> None:
    """A red ball is red in every frame, and a blue cube blue; shapes, light and motion are judged by the evaluation."""
    engine = Engine.load(starter, device="cpu")
    red = engine.generate(Shot("a red ball rolls to the right across a desert by day", frames=17, seed=1)).frames
    blue = engine.generate(Shot("a blue cube stands still on a snowy plain", frames=17, seed=1)).frames
    assert ((red[..., 0] - red[..., 1:].max(-1)) > 0.3).mean((1, 2)).min() > 0.005
    assert ((blue[..., 2] - blue[..., :2].max(-1)) > 0.25).mean((1, 2)).min() > 0.005


def test_a_clip_goes_on_from_another(engine: Engine) -> None:
    """The latents given are kept bit for bit, the rest is made, and the start tells in it."""
    shot = Shot(WORDS, frames=17, seed=3)
    before = engine.encode(engine.generate(shot.replace(frames=9, seed=4)).frames)  # [1, C, 3, h, w]
    made = engine.denoise(shot, before=before)
    assert torch.equal(made[:, :, :3], before)
    assert not torch.equal(made[:, :, 3:], engine.denoise(shot)[:, :, 3:])
    assert not torch.equal(made[:, :, 3:], engine.denoise(shot, before=-before)[:, :, 3:])


def test_encode_is_the_way_back_into_model_space(engine: Engine, tiny_model: Path) -> None:
    """As the VAE encodes frames in [-1, 1], chunk by chunk or not."""
    frames = np.random.default_rng(8).random((9, 16, 32, 3), dtype=np.float32)
    card = read_card(tiny_model)
    vae = read_modules(tiny_model, card, torch.device("cpu"), torch.float32).vae
    expected = vae.encode(torch.from_numpy(frames * 2 - 1).permute(3, 0, 1, 2)[None], chunk=2)
    torch.testing.assert_close(engine.encode(frames), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "allowed"),
    [((8, 16, 16, 3), "4n+1"), ((9, 16, 16, 4), "4n+1"), ((16, 16, 3), "4n+1"), ((9, 16, 20, 3), "multiples of 16")],
)
def test_encode_refuses_other_frames(engine: Engine, shape: tuple[int, ...], allowed: str) -> None:
    with pytest.raises(ShotError, match=re.escape(allowed)):
        engine.encode(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(1, 4, 5, 2, 2), (1, 4, 2, 2, 4), (1, 3, 2, 2, 2), (4, 2, 2, 2)])
def test_a_start_that_does_not_fit_is_refused(engine: Engine, shape: tuple[int, ...]) -> None:
    """Too long, another size, other channels, no batch."""
    with pytest.raises(ShotError, match=re.escape("[1, 4, up to 4, 2, 2] is allowed")):
        engine.denoise(Shot(WORDS, frames=17), before=torch.zeros(shape))


def test_a_keyframe_inside_the_clip_before_is_refused(engine: Engine, tmp_path: Path) -> None:
    shot = Shot(WORDS, frames=17, keyframes=(Keyframe(0, _png(tmp_path / "a.png", 16, 16, 1)),))
    with pytest.raises(ShotError, match="keyframe: got frame 0; the clip before"):
        engine.denoise(shot, before=torch.zeros(1, 4, 2, 2, 2))


def test_guidance_joins_what_it_would_ask_one_by_one(engine: Engine) -> None:
    """Both prompts in one batch, against two passes through the transformer, with a negative prompt that matters."""
    shot = Shot(WORDS, negative="ball", frames=5, steps=2, seed=9)
    card, transformer = engine.card, engine._modules.transformer()
    cond, uncond = (transformer.context(text, cache=True) for text in engine._features(engine.resolve(shot)))
    x, t = torch.randn(1, card.vae.latent_channels, 2, 2, 2), torch.full((1, 2), 700.0)
    both = transformer(x.repeat(2, 1, 1, 1, 1), t.repeat(2, 1), cond.join(uncond))
    apart = torch.cat([transformer(x, t, context) for context in (cond, uncond)])
    torch.testing.assert_close(both, apart, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(apart[0], apart[1])


@pytest.mark.slow
def test_the_starter_runs_on_the_kernel(starter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, where this processor has an engine for it, with torch's frames to within bfloat16's rounding."""
    engine, shot = Engine.load(starter, device="cpu"), Shot("a red ball rolls to the right", frames=17, steps=6)
    served: set[str | None] = set()
    listen = dispatch.latest.note_backend
    monkeypatch.setattr(dispatch.latest, "note_backend", lambda name: (served.add(name), listen(name)))
    frames = engine.generate(shot).frames
    faster = ("float32", kernel.backend_name(64, "float32", None)) in dispatch.FASTER
    assert any(str(name).startswith("rushes ") for name in served) == faster
    monkeypatch.setenv("RUSHES_ATTENTION", "torch")
    difference = np.abs(frames - engine.generate(shot).frames)
    print(f"\nkernel against torch: largest difference {difference.max():.1e}, mean {difference.mean():.1e}")
    assert difference.max() < 2**-8


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
def test_a_broken_denoising_goes_on_with_the_same_bits(engine: Engine, tmp_path: Path, at: int) -> None:
    """From the state after any step, keyframes and guidance included; progress counts on."""
    picture = _png(tmp_path / "a.png", 16, 16, 3)
    shot = Shot(WORDS, frames=9, steps=5, seed=11, keyframes=(Keyframe(0, picture),))
    states: list[Denoising] = []
    whole = engine.denoise(shot, on_state=states.append)
    assert [state.step for state in states] == [1, 2, 3, 4, 5]
    steps: list[int] = []
    again = engine.denoise(
        shot, resume=states[at], on_progress=lambda p: steps.append(p.step) if p.phase == "denoise" else None
    )
    assert torch.equal(again, whole)
    assert steps == list(range(at + 2, 6))


def test_the_state_of_another_shot_is_refused(engine: Engine) -> None:
    states: list[Denoising] = []
    engine.denoise(Shot(WORDS, frames=9, steps=3), on_state=states.append)
    with pytest.raises(ShotError, match="they are of another shot"):
        engine.denoise(Shot(WORDS, frames=5, steps=3), resume=states[0])
    with pytest.raises(ShotError, match="got step 3"):
        engine.denoise(Shot(WORDS, frames=9, steps=2), resume=states[2])
