# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Wan's files as they lie on disk: what they are, which go together, what is refused, and how they are read.

Published models are stood in for by files with their names and shapes and no contents; small ones have random weights.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import re
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rushes.model import config as presets
from rushes.model.bundle import bundle_path, read_card
from rushes.model.bundle import read_modules as read_bundle
from rushes.model.catalog import Model
from rushes.model.experts import level
from rushes.model.files import ModelFiles, files_card, read_modules
from rushes.model.placement import make_plan
from rushes.model.preview import fit_preview
from rushes.model.reading import read_header
from rushes.model.text import EMBEDDING, TIED_EMBEDDING, UMT5_XXL
from rushes.shot import Shot, ShotError

TinyWan = Callable[..., Any]
KEYS = Path(__file__).parents[1] / "fixtures" / "wan_keys"
CPU = torch.device("cpu")
PREFIXES = {"transformer": "model.diffusion_model.", "text": "text_encoders.umt5xxl.transformer.", "vae": "vae."}


def published(folder: Path, name: str, stem: str) -> Path:
    """A bfloat16 file with the names and shapes of a published one, all of it a hole in the disk."""
    with gzip.open(KEYS / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        shapes = json.load(file)["tensors"]
    header: dict[str, Any] = {}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as writers do: tensors that lie askew would be copied, gigabytes of them
    path = folder / f"{stem}.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture
def shelf(tmp_path: Path) -> Callable[..., ModelFiles]:
    """shelf("wan21_t2v_1.3b"): published files, as ComfyUI names them, with UMT5-XXL and the first VAE."""
    if sys.platform == "win32":
        pytest.skip("files with holes are written in full on Windows: tens of gigabytes")
    (tmp_path / "tokenizer.json").write_text("{}")  # only looked for

    def pick(name: str, stem: str = "", vae: str = "wan21_vae") -> ModelFiles:
        return ModelFiles(
            published(tmp_path, f"original.{name}", stem or name),
            published(tmp_path, "transformers.umt5_xxl_encoder", "umt5_xxl_fp16"),
            published(tmp_path, f"original.{vae}", vae),
        )

    return pick


@pytest.mark.parametrize(
    ("name", "vae", "config", "size", "frames", "fps", "guidance", "shift"),
    [
        ("wan21_t2v_1.3b", "wan21_vae", presets.WAN21_T2V_1_3B, (832, 480), 81, 16, 6.0, 8.0),
        ("wan21_t2v_14b", "wan21_vae", presets.WAN21_T2V_14B, (832, 480), 81, 16, 5.0, 5.0),
        ("wan22_ti2v_5b", "wan22_vae", presets.WAN22_TI2V_5B, (1280, 704), 121, 24, 5.0, 5.0),
    ],
)
def test_published_models_are_known_with_their_settings(
    shelf: Callable[..., ModelFiles], name: str, vae: str, config: Any, size: Any, frames: int, fps: int,
    guidance: float, shift: float,
) -> None:  # fmt: skip
    """By shapes alone, with what Wan published for each: 50 steps of UniPC along its own schedule."""
    card = files_card(shelf(name, vae=vae))
    assert card.transformer == config
    assert card.vae == (presets.WAN21_VAE if vae == "wan21_vae" else presets.WAN22_VAE)
    assert card.text == UMT5_XXL
    found = card.defaults
    assert (found.size, found.frames, found.rate, found.steps) == (size, frames, fps, 50)
    assert (found.guidance, found.shift, found.schedule, found.solver) == (guidance, shift, "wan_unipc", "unipc")
    assert card.name == name and card.trained_frames == frames
    assert size in card.trained_sizes and size[::-1] in card.trained_sizes


@pytest.mark.parametrize(
    ("name", "stem", "words"),
    [
        ("original.wan21_vae", "wan_2.1_vae", "it holds a VAE"),
        ("transformers.umt5_xxl_encoder", "umt5_xxl_fp16", "it holds a text encoder"),
        ("transformers.clip_vit_h14_vision", "clip_vision_h", "it holds a CLIP vision tower"),
    ],
)
def test_other_parts_are_refused_by_what_they_are(
    shelf: Callable[..., ModelFiles], tmp_path: Path, name: str, stem: str, words: str
) -> None:
    """The argument, the file, what it is, and which file is expected."""
    files = dataclasses.replace(shelf("wan21_t2v_1.3b"), transformer=published(tmp_path, name, stem))
    with pytest.raises(ShotError, match=words) as caught:
        files_card(files)
    assert str(caught.value).startswith(f"transformer: got {stem}.safetensors; it ")
    assert str(caught.value).endswith(
        "such as wan2.1_t2v_1.3B_fp16.safetensors (in ComfyUI: models/diffusion_models) is expected"
    )


@pytest.mark.parametrize(
    ("name", "stem", "other"),
    [
        ("wan22_t2v_a14b", "wan2.2_t2v_high_noise_14B_fp16", "wan2.2_t2v_low_noise_14B_fp16.safetensors"),
        ("wan22_t2v_a14b", "Wan2_2-T2V-A14B-LOW_bf16", "Wan2_2-T2V-A14B-HIGH_bf16.safetensors"),
        ("wan22_t2v_a14b", "Wan2.2-T2V-14B-LowNoise", "Wan2.2-T2V-14B-HighNoise.safetensors"),
        ("wan22_t2v_a14b", "wan2.2_t2v_14B_high", "wan2.2_t2v_14B_low.safetensors"),
        ("wan22_t2v_a14b", "Wan2.2-T2V-A14B", "the other expert's file"),
        ("wan22_i2v_a14b", "i2v", "the other expert's file"),  # by its shapes
    ],
)
def test_one_expert_alone_is_refused_with_the_name_of_the_other(
    shelf: Callable[..., ModelFiles], name: str, stem: str, other: str
) -> None:
    """By its name, or by shapes that only a model of two experts has."""
    with pytest.raises(ShotError) as caught:
        files_card(shelf(name, stem))
    assert str(caught.value).startswith(f"transformer: got {stem}.safetensors alone, ") and other in str(caught.value)


@pytest.mark.parametrize("name", ["wan22_t2v_a14b", "wan22_i2v_a14b"])
def test_two_experts_are_one_model(shelf: Callable[..., ModelFiles], tmp_path: Path, name: str) -> None:
    """With Wan's settings for the pair; swapped, twice the same, and one of another model are refused."""
    high, low = f"{name}_high_noise", f"{name}_low_noise"
    files = dataclasses.replace(shelf(name, high), transformer_low=published(tmp_path, f"original.{name}", low))
    card = files_card(files)
    is_image = name == "wan22_i2v_a14b"
    assert card.boundary == (0.9 if is_image else 0.875)
    assert card.defaults.guidance == ((3.5, 3.5) if is_image else (4.0, 3.0))
    assert (card.defaults.steps, card.defaults.shift, card.trained_frames) == (40, 5.0 if is_image else 12.0, 81)
    assert card.parts == ("transformer", "transformer_low", "text", "vae")
    assert files.transformer_low is not None
    other = published(tmp_path, "original.wan21_vace_14b", "another")
    for changes, words in (
        ({"transformer": files.transformer_low, "transformer_low": files.transformer}, "by their names are the other"),
        ({"transformer_low": files.transformer}, "which by their names are the other way round"),
        ({"transformer_low": other}, "which has other tensors than"),
    ):
        with pytest.raises(ShotError, match=words):
            files_card(dataclasses.replace(files, **changes))
    alone = shelf("wan21_t2v_14b", "plain")
    with pytest.raises(ShotError, match=r"^transformer_low: got plain\.safetensors as both experts"):
        files_card(dataclasses.replace(alone, transformer_low=alone.transformer))


def test_folders_tell_experts_too(tmp_path: Path) -> None:
    """As Wan's own folders and diffusers' are called, where the files' names say nothing."""
    stem = "diffusion_pytorch_model.safetensors"
    assert level(tmp_path / "high_noise_model" / stem) == "high"
    assert level(tmp_path / "low_noise_model" / stem) == level(tmp_path / "transformer_2" / stem) == "low"
    assert level(tmp_path / "transformer" / stem) is None


@pytest.mark.parametrize(
    ("name", "config", "settings"),
    [
        ("wan21_i2v_14b", presets.WAN21_I2V_14B, ((832, 480), 40, 5.0, 3.0)),
        ("wan21_flf2v_14b", presets.WAN21_FLF2V_14B, ((1280, 720), 50, 5.5, 16.0)),
        ("wan21_vace_1.3b", presets.WAN21_VACE_1_3B, ((832, 480), 50, 5.0, 16.0)),
        ("wan21_vace_14b", presets.WAN21_VACE_14B, ((832, 480), 50, 5.0, 16.0)),
    ],
)
def test_other_forms_are_known_with_their_settings(
    shelf: Callable[..., ModelFiles], tmp_path: Path, name: str, config: Any, settings: Any
) -> None:
    """Image-to-video wants CLIP's tower, whose place is named where it is missing; its shift goes by the size."""
    files = shelf(name)
    if config.image_dim is not None:
        with pytest.raises(ShotError, match=r"^clip: none is given, and .* needs one; .* such as clip_vision_h\.safe"):
            files_card(files)
        with pytest.raises(ShotError, match=r"^clip: got wan21_vae\.safetensors; it holds a VAE; CLIP's ViT-H/14"):
            files_card(dataclasses.replace(files, clip=files.vae))
        files = dataclasses.replace(
            files, clip=published(tmp_path, "transformers.clip_vit_h14_vision", "clip_vision_h")
        )
    card = files_card(files)
    assert card.transformer == config
    found = card.defaults
    assert (found.size, found.steps, found.guidance, card.shift(found.size)) == settings
    assert (found.schedule, found.solver, found.frames, found.rate) == ("wan_unipc", "unipc", 81, 16)
    assert found.negative.startswith("色调艳丽，过曝") and found.negative.endswith("倒着走")


def test_a_720p_image_model_starts_large_with_a_higher_shift(shelf: Callable[..., ModelFiles], tmp_path: Path) -> None:
    """480p and 720p files have the same shapes; Wan sets the shift by the size of the clip."""
    files = shelf("wan21_i2v_14b", "wan2.1_i2v_720p_14B_fp16")
    card = files_card(dataclasses.replace(files, clip=published(tmp_path, "transformers.clip_vit_h14_vision", "clip")))
    assert card.defaults.size == (1280, 720)
    assert [card.shift(size) for size in ((832, 480), (480, 832), (1280, 720))] == [3.0, 3.0, 5.0]
    assert dataclasses.replace(card, files=dataclasses.replace(files, shift=2.0)).shift((832, 480)) == 2.0


def test_a_clip_tower_where_none_is_read_is_refused(shelf: Callable[..., ModelFiles], tmp_path: Path) -> None:
    files = dataclasses.replace(
        shelf("wan21_t2v_1.3b"), clip=published(tmp_path, "transformers.clip_vit_h14_vision", "clip_vision_h")
    )
    with pytest.raises(ShotError, match=r"^clip: got clip_vision_h\.safetensors; .* reads no CLIP tokens, leave"):
        files_card(files)


@pytest.mark.parametrize("stem", ["wan2.1_t2v_14B_highres", "slow_low_vram_t2v_14B", "wan2.2_ti2v_5B_slow"])
def test_a_name_that_only_looks_like_an_experts_is_none(shelf: Callable[..., ModelFiles], stem: str) -> None:
    assert files_card(shelf("wan21_t2v_14b", stem)).name == stem


def test_a_vae_of_other_channels_is_refused_with_the_right_ones_name(shelf: Callable[..., ModelFiles]) -> None:
    """Each of the two VAEs beside the transformer of the other."""
    with pytest.raises(ShotError) as caught:
        files_card(shelf("wan21_t2v_14b", vae="wan22_vae"))
    assert str(caught.value) == (
        "vae: got wan22_vae.safetensors with 48 latent channels, and wan21_t2v_14b.safetensors works in 16; "
        "a VAE of 16 such as wan_2.1_vae.safetensors (in ComfyUI: models/vae) is expected"
    )
    with pytest.raises(ShotError, match=r"with 16 latent .* in 48; a VAE of 48 such as wan2\.2_vae\.safetensors"):
        files_card(shelf("wan22_ti2v_5b"))


def test_a_text_encoder_of_another_width_is_refused(tiny_wan: TinyWan) -> None:
    files = dataclasses.replace(tiny_wan().files, transformer=tiny_wan(text_dim=4096).files.transformer)
    with pytest.raises(ShotError) as caught:
        files_card(files)
    assert str(caught.value) == (
        "text: got tiny_text.safetensors with 24 values a token, and tiny_transformer.safetensors reads 4096; "
        "UMT5-XXL such as umt5_xxl_fp16.safetensors (in ComfyUI: models/text_encoders) is expected"
    )


@pytest.mark.parametrize(("part", "given"), list(permutations(["transformer", "text", "vae"], 2)))
def test_a_part_in_place_of_another_is_refused(tiny_wan: TinyWan, part: str, given: str) -> None:
    files = tiny_wan().files
    holds = {"transformer": "a transformer", "text": "a text encoder", "vae": "a VAE"}[given]
    with pytest.raises(ShotError, match=rf"^{part}: got tiny_{given}\.safetensors; it holds {holds}; .* is expected$"):
        files_card(dataclasses.replace(files, **{part: files.paths[given]}))


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object], metadata: dict[str, str] | None = None) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, tensor in tensors.items():
        if name.endswith("ffn.0.weight"):
            tensors[name] = tensor.to(dtype)


Q = "model.diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.update({"scaled_fp8": torch.zeros(2)}),
            r"a mark of fp8 weights and none of them \('scaled_fp8'\)",
        ),
        (lambda t: t.update({f"{Q}.scale_weight": torch.ones(1)}), "a mark of fp8 weights beside none"),
        (lambda t: t.update({f"{Q}.comfy_quant": torch.zeros(9, dtype=torch.uint8)}), "a mark of fp8 weights beside"),
        (lambda t: t.update({f"{Q}.weight_scale_2": torch.ones(1)}), "weights quantised by nvfp4"),
        (lambda t: cast(t, torch.int8), "weights in I8"),
    ],
)
def test_quantised_weights_that_are_not_read_are_refused(
    tiny_wan: TinyWan, change: Callable[..., object], words: str
) -> None:
    """Never are they taken as if they were plain; the sentence begins with the argument that named the file."""
    files = tiny_wan().files
    rewrite(files.transformer, change)
    with pytest.raises(ShotError, match=rf"^transformer: tiny_transformer\.safetensors holds {words}.* is allowed$"):
        files_card(files)


def test_a_quantised_vae_is_refused(tiny_wan: TinyWan) -> None:
    """Its convolutions work with plain weights, and it is small."""
    files = tiny_wan().files
    rewrite(files.vae, lambda tensors: tensors.update({"vae.conv1.bias": torch.zeros(32).to(torch.float8_e4m3fn)}))
    with pytest.raises(
        ShotError, match=r"^vae: got tiny_vae\.safetensors; it holds weights in F32 and F8_E4M3; a Wan VAE"
    ):
        files_card(files)


def test_files_of_another_form_are_refused(tiny_wan: TinyWan, tmp_path: Path) -> None:
    """A GGUF that is none, a folder, an index that is gone, a file that is gone, one damaged, and one of others."""
    files = tiny_wan().files
    (tmp_path / "wan.gguf").write_bytes(b"GGUF")
    broken, other = tmp_path / "broken.safetensors", tmp_path / "other.safetensors"
    broken.write_bytes(files.vae.read_bytes()[:-50])
    save_file({"double_blocks.0.weight": torch.zeros(2)}, other)
    for path, words in {
        tmp_path / "wan.gguf": r"wan\.gguf is damaged",
        tmp_path: "it is a folder and not one file",
        tmp_path / "model.safetensors.index.json": "does not exist",
        tmp_path / "gone.safetensors": r"gone\.safetensors does not exist",
        broken: r"broken\.safetensors is damaged",
        other: r"no Wan transformer, Wan VAE, UMT5 or CLIP is in this file \(it starts with 'double_blocks",
    }.items():
        with pytest.raises(ShotError, match=rf"^transformer: .*{words}"):
            files_card(dataclasses.replace(files, transformer=path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("control_adapter.conv.weight", "Fun-Camera"),
        ("casual_audio_encoder.encoder.final_linear.weight", "speech-to-video"),
        ("audio_proj.audio_proj_glob_1.layer.bias", "HuMo"),
        ("face_adapter.fuser_blocks.0.k_norm.weight", "Animate"),
        ("ref_conv.weight", "Fun-Control"),
        ("patch_embedding_pose.weight", "SCAIL"),
    ],
)
def test_special_models_are_named(tiny_wan: TinyWan, name: str, kind: str) -> None:
    files = tiny_wan().files
    rewrite(files.transformer, lambda tensors: tensors.update({f"model.diffusion_model.{name}": torch.zeros(3)}))
    with pytest.raises(ShotError, match=f"^transformer: .*it is a .*{kind}"):
        files_card(files)


def test_input_channels_beside_those_of_the_picture_are_refused(tiny_wan: TinyWan) -> None:
    """Fun-Control has 48 for 16."""
    files = tiny_wan().files
    name = "model.diffusion_model.patch_embedding.weight"
    rewrite(files.transformer, lambda tensors: tensors.update({name: torch.zeros(48, 48, 1, 2, 2)}))
    with pytest.raises(ShotError, match=r"it takes control passes \(48 input channels\)"):
        files_card(files)


def test_a_t5_with_shared_positions_is_refused(tiny_wan: TinyWan) -> None:
    """T5-XXL, which other models read, has UMT5-XXL's width and would load until its second layer."""
    files = tiny_wan().files
    name = f"{PREFIXES['text']}encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    rewrite(files.text, lambda tensors: tensors.pop(name))
    with pytest.raises(ShotError, match=r"^text: .*it is a T5 whose layers share their positions; UMT5-XXL"):
        files_card(files)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("transformer", lambda t: t.pop(f"{Q}.bias"), r"it lacks 'blocks\.0\.self_attn\.q\.bias'"),
        (
            "transformer",
            lambda t: t.update({"model.diffusion_model.new.weight": torch.zeros(1)}),
            "it has 'new.weight'",
        ),
        ("vae", lambda t: t.update({"vae.conv1.bias": torch.zeros(5)}), r"'conv1\.bias' is \[5\], not \[32\]"),
        (
            "text",
            lambda t: t.pop(f"{PREFIXES['text']}encoder.final_layer_norm.weight"),
            "it lacks 'encoder.final_layer",
        ),
    ],
)
def test_files_that_are_not_whole_are_refused(
    tiny_wan: TinyWan, part: str, change: Callable[..., object], words: str
) -> None:
    """A tensor that is missing, one too many, and one of another shape, by name, after their shapes seemed right."""
    files = tiny_wan().files
    rewrite(files.paths[part], change, {"config": '{"num_attention_heads": 2}'})
    with pytest.raises(ShotError, match=rf"^{part}: got tiny_{part}\.safetensors; {words}.* is expected$"):
        read_modules(files_card(files), CPU, torch.float32)


@pytest.mark.parametrize(
    ("note", "heads"),
    [
        ({"config": '{"transformer": {"num_heads": 4}}'}, 4),  # ComfyUI's
        ({"config": '{"num_attention_heads": 2, "num_heads_of_others": 9}'}, 2),  # diffusers'
        ({"config": "no JSON", "format": "pt"}, 1),
        ({"config": '{"transformer": {"num_heads": "many"}}'}, 1),
        ({"config": "[3]"}, 1),
        ({}, 1),
    ],
)
def test_heads_are_stated_or_follow_from_the_width(tiny_wan: TinyWan, note: dict[str, str], heads: int) -> None:
    """Small models say how many in their metadata; without that there are 128 channels to a head, and at least one."""
    files = tiny_wan(heads=4).files
    rewrite(files.transformer, lambda tensors: None, note)
    assert files_card(files).transformer.heads == heads


def test_heads_of_128_channels_need_no_note(tiny_wan: TinyWan) -> None:
    files = tiny_wan(dim=256).files
    rewrite(files.transformer, lambda tensors: None)
    assert files_card(files).transformer.heads == 2


def test_heads_that_do_not_divide_the_width_are_refused(tiny_wan: TinyWan) -> None:
    files = tiny_wan().files
    rewrite(files.transformer, lambda tensors: None, {"config": '{"num_heads": 7}'})
    with pytest.raises(ShotError, match=r"its metadata do not go with its shapes \(dim: 48 over 7 heads"):
        files_card(files)


@pytest.mark.parametrize("layout", ["original", "comfy", "diffusers"])
def test_every_layout_is_the_same_model(tiny_wan: TinyWan, layout: str) -> None:
    wan = tiny_wan(layout)
    card = files_card(wan.files)
    assert {"transformer": card.transformer, "text": card.text, "vae": card.vae} == wan.configs
    for part, module in read_modules(card, CPU, torch.float32).items():
        state = module.state_dict()
        assert state.keys() == wan.states[part].keys()
        assert all(torch.equal(state[name], t) for name, t in wan.states[part].items())
        assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_pth_files_and_one_file_of_all_parts_are_read(tiny_wan: TinyWan, tmp_path: Path) -> None:
    """Wan's own text encoder and VAE are .pth files; ComfyUI's checkpoints hold all three."""
    wan = tiny_wan("comfy")
    everything = {name: t for path in wan.files.paths.values() for name, t in load_file(path).items()}
    save_file(everything, tmp_path / "all.safetensors", metadata={"config": '{"num_heads": 2}'})
    together = ModelFiles(*[tmp_path / "all.safetensors"] * 3)
    pickles = {}
    for part in ("text", "vae"):
        pickles[part] = tmp_path / f"{part}.pth"
        torch.save(load_file(wan.files.paths[part]), pickles[part])
    for files in (together, dataclasses.replace(wan.files, **pickles)):
        card = files_card(files)
        assert card.tokenizer().encode("a red ball")[0][-1] == 1
        for part, module in read_modules(card, CPU, torch.float32).items():
            assert all(torch.equal(module.state_dict()[name], t) for name, t in wan.states[part].items())


def test_the_shared_embedding_is_read_once(tiny_wan: TinyWan, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' files may hold it under both names: 2 GB of UMT5-XXL that nobody needs twice."""
    files = tiny_wan("diffusers").files
    assert {EMBEDDING, TIED_EMBEDDING} <= load_file(files.text).keys()
    text = read_modules(files_card(files), CPU, torch.float32).text
    assert text.shared.weight.data_ptr() == text.encoder.embed_tokens.weight.data_ptr()
    seen: list[Any] = []
    monkeypatch.setattr("rushes.model.files.load_modules", lambda card, read, *rest: seen.extend(read("text")))
    read_modules(files_card(files), CPU, torch.float32)
    assert EMBEDDING in seen and TIED_EMBEDDING not in seen


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the list of mappings is Linux's")
def test_weights_of_the_right_type_stay_in_the_mapped_file(tiny_wan: TinyWan) -> None:
    """Nothing is copied on the CPU: 28 GB open in no time, and the system may drop what is not used."""
    files = tiny_wan().files
    modules = dict(read_modules(files_card(files), CPU, torch.float32))
    mapped = [line.split(" ", 1)[0] for line in Path("/proc/self/maps").read_text().splitlines() if "/tiny_" in line]
    ranges = [tuple(int(end, 16) for end in line.split("-")) for line in mapped]
    for module in modules.values():
        for parameter in module.parameters():
            assert any(low <= parameter.data_ptr() < high for low, high in ranges)


def test_the_tokenizer_inside_the_file_comes_before_the_one_beside_it(tiny_wan: TinyWan) -> None:
    files = tiny_wan("comfy").files
    (files.text.parent / "tokenizer.json").write_text("not even JSON")
    assert files_card(files).tokenizer().encode("ball a")[0] == [5, 3, 1]


@pytest.mark.parametrize("place", ["tokenizer.json", "google/umt5-xxl/tokenizer.json", "../tokenizer/tokenizer.json"])
def test_a_tokenizer_is_found_where_folders_have_it(tiny_wan: TinyWan, place: str) -> None:
    """Beside the text encoder, as in Wan's own folder, and as in diffusers'."""
    files = tiny_wan("original").files
    beside = files.text.with_name("tokenizer.json")
    target = files.text.parent / place
    target.parent.mkdir(parents=True, exist_ok=True)
    beside.rename(target)
    assert files_card(files).tokenizer().encode("ball a")[0] == [5, 3, 1]


def test_a_text_encoder_without_a_tokenizer_that_fits_is_refused(tiny_wan: TinyWan) -> None:
    """None at all, a broken one, and one that knows more than the encoder."""
    files = tiny_wan("original").files
    beside = files.text.with_name("tokenizer.json")
    whole = json.loads(beside.read_text())
    whole["model"]["vocab"] += [[f"piece{i}", -20.0] for i in range(9)]
    beside.write_text(json.dumps(whole))
    with pytest.raises(
        ShotError, match=r"^text: .*knows 40 tokens, with a tokenizer of 46; the tokenizer that belongs"
    ):
        Model.open(files)
    beside.write_text("{}")
    with pytest.raises(ShotError, match=r"^text: .*tokenizer\.json cannot be read"):
        Model.open(files)
    beside.unlink()
    with pytest.raises(ShotError, match=r"^text: got tiny_text\.safetensors, which has no tokenizer in it and none"):
        files_card(files)


def test_settings_given_with_the_files_replace_wans(tiny_wan: TinyWan) -> None:
    """Euler brings ComfyUI's schedule with it, unless another is named."""
    files = tiny_wan().files

    def settings(**changes: Any) -> tuple[str, str, float]:
        found = files_card(dataclasses.replace(files, **changes)).defaults
        return found.solver, found.schedule, found.shift

    assert settings() == ("unipc", "wan_unipc", 8.0)
    assert settings(solver="euler", shift=3.5) == ("euler", "simple", 3.5)
    assert settings(solver="euler", schedule="wan_unipc") == ("euler", "wan_unipc", 8.0)
    assert settings(schedule="simple") == ("unipc", "simple", 8.0)


def test_a_model_on_the_shelf_needs_no_weights(shelf: Callable[..., ModelFiles], tmp_path: Path) -> None:
    """A shot is resolved and counted from headers; the text tells how it is cut."""
    files = shelf("wan21_t2v_1.3b", stem="wan2.1_t2v_1.3B_bf16")
    from tokenizers import Tokenizer, models

    Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1.0)], 2)).save(
        str(tmp_path / "tokenizer.json")
    )
    model = Model.open(files)
    shot = model.resolve(Shot("a", frames=5))
    assert (shot.size, shot.steps, shot.model) == ((832, 480), 50, "wan2.1_t2v_1.3B_bf16")
    planned = make_plan(model.card, shot, torch.bfloat16, "cuda", None)
    assert planned.peak > sum(path.stat().st_size for path in files.paths.values()) > 14e9
    with pytest.raises(ShotError, match=re.escape("wan2.1_t2v_1.3B_bf16 takes 4n+1")):
        model.resolve(Shot("a", frames=8))


def test_a_preview_is_fitted_to_the_vae(starter: str) -> None:
    """On pictures it was not fitted to, of smooth colours, it errs by less than half of their contrast; and it is the
    same each time."""
    path = bundle_path(starter)
    vae = read_bundle(path, read_card(path), CPU, torch.float32).vae
    with torch.inference_mode():
        table = fit_preview(vae, CPU, torch.float32)
        assert torch.equal(table, fit_preview(vae, CPU, torch.float32))
        picture = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 5), size=(64, 96), mode="bilinear")
        latents = vae.encode(picture[:, :, None].expand(-1, -1, 5, -1, -1) * 2 - 1)[0]
    cells = torch.nn.functional.adaptive_avg_pool2d(picture, latents.shape[2:])[0]
    rough = torch.einsum("cthw,cr->trhw", latents, table[:-1]) + table[-1][:, None, None]
    assert table.shape == (vae.config.latent_channels + 1, 3)
    assert (rough - cells).square().mean().sqrt() < cells.std() / 2


@pytest.mark.parametrize("form", ["text", "ends", "experts", "control"])
def test_shapes_of_any_kind_are_refused_in_one_sentence(tiny_wan: TinyWan, form: str) -> None:
    """A few tensors gone, empty, of other sizes or dimensions, in any of the files: never another exception."""
    fields: dict[str, Any] = {
        "text": {},
        "ends": {"in_channels": 36, "image_dim": 24, "image_positions": 10},
        "experts": {"in_channels": 36, "names": ("a_high_noise", "a_low_noise")},
        "control": {"layers": 4, "vace_in_channels": 96, "vace_layers": (0, 2)},
    }[form]
    files = tiny_wan("original", **fields).files
    headers = {part: read_header(path) for part, path in files.paths.items()}
    dice = random.Random(form)
    for _ in range(40):
        part = dice.choice(list(headers))
        shapes = {name: list(shape) for name, shape in headers[part].shapes.items()}
        for name in dice.sample(list(shapes), 3):
            change = dice.randrange(4)
            if change == 0:
                del shapes[name]
            elif change == 1 and shapes[name]:
                shapes[name][dice.randrange(len(shapes[name]))] = dice.choice([0, 1, 2, 3, 7, 1000])
            else:
                shapes[name] = [] if change == 2 else [*shapes[name], dice.choice([0, 1, 5])]
        path = files.paths[part].with_name(f"changed_{part}.safetensors")
        hollow(path, shapes)
        with pytest.raises(ShotError) as caught:
            read_modules(files_card(dataclasses.replace(files, **{part: path})), CPU, torch.float32)
        assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{part.removesuffix('_low')}")


def hollow(path: Path, shapes: dict[str, list[int]]) -> None:
    """A float32 file of these shapes, all of it a hole in the disk."""
    header: dict[str, Any] = {"__metadata__": {"config": '{"num_heads": 2}'}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
