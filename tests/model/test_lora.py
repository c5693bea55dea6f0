# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""LoRAs as trainers write them: read in each style, put on plain and packed weights, changed and taken off again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rushes.model.checkpoint import transformer_names_to_diffusers
from rushes.model.config import TransformerConfig
from rushes.model.lora import Adapted, is_few_steps, read_lora
from rushes.model.packed import Packed, PackedLinear, pack
from rushes.model.transformer import Transformer
from rushes.shot import ShotError

CONFIG = TransformerConfig(dim=48, heads=2, layers=2, ffn_dim=56, in_channels=16, text_dim=24)
LAYERS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.1.ffn.2", "time_projection.1", "head.head")
CONVOLUTION = "patch_embedding"
State = dict[str, Tensor]


@pytest.fixture
def transformer() -> Transformer:
    return Transformer(CONFIG).eval().requires_grad_(False)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def diffusers_name(layer: str) -> str:
    name = f"{layer}.weight"
    return transformer_names_to_diffusers([name])[name].removesuffix(".weight")


# Style -> (stem of a layer, the names of the two halves)
STYLES: dict[str, tuple[Callable[[str], str], str, str]] = {
    "ComfyUI": (lambda layer: f"diffusion_model.{layer}", "lora_A", "lora_B"),
    "lightx2v": (lambda layer: f"diffusion_model.{layer}", "lora_down", "lora_up"),
    "musubi": (lambda layer: f"lora_unet_{layer.replace('.', '_')}", "lora_down", "lora_up"),
    "diffusers": (lambda layer: f"transformer.{diffusers_name(layer)}", "lora_A", "lora_B"),
    "peft": (lambda layer: f"base_model.model.{layer}", "lora_A.default", "lora_B.default"),
    "bare": (lambda layer: layer, "lora_A", "lora_B"),
}


def write_lora(
    path: Path,
    module: nn.Module,
    style: str = "ComfyUI",
    rank: int = 3,
    alpha: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> State:
    """A random LoRA over LAYERS and the convolution; what it adds to each weight at strength 1 comes back."""
    stem, down_name, up_name = STYLES[style]
    tensors: State = {}
    added: State = {}
    for layer in (*LAYERS, CONVOLUTION):
        shape = module.get_submodule(layer).weight.shape  # type: ignore[union-attr]
        down = (torch.randn(rank, *shape[1:]) / 9).to(dtype)
        up = (torch.randn(shape[0], rank, *(1 for _ in shape[2:])) / 9).to(dtype)
        tensors[f"{stem(layer)}.{down_name}.weight"], tensors[f"{stem(layer)}.{up_name}.weight"] = down, up
        if alpha is not None:
            tensors[f"{stem(layer)}.alpha"] = torch.tensor(alpha)
        product = torch.einsum("or,ri->oi", up.flatten(1).double(), down.flatten(1).double())
        added[f"{layer}.weight"] = (product * (1 if alpha is None else alpha / rank)).view(shape)
    save_file(tensors, path)
    return added


def expected(state: Mapping[str, Tensor], *added: tuple[State, float]) -> State:
    """The state with what is added, by another path: in float64."""
    found = {name: t.double() for name, t in state.items()}
    for change, strength in added:
        for name, delta in change.items():
            found[name] = found[name] + strength * delta
    return found


def assert_close(module: nn.Module, want: Mapping[str, Tensor]) -> None:
    state = module.state_dict()
    assert state.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(state[name].double(), tensor.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_every_style_is_read(transformer: Transformer, tmp_path: Path, style: str, alpha: float | None) -> None:
    """Original names and diffusers', either pair of halves, with alpha and without; a convolution among them."""
    before = {name: t.clone() for name, t in transformer.state_dict().items()}
    added = write_lora(tmp_path / "a.safetensors", transformer, style, alpha=alpha)
    lora = read_lora(tmp_path / "a.safetensors", shapes_of(transformer), "tiny")
    assert not lora.unknown and lora.changes.keys() == added.keys()
    Adapted(transformer, lambda: before).use([(lora, 0.7)])
    assert_close(transformer, expected(before, (added, 0.7)))


def test_differences_of_weights_biases_norms_and_modulations_are_added(
    transformer: Transformer, tmp_path: Path
) -> None:
    """As distillations bring them beside the thin matrices."""
    before = {name: t.clone() for name, t in transformer.state_dict().items()}
    names = {
        "diffusion_model.blocks.0.self_attn.norm_q.diff": "blocks.0.self_attn.norm_q.weight",
        "diffusion_model.blocks.1.norm3.diff_b": "blocks.1.norm3.bias",
        "diffusion_model.blocks.1.norm3.diff": "blocks.1.norm3.weight",
        "diffusion_model.blocks.0.self_attn.q.diff_b": "blocks.0.self_attn.q.bias",
        "diffusion_model.blocks.0.ffn.0.diff": "blocks.0.ffn.0.weight",
        "diffusion_model.blocks.1.modulation.diff": "blocks.1.modulation",
        "diffusion_model.blocks.0.diff_m": "blocks.0.modulation",
        "diffusion_model.head.diff_m": "head.modulation",
    }
    tensors = {name: torch.randn(before[ours].shape) for name, ours in names.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors", shapes_of(transformer), "tiny")
    assert not lora.unknown
    Adapted(transformer, lambda: before).use([(lora, -0.5)])
    assert_close(transformer, expected(before, ({ours: tensors[name].double() for name, ours in names.items()}, -0.5)))


def test_loras_are_changed_and_taken_off_without_loading_the_model_again(
    transformer: Transformer, tmp_path: Path
) -> None:
    """Several at once, another strength, one of them gone, none: each time as if they had been the first."""
    before = {name: t.clone() for name, t in transformer.state_dict().items()}
    added = [write_lora(tmp_path / f"{i}.safetensors", transformer, rank=i + 1) for i in range(2)]
    a, b = (read_lora(tmp_path / f"{i}.safetensors", shapes_of(transformer), "tiny") for i in range(2))
    reads = []
    adapted = Adapted(transformer, lambda: reads.append(1) or before)  # type: ignore[func-returns-value]
    for loras in ([(a, 1.0)], [(a, 1.0), (b, 0.3)], [(b, 2.0)], [(b, -1.0), (a, 0.5)]):
        adapted.use(loras)
        assert_close(transformer, expected(before, *((added[0 if lora is a else 1], s) for lora, s in loras)))
    count = len(reads)
    adapted.use([(b, -1.0), (a, 0.5)])
    assert len(reads) == count == 3
    for none in ([], [(a, 0.0)]):
        adapted.use(none)
        assert all(torch.equal(t, before[name]) for name, t in transformer.state_dict().items())


def packed_transformer(transformer: Transformer) -> tuple[State, dict[str, Packed]]:
    """Its matrices in fp8. What they are, opened, and as they are held."""
    opened, held = {}, {}
    for name, tensor in list(transformer.state_dict().items()):
        if tensor.ndim == 2 and name.endswith(".weight"):
            small = tensor.to(torch.float8_e4m3fn)
            held[name] = Packed("F8_E4M3", small.view(torch.uint8), tuple(tensor.shape))
            opened[name] = small.float()
            assert pack(transformer, name, held[name], torch.float32)
        else:
            opened[name] = tensor.clone()
    return opened, held


def test_packed_weights_stay_and_their_layers_add_the_change(transformer: Transformer, tmp_path: Path) -> None:
    """The output is that of the opened and merged weights, up to rounding; the bytes are the file's."""
    shapes = shapes_of(transformer)
    added = write_lora(tmp_path / "a.safetensors", transformer, alpha=2.0)
    save_file(
        {
            "diffusion_model.blocks.0.ffn.0.diff": torch.randn(56, 48) / 9,
            "diffusion_model.head.head.diff_b": torch.ones(64),
        },
        tmp_path / "b.safetensors",
    )
    opened, held = packed_transformer(transformer)
    plain = Transformer(CONFIG).eval().requires_grad_(False)
    plain.load_state_dict(opened)
    loras = [(read_lora(tmp_path / f"{name}.safetensors", shapes, "tiny"), s) for name, s in (("a", 0.8), ("b", 1.3))]
    layer = transformer.get_submodule("blocks.0.self_attn.q")
    assert isinstance(layer, PackedLinear)
    arguments = (torch.randn(1, 16, 2, 4, 6), torch.tensor([500.0]))
    text = torch.randn(1, 7, 24)

    def velocity(model: Transformer) -> Tensor:
        return model(*arguments, model.context(text))

    without = velocity(transformer)
    assert torch.equal(without, velocity(plain))
    on_packed, on_plain = Adapted(transformer, lambda: {**opened, **held}), Adapted(plain, lambda: opened)
    for adapted in (on_packed, on_plain):
        adapted.use(loras)
    torch.testing.assert_close(velocity(transformer), velocity(plain), rtol=1e-4, atol=1e-4)
    assert (velocity(transformer) - without).abs().max() > 0.1
    assert layer.packed.data.data_ptr() == held["blocks.0.self_attn.q.weight"].data.data_ptr()
    assert added.keys() <= shapes.keys()
    on_packed.use([])
    assert torch.equal(velocity(transformer), without)


def test_half_precision_rounds_once(transformer: Transformer, tmp_path: Path) -> None:
    before = {name: t.bfloat16() for name, t in transformer.state_dict().items()}
    transformer.bfloat16()
    added = write_lora(tmp_path / "a.safetensors", transformer, dtype=torch.bfloat16)
    lora = read_lora(tmp_path / "a.safetensors", shapes_of(transformer), "tiny")
    Adapted(transformer, lambda: before).use([(lora, 1.0)])
    for name, tensor in expected(before, (added, 1.0)).items():
        got = transformer.state_dict()[name]
        assert got.dtype is torch.bfloat16
        assert (got.double() - tensor).abs().max() <= tensor.abs().max() * 2**-8  # half of bfloat16's last place


def test_what_the_model_has_no_place_for_is_named(transformer: Transformer, tmp_path: Path) -> None:
    """An image-to-video LoRA on a text-to-video model: most of it works, and the rest is said."""
    write_lora(tmp_path / "a.safetensors", transformer)
    from safetensors.torch import load_file

    tensors = {name: t.clone() for name, t in load_file(tmp_path / "a.safetensors").items()}
    tensors["diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight"] = torch.zeros(3, 48)
    tensors["diffusion_model.blocks.0.cross_attn.k_img.lora_B.weight"] = torch.zeros(48, 3)
    tensors["note"] = torch.zeros(1)
    save_file(tensors, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors", shapes_of(transformer), "tiny")
    assert set(lora.unknown) == {"note", "diffusion_model.blocks.0.cross_attn.k_img"}
    assert len(lora.changes) == len(LAYERS) + 1


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_text_to_video_lora_is_put_on_an_image_to_video_model(
    transformer: Transformer, tmp_path: Path, is_whole: bool
) -> None:
    """Where the latents come in, the two have other channels: that part alone is left out, and named."""
    write_lora(tmp_path / "a.safetensors", transformer)
    if is_whole:
        save_file({"diffusion_model.patch_embedding.diff": torch.zeros(48, 16, 1, 2, 2),
                   "diffusion_model.patch_embedding.diff_b": torch.ones(48)}, tmp_path / "a.safetensors")  # fmt: skip
    pictures = Transformer(dataclasses.replace(CONFIG, in_channels=36))
    lora = read_lora(tmp_path / "a.safetensors", shapes_of(pictures), "i2v")
    assert lora.unknown == ("diffusion_model.patch_embedding",)
    assert set(lora.changes) == ({"patch_embedding.bias"} if is_whole else {f"{layer}.weight" for layer in LAYERS})


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 64),
             "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.zeros(64, 4)},
            r"it changes 'blocks\.0\.self_attn\.q\.weight' of \[64, 64\], which is \[48, 48\] in tiny; a LoRA for tiny",
        ),
        ({"diffusion_model.blocks.0.norm3.diff": torch.zeros(64)}, r"of \[64\], which is \[48\] in tiny"),
        ({"diffusion_model.blocks.0.norm3.diff_b": torch.zeros(64)}, r"of \[64\], which is \[48\] in tiny"),
        ({"lora_unet_double_blocks_0.lora_up.weight": torch.zeros(2, 2)}, "it changes nothing in tiny"),
        ({"diffusion_model.blocks.0.self_attn.q.dora_scale": torch.zeros(2)}, "it is a DoRA"),
        ({"diffusion_model.blocks.0.self_attn.q.lokr_w1": torch.zeros(2)}, "it is a LoKr"),
        ({"diffusion_model.blocks.0.self_attn.q.hada_w1_a": torch.zeros(2)}, "it is a LoHa"),
        ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 48)}, "has one half of"),
        (
            {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 48),
             "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.zeros(48, 5)},
            "which do not fit",
        ),
        ({}, "it changes nothing in tiny \\(it holds 'nothing'\\)"),
    ],
)  # fmt: skip
def test_files_of_other_models_and_kinds_are_refused(
    transformer: Transformer, tmp_path: Path, tensors: State, words: str
) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ShotError, match=rf"^lora: .*a\.safetensors.*{words}"):
        read_lora(tmp_path / "a.safetensors", shapes_of(transformer), "tiny")


def test_a_lora_that_is_not_there_is_named(tmp_path: Path, transformer: Transformer) -> None:
    with pytest.raises(ShotError, match=r"^lora: .*gone\.safetensors does not exist"):
        read_lora(tmp_path / "gone.safetensors", shapes_of(transformer), "tiny")


@pytest.mark.parametrize(
    ("name", "is_few"),
    [
        ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors", True),
        ("Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors", True),
        ("Wan2.2-Lightning_T2V-v1.1-A14B-4steps-lora_HIGH_fp16.safetensors", True),
        ("my_4_step.safetensors", True),
        ("slow_motion_24steps.safetensors", False),
        ("character_v4.safetensors", False),
    ],
)
def test_distillations_are_known_by_their_names(name: str, is_few: bool) -> None:
    assert is_few_steps(name) is is_few
