# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The transformer: against diffusers, against a naive float64 forward, and by what it promises."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.model.checkpoint import transformer_names_from_diffusers
from rushes.model.config import TransformerConfig
from rushes.model.rope import rope_table
from rushes.model.transformer import Context, Control, Transformer

BATCH, GRID, TEXT_LEN, WORDS = 2, (3, 3, 5), 512, 7  # diffusers finds image tokens by a text length of 512
TOKENS = math.prod(GRID)
TIMES = {"clip": (BATCH,), "latent frame": (BATCH, GRID[0]), "token": (BATCH, TOKENS)}


@dataclass(frozen=True)
class Form:
    """One form of the model: what it adds to the tiny configuration, and its control branch's strength."""

    ours: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)
    strength: float = 0.7

    @property
    def config(self) -> TransformerConfig:
        tiny: dict[str, Any] = {
            "dim": 40, "heads": 2, "layers": 3, "ffn_dim": 56, "in_channels": 4, "out_channels": 3,
            "freq_dim": 32, "text_dim": 24, "text_len": TEXT_LEN,
        }  # fmt: skip
        return TransformerConfig(**(tiny | self.ours))


FORMS = {
    "text": Form(),
    "image": Form({"in_channels": 9, "image_dim": 28}, {"added_kv_proj_dim": 40}),
    "first and last": Form(
        {"in_channels": 9, "image_dim": 28, "image_positions": 22},
        {"added_kv_proj_dim": 40, "pos_embed_seq_len": 22},
    ),
    "control": Form({"layers": 5, "vace_in_channels": 6, "vace_layers": (0, 2, 4)}),
    "wide heads": Form({"dim": 128, "heads": 1, "layers": 1}),  # Wan's head: 44, 42 and 42 channels
}
EVERYTHING = Form(FORMS["first and last"].ours | FORMS["control"].ours)
form_by_name = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def shake(model: nn.Module) -> None:
    """Move gains, biases and tables away from the ones and zeros that they start as."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim in (1, 3):
                parameter.add_(0.3 * torch.randn_like(parameter))


def build(form: Form) -> Transformer:
    model = Transformer(form.config).eval()
    shake(model)
    return model


@dataclass(frozen=True)
class Inputs:
    latents: Tensor
    timestep: Tensor
    text: Tensor  # [B, TEXT_LEN, text_dim], zeros behind the words
    image: Tensor | None
    control: list[Control]

    def part(self, index: int) -> Inputs:
        """The clip of that index alone, as a batch of one."""
        one = slice(index, index + 1)
        image = None if self.image is None else self.image.unflatten(0, (BATCH, -1))[index]
        control = [Control(latents[one], strength) for latents, strength in self.control]
        return Inputs(self.latents[one], self.timestep[one], self.text[one], image, control)

    def to(self, dtype: torch.dtype) -> Inputs:
        image = None if self.image is None else self.image.to(dtype)
        control = [Control(latents.to(dtype), strength) for latents, strength in self.control]
        return Inputs(self.latents.to(dtype), self.timestep, self.text.to(dtype), image, control)


def draw(form: Form, times: str = "clip") -> Inputs:
    config = form.config
    T, H, W = GRID
    size = (T, H * config.patch_size, W * config.patch_size)
    text = torch.randn(BATCH, TEXT_LEN, config.text_dim)
    text[:, WORDS:] = 0
    image = None
    if config.image_dim is not None:
        pictures = 2 if config.image_positions else 1
        image = torch.randn(BATCH * pictures, 11, config.image_dim)
    return Inputs(
        latents=torch.randn(BATCH, config.in_channels, *size),
        timestep=1000 * torch.rand(TIMES[times]),
        text=text,
        image=image,
        control=[Control(torch.randn(BATCH, config.vace_in_channels, *size), form.strength)]
        if config.vace_layers
        else [],
    )


def predict(model: Transformer, inputs: Inputs, **options: Any) -> Tensor:
    context = model.context(inputs.text, inputs.image)
    with torch.no_grad():
        return model(inputs.latents, inputs.timestep, context, inputs.control, **options)


def difference(found: Tensor, expected: Tensor) -> float:
    """The larger of the relative differences in the L2 norm and in the maximum."""
    delta = found.double() - expected.double()
    return max((delta.norm() / expected.norm()).item(), (delta.abs().max() / expected.abs().max()).item())


# --- against a naive forward in float64 -------------------------------------------------------------------------


class Naive:
    """The forward pass of arXiv:2503.20314 in float64, from the names in a state dict, written apart from the model."""

    def __init__(self, model: Transformer) -> None:
        self.config = model.config
        self.weights = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].flatten(1).T + self.weights[f"{name}.bias"]

    def rms(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.config.eps).sqrt() * self.weights[f"{name}.weight"]

    def norm(self, x: Tensor, name: str = "", eps: float = 1e-6) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"] if name else x

    def tokens(self, latents: Tensor, name: str) -> Tensor:
        p = self.config.patch_size
        B, C, T, H, W = latents.shape
        patches = latents.double().reshape(B, C, T, H // p, p, W // p, p).permute(0, 2, 3, 5, 1, 4, 6)
        return self.linear(patches.reshape(B, T * (H // p) * (W // p), C * p * p), name)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, turns: Tensor | None = None) -> Tensor:
        heads = []
        for q, k, v in zip(*(x.chunk(self.config.heads, dim=-1) for x in (q, k, v)), strict=True):  # noqa: B020
            if turns is not None:
                q, k = (
                    torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)
                    for x in (q, k)
                )
            heads.append((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)
        return torch.cat(heads, dim=-1)

    def block(self, x: Tensor, time: Tensor, turns: Tensor, text: Tensor, image: Tensor | None, name: str) -> Tensor:
        table = self.weights[f"{name}.modulation"][:, None] + time  # [B, n, 6, dim]
        table = table.repeat_interleave(x.shape[1] // table.shape[1], dim=1)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = table.unbind(2)
        own, cross = f"{name}.self_attn", f"{name}.cross_attn"
        y = self.norm(x) * (1 + scale) + shift
        q, k = (self.rms(self.linear(y, f"{own}.{part}"), f"{own}.norm_{part}") for part in "qk")
        x = x + gate * self.linear(self.attend(q, k, self.linear(y, f"{own}.v"), turns), f"{own}.o")
        q = self.rms(self.linear(self.norm(x, f"{name}.norm3"), f"{cross}.q"), f"{cross}.norm_q")
        k = self.rms(self.linear(text, f"{cross}.k"), f"{cross}.norm_k")
        out = self.attend(q, k, self.linear(text, f"{cross}.v"))
        if image is not None:
            k = self.rms(self.linear(image, f"{cross}.k_img"), f"{cross}.norm_k_img")
            out = out + self.attend(q, k, self.linear(image, f"{cross}.v_img"))
        x = x + self.linear(out, f"{cross}.o")
        y = self.norm(x) * (1 + ffn_scale) + ffn_shift
        y = F.gelu(self.linear(y, f"{name}.ffn.0"), approximate="tanh")
        return x + ffn_gate * self.linear(y, f"{name}.ffn.2")

    def image(self, tokens: Tensor | None) -> Tensor | None:
        if tokens is None:
            return None
        tokens = tokens.double()
        if self.config.image_positions:
            first, last = tokens[0::2], tokens[1::2]
            tokens = torch.cat([first, last], dim=1) + self.weights["img_emb.emb_pos"]
        x = F.gelu(self.linear(self.norm(tokens, "img_emb.proj.0", 1e-5), "img_emb.proj.1"))
        return self.norm(self.linear(x, "img_emb.proj.3"), "img_emb.proj.4", 1e-5)

    def turns(self) -> Tensor:
        cos, sin = rope_table(GRID, self.config.rope_dims)  # test_rope.py proves it
        return torch.complex(cos.double(), sin.double())

    def __call__(self, inputs: Inputs) -> Tensor:
        config = self.config
        x = self.tokens(inputs.latents, "patch_embedding")
        rates = 10_000.0 ** (-torch.arange(config.freq_dim // 2).double() / (config.freq_dim // 2))
        angles = inputs.timestep.double().view(BATCH, -1, 1) * rates
        time = self.linear(torch.cat([angles.cos(), angles.sin()], dim=-1), "time_embedding.0")
        time = self.linear(F.silu(time), "time_embedding.2")
        times = self.linear(F.silu(time), "time_projection.1").unflatten(-1, (6, config.dim))
        text = F.gelu(self.linear(inputs.text.double(), "text_embedding.0"), approximate="tanh")
        rest = (times, self.turns(), self.linear(text, "text_embedding.2"), self.image(inputs.image))
        hints = dict.fromkeys(range(config.layers), torch.zeros(()).double())
        for latents, strength in inputs.control:
            c = self.linear(self.tokens(latents, "vace_patch_embedding"), "vace_blocks.0.before_proj") + x
            for i, layer in enumerate(config.vace_layers):
                c = self.block(c, *rest, name=f"vace_blocks.{i}")
                hints[layer] = hints[layer] + strength * self.linear(c, f"vace_blocks.{i}.after_proj")
        for i in range(config.layers):
            x = self.block(x, *rest, name=f"blocks.{i}") + hints[i]
        table = self.weights["head.modulation"][:, None] + time[:, :, None]
        shift, scale = table.repeat_interleave(TOKENS // table.shape[1], dim=1).unbind(2)
        x = self.linear(self.norm(x) * (1 + scale) + shift, "head.head")
        (T, H, W), p = GRID, config.patch_size
        out = torch.empty(BATCH, config.out_channels, T, H * p, W * p, dtype=torch.float64)
        for token, values in enumerate(x.unbind(1)):  # [B, p p C], channels innermost
            t, h, w = token // (H * W), token // W % H, token % W
            patch = values.view(BATCH, p, p, -1).permute(0, 3, 1, 2)
            out[:, :, t, h * p : h * p + p, w * p : w * p + p] = patch
        return out


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(
    "form",
    [*FORMS.values(), EVERYTHING, Form({"patch_size": 1, "heads": 5}), Form({"patch_size": 3})],
    ids=[*FORMS, "everything", "patch 1", "patch 3"],
)
def test_forward_is_the_naive_one(form: Form, times: str) -> None:
    """Each form, with one time per clip, latent frame or token, gives what the equations give in float64."""
    model, inputs = build(form), draw(form, times)
    velocity = predict(model, inputs)
    assert velocity.shape == (BATCH, form.config.out_channels, *inputs.latents.shape[2:])
    assert difference(velocity, Naive(model)(inputs)) < 5e-6


# --- against diffusers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return pytest.importorskip("diffusers")


@pytest.fixture
def pair(diffusers: ModuleType) -> Callable[[Form], tuple[Transformer, Any]]:
    """Our model and diffusers' with the same weights, which go through our table of names."""

    def build_pair(form: Form) -> tuple[Transformer, Any]:
        config = form.config
        options: dict[str, Any] = {
            "num_attention_heads": config.heads, "attention_head_dim": config.head_dim, "num_layers": config.layers,
            "patch_size": (1, config.patch_size, config.patch_size), "ffn_dim": config.ffn_dim,
            "in_channels": config.in_channels, "out_channels": config.out_channels, "freq_dim": config.freq_dim,
            "text_dim": config.text_dim, "image_dim": config.image_dim, **form.theirs,
        }  # fmt: skip
        if config.vace_layers:
            options |= {"vace_layers": list(config.vace_layers), "vace_in_channels": config.vace_in_channels}
            theirs = diffusers.WanVACETransformer3DModel(**options).eval()
        else:
            theirs = diffusers.WanTransformer3DModel(**options).eval()
        shake(theirs)
        state = theirs.state_dict()
        names = transformer_names_from_diffusers(state)
        ours = Transformer(config).eval()
        ours.load_state_dict({names[name]: tensor for name, tensor in state.items()}, strict=True)
        return ours, theirs

    return build_pair


def predict_theirs(model: Any, inputs: Inputs) -> Tensor:
    options: dict[str, Any] = {}
    if inputs.control:
        latents, strength = inputs.control[0]
        scales = torch.full((len(model.config.vace_layers),), strength)
        options = {"control_hidden_states": latents, "control_hidden_states_scale": scales}
    with torch.no_grad():
        return model(inputs.latents, inputs.timestep, inputs.text, inputs.image, **options).sample


@pytest.mark.parity
@form_by_name
def test_every_form_is_that_of_diffusers(form: Form, pair: Callable[[Form], tuple[Transformer, Any]]) -> None:
    """Text, image, first-and-last-frame and control models agree with diffusers' in float32."""
    ours, theirs = pair(form)
    inputs = draw(form)
    assert difference(predict(ours, inputs), predict_theirs(theirs, inputs)) <= 2e-5


@pytest.mark.parity
@pytest.mark.parametrize("times", ["token", "latent frame"])
@pytest.mark.parametrize("name", ["text", "image"])
def test_times_of_tokens_are_those_of_diffusers(
    name: str, times: str, pair: Callable[[Form], tuple[Transformer, Any]]
) -> None:
    """A time per token, and one per latent frame spread over its tokens, agree with diffusers' per-token form."""
    ours, theirs = pair(FORMS[name])
    inputs = draw(FORMS[name], times)
    found = predict(ours, inputs)
    per_token = inputs.timestep.repeat_interleave(TOKENS // inputs.timestep.shape[1], dim=1)
    expanded = Inputs(inputs.latents, per_token, inputs.text, inputs.image, [])
    assert difference(found, predict_theirs(theirs, expanded)) <= 2e-5


@pytest.mark.parity
def test_bfloat16_loses_no_more_than_diffusers(
    tmp_path: Path, diffusers: ModuleType, pair: Callable[[Form], tuple[Transformer, Any]]
) -> None:
    """In bfloat16 our distance to float32 is at most twice that of diffusers as it loads itself, norms in float32."""
    form = Form({"dim": 96, "heads": 3, "ffn_dim": 192})
    errors: list[tuple[float, float]] = []
    for _ in range(3):
        ours, theirs = pair(form)
        inputs = draw(form)
        exact = Naive(ours)(inputs)
        theirs.save_pretrained(tmp_path)
        half = inputs.to(torch.bfloat16)
        loaded = diffusers.WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        errors.append(
            (
                difference(predict(ours.bfloat16(), half), exact),
                difference(predict_theirs(loaded, half), exact),
            )
        )
    assert sum(error for error, _ in errors) <= 2 * sum(error for _, error in errors)


# --- what it promises -------------------------------------------------------------------------------------------


@form_by_name
def test_time_per_latent_frame_is_that_of_its_tokens(form: Form) -> None:
    """[B, T] times, spread over the tokens of each frame, give the bits of [B, tokens]; equal ones those of [B]."""
    model, inputs = build(form), draw(form, "latent frame")
    frames = predict(model, inputs)
    spread = inputs.timestep.repeat_interleave(TOKENS // GRID[0], dim=1)
    tokens = predict(model, Inputs(inputs.latents, spread, inputs.text, inputs.image, inputs.control))
    assert difference(frames, tokens) < 2e-6
    one = inputs.timestep[:, 0]
    same = Inputs(inputs.latents, one[:, None].expand(-1, GRID[0]), inputs.text, inputs.image, inputs.control)
    clip = predict(model, Inputs(inputs.latents, one, inputs.text, inputs.image, inputs.control))
    assert difference(predict(model, same), clip) < 2e-6
    assert difference(frames, clip) > 1e-3


def test_every_parameter_learns() -> None:
    """With pictures, control and a time per latent frame, each parameter receives a gradient."""
    model, inputs = Transformer(EVERYTHING.config), draw(EVERYTHING, "latent frame")
    context = model.context(inputs.text, inputs.image)
    velocity = model(inputs.latents, inputs.timestep, context, inputs.control)
    (velocity * torch.randn_like(velocity)).sum().backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert not silent


def test_each_block_is_announced() -> None:
    """on_block hears each control block of each control, by the layer it feeds, and then each block."""
    form = FORMS["control"]
    model, inputs = build(form), draw(form)
    heard: list[int] = []
    quiet = predict(model, inputs)
    assert torch.equal(predict(model, inputs, on_block=heard.append), quiet)
    assert heard == [0, 2, 4, 0, 1, 2, 3, 4]
    heard.clear()
    twice = Inputs(inputs.latents, inputs.timestep, inputs.text, None, inputs.control * 2)
    predict(model, twice, on_block=heard.append)
    assert heard == [0, 2, 4, 0, 2, 4, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(("at", "ran"), [(0, 0), (1, 1), (2, 2)])
def test_on_block_can_cancel(at: int, ran: int) -> None:
    """What on_block raises comes out, and no further block runs."""

    class Cancelled(Exception):
        pass

    def cancel(block: int) -> None:
        if block == at:
            raise Cancelled

    form = FORMS["text"]
    model, inputs = build(form), draw(form)
    done: list[nn.Module] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, *_: done.append(module))
    with pytest.raises(Cancelled):
        predict(model, inputs, on_block=cancel)
    assert done == list(model.blocks)[:ran]


@pytest.mark.parametrize("name", ["text", "first and last", "control"])
def test_cached_context_gives_the_same_bits(name: str) -> None:
    """Keys and values kept over steps change nothing, and the text is projected once for all of them."""
    form = FORMS[name]
    model, inputs = build(form), draw(form)
    projected: list[nn.Module] = []
    blocks = [*model.blocks, *(model.vace_blocks if form.config.vace_layers else ())]
    for block in blocks:
        block.cross_attn.k.register_forward_hook(lambda module, *_: projected.append(module))
    with torch.no_grad():
        plain = model.context(inputs.text, inputs.image)
        cached = model.context(inputs.text, inputs.image, cache=True)
        assert isinstance(plain, Context) and plain.cache is None
        expected, steps = [], [inputs.timestep, inputs.timestep / 2, inputs.timestep / 3]
        for timestep in steps:
            expected.append(model(inputs.latents, timestep, plain, inputs.control))
        projected.clear()
        for timestep, velocity in zip(steps, expected, strict=True):
            assert torch.equal(model(inputs.latents, timestep, cached, inputs.control), velocity)
    assert len(projected) == len(set(projected)) == len(blocks)


@form_by_name
def test_a_batch_is_its_clips(form: Form) -> None:
    """Two clips at once give what each gives alone."""
    model, inputs = build(form), draw(form, "latent frame")
    both = predict(model, inputs)
    for index in range(BATCH):
        assert difference(predict(model, inputs.part(index)), both[index : index + 1]) < 5e-6


def test_short_text_is_padded_with_zeros() -> None:
    """Text shorter than text_len equals the same text with zero rows, and those rows count: none are masked."""
    form = FORMS["text"]
    model, inputs = build(form), draw(form)
    short = Inputs(inputs.latents, inputs.timestep, inputs.text[:, :WORDS], None, [])
    padded = predict(model, inputs)
    assert torch.equal(predict(model, short), padded)
    trimmed = Transformer(Form({"text_len": WORDS}).config)
    trimmed.load_state_dict(model.state_dict())
    assert difference(predict(trimmed, short), padded) > 1e-3


def test_long_text_is_refused() -> None:
    """Text longer than text_len is not cut in silence."""
    model = build(Form({"text_len": 6}))
    with pytest.raises(ValueError, match="text: got 7 tokens; at most 6"):
        model.context(torch.randn(1, 7, 24))


def test_controls_add_up() -> None:
    """Strength 0 is no control, and one control at two half strengths is the whole one."""
    form = FORMS["control"]
    model, inputs = build(form), draw(form)
    latents = inputs.control[0].latents

    def controlled(*strengths: float) -> Tensor:
        control = [Control(latents, strength) for strength in strengths]
        return predict(model, Inputs(inputs.latents, inputs.timestep, inputs.text, None, control))

    assert torch.equal(controlled(0.0), controlled())
    assert difference(controlled(0.35, 0.35), controlled(0.7)) < 5e-6
    assert difference(controlled(0.7), controlled()) > 1e-3


@pytest.mark.parametrize("times", TIMES)
def test_half_precision_stays_half(times: str) -> None:
    """A bfloat16 model gives bfloat16 velocities, near those of float32 for each form of time."""
    model, inputs = build(EVERYTHING), draw(EVERYTHING, times)
    half = copy.deepcopy(model).bfloat16()
    found = predict(half, inputs.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    # Rounding to 8 bits is 2^-9 on average; five blocks of about ten roundings each add up to less than 16 times that.
    assert difference(found, predict(model, inputs)) < 16 * 2**-9
