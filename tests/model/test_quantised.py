# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Files with quantised weights, written here in every form, give the bits that the same weights give when opened."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quantising import read, same, write_fp8, write_gguf
from rushes import Engine, Shot
from rushes.model.blocks import FORMATS
from rushes.model.checkpoint import text_names_to_llama
from rushes.model.files import ModelFiles, files_card, read_modules
from rushes.model.packed import PackedEmbedding, PackedLinear
from rushes.model.quantised import open_weights
from rushes.shot import ShotError

TinyWan = Callable[..., Any]
State = dict[str, Tensor]

PREFIX = "model.diffusion_model."
KEYS = Path(__file__).parents[1] / "fixtures" / "wan_keys"
SHOT = Shot("a red ball rolls", negative="the ball", seed=5, guidance=4.0, size=(32, 32), frames=5, steps=4)


@pytest.fixture
def wan(tiny_wan: TinyWan) -> SimpleNamespace:
    """Rows of 256 and 512, which all blocks divide; the text's feed-forward part has one of 40, which none does."""
    found: SimpleNamespace = tiny_wan("comfy", dim=256, ffn_dim=512, text_width=256)
    return found


def reference(files: ModelFiles, part: str, opened: State, folder: Path) -> ModelFiles:
    """The same model with one part's weights opened, as a plain file."""
    path = files.paths[part]
    metadata = {"config": '{"num_heads": 2}'} if part == "transformer" else None
    save_file({**read(path), **{k: t.contiguous() for k, t in opened.items()}}, folder / path.name, metadata)
    return dataclasses.replace(files, **{part: folder / path.name})


def latents(files: ModelFiles) -> Tensor:
    return Engine.load(files, device="cpu").denoise(SHOT)


@pytest.mark.parametrize("part", ["transformer", "text"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("form", ["plain", "marked", "noted", "inline"])
def test_fp8_in_every_form_gives_the_bits_of_its_open_weights(
    wan: SimpleNamespace, tmp_path: Path, form: str, dtype: torch.dtype, part: str
) -> None:
    files: ModelFiles = wan.files
    plain = latents(files)
    whole = read(files.paths[part])
    opened = write_fp8(files.paths[part], form, dtype)
    got = latents(files)
    save_file(whole, tmp_path / files.paths[part].name)  # names of the plain file, without marks
    plain_files = reference(
        dataclasses.replace(files, **{part: tmp_path / files.paths[part].name}), part, opened, tmp_path
    )
    assert torch.equal(got, latents(plain_files))
    assert 1e-5 < (got - plain).abs().max() < 1  # it is another model, and not by much


@pytest.mark.parametrize(
    ("kind", "names"), [("Q8_0", text_names_to_llama), ("Q4_K", text_names_to_llama), ("Q6_K", same)]
)
def test_a_gguf_text_encoder_brings_its_tokenizer(
    wan: SimpleNamespace, tmp_path: Path, kind: str, names: Callable[[State], dict[str, str]]
) -> None:
    """With llama.cpp's names, as they are published, or transformers'; with sentencepiece's own tokens."""
    path, opened = write_gguf(wan.files.text, kind, names)
    files = dataclasses.replace(wan.files, text=path)
    text = "a red ball rolls, to the  right: déjà vu"
    assert files_card(files).tokenizer().encode(text) == files_card(wan.files).tokenizer().encode(text)
    assert torch.equal(latents(files), latents(reference(wan.files, "text", opened, tmp_path)))


def test_dimensions_that_were_dropped_without_a_note_are_known(wan: SimpleNamespace) -> None:
    """Those of a convolution by its bias, and those of 1 by the name."""
    noted, _ = write_gguf(wan.files.transformer, "Q8_0")
    found = latents(dataclasses.replace(wan.files, transformer=noted))
    silent, _ = write_gguf(wan.files.transformer, "Q8_0", has_note=False)
    shapes = open_weights(silent).header.shapes
    assert shapes["patch_embedding.weight"] == (256, 16, 1, 2, 2) and shapes["blocks.1.modulation"] == (1, 6, 256)
    assert torch.equal(found, latents(dataclasses.replace(wan.files, transformer=silent)))


@pytest.mark.parametrize("kind", FORMATS)
def test_gguf_in_every_format_gives_the_bits_of_its_open_weights(
    wan: SimpleNamespace, tmp_path: Path, kind: str
) -> None:
    """A transformer with the original names, without a prefix, its convolution flattened."""
    path, opened = write_gguf(wan.files.transformer, kind)
    files = dataclasses.replace(wan.files, transformer=path)
    # GGUF states no number of heads: 128 channels to each, as all published models have
    assert files_card(files).transformer == wan.configs["transformer"]
    assert torch.equal(latents(files), latents(reference(wan.files, "transformer", opened, tmp_path)))


def test_weights_stay_packed_and_mapped(wan: SimpleNamespace) -> None:
    """What a model takes is what its file has, and the file is not read before it is used."""
    path, _ = write_gguf(wan.files.transformer, "Q4_K")
    card = files_card(dataclasses.replace(wan.files, transformer=path))
    transformer = read_modules(card, torch.device("cpu"), torch.float32).transformer()
    layers = [m for m in transformer.modules() if isinstance(m, PackedLinear)]
    assert len(layers) == len([m for m in transformer.modules() if isinstance(m, (PackedLinear, nn.Linear))])
    held = sum(layer.packed.data.numel() for layer in layers)
    open_ = sum(np.prod(layer.packed.shape) for layer in layers)
    assert held / open_ == 144 / 256


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_while_the_work_is_in_float32(
    wan: SimpleNamespace, tmp_path: Path, dtype: torch.dtype
) -> None:
    """28 GB of bfloat16 do not become 57: matrices are opened one by one, to the bits of all of them converted."""
    opened = {}
    for part in ("transformer", "text"):
        path = wan.files.paths[part]
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in read(path).items()}
        note = {"config": '{"num_heads": 2}'} if part == "transformer" else None
        save_file(tensors, path, note)
        opened[part] = tmp_path / path.name
        save_file({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, opened[part], note)
    assert torch.equal(latents(wan.files), latents(dataclasses.replace(wan.files, **opened)))
    modules = read_modules(files_card(wan.files), torch.device("cpu"), torch.float32)
    for part in ("transformer", "text"):
        assert not [
            m for m in modules[part].modules() if isinstance(m, (nn.Linear, nn.Embedding)) and m.weight.numel() > 999
        ]
    for other in (dtype, torch.bfloat16):  # as large as in the file: plain layers
        modules = read_modules(files_card(wan.files), torch.device("cpu"), other)
        assert not [m for m in modules["transformer"].modules() if isinstance(m, PackedLinear)]
    host = SimpleNamespace(Linear=nn.Linear, Conv3d=nn.Conv3d, Embedding=nn.Embedding)
    modules = read_modules(files_card(wan.files), torch.device("cpu"), torch.float32, host)
    assert not [m for m in modules["text"].modules() if isinstance(m, (PackedLinear, PackedEmbedding))]


def test_marks_beside_the_weights_may_be_of_one_layer_alone(wan: SimpleNamespace) -> None:
    """bf16, fp32 and fp8 in one file, as files of mixed precision have it."""
    tensors = read(wan.files.transformer)
    name = f"{PREFIX}blocks.1.ffn.0.weight"
    other = f"{PREFIX}blocks.0.ffn.0.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[other] = tensors[other].bfloat16()
    save_file(tensors, wan.files.transformer, {"config": '{"num_heads": 2}'})
    found = open_weights(wan.files.transformer)
    assert found.kinds == ["BF16", "F32", "F8_E4M3"] and found.is_packed
    assert read_modules(files_card(wan.files), torch.device("cpu"), torch.float32).transformer() is not None
    assert torch.isfinite(latents(wan.files)).all()


Q = f"{PREFIX}blocks.0.self_attn.q"


def note(**words: Any) -> Tensor:
    return torch.tensor(list(json.dumps(words).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ({f"{Q}.comfy_quant": note(format="nvfp4")}, "weights in nvfp4"),
        ({f"{Q}.comfy_quant": note(format="mxfp8")}, "weights in mxfp8"),
        ({f"{Q}.comfy_quant": note(format="int8_tensorwise", convrot=True)}, "weights in int8_tensorwise"),
        ({f"{Q}.comfy_quant": note(format="convrot_w4a4")}, "weights in convrot_w4a4"),
        ({f"{Q}.comfy_quant": note(format="float8_e4m3fn", convrot=True)}, "weights in float8_e4m3fn with 'convrot'"),
        ({f"{Q}.comfy_quant": note(format="float8_e5m2")}, "weights in F8_E4M3 that a note says are in F8_E5M2"),
        ({f"{Q}.comfy_quant": note(form="x")}, "weights in None"),
        ({f"{Q}.comfy_quant": torch.tensor([123, 255], dtype=torch.uint8)}, "a note on quantised weights that cannot"),
        ({f"{Q}.weight_scale_2": torch.ones(1)}, "weights quantised by nvfp4"),
        ({f"{Q}.pre_quant_scale": torch.ones(1)}, "weights quantised by AWQ"),
        ({f"{Q}.wscales": torch.ones(1)}, "weights quantised by SVDQuant"),
        ({f"{Q}.qweight": torch.ones(1)}, "weights quantised by AWQ, GPTQ or SVDQuant"),
        ({f"{Q}.weight.absmax": torch.ones(1)}, "weights quantised by bitsandbytes"),
        ({f"{Q}.weight_scale": torch.ones(3)}, r"1 scales of \[3\] for weights \[256, 256\]"),
        ({f"{Q}.weight_scale": torch.ones(1), f"{Q}.scale_weight": torch.ones(1)}, "2 scales of"),
        ({f"{Q}.bias": torch.zeros(256, dtype=torch.int8)}, "weights in I8"),
        ({f"{Q}.bias": torch.zeros(256, dtype=torch.float64)}, "weights in F64"),
    ],
)
def test_marks_that_are_not_known_are_refused_by_name(wan: SimpleNamespace, added: State, words: str) -> None:
    """Read without its mark, a quantised weight is noise: other programs have loaded such files without a word."""
    tensors = read(wan.files.transformer)
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].to(torch.float8_e4m3fn)
    save_file({**tensors, **added}, wan.files.transformer, {"config": '{"num_heads": 2}'})
    with pytest.raises(ShotError, match=rf"^transformer: .*\.safetensors holds {words}.*; .* is allowed$"):
        read_modules(files_card(wan.files), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("text", ["{", "[]", '{"layers": {"nobody": {"format": "float8_e4m3fn"}}}', '{"layers": 3}'])
def test_a_note_in_the_metadata_that_cannot_be_read_is_refused(wan: SimpleNamespace, text: str) -> None:
    save_file(read(wan.files.transformer), wan.files.transformer, {"_quantization_metadata": text})
    with pytest.raises(ShotError, match=r"^transformer: .* holds a note on quantised weights that cannot be read"):
        files_card(wan.files)


def test_files_of_odd_tensors_are_no_accident(tmp_path: Path) -> None:
    """Biases without dimensions, weights without values: what other programs' files and damaged ones have."""
    state = {"patch_embedding.weight": torch.zeros(0, 4), "patch_embedding.bias": torch.tensor(3.0)}
    state |= {"a.weight": torch.zeros(0, 5).to(torch.float8_e4m3fn), "b.weight": torch.ones(()).to(torch.float8_e5m2)}
    save_file(state, tmp_path / "a.safetensors")
    found = open_weights(tmp_path / "a.safetensors").load()
    assert {name: tuple(weight.shape) for name, weight in found.items()} == {
        n: tuple(t.shape) for n, t in state.items()
    }
    assert found["b.weight"].unpack(torch.float32) == 1 and found["a.weight"].unpack(torch.float32).shape == (0, 5)


def test_a_hosts_layers_refuse_packed_weights(wan: SimpleNamespace) -> None:
    """A host moves and patches plain weights, and would not see these."""
    write_fp8(wan.files.transformer, "plain", torch.float8_e4m3fn)
    host = SimpleNamespace(Linear=nn.Linear, Conv3d=nn.Conv3d, Embedding=nn.Embedding)
    with pytest.raises(ShotError, match=r"^transformer: .*it holds quantised weights, which the layers of this host"):
        read_modules(files_card(wan.files), torch.device("cpu"), torch.float32, host)


def test_a_hosts_own_layers_take_packed_weights(wan: SimpleNamespace) -> None:
    """Where its namespace has layers for them: those are in the model."""
    write_fp8(wan.files.transformer, "plain", torch.float8_e4m3fn)

    class Linear(PackedLinear):
        pass

    class Embedding(PackedEmbedding):
        pass

    host = SimpleNamespace(
        Linear=nn.Linear, Conv3d=nn.Conv3d, Embedding=nn.Embedding, PackedLinear=Linear, PackedEmbedding=Embedding
    )
    found = read_modules(files_card(wan.files), torch.device("cpu"), torch.float32, host).transformer()
    layers = [layer for layer in found.modules() if isinstance(layer, PackedLinear)]
    assert layers and all(type(layer) is Linear for layer in layers)


def test_packed_tables_of_words_are_one_layer(wan: SimpleNamespace) -> None:
    write_fp8(wan.files.text, "plain", torch.float8_e4m3fn)
    text = read_modules(files_card(wan.files), torch.device("cpu"), torch.float32).text
    assert isinstance(text.shared, PackedEmbedding) and text.shared is text.encoder.embed_tokens


def test_llamas_names_are_ours(wan: SimpleNamespace) -> None:
    """GGUF files of text encoders have names of their own; each of ours has one, and none is left over."""
    names = text_names_to_llama(wan.states["text"])
    ours = [name for name in wan.states["text"] if name != "encoder.embed_tokens.weight"]
    assert all(names[name] != name for name in ours)
    assert {
        "token_embd.weight",
        "enc.blk.1.attn_rel_b.weight",
        "enc.blk.0.ffn_gate.weight",
        "enc.output_norm.weight",
    } <= {names[name] for name in ours}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the count of memory is Linux's")
def test_the_files_that_most_artists_have_open_in_no_memory(hollow: Callable[..., Path], tmp_path: Path) -> None:
    """Both experts of A14B and UMT5-XXL in scaled fp8, 35 GB as published and all of it holes, in ComfyUI's form."""

    def scaled(path: Path, name: str) -> Path:
        with gzip.open(KEYS / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            shapes = json.load(file)["tensors"]
        layers = [key.removesuffix(".weight") for key, shape in shapes.items() if len(shape) == 2 and "bias" not in key]
        marks: dict[str, Any] = {f"{layer}.scale_weight": ("F32", [1]) for layer in layers}
        return hollow(path, name, "F8_E4M3", scaled_fp8=("F8_E4M3", [2]), **marks)

    experts = [
        scaled(tmp_path / f"wan2.2_t2v_{level}_noise_14B_fp8_scaled.safetensors", "original.wan22_t2v_a14b")
        for level in ("high", "low")
    ]
    text = scaled(tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "transformers.umt5_xxl_encoder")
    vae = hollow(tmp_path / "wan_2.1_vae.safetensors", "original.wan21_vae")
    (tmp_path / "tokenizer.json").write_text("{}")  # only looked for
    files = ModelFiles(experts[0], text, vae, transformer_low=experts[1])
    assert sum(path.stat().st_size for path in files.paths.values()) > 34e9

    def held() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

    before = held()
    modules = read_modules(files_card(files), torch.device("cpu"), torch.bfloat16)
    for part in ("transformer", "transformer_low", "text"):
        packed = [layer for layer in modules[part].modules() if isinstance(layer, PackedLinear)]
        assert len(packed) > 160 and all(layer.packed.scale is not None for layer in packed)
    assert held() - before < 200 * 2**20
