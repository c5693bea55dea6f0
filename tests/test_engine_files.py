# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Wan's files through the engine: against diffusers' pipeline, in every layout, and inside a host that keeps the
memory. A small Wan with random weights stands in for the published ones."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes import Engine, Keyframe, Shot
from rushes.model.text import TextEncoder
from rushes.model.transformer import Control, Transformer
from rushes.progress import Cancelled
from rushes.shot import ShotError

TinyWan = Callable[..., Any]
WORDS = "a red ball rolls to the right"
SMALL = {"size": (64, 32), "frames": 5, "steps": 3}
LAYOUTS = ("original", "comfy", "diffusers")


@pytest.fixture
def small() -> Shot:
    return Shot(WORDS, negative="the ball", seed=3, guidance=4.0, **SMALL)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_bits(tiny_wan: TinyWan, small: Shot, layout: str) -> None:
    """Those of the modules themselves, filled without any file."""
    wan = tiny_wan(layout)
    engine, other = Engine.load(wan.files, device="cpu"), Engine.load(tiny_wan("original").files, device="cpu")
    for part, module in engine.parts.items():
        state = module.state_dict()
        assert state.keys() == wan.states[part].keys()
        assert all(torch.equal(state[name], t) for name, t in wan.states[part].items())
    assert torch.equal(engine.denoise(small), other.denoise(small))


@pytest.mark.parity
@pytest.mark.parametrize(("family", "layout"), [("2.1", "comfy"), ("2.1", "diffusers"), ("2.2", "original")])
def test_a_shot_equals_diffusers_from_prompt_to_frames(
    tiny_wan: TinyWan, wan_pipeline: Callable[..., Any], trained_spiece: bytes, family: str, layout: str
) -> None:
    """The whole route on the same weights in float32: tokens, features, steps with guidance, and decoding."""
    wan = tiny_wan(layout, family, spiece=trained_spiece)
    files = dataclasses.replace(wan.files, schedule="diffusers_unipc", shift=5.0)
    pipeline = wan_pipeline(wan, "WanPipeline", expand_timesteps=family == "2.2")
    if layout != "comfy":
        pipeline.tokenizer.backend_tokenizer.save(str(files.text.with_name("tokenizer.json")))
    engine = Engine.load(files, device="cpu")
    shot = engine.resolve(
        Shot(f"{WORDS}, close-up café", negative="wet sand", size=(64, 32), frames=9, seed=6, steps=4, guidance=5.0)
    )
    options = {
        "prompt": shot.prompt, "negative_prompt": shot.negative, "width": 64, "height": 32, "num_frames": 9,
        "num_inference_steps": 4, "guidance_scale": 5.0,
    }  # fmt: skip
    generator = torch.Generator("cpu")
    latents = pipeline(**options, generator=generator.manual_seed(6), output_type="latent").frames
    frames = pipeline(**options, generator=generator.manual_seed(6), output_type="np").frames[0]
    clip = engine.generate(shot)
    largest = [(clip.latents - latents).abs().max().item(), float(np.abs(clip.frames - frames).max())]
    print(f"\nlargest difference: latents {largest[0]:.1e} of {latents.std():.2f}, frames {largest[1]:.1e}")
    assert max(largest) <= 1e-4
    assert frames.std() > 0.02
    other = engine.denoise(shot.replace(prompt="the ball"))  # the prompt matters more than the tolerance
    assert (other - clip.latents).abs().max() > 1e-2


def _armed(kind: type[nn.Module], calls: dict[nn.Module, int], alarm: list[bool]) -> type[nn.Module]:
    """A layer class whose weights, once the alarm is set, can be seen from inside its own forward alone."""

    class Armed(kind):  # type: ignore[misc, valid-type]
        inside = False

        def forward(self, *args: Any) -> Tensor:
            calls[self] = calls.get(self, 0) + 1
            self.inside = True
            try:
                return super().forward(*args)
            finally:
                self.inside = False

        def __getattr__(self, name: str) -> Any:
            if name in ("weight", "bias") and alarm and not self.inside:
                raise AssertionError(f"{name} of a layer was read outside the layer")
            return super().__getattr__(name)

    return Armed


def test_weights_of_layers_are_reached_only_by_calling_them(tiny_wan: TinyWan, small: Shot) -> None:
    """A namespace in place of torch.nn makes every Linear, Conv3d and Embedding of both models, with the same bits."""
    calls: dict[nn.Module, int] = {}
    alarm: list[bool] = []
    names = ("Linear", "Conv3d", "Embedding")
    operations: Any = SimpleNamespace(**{name: _armed(getattr(nn, name), calls, alarm) for name in names})
    files = tiny_wan().files
    engine = Engine.load(files, device="cpu", operations=operations)
    assert len(dict(engine.parts)) == 3  # all are read
    alarm.append(True)
    latents = engine.denoise(small)
    ours = tuple(vars(operations).values())
    made = [m for part in ("transformer", "text") for m in engine.parts[part].modules()]
    layers = [m for m in made if isinstance(m, (nn.Linear, nn.Conv3d, nn.Embedding))]
    assert layers and all(isinstance(m, ours) for m in layers)
    assert set(layers) == calls.keys()
    alarm.clear()
    assert torch.equal(latents, Engine.load(files, device="cpu").denoise(small))


class _Cast:
    """A namespace as hosts have it: each layer brings its weights to where, and what, its input is."""

    class Linear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.to(x), None if self.bias is None else self.bias.to(x))

    class Conv3d(nn.Conv3d):
        def forward(self, x: Tensor) -> Tensor:
            assert self.bias is not None
            return self._conv_forward(x, self.weight.to(x), self.bias.to(x))

    class Embedding(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return F.embedding(ids, self.weight.to(ids.device))


@pytest.mark.parametrize(
    "changes", [{}, {"pooled_dim": 24}, {"preconditioned": True}, {"vace_in_channels": 3, "vace_layers": (0,)}]
)
def test_weights_may_rest_on_another_device(
    tiny_wan: TinyWan, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that has no room leaves layers, norms and modulations on the CPU; no sum may mix the two devices.

    torch's "meta" stands for the other device: it has no values, but it does refuse to be mixed.
    """
    monkeypatch.setattr("rushes.model.norms.working_dtype", lambda x: x.dtype)  # "meta" knows no autocast
    configs = tiny_wan().configs
    config = dataclasses.replace(configs["transformer"], **changes)
    transformer, text = Transformer(config, _Cast), TextEncoder(configs["text"], _Cast)
    with torch.inference_mode():
        features = text.encode([[4, 5, 1]], 512, "meta")
        assert features.device.type == "meta"
        pooled = features[:, :1] if config.pooled_dim else None
        context = transformer.context(features, cache=True, pooled=pooled)
        latents = torch.zeros(1, config.in_channels, 2, 4, 6, device="meta")
        control = [Control(latents[:, :3])] if config.vace_layers else []
        velocity = transformer(latents, torch.zeros(1, 2, device="meta"), context, control)
    assert velocity.device.type == "meta" and velocity.shape == (1, config.out_channels, 2, 4, 6)
    assert all(p.device.type == "cpu" for p in (*transformer.parameters(), *text.parameters()))


def test_weights_may_rest_in_another_type(tiny_wan: TinyWan, small: Shot) -> None:
    """Layers in bfloat16 and work in float32 give what the same rounded weights give in float32."""
    files = tiny_wan().files
    engine, rounded = (Engine.load(files, device="cpu", operations=kind) for kind in (_Cast, None))
    for part in ("transformer", "text"):
        for layer in engine.parts[part].modules():
            if isinstance(layer, (nn.Linear, nn.Conv3d, nn.Embedding)):
                layer.bfloat16()
        plain = rounded.parts[part]
        plain.load_state_dict({name: t.float() for name, t in engine.parts[part].state_dict().items()})
    # but for the embeddings, whose answer is what the work goes on in
    engine.parts["text"].shared.float()
    for block in engine.parts["text"].encoder.block:
        block.layer[0].SelfAttention.relative_attention_bias.float()
    torch.testing.assert_close(engine.denoise(small), rounded.denoise(small), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(tiny_wan: TinyWan, small: Shot, dtype: torch.dtype) -> None:
    """Weights and work in a half type; the text is read in bfloat16 under float16, whose range T5 leaves."""
    files = tiny_wan().files
    engine = Engine.load(files, device="cpu", dtype=dtype)
    assert {p.dtype for p in engine.parts["transformer"].parameters()} == {dtype}
    assert {p.dtype for p in engine.parts["text"].parameters()} == {torch.bfloat16}
    exact = Engine.load(files, device="cpu").denoise(small)
    error = (engine.denoise(small) - exact).norm() / exact.norm()
    assert 1e-5 < error < 2e-2


@pytest.fixture
def picture(tmp_path: Path) -> str:
    from PIL import Image

    path = tmp_path / "first.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 64, 3), dtype=np.uint8)).save(path)
    return str(path)


class _Host:
    """Notes what it is asked for, in order, and that no layer of a part works unless the part was asked for last."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, part: str, memory: int) -> None:
        self.asked.append((part, memory))

    def watch(self, engine: Engine) -> None:
        for part, module in engine.parts.items():
            for layer in module.modules():
                layer.register_forward_pre_hook(lambda layer, inputs, part=part: self._check(part))

    def _check(self, part: str) -> None:
        assert self.asked and self.asked[-1][0] == part

    def order(self) -> list[str]:
        """Parts without repeats in a row, since the last call."""
        parts = [part for part, _ in self.asked]
        self.asked.clear()
        return [part for i, part in enumerate(parts) if i == 0 or parts[i - 1] != part]


def test_a_host_is_asked_for_each_part_before_it_works(tiny_wan: TinyWan, small: Shot, picture: str) -> None:
    """Text, the VAE for keyframes or the first preview, transformer, VAE; each with the bytes that it will need."""
    host = _Host()
    engine = Engine.load(tiny_wan("comfy", "2.2").files, device="cpu", prepare=host)
    host.watch(engine)
    assert host.asked == []
    clip = engine.generate(small)
    assert all(memory > 0 for _, memory in host.asked)
    assert host.order() == ["text", "transformer", "vae"]
    engine.generate(small.replace(keyframes=(Keyframe(0, picture),)))
    assert host.order() == ["text", "vae", "transformer", "vae"]
    for expected in (["text", "vae", "transformer", "vae"], ["text", "transformer", "vae"]):  # fitted once
        engine.generate(small, on_preview=lambda step, frames: None)
        assert host.order() == expected
    engine.encode(clip.frames)
    assert host.order() == ["vae"]
    engine.denoise(small.replace(frames=9))
    engine.denoise(small)
    _, (_, longer), _, (_, shorter) = host.asked
    assert longer > shorter


def test_inside_a_host_weights_rest_on_the_cpu_and_the_device_is_the_given_one(tiny_wan: TinyWan) -> None:
    """Nothing moves before the host moves it."""
    engine = Engine.load(tiny_wan().files, device="meta", dtype=torch.bfloat16, prepare=_Host())
    assert engine.device == torch.device("meta") and engine.dtype == torch.bfloat16
    assert engine.parts.keys() == {"text", "transformer", "vae"}
    assert {p.device.type for part in engine.parts.values() for p in part.parameters()} == {"cpu"}


def test_a_bundle_runs_inside_a_host_with_the_same_bits(tiny_model: Path) -> None:
    """Operations and preparing are no privilege of files."""
    host = _Host()
    shot = Shot("a red ball rolls", frames=9, seed=8)
    engine = Engine.load(tiny_model, device="cpu", operations=_Cast, prepare=host)
    host.watch(engine)
    frames = engine.generate(shot, on_preview=lambda step, frames: None).frames
    assert np.array_equal(frames, Engine.load(tiny_model, device="cpu").generate(shot).frames)
    assert host.order() == ["text", "transformer", "vae"]  # its card has a preview


def test_a_record_names_the_files_and_what_the_shot_does_not_say(tiny_wan: TinyWan, small: Shot) -> None:
    """Three digests and one of them all; solver, schedule and shift as they were used; the model under its name."""
    files = dataclasses.replace(tiny_wan().files, solver="euler", shift=3)
    engine = Engine.load(files, device="cpu")
    shot = engine.resolve(small)
    assert shot.model == "tiny_transformer" == files.name
    record = engine.record(shot)
    digests = {part: hashlib.sha256(path.read_bytes()).hexdigest() for part, path in files.paths.items()}
    assert record["model"] == {
        "name": "tiny_transformer",
        "sha256": hashlib.sha256(
            "".join(digests[part] for part in ("transformer", "text", "vae")).encode()
        ).hexdigest(),
        "files": {part: {"name": f"tiny_{part}.safetensors", "sha256": digests[part]} for part in digests},
        "solver": "euler",
        "schedule": "simple",
        "shift": 3,
    }
    assert record["shot"]["model"] == "tiny_transformer"
    assert engine.record(small.replace(prompt="a ball 🎬"))["unknown_words"] == ["🎬"]


def test_solver_schedule_and_shift_are_used(tiny_wan: TinyWan, small: Shot) -> None:
    """Each of them changes the clip."""
    files = tiny_wan().files
    variants = ({}, {"solver": "euler"}, {"solver": "euler", "schedule": "linear"}, {"shift": 2.0})
    clips = [Engine.load(dataclasses.replace(files, **v), device="cpu").denoise(small) for v in variants]
    assert all(not torch.allclose(a, b) for i, a in enumerate(clips) for b in clips[:i])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"solver": "heun"}, r"solver: got 'heun'; euler or unipc is allowed"),
        ({"shift": 0}, r"shift: got 0; a number from 0\.01 to 100 is allowed"),
        ({"schedule": "karras"}, r"schedule: got 'karras'; allowed are simple"),
    ],
)
def test_settings_that_are_not_there_are_refused_before_loading(
    tiny_wan: TinyWan, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ShotError, match=sentence):
        Engine.load(dataclasses.replace(tiny_wan().files, **changes), device="cpu")


@pytest.mark.parametrize("family", ["2.1", "2.2"])
def test_raw_latents_are_those_of_diffusers_vae(tiny_wan: TinyWan, family: str) -> None:
    """latent * deviation + mean, channel by channel, and back."""
    wan = tiny_wan("comfy", family)
    engine, vae = Engine.load(wan.files, device="cpu"), wan.configs["vae"]
    latents = torch.randn(1, vae.latent_channels, 2, 3, 2)
    raw = engine.unscaled(latents)
    for channel in range(vae.latent_channels):
        expected = latents[0, channel] * vae.latents_std[channel] + vae.latents_mean[channel]
        torch.testing.assert_close(raw[0, channel], expected)
    torch.testing.assert_close(engine.scaled(raw), latents, rtol=1e-5, atol=1e-5)


class _Switch:
    """Stops at the n-th look."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks <= 0


def test_anything_with_is_set_stops_the_work(tiny_wan: TinyWan, small: Shot) -> None:
    """Before a block, and between two chunks of the decoder."""
    engine = Engine.load(tiny_wan().files, device="cpu")
    blocks: list[int] = []
    for i, block in enumerate(engine.parts["transformer"].blocks):  # type: ignore[arg-type]
        block.register_forward_pre_hook(lambda block, inputs, i=i: blocks.append(i))
    with pytest.raises(Cancelled):
        engine.denoise(small, cancel=_Switch(2))
    assert blocks == [0]
    chunks: Iterator[Any] = engine.decode(torch.zeros(1, 16, 2, 4, 8), cancel=_Switch(2))
    assert len(next(chunks)) == 1
    with pytest.raises(Cancelled):
        next(chunks)


def test_a_model_of_text_alone_says_what_it_makes_of_keyframes(tiny_wan: TinyWan, small: Shot, picture: str) -> None:
    """A note, no refusal; Wan 2.2's 5B has learnt them. And sizes that it has seen are not remarked on."""
    shot = small.replace(keyframes=(Keyframe(0, picture),), size=(480, 832))
    for family, words in (("2.1", ["keyframe: tiny_transformer was trained on text alone"]), ("2.2", ["size: "])):
        engine = Engine.load(tiny_wan("comfy", family).files, device="cpu")
        notes = engine.notes(engine.resolve(shot))
        assert [note.startswith(word) for note, word in zip(notes, words, strict=True)] == [True]


def test_defaults_are_those_of_the_files(tiny_wan: TinyWan) -> None:
    """What a shot does not say comes from Wan's settings for such shapes."""
    shot = Engine.load(tiny_wan("comfy", "2.2").files, device="cpu").resolve(Shot(WORDS))
    assert (shot.size, shot.frames, shot.fps) == ((1280, 704), 121, Fraction(24))
    assert (shot.steps, shot.guidance) == (50, 5.0)


def test_a_prompt_too_long_is_refused(tiny_wan: TinyWan) -> None:
    """Wan cuts it off in silence; here the artist is told."""
    engine = Engine.load(tiny_wan().files, device="cpu")
    with pytest.raises(ShotError, match=r"negative: it has 513 tokens; up to 512"):
        engine.resolve(Shot(WORDS, negative="ball " * 512))
