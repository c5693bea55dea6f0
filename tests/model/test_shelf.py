# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The shelf: which models the files on a disk make, under which names, and what is said of those that make none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rushes import Engine, Shot
from rushes.model.added import Added, add, added_file, read_added, remove
from rushes.model.catalog import Model
from rushes.model.files import ModelFiles
from rushes.model.finding import find_model
from rushes.model.places import MAX_ENTRIES, comfyui_place, extra_paths
from rushes.model.shelf import Shelf, look
from rushes.shot import ShotError

Hollow = Callable[..., Path]
TinyWan = Callable[..., Any]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
SPIECE = {"spiece_model": ("U8", [4])}
UMT5 = "transformers.umt5_xxl_encoder"


def _move(folder: Path, to: Path) -> None:
    """On the same disk, where the holes in the files stay holes."""
    to.parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder, to)


def names(found: Shelf) -> list[str]:
    return [entry.name for entry in found.entries]


@pytest.fixture
def comfyui(nobody: Path, hollow: Hollow) -> Path:
    """ComfyUI's models as its templates fetch them, where it usually lies."""
    models = nobody / "ComfyUI" / "models"
    hollow(models / "diffusion_models" / "wan2.1_t2v_1.3B_fp16.safetensors", "original.wan21_t2v_1.3b", "F16")
    hollow(models / "diffusion_models" / "wan2.1_t2v_14B_bf16.safetensors", "original.wan21_t2v_14b")
    hollow(models / "unet" / "wan2.2_ti2v_5B_fp16.safetensors", "original.wan22_ti2v_5b", "F16")
    hollow(models / "text_encoders" / "umt5_xxl_fp16.safetensors", UMT5, "F16", **SPIECE)
    hollow(models / "vae" / "wan_2.1_vae.safetensors", "original.wan21_vae")
    hollow(models / "vae" / "wan2.2_vae.safetensors", "original.wan22_vae")
    return models.parent


def test_comfyuis_files_are_models_under_the_published_names(comfyui: Path) -> None:
    """Each transformer with the VAE of its channels, by what is in the headers."""
    found = look()
    assert sorted(names(found)) == ["starter", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.2-ti2v-5b"]
    assert all(entry.is_ready for entry in found.entries) and not found.notes
    vaes = {entry.name: entry.paths["vae"].name for entry in found.entries if entry.files}
    assert vaes.pop("wan2.2-ti2v-5b") == "wan2.2_vae.safetensors"
    assert set(vaes.values()) == {"wan_2.1_vae.safetensors"}
    small = found.find("WAN2.1-T2V-1.3B")
    assert small is not None and small.limits is not None
    assert (small.limits["size"], small.limits["name"], small.precision) == ([832, 480], "wan2.1-t2v-1.3b", "fp16")
    assert found.find("wan2.1_t2v_1.3B_fp16") == small  # by its file too
    assert small.bytes == sum(path.stat().st_size for path in small.paths.values())


def test_names_of_files_mean_nothing_for_what_they_are(comfyui: Path) -> None:
    """Renamed, and in each other's folders: the same models, but named after their files."""
    models = comfyui / "models"
    os.replace(models / "vae" / "wan_2.1_vae.safetensors", models / "text_encoders" / "new clip.safetensors")
    os.replace(
        models / "diffusion_models" / "wan2.1_t2v_1.3B_fp16.safetensors", models / "vae" / "Film look.safetensors"
    )
    found = look().find("film-look")
    assert found is not None and found.is_ready
    assert (
        found.paths["vae"].name == "new clip.safetensors" and found.paths["transformer"].name == "Film look.safetensors"
    )


def test_what_is_missing_is_said_with_its_usual_name_and_folder(comfyui: Path) -> None:
    (comfyui / "models" / "vae" / "wan_2.1_vae.safetensors").unlink()
    entry = look().find("wan2.1-t2v-1.3b")
    assert entry is not None and not entry.is_ready
    assert entry.missing == (
        "it lacks a VAE of 16 latent channels such as wan_2.1_vae.safetensors; ComfyUI has it in models/vae, and "
        "`rushes models add PATH` takes it from anywhere",
    )
    with pytest.raises(ShotError, match=r"^model: got 'wan2\.1-t2v-1\.3b', which is not whole: it lacks a VAE of 16"):
        Model.open("wan2.1-t2v-1.3b")
    other = look().find("wan2.2-ti2v-5b")
    assert other is not None and other.is_ready


def test_other_programs_files_are_passed_over(comfyui: Path, hollow: Hollow, tmp_path: Path) -> None:
    """A T5 whose layers share their positions has UMT5's widths, a VAE with alpha Wan's names; LoRAs neither."""
    texts = comfyui / "models" / "text_encoders"
    umt5 = texts / "umt5_xxl_fp16.safetensors"
    names_before = names(look())
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes = {
        "shared.weight": ("BF16", [32128, 4096]), first: ("BF16", [32, 64]),
        "encoder.block.0.layer.0.SelfAttention.q.weight": ("BF16", [4096, 4096]),
        "encoder.block.1.layer.0.SelfAttention.q.weight": ("BF16", [4096, 4096]),
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": ("BF16", [10240, 4096]),
    }  # fmt: skip
    hollow(texts / "a_t5xxl.safetensors", UMT5, part=slice(0), **shapes)
    lora = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": ("BF16", [8, 1536])}
    hollow(comfyui / "models" / "diffusion_models" / "lora.safetensors", UMT5, part=slice(0), **lora)
    hollow(
        comfyui / "models" / "vae" / "a_wan_alpha.safetensors", "original.wan21_vae",
        **{"encoder.conv1.weight": ("BF16", [96, 4, 3, 3, 3])},
    )  # fmt: skip
    found = look()
    assert names(found) == names_before
    entry = found.find("wan2.1-t2v-1.3b")
    assert entry is not None and entry.paths["text"] == umt5


@pytest.mark.parametrize("form", ["comfyui", "diffusers", "original"])
def test_two_experts_are_one_model(nobody: Path, hollow: Hollow, form: str) -> None:
    """By the names of their files or of their folders, whichever of the published forms they have."""
    cache = nobody / "cache" / "huggingface" / "hub"
    if form == "comfyui":
        folder = nobody / "ComfyUI" / "models"
        paths = [folder / "unet" / f"wan2.2_t2v_{level}_noise_14B_fp16.safetensors" for level in ("high", "low")]
        texts, vae = folder / "clip" / "t.safetensors", folder / "vae" / "v.safetensors"
    elif form == "diffusers":
        folder = _cached(cache, "Wan-AI/Wan2.2-T2V-A14B-Diffusers")
        paths = [folder / name / "diffusion_pytorch_model.safetensors" for name in ("transformer", "transformer_2")]
        texts, vae = folder / "text_encoder" / "model.safetensors", folder / "vae" / "model.safetensors"
    else:
        folder = _cached(cache, "Wan-AI/Wan2.2-T2V-A14B")
        paths = [folder / f"{level}_noise_model" / "diffusion_pytorch_model.safetensors" for level in ("high", "low")]
        texts, vae = folder / "t5.safetensors", folder / "v.safetensors"
    layout = "diffusers" if form == "diffusers" else "original"
    for path in paths:
        hollow(path, f"{layout}.{'wan21_t2v_14b' if form == 'diffusers' else 'wan22_t2v_a14b'}")  # the same shapes
    hollow(texts, UMT5, **SPIECE)
    hollow(vae, f"{layout}.wan21_vae")
    found = look()
    assert names(found) == ["starter", "wan2.2-t2v-a14b"]
    entry = found.entries[1]
    assert entry.is_ready, entry.refusal
    assert (entry.paths["transformer"], entry.paths["transformer_low"]) == tuple(paths)
    assert entry.limits is not None and list(entry.limits["guidance"]) == [4.0, 3.0]


def test_an_expert_alone_asks_for_the_other(comfyui: Path, hollow: Hollow) -> None:
    """By the other's name."""
    folder = comfyui / "models" / "diffusion_models"
    high = hollow(folder / "wan2.2_t2v_high_noise_14B_fp16.safetensors", "original.wan22_t2v_a14b")
    entry = look().find("wan2.2-t2v-a14b")
    assert entry is not None and entry.missing[0].startswith(
        "it lacks the low-noise expert such as wan2.2_t2v_low_noise_14B_fp16.safetensors; ComfyUI has it in "
    )
    high.rename(folder / "wan2.2_t2v_low_noise_14B_fp16.safetensors")
    entry = look().find("wan2.2-t2v-a14b")
    assert entry is not None and entry.missing[0].startswith(
        "it lacks the high-noise expert such as wan2.2_t2v_high_noise_14B_fp16.safetensors; "
    )


def test_image_to_video_comes_with_its_clip(comfyui: Path, hollow: Hollow) -> None:
    """Where it reads CLIP's tokens; 480p and 720p models have a name each."""
    folder = comfyui / "models"
    hollow(folder / "diffusion_models" / "wan2.1_i2v_720p_14B_fp16.safetensors", "original.wan21_i2v_14b")
    hollow(folder / "diffusion_models" / "wan2.1_i2v_480p_14B_fp16.safetensors", "original.wan21_i2v_14b")
    entry = look().find("wan2.1-i2v-14b-720p")
    assert (
        entry is not None
        and "it lacks CLIP's ViT-H/14 vision tower such as clip_vision_h.safetensors" in entry.missing[0]
    )
    hollow(
        folder / "clip_vision" / "clip_vision_h.safetensors", "transformers.clip_vit_h14_vision", prefix="vision_model."
    )
    found = look()
    large, small = found.find("wan2.1-i2v-14b-720p"), found.find("wan2.1-i2v-14b-480p")
    assert large is not None and small is not None and large.is_ready, large
    assert large.limits is not None and large.limits["size"] == [1280, 720]
    assert small.limits is not None and small.limits["size"] == [832, 480]
    assert small.paths["clip"].name == "clip_vision_h.safetensors"


def test_two_precisions_of_a_model_have_two_names(comfyui: Path, hollow: Hollow) -> None:
    """The name without an addition is the fuller one's, wherever the other lies in the order of the disk."""
    folder = comfyui / "models" / "diffusion_models"
    hollow(folder / "wan2.1_t2v_1.3B_fp32.safetensors", "original.wan21_t2v_1.3b", "F32")
    hollow(folder / "deeper" / "wan2.1_t2v_1.3B_fp16.safetensors", "original.wan21_t2v_1.3b", "F16")
    found = look()
    plain, wide = found.find("wan2.1-t2v-1.3b"), found.find("wan2.1-t2v-1.3b-fp32")
    again = found.find("wan2.1-t2v-1.3b-fp16")
    assert plain is not None and wide is not None and again is not None
    assert (plain.precision, wide.precision, again.precision) == ("fp16", "fp32", "fp16")
    assert len(set(names(found))) == len(names(found))


@pytest.mark.parametrize("is_absolute", [True, False])
def test_extra_model_paths_are_read_in_all_their_forms(
    nobody: Path, hollow: Hollow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_absolute: bool
) -> None:
    """base_path with variables or beside the file, several folders a value, older names, is_default, empty sections."""
    root, store = nobody / "ComfyUI", tmp_path / "store"
    root.mkdir()
    monkeypatch.setenv("STORE", str(store))
    base = "$STORE" if is_absolute else os.path.relpath(store, root)
    (root / "extra_model_paths.yaml").write_text(
        f"empty:\nnothing: 5\nmine:\n  base_path: {base}\n  unet: |\n    weights/one\n    weights/two\n  clip: texts\n"
        "  loras: loras\n  custom_nodes: nodes\n"
        f"first:\n  is_default: true\n  vae: {tmp_path / 'vaes'}\n"
    )
    hollow(store / "weights" / "two" / "wan2.1_t2v_1.3B_fp16.safetensors", "original.wan21_t2v_1.3b")
    hollow(store / "texts" / "umt5_xxl_fp16.safetensors", UMT5, **SPIECE)
    hollow(tmp_path / "vaes" / "wan_2.1_vae.safetensors", "original.wan21_vae")
    hollow(store / "loras" / "wan2.1_t2v_14B_fp16.safetensors", "original.wan21_t2v_14b")  # not asked about
    found = look()
    assert names(found) == ["starter", "wan2.1-t2v-1.3b"] and found.entries[1].is_ready
    assert extra_paths(root / "extra_model_paths.yaml", [])[0] == tmp_path / "vaes"


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "\0", "x: !!python/object:os.system {}"])
def test_a_broken_list_of_paths_is_a_note(nobody: Path, text: str) -> None:
    root = nobody / "ComfyUI"
    root.mkdir()
    (root / "extra_model_paths.yaml").write_text(text)
    found = look()
    assert names(found) == ["starter"]
    assert len(found.notes) == 1 and "extra_model_paths.yaml cannot be read" in found.notes[0]


def test_comfyui_elsewhere_is_found_by_the_variable(
    nobody: Path, comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "programs" / "Comfy"
    _move(comfyui, moved)
    assert names(look()) == ["starter"]
    monkeypatch.setenv("RUSHES_COMFYUI", os.pathsep.join([str(tmp_path / "nowhere"), str(moved)]))
    found = look()
    assert len(found.entries) == 4
    assert [note for note in found.notes if "RUSHES_COMFYUI: got" in note and "nowhere" in note]
    monkeypatch.setenv("RUSHES_COMFYUI", str(moved / "models"))
    assert len(look().entries) == 4


def _cached(cache: Path, repository: str, commit: str = "a" * 40) -> Path:
    """An empty snapshot of a repository in a Hugging Face cache."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return folder / "snapshots" / commit


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_the_hub_cache_is_read_in_original_and_diffusers_form(
    nobody: Path, hollow: Hollow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    """Wherever its variables put it; links into blobs are followed, and older snapshots are not met."""
    inside = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    monkeypatch.setenv(variable, str(tmp_path / "hf"))
    cache = tmp_path / "hf" / inside
    repository = _cached(cache, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    blob = hollow(cache / "blobs" / "1", "diffusers.wan21_t2v_1.3b")
    (repository / "transformer").mkdir(parents=True)
    (repository / "transformer" / "diffusion_pytorch_model.safetensors").symlink_to(blob)
    hollow(repository / "vae" / "diffusion_pytorch_model.safetensors", "diffusers.wan21_vae")
    hollow(repository / "text_encoder" / "model.safetensors", UMT5)
    (repository / "tokenizer").mkdir()
    (repository / "tokenizer" / "tokenizer.json").write_text("{}")
    old = _cached(cache, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "b" * 40)
    hollow(old / "transformer" / "diffusion_pytorch_model.safetensors", "diffusers.wan21_t2v_14b")
    _cached(cache, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    original = _cached(cache, "Wan-AI/Wan2.2-TI2V-5B")
    hollow(original / "diffusion_pytorch_model.safetensors", "original.wan22_ti2v_5b")
    found = look()
    assert names(found) == ["starter", "wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"]
    entry = found.entries[1]
    assert entry.is_ready and entry.origin == "hub"
    assert {part: path.parent.name for part, path in entry.paths.items()} == {
        "transformer": "transformer", "text": "text_encoder", "vae": "vae",
    }  # fmt: skip
    assert found.entries[2].missing and "VAE of 48" in found.entries[2].missing[0]


def test_a_download_that_was_cut_is_said(nobody: Path, hollow: Hollow) -> None:
    """An index without all of its shards."""
    snapshot = _cached(nobody / "cache" / "huggingface" / "hub", "Wan-AI/Wan2.1-T2V-14B-Diffusers")
    folder = snapshot / "transformer"
    first = hollow(folder / "diffusion_pytorch_model-00001-of-00002.safetensors", "diffusers.wan21_t2v_14b")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": first.name, "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}})
    )
    (note,) = look().notes
    assert note.endswith(
        "diffusion_pytorch_model-00002-of-00002.safetensors does not exist; an existing file is allowed"
    )


def test_damaged_and_strange_files_are_survived(comfyui: Path, nobody: Path, hollow: Hollow) -> None:
    """Truncated, empty, of noise, header bombs, packed pickles, unreadable ones, links in circles and to nowhere."""
    before = names(look())
    folder = comfyui / "models" / "diffusion_models"
    whole = (folder / "wan2.1_t2v_1.3B_fp16.safetensors").open("rb").read(200_000)
    (folder / "cut.safetensors").write_bytes(whole[:5000])
    (folder / "short.safetensors").write_bytes(whole)
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "noise.safetensors").write_bytes(os.urandom(4096))
    (folder / "bomb.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{")
    (folder / "deep.safetensors").write_bytes((100_000).to_bytes(8, "little") + b'{"a":' + b"[" * 99_995)
    (folder / "noise.pth").write_bytes(os.urandom(4096))
    with zipfile.ZipFile(folder / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    (folder / "code.pth").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    locked = folder / "locked.safetensors"
    locked.write_bytes(b"")
    locked.chmod(0)
    (folder / "index.safetensors.index.json").write_text('{"weight_map": {"a": "../../vae/wan_2.1_vae.safetensors"}}')
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "me").symlink_to(folder / "me")
    (folder / "nowhere.safetensors").symlink_to(folder / "gone")
    found = look()
    assert names(found) == before
    told = {Path(note.split(" ")[0]).name for note in found.notes}
    assert {"cut.safetensors", "empty.safetensors", "noise.safetensors", "bomb.safetensors", "bomb.pth"} <= told
    assert {"noise.pth", "code.pth", "index.safetensors.index.json", "short.safetensors", "deep.safetensors"} <= told


def test_a_folder_with_far_too_much_in_it_is_left(
    nobody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a sentence, and not looked through to its end."""
    monkeypatch.setattr("rushes.model.places.MAX_ENTRIES", 50)
    wide = tmp_path / "wide"
    for i in range(60):
        (wide / str(i)).mkdir(parents=True)
    add(Added("", (wide,)))
    assert MAX_ENTRIES > 1000
    assert [note for note in look().notes if "more than 50 entries" in note]


def test_headers_are_read_once(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look opens no file of weights; one that was changed is opened again."""
    first = look()
    opened: list[Path] = []
    sightings = "rushes.model.sightings"

    def counted(path: Path) -> Any:
        opened.append(path)
        return original(path)

    original = sys.modules[sightings].read_header  # type: ignore[attr-defined]
    monkeypatch.setattr(sys.modules[sightings], "read_header", counted)
    monkeypatch.setattr("rushes.model.reading.read_header", counted)
    second = look()
    assert not opened and second.entries == first.entries
    assert [entry.limits for entry in second.entries] == [entry.limits for entry in first.entries]
    changed = comfyui / "models" / "vae" / "wan_2.1_vae.safetensors"
    os.utime(changed, (1, 1))
    look()
    assert set(opened) >= {changed} and comfyui / "models" / "vae" / "wan2.2_vae.safetensors" not in opened


def test_a_broken_memory_of_headers_is_made_anew(comfyui: Path, nobody: Path) -> None:
    before = names(look())
    (cache,) = nobody.rglob("weights.json")
    for text in ("", "{", "[]", '{"version": 1}', '{"version": [1, "x"], "known": 3}'):
        cache.write_text(text)
        assert names(look()) == before
    cache.unlink()
    cache.mkdir()  # a place that cannot be written
    assert names(look()) == before


def test_files_are_added_under_a_name_and_removed(nobody: Path, tiny_wan: TinyWan, rushes: Run, tmp_path: Path) -> None:
    """Three files as one model, which every command takes by its name."""
    files = tiny_wan().files
    done = rushes("models", "add", *map(str, files.paths.values()), "--name", "mine")
    assert done.returncode == 0 and done.stdout.startswith("mine: 81 frames, 832x480 at 16 fps, 50 steps, fp32")
    rows = json.loads(rushes("models", "--json").stdout)
    assert [row["name"] for row in rows] == ["starter", "mine"]
    assert rows[1]["ready"] and rows[1]["files"] == {part: str(path) for part, path in files.paths.items()}
    words = ("a red ball", "--model", "mine", "--size", "64x32", "--frames", "5", "--steps", "1")
    made = rushes("generate", *words, "-o", "x.mp4")
    assert made.returncode == 0, made.stderr
    record = json.loads(rushes("inspect", "x.mp4", "--json").stdout)
    assert record["shot"]["model"] == "mine" and record["model"]["name"] == "mine"
    again = rushes("generate", "--from", "x.mp4", "-o", "again.safetensors")
    assert again.returncode == 0, again.stderr
    assert "mine, 64x32" in rushes("estimate", *words).stdout
    assert "UniPC" not in rushes("models", "show", "mine").stdout
    assert rushes("models", "remove", "mine").returncode == 0
    assert all(path.is_file() for path in files.paths.values())
    gone = rushes("generate", *words, "-o", "y.mp4")
    assert gone.returncode == 2 and gone.stderr.startswith("rushes: model: got 'mine'; starter, another name that")


@pytest.mark.parametrize("layout", ["original", "comfy", "diffusers"])
def test_a_folder_or_a_file_is_a_model_by_its_path(nobody: Path, tiny_wan: TinyWan, layout: str) -> None:
    """Of each layout; the shot carries the path, so that it can be made again."""
    files = tiny_wan(layout).files
    direct = Engine.load(files, device="cpu")
    shot = Shot("a red ball", size=(64, 32), frames=5, steps=1)
    expected = direct.denoise(shot)
    for path in (files.transformer.parent, files.transformer):
        engine = Engine.load(str(path), device="cpu")
        resolved = engine.resolve(shot)
        assert resolved.model == str(path) and engine.card.name == path.name.removesuffix(".safetensors")
        assert engine.denoise(resolved).equal(expected)
    assert direct.resolve(shot).model == files.transformer.stem


def test_a_file_in_comfyuis_folders_finds_its_companions(nobody: Path, comfyui: Path, tmp_path: Path) -> None:
    """Though that ComfyUI lies where nobody looks."""
    moved = tmp_path / "D" / "Comfy"
    _move(comfyui, moved)
    path = moved / "models" / "unet" / "wan2.2_ti2v_5B_fp16.safetensors"
    found = find_model(str(path))
    assert isinstance(found, ModelFiles) and found.vae == moved / "models" / "vae" / "wan2.2_vae.safetensors"


def test_the_nearest_of_several_is_taken(nobody: Path, comfyui: Path, hollow: Hollow, tmp_path: Path) -> None:
    """A VAE and a text encoder beside the transformer, before the same elsewhere; one with a tokenizer before all."""
    own = tmp_path / "own"
    path = hollow(own / "film.safetensors", "original.wan21_t2v_1.3b")
    vae = hollow(own / "zz_vae.safetensors", "original.wan21_vae")
    hollow(own / "text.safetensors", UMT5)
    add(Added("film", (own,)))
    entry = look().find("film")
    assert entry is not None and entry.is_ready and entry.origin == "added"
    assert entry.paths["transformer"] == path and entry.paths["vae"] == vae
    assert entry.paths["text"] == comfyui / "models" / "text_encoders" / "umt5_xxl_fp16.safetensors"
    (own / "tokenizer.json").write_text("{}")
    entry = look().find("film")
    assert entry is not None and entry.paths["text"] == own / "text.safetensors"


def test_a_whole_model_of_ours_can_be_added(nobody: Path, tiny_model: Path, rushes: Run) -> None:
    """A bundle, by the file alone; and a folder without a name is one more place to look in."""
    assert rushes("models", "add", str(tiny_model.parent)).stdout.startswith("tiny: 5 frames")
    assert rushes("models", "add", str(tiny_model), "--name", "little").stdout.startswith("little: 5 frames")
    assert names(look()) == ["starter", "little"]  # once, under the name that it was given
    assert Model.open("little").card.name == "tiny"
    assert rushes("models", "remove", str(tiny_model.parent)).returncode == 0
    assert names(look()) == ["starter", "little"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["add"], "path: it is missing"),
        (["add", "nowhere"], "path: got "),
        (["add", "/"], "a folder of weights, not the whole of a disk, is allowed"),
        (["add", "."], "in which no part of a Wan or Rushes model is"),
        (["add", "notes.safetensors"], "in which no part of a Wan or Rushes model is (notes.safetensors"),
        (["add", "tiny.safetensors", "--name", "starter"], "name: got 'starter', which Rushes brings itself"),
        (["add", "tiny.safetensors", "--name", "a/b"], "name: got 'a/b'; one without slashes is allowed"),
        (["add", "tiny.safetensors", "--name", " "], "name: got ' '"),
        (["remove", "nothing"], "name: got 'nothing'; what was added, that is nothing, is allowed"),
        (["show", "wan2.1-t2v-1.3b"], "model: got 'wan2.1-t2v-1.3b'; starter, another name"),
        (["show", "startr"], "(did you mean starter?)"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    nobody: Path, tiny_model: Path, rushes: Run, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    """And nothing is written."""
    shutil.copy(tiny_model, tmp_path / "tiny.safetensors")
    (tmp_path / "notes.safetensors").write_bytes(b"x")
    if arguments[1:] == ["."]:
        (tmp_path / "tiny.safetensors").unlink()
    done = rushes("models", *arguments)
    assert done.returncode == 2 and sentence in done.stderr.replace(f"{tmp_path}{os.sep}", "")
    assert done.stderr.count("\n") == 1 and not read_added()


def test_a_name_is_given_once(nobody: Path, tiny_model: Path) -> None:
    add(Added("one", (tiny_model,)))
    with pytest.raises(ShotError, match=r"^name: got 'one', which is taken"):
        add(Added("one", (tiny_model,)))
    add(Added("", (tiny_model.parent,)))
    with pytest.raises(ShotError, match="which was added before"):
        add(Added("", (tiny_model.parent,)))
    assert len(read_added()) == 2
    remove("one")
    assert len(read_added()) == 1


def test_a_damaged_list_keeps_the_starter(nobody: Path, rushes: Run) -> None:
    """It is named, and never written over."""
    file = added_file()
    file.parent.mkdir(parents=True)
    file.write_text('{"version": 9, "added": []}')
    done = rushes("models")
    assert (
        done.returncode == 0 and done.stdout.startswith("starter: ") and "was written by a newer Rushes" in done.stderr
    )
    assert rushes("models", "remove", "x").returncode == 2
    assert file.read_text() == '{"version": 9, "added": []}'


def test_comfyuis_own_folder_may_be_given_as_a_place(nobody: Path, comfyui: Path, tmp_path: Path) -> None:
    moved = tmp_path / "Comfy"
    _move(comfyui, moved)
    add(Added("", (moved,)))
    assert [entry.origin for entry in look().entries] == ["shipped", "added", "added", "added"]
    assert comfyui_place(moved, []).paths == comfyui_place(moved / "models", []).paths
