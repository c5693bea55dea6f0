# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The table of layouts and precisions: whole routes of four steps from files as they lie on disk, against diffusers.

Each file is written here, with tiny random weights. diffusers gets the same weights as plain float32, opened by another
path than ours: for fp8 by a product in torch, for GGUF by the `gguf` package.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import quantising
from rushes import Engine, Shot
from rushes.model import checkpoint
from rushes.model.checkpoint import strip_prefix
from rushes.model.files import ModelFiles
from rushes.model.text import EMBEDDING, TIED_EMBEDDING

Make = Callable[..., Any]
State = dict[str, Tensor]
RELATIVE = 2e-5
PLAIN = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}  # fmt: skip
SCALED = ("marked", "noted", "inline")
BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
SMALL = ("--size", "32x32", "--frames", "5", "--steps", "2", "--seed", "6", "--device", "cpu")
SHOT = Shot("a red ball rolls, close-up café", "wet sand", (32, 32), 5, seed=6, steps=4, guidance=5.0)


@pytest.fixture
def wan(tiny_wan: Make, trained_spiece: bytes) -> SimpleNamespace:
    """Rows of 256 and 512, which all of GGUF's blocks divide, and 128 channels to a head, as GGUF cannot say."""
    found: SimpleNamespace = tiny_wan("comfy", spiece=trained_spiece, dim=256, ffn_dim=512, text_width=256)
    return found


def sharded(folder: Path, state: Mapping[str, Tensor], stem: str = "diffusion_pytorch_model") -> Path:
    """Three shards with their index; tensors are dealt out, as real shards do not respect blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    where = {name: f"{stem}-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(sorted(state))}
    for file in set(where.values()):
        save_file({name: t.contiguous().clone() for name, t in state.items() if where[name] == file}, folder / file)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def renamed(state: Mapping[str, Tensor], names: Callable[[list[str]], dict[str, str]]) -> State:
    new = names(list(state))
    return {new[name]: t.clone() for name, t in state.items()}


def rounded(wan: SimpleNamespace, dtype: torch.dtype) -> dict[str, State]:
    """All weights in a type; the VAE's in float32 where that is fp8. What they are goes back into `wan.states`."""
    found = {}
    for part, state in wan.states.items():
        kind = torch.float32 if part == "vae" and dtype.itemsize == 1 else dtype
        found[part] = {name: t.to(kind) for name, t in state.items()}
        wan.states[part] = {name: t.float() for name, t in found[part].items()}
    found["text"].pop(TIED_EMBEDDING)
    return found


def write_original(folder: Path, states: dict[str, State], tokenizer: Callable[[Path], None]) -> ModelFiles:
    """Wan's own folder: sharded transformer, and two torch files."""
    index = sharded(folder, states["transformer"])
    text, vae = folder / "models_t5_umt5-xxl-enc-bf16.pth", folder / "Wan2.1_VAE.pth"
    torch.save(renamed(states["text"], checkpoint.text_names_to_original), text)
    torch.save(states["vae"], vae)
    tokenizer(folder / "google" / "umt5-xxl" / "tokenizer.json")
    return ModelFiles(index, text, vae)


def write_diffusers(folder: Path, states: dict[str, State], tokenizer: Callable[[Path], None]) -> ModelFiles:
    """A pipeline's folder: a sharded transformer and text encoder, and a VAE."""
    transformer = sharded(
        folder / "transformer", renamed(states["transformer"], checkpoint.transformer_names_to_diffusers)
    )
    text = sharded(folder / "text_encoder", states["text"], "model")
    (folder / "vae").mkdir()
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(renamed(states["vae"], checkpoint.vae_names_to_diffusers), vae)
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    tokenizer(folder / "tokenizer" / "tokenizer.json")
    return ModelFiles(transformer, text, vae)


WRITERS = {"original": write_original, "diffusers": write_diffusers}


def written(
    wan: SimpleNamespace, layout: str, precision: str, folder: Path, tokenizer: Callable[[Path], None]
) -> ModelFiles:
    """The model in that layout and precision; `wan.states` then holds its weights as they are when opened."""
    files: ModelFiles = wan.files
    if precision in PLAIN:
        states = rounded(wan, PLAIN[precision])
        if layout in WRITERS:
            return WRITERS[layout](folder, states, tokenizer)
        for part, state in states.items():
            path = files.paths[part]
            names = {bare: name for name, bare in strip_prefix(load_file(path)).items()}
            extras = {name: t.clone() for name, t in load_file(path).items() if t.dtype is torch.uint8}
            save_file({**{names[name]: t.clone() for name, t in state.items() if name in names}, **extras}, path)
        return files
    for part in ("transformer", "text"):
        path = files.paths[part]
        if precision in SCALED:
            opened = quantising.write_fp8(path, precision, torch.float8_e4m3fn)
        else:
            path, opened = quantising.write_gguf(path, precision)
            files = dataclasses.replace(files, **{part: path})
        wan.states[part].update({strip_prefix([name])[name]: t for name, t in opened.items()})
    if EMBEDDING in wan.states["text"]:
        wan.states["text"][TIED_EMBEDDING] = wan.states["text"][EMBEDDING]
    return files


TABLE = [
    *((layout, precision) for layout in ("original", "diffusers", "comfy") for precision in PLAIN),
    *(("comfy", precision) for precision in (*SCALED, *BLOCKS)),
]


@pytest.mark.parity
@pytest.mark.parametrize(("layout", "precision"), TABLE)
def test_a_shot_from_every_layout_and_precision_is_diffusers(
    wan: SimpleNamespace, wan_pipeline: Make, tmp_path: Path, layout: str, precision: str
) -> None:
    """Latents within 2e-5 of their largest value, in float32."""
    reference: dict[str, Any] = {}

    def tokenizer(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        reference["tokenizer"] = path

    files = written(wan, layout, precision, tmp_path / "model", tokenizer)
    pipeline = wan_pipeline(wan, "WanPipeline")
    if "tokenizer" in reference:
        pipeline.tokenizer.backend_tokenizer.save(str(reference["tokenizer"]))
    engine = Engine.load(dataclasses.replace(files, schedule="diffusers_unipc", shift=5.0), device="cpu")
    ours = engine.denoise(SHOT)
    theirs = pipeline(
        prompt=SHOT.prompt, negative_prompt=SHOT.negative, width=32, height=32, num_frames=5, num_inference_steps=4,
        guidance_scale=5.0, output_type="latent", generator=torch.Generator("cpu").manual_seed(6),
    ).frames  # fmt: skip
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"\nlargest difference, relative: {error:.1e}")
    assert theirs.std() > 0.1
    assert error <= RELATIVE
    record = engine.record(engine.resolve(SHOT))["model"]
    assert len(record["sha256"]) == 64 and set(record["files"]) == {"transformer", "text", "vae"}


def write_comfy(folder: Path, wan: SimpleNamespace, precision: str) -> ModelFiles:
    """ComfyUI's folders, a file in each; a GGUF lies among the others."""
    files = written(wan, "comfy", precision, folder, lambda path: None)
    places = {"transformer": "diffusion_models", "text": "text_encoders", "vae": "vae"}
    moved = {}
    for part, path in files.paths.items():
        place = folder / "models" / places[part]
        place.mkdir(parents=True)
        moved[part] = path.rename(place / path.name)
    return dataclasses.replace(files, **moved)


@pytest.mark.parametrize(
    ("layout", "precision"),
    [("original", "bf16"), ("diffusers", "fp32"), ("comfy", "fp16"), ("comfy", "marked"), ("comfy", "Q4_K")],
)
def test_a_folder_is_a_model_on_the_command_line(
    tiny_wan: Make,
    wan: SimpleNamespace,
    tmp_path: Path,
    rushes: Make,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    precision: str,
) -> None:
    """Its parts are found by what is in them; the clip is that of the files, and is made again from its record."""
    folder, pieces = tmp_path / "a model", tiny_wan("original").files.text.with_name("tokenizer.json")

    def tokenizer(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pieces, path)

    files = (
        write_comfy(folder, wan, precision) if layout == "comfy" else written(wan, layout, precision, folder, tokenizer)
    )
    options = (*SMALL, "--guidance", "3")
    done = rushes("generate", "a red ball rolls", "--model", str(folder), *options, "-o", "a.safetensors")
    assert done.returncode == 0, done.stderr
    shot = Shot("a red ball rolls", size=(32, 32), frames=5, steps=2, seed=6, guidance=3.0)
    got = load_file(tmp_path / "a.safetensors")["latents"]
    assert torch.equal(got, Engine.load(files, device="cpu").denoise(shot))
    again = rushes("generate", "--from", "a.safetensors", "-o", "b.safetensors", "--device", "cpu")
    assert again.returncode == 0, again.stderr
    assert torch.equal(load_file(tmp_path / "b.safetensors")["latents"], got)


@pytest.mark.slow
def test_a_model_of_middle_size_is_the_same_from_every_layout(tiny_wan: Make, tmp_path: Path, rushes: Make) -> None:
    """287 million parameters, 1.3B at half its width: the whole command, from a folder to a movie, with one outcome."""
    width = {"dim": 768, "heads": 6, "layers": 24, "ffn_dim": 4480, "text_width": 256}
    wan = tiny_wan("comfy", **width)
    pieces = tiny_wan("original").files.text.with_name("tokenizer.json")
    assert sum(t.numel() for t in wan.states["transformer"].values()) > 280e6

    def tokenizer(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pieces, path)

    options = ("--size", "64x32", "--frames", "5", "--steps", "2", "--guidance", "3", "--seed", "6", "--device", "cpu")
    latents = []
    for layout in ("original", "diffusers", "comfy"):
        folder = tmp_path / f"{layout} model"
        if layout == "comfy":
            write_comfy(folder, wan, "bf16")
        else:
            written(wan, layout, "bf16", folder, tokenizer)
        outputs = (f"{layout}.safetensors", f"{layout}.mp4")
        done = rushes(
            "generate", "a red ball rolls", "--model", str(folder), *options, "-o", outputs[0], "-o", outputs[1]
        )
        shutil.rmtree(folder)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / outputs[1]).stat().st_size > 500
        latents.append(load_file(tmp_path / outputs[0])["latents"])
    assert torch.equal(latents[0], latents[1]) and torch.equal(latents[0], latents[2])
    assert latents[0].std() > 0.1


def test_loras_on_the_command_line_are_in_the_record(
    wan: SimpleNamespace, tmp_path: Path, rushes: Make, nobody: Path
) -> None:
    """--lora FILE:STRENGTH; made again by --from; and when the file is gone, its name is said."""
    folder = tmp_path / "model"
    write_comfy(folder, wan, "fp32")
    layer = "diffusion_model.blocks.0.ffn.0"
    halves = {f"{layer}.lora_A.weight": torch.randn(4, 256), f"{layer}.lora_B.weight": torch.randn(512, 4)}
    save_file(halves, tmp_path / "style.safetensors")
    options = SMALL
    base = ("generate", "a red ball rolls", "--model", str(folder), *options)
    for name, loras in (("none", ()), ("half", ("style.safetensors:0.5",)), ("twice", ("style.safetensors",) * 2)):
        done = rushes(*base, *(word for lora in loras for word in ("--lora", lora)), "-o", f"{name}.safetensors")
        assert done.returncode == 0, done.stderr
    none, half, twice = (load_file(tmp_path / f"{name}.safetensors")["latents"] for name in ("none", "half", "twice"))
    assert not torch.equal(none, half) and not torch.equal(half, twice)
    assert f"lora           {tmp_path / 'style.safetensors'} at 0.5" in rushes("inspect", "half.safetensors").stdout
    again = rushes("generate", "--from", "half.safetensors", "-o", "again.safetensors", "--device", "cpu")
    assert again.returncode == 0 and "LoRA" not in again.stderr
    assert torch.equal(load_file(tmp_path / "again.safetensors")["latents"], half)
    (tmp_path / "style.safetensors").unlink()
    gone = rushes("generate", "--from", "half.safetensors", "-o", "gone.safetensors", "--device", "cpu")
    assert gone.returncode == 2 and f"lora: {tmp_path / 'style.safetensors'} cannot be read (No such" in gone.stderr
    other = rushes("generate", "a ball", "--lora", "style.safetensors:1000", "-o", "x.safetensors")
    assert other.returncode == 2 and "lora: the strength is 1000.0; a number from -100.0 to 100.0" in other.stderr
