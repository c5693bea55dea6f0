# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Reading weight files, whole and broken, and telling what is in them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rushes.model.checkpoint import Layout, detect_layout, split_parts, strip_prefix
from rushes.model.reading import load_state
from rushes.shot import ShotError

TRANSFORMER = "blocks.0.self_attn.q.weight"
VAE = "decoder.mid_block.resnets.0.norm1.gamma"
TEXT = "encoder.block.0.layer.0.SelfAttention.q.weight"
CLIP = "encoder.layers.0.self_attn.k_proj.weight"


def weights() -> dict[str, Tensor]:
    """Odd shapes and several types."""
    return {
        "a.weight": torch.randn(3, 5),
        "a.bias": torch.randn(7).half(),
        "b": torch.randn(2, 1, 3).bfloat16(),
        "c": torch.randn(9).to(torch.float8_e4m3fn),
        "spiece_model": torch.arange(11, dtype=torch.uint8),
    }


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return got.keys() == expected.keys() and all(
        got[name].dtype == value.dtype and torch.equal(got[name].view(torch.uint8), value.view(torch.uint8))
        for name, value in expected.items()
    )


def write_shards(folder: Path, state: dict[str, Tensor]) -> Path:
    names = sorted(state)
    files = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state[name] for name in names if files[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def test_a_safetensors_file_is_read_as_it_is(tmp_path: Path) -> None:
    """Names, types and bits; also when its folder is named."""
    state = weights()
    save_file(state, tmp_path / "model.safetensors")
    assert same(load_state(tmp_path / "model.safetensors"), state)
    assert same(load_state(str(tmp_path)), state)


def test_shards_are_joined_by_their_index(tmp_path: Path) -> None:
    """By the folder and by the index itself."""
    state = weights()
    index = write_shards(tmp_path, state)
    assert same(load_state(tmp_path), state)
    assert same(load_state(index), state)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pth_file_of_plain_weights_is_read(tmp_path: Path, zipped: bool) -> None:
    """Both forms that torch has written."""
    state = {name: value for name, value in weights().items() if name != "c"}
    torch.save(state, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    assert same(load_state(tmp_path / "model.pth"), state)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the list of mappings is Linux's")
def test_cpu_weights_are_mapped_and_not_read(tmp_path: Path) -> None:
    """All tensors of a file lie in one mapping of it, so that 28 GB open in no time and in no memory."""
    state = {"a": torch.randn(1000), "b": torch.randn(1000)}
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "model.pth")
    for file in ("model.safetensors", "model.pth"):
        loaded = load_state(tmp_path / file)
        distance = abs(loaded["a"].data_ptr() - loaded["b"].data_ptr())
        assert distance < (tmp_path / file).stat().st_size
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(file)]
        low, high = (int(part, 16) for part in mapped[0].split(" ")[0].split("-"))
        assert low <= loaded["a"].data_ptr() < high


class Payload:
    """What a pickle of bad intent does when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    """The sentence names the file; nothing of it was executed."""
    file, marker = tmp_path / "model.pth", tmp_path / "ran"
    for content in (pickle.dumps({"a": Payload(marker)}, protocol=2), None):
        if content is None:
            torch.save({"a": Payload(marker)}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(ShotError, match=r"model\.pth is damaged or not a file of plain weights"):
            load_state(file)
        assert not marker.exists()


@pytest.mark.parametrize(
    "content", [3, [1, 2], {"state_dict": {"a": torch.zeros(2)}}, {"a": torch.zeros(2), "epoch": 3}]
)
def test_a_pth_file_of_other_things_is_refused(tmp_path: Path, content: object) -> None:
    """Numbers, lists, wrapped dicts: not a plain state dict."""
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ShotError, match=r"model\.pth holds more than named tensors"):
        load_state(tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "text"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    """Empty, cut off in the middle, random bytes, a web page in place of the file."""
    file = tmp_path / name
    state = {"a": torch.randn(300)}
    save_file(state, file) if name.endswith("safetensors") else torch.save(state, file)
    whole = file.read_bytes()
    noise = bytes(torch.randint(256, (500,), generator=torch.Generator().manual_seed(1)).tolist())
    page = b"<!DOCTYPE html><html><body>404</body></html>"
    file.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "noise": noise, "text": page}[damage])
    with pytest.raises(ShotError, match=rf"^model: {file} is damaged"):
        load_state(file)


def test_missing_files_and_other_kinds_are_refused(tmp_path: Path) -> None:
    """Each sentence names what was asked for."""
    with pytest.raises(ShotError, match=r"gone\.safetensors does not exist"):
        load_state(tmp_path / "gone.safetensors")
    with pytest.raises(ShotError, match=r"gone\.pth does not exist"):
        load_state(tmp_path / "gone.pth")
    with pytest.raises(ShotError, match=r"model\.onnx; a folder, a \.safetensors, \.gguf or \.pth file"):
        load_state(tmp_path / "model.onnx")
    with pytest.raises(ShotError, match=r"holds no \.safetensors or \.gguf file"):
        load_state(tmp_path)


def test_a_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    """One of two files is not picked in silence."""
    for name in ("high", "low"):
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ShotError, match=r"holds high\.safetensors, low\.safetensors"):
        load_state(tmp_path)


def test_broken_indices_are_refused(tmp_path: Path) -> None:
    """No JSON, no map, a shard that is gone, a name that no shard has, and a shard outside the folder."""
    index = write_shards(tmp_path, weights())
    good = json.loads(index.read_text())["weight_map"]
    for text in ("{", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(ShotError, match=r"index\.json is damaged"):
            load_state(tmp_path)
    for name, file, words in (
        ("b", "model-00003-of-00003.safetensors", "00003-of-00003.safetensors does not exist"),
        ("z", good["b"], "promises 'z'"),
        ("b", "../other.safetensors", "'../other.safetensors'; shards beside the index"),
    ):
        index.write_text(json.dumps({"weight_map": {**good, name: file}}))
        with pytest.raises(ShotError, match=words):
            load_state(tmp_path)


def test_a_bundle_is_split_into_its_parts() -> None:
    """All-in-one files: each part under its prefix, a tokenizer beside the text encoder."""
    keys = [
        f"model.diffusion_model.{TRANSFORMER}",
        f"vae.{VAE}",
        f"text_encoders.umt5xxl.transformer.{TEXT}",
        "text_encoders.umt5xxl.transformer.spiece_model",
    ]
    assert split_parts(keys) == {
        "transformer": {keys[0]: TRANSFORMER},
        "vae": {keys[1]: "decoder.middle.0.residual.0.gamma"},
        "text": {keys[2]: TEXT},
    }


def test_a_clip_file_of_earlier_transformers_is_read() -> None:
    """The tower one level deeper, with the projection that Wan does not use."""
    keys = [f"vision_model.{CLIP}", "vision_model.embeddings.position_ids", "visual_projection.weight"]
    assert split_parts(keys) == {"clip": {keys[0]: CLIP}}


def test_files_of_nothing_known_are_refused() -> None:
    """Another model, an empty file, two parts where one is asked for, and the same part twice."""
    with pytest.raises(ShotError, match=r"starts with 'double_blocks\.0\.img_attn\.proj\.bias'"):
        detect_layout(["single_blocks.0.norm", "double_blocks.0.img_attn.proj.bias"])
    with pytest.raises(ShotError, match="it is empty"):
        split_parts([])
    with pytest.raises(ShotError, match="holds transformer and vae; one part"):
        detect_layout([TRANSFORMER, VAE])
    with pytest.raises(ShotError, match="holds the transformer twice"):
        split_parts([TRANSFORMER, f"diffusion_model.{TRANSFORMER}"])


def test_unknown_names_stay_as_they_are() -> None:
    """What a file holds beside the known names is left for the strict loader to report."""
    extra = "blocks.0.attn1.to_q.weight.scale_of_another_kind"
    (names,) = split_parts(["blocks.0.attn1.to_q.weight", "who.knows", extra]).values()
    assert names["who.knows"] == "who.knows"
    assert names[extra] == "blocks.0.self_attn.q.weight.scale_of_another_kind"


def test_prefixes_are_cut_once_and_only_at_the_start() -> None:
    """A name that merely holds such a text keeps it."""
    assert strip_prefix(["vae.vae.x", "x.vae.y", "model.diffusion_model.a", "vaeb"]) == {
        "vae.vae.x": "vae.x", "x.vae.y": "x.vae.y", "model.diffusion_model.a": "a", "vaeb": "vaeb",
    }  # fmt: skip
    assert detect_layout([f"diffusion_model.{TRANSFORMER}"]) == Layout("transformer", "original")
