# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Every form of Wan's files through our nodes in a real ComfyUI, against the engine in a process of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file

from rushes.media import read_frames, read_record

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]

SHOT = {"width": 64, "height": 32, "frames": 5, "steps": 4, "guidance": 4.0, "negative": "the ball"}
EXPERTS = {"names": ("tiny_t2v_high_noise", "tiny_t2v_low_noise")}
WIDE = {"dim": 256, "ffn_dim": 512, "text_width": 256}  # rows that all of GGUF's blocks divide
BOOT = Path(__file__).parent / "support" / "boot.py"

ENGINE = """
import json, sys
import numpy as np
from rushes import Engine, Shot
from rushes.attention.layers import SparseAttention
from rushes.model.files import ModelFiles
given = json.loads(sys.argv[1])
attention = SparseAttention(density=given["density"]) if "density" in given else None
engine = Engine.load(
    ModelFiles(**given["files"]), device="cpu", attention=attention, fp8_products=given.get("fp8", False)
)
shot = engine.resolve(Shot.from_dict(given["shot"]))
samples = engine.unscaled(engine.denoise(shot)).numpy()
np.savez(sys.argv[2], samples=samples, record=json.dumps(engine.record(shot)))
"""


@pytest.fixture(scope="module")
def quantising() -> ModuleType:
    pytest.importorskip("gguf")
    import quantising

    return quantising


@pytest.fixture
def made(
    client: Any, server: Any, prompts: ModuleType, in_comfyui: Callable[..., str], tmp_path: Path
) -> Callable[..., SimpleNamespace]:
    """made("name", files): a shot by the nodes, and the same by the engine from the record that the nodes wrote."""

    def make(
        name: str,
        files: Any,
        loras: tuple[dict[str, Any], ...] = (),
        loads: dict[str, Any] | None = None,
        engine: dict[str, Any] | None = None,
        **shot: Any,
    ) -> SimpleNamespace:
        names = prompts.placed(server, files, name)
        model = ["1", 0]
        prompt = {"1": prompts.load_model(**names, **(loads or {})), "2": prompts.shot(**(SHOT | shot))}
        for number, lora in enumerate(loras, 20):
            prompt[str(number)] = {"class_type": "RushesLoadLora", "inputs": {"model": model, "strength": 1.0, **lora}}
            model = [str(number), 0]
        if "keyframes" in shot:
            prompt["10"] = {"class_type": "LoadImage", "inputs": {"image": f"{name}.png"}}
            prompt["11"] = {"class_type": "RushesKeyframe", "inputs": {"image": ["10", 0], "frame": 0}}
        prompt |= {
            "3": prompts.generate(model, ["2", 0]),
            "4": {"class_type": "SaveLatent", "inputs": {"samples": ["3", 2], "filename_prefix": name}},
            "5": prompts.write(latent=["3", 2], model=model, name=name),
        }
        run = client.run(prompt)
        assert run.end == "success", run.error
        record = read_record(server.base / f"output/rushes/{name}_v001.1001.exr")
        folder = server.base / "models"
        parts = {part: prompts.INPUTS.get(part, part) for part in files.paths}
        paths = {part: str(folder / prompts.FOLDERS[input_] / names[input_]) for part, input_ in parts.items()}
        given = {"files": paths, "shot": record["shot"], **(engine or {})}
        in_comfyui("-c", ENGINE, json.dumps(given), tmp_path / f"{name}.npz")
        want = np.load(tmp_path / f"{name}.npz")
        saved = sorted((server.base / "output").glob(f"{name}_*.latent"))[-1]
        return SimpleNamespace(
            samples=load_file(saved)["latent_tensor"],
            want=want["samples"],
            record=record,
            wanted=json.loads(str(want["record"])),
            prompt=prompt,
        )

    return make


def assert_same(found: SimpleNamespace) -> None:
    """Bits, and what the record says of the model and the shot."""
    assert found.want.std() > 0.1
    assert np.array_equal(found.samples, found.want), np.abs(found.samples - found.want).max()
    assert found.record["model"] == found.wanted["model"] and found.record["shot"] == found.wanted["shot"]


def fp8(quantising: ModuleType, files: Any, *parts: str, form: str = "marked") -> Any:
    for part in parts:
        quantising.write_fp8(files.paths[part], form, torch.float8_e4m3fn)
    return files


def test_two_experts_are_the_engines(made: Callable[..., SimpleNamespace], tiny_wan: Callable[..., Any]) -> None:
    """Wan 2.2 A14B: high noise as `model`, low noise as `second_expert`."""
    found = made("pair", tiny_wan("comfy", **EXPERTS).files)
    assert_same(found)
    assert set(found.record["model"]["files"]) == {"transformer", "transformer_low", "text", "vae"}


def test_image_to_video_with_clip_is_the_engines(
    server: Any, made: Callable[..., SimpleNamespace], tiny_wan: Callable[..., Any]
) -> None:
    """Wan 2.1's, whose picture is seen by CLIP too."""
    pixels = np.random.default_rng(5).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(server.base / "input/i2v.png")
    files = tiny_wan("comfy", in_channels=36, image_dim=24).files
    assert_same(made("i2v", files, keyframes=["11", 0]))


@pytest.mark.parametrize("form", ["plain", "marked", "noted", "inline"])
def test_fp8_is_the_engines(
    made: Callable[..., SimpleNamespace], tiny_wan: Callable[..., Any], quantising: ModuleType, form: str
) -> None:
    """A transformer and a text encoder, in each form that is on artists' disks."""
    files = fp8(quantising, tiny_wan("comfy").files, "transformer", "text", form=form)
    assert_same(made(f"fp8_{form}", files))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_gguf_is_the_engines(
    server: Any,
    made: Callable[..., SimpleNamespace],
    tiny_wan: Callable[..., Any],
    quantising: ModuleType,
    trained_spiece: bytes,
    kind: str,
) -> None:
    """Listed by the node although ComfyUI's own lists do not show them."""
    files = tiny_wan("comfy", spiece=trained_spiece, **WIDE).files
    paths = {part: quantising.write_gguf(files.paths[part], kind)[0] for part in ("transformer", "text")}
    assert_same(made(f"gguf_{kind}", dataclasses.replace(files, **paths)))
    inputs = server.get("/object_info/RushesLoadModel")["RushesLoadModel"]["input"]
    for group, name in (("required", "model"), ("required", "text_encoder"), ("optional", "second_expert")):
        offered = inputs[group][name][1]["options"] if inputs[group][name][0] == "COMBO" else inputs[group][name][0]
        assert any(one.endswith(".gguf") for one in offered), name
    assert "unet_gguf" not in server.get("/models")  # ComfyUI's own tables are as they were


def lora(server: Any, name: str, files: Any, seed: int, rank: int = 3) -> str:
    """A LoRA of weights and biases, where ComfyUI looks for it."""
    from safetensors.torch import load_file as load

    state = {key.removeprefix("model.diffusion_model."): t for key, t in load(files.transformer).items()}
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in ("blocks.0.self_attn.v", "blocks.1.ffn.0", "blocks.1.cross_attn.o"):
        rows, columns = state[f"{layer}.weight"].shape
        tensors[f"diffusion_model.{layer}.lora_down.weight"] = torch.randn(rank, columns, generator=draw) * 0.2
        tensors[f"diffusion_model.{layer}.lora_up.weight"] = torch.randn(rows, rank, generator=draw) * 0.2
        tensors[f"diffusion_model.{layer}.alpha"] = torch.tensor(2.0)
    for layer in ("blocks.0.ffn.0", "blocks.0.self_attn.q"):  # which stay behind where memory is least
        tensors[f"diffusion_model.{layer}.diff_b"] = torch.randn(state[f"{layer}.bias"].shape, generator=draw)
    path = server.base / "models/loras" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path.name


def test_a_lora_on_quantised_weights_is_the_engines(
    server: Any,
    made: Callable[..., SimpleNamespace],
    tiny_wan: Callable[..., Any],
    quantising: ModuleType,
) -> None:
    """Added beside packed weights, patched on plain ones; taken off again, the clip is the one before."""
    plain = tiny_wan("comfy").files
    name = lora(server, "on_fp8", plain, 1)
    files = fp8(quantising, plain, "transformer")
    before = made("fp8_before", files)
    found = made("fp8_lora", files, loras=({"lora": name, "strength": 0.7}, {"lora": name, "strength": 0.2}))
    assert_same(found)
    assert np.abs(found.samples - before.samples).max() > 1e-2
    assert [one["strength"] for one in found.record["model"]["loras"]] == [0.7, 0.2]
    assert [Path(one["path"]).name for one in found.record["shot"]["loras"]] == [name, name]
    again = made("fp8_after", files)
    assert_same(again)
    assert np.array_equal(again.samples, before.samples)


@pytest.mark.parametrize("is_packed", [False, True])
def test_each_expert_has_its_own_loras(
    server: Any,
    made: Callable[..., SimpleNamespace],
    tiny_wan: Callable[..., Any],
    quantising: ModuleType,
    is_packed: bool,
) -> None:
    """By `on`; both by default; and by the file's name, as on the command line."""
    files = tiny_wan("comfy", **EXPERTS).files
    one, two = lora(server, "style", files, 2), lora(server, "other_low_noise", files, 3)
    if is_packed:
        files = fp8(quantising, files, "transformer", "transformer_low")
    prefix = f"experts_{is_packed}"
    both = made(f"{prefix}_both", files, loras=({"lora": one}, {"lora": two}))
    assert_same(both)
    assert [lora.get("expert") for lora in both.record["model"]["loras"]] == [None, "low"]
    high = made(f"{prefix}_high", files, loras=({"lora": one, "on": "high"},))
    assert_same(high)
    assert [lora["expert"] for lora in high.record["model"]["loras"]] == ["high"]
    assert not np.array_equal(both.samples, high.samples)


def test_what_makes_it_faster_is_the_engines_and_in_the_record(
    made: Callable[..., SimpleNamespace], tiny_wan: Callable[..., Any], quantising: ModuleType
) -> None:
    """reuse and guided of the shot, attention and fp8_products of the model."""
    files = fp8(quantising, tiny_wan("comfy", **WIDE).files, "transformer")
    large = {"width": 256, "height": 256, "steps": 3}
    found = made(
        "fast",
        files,
        loads={"attention": 0.5, "fp8_products": True},
        engine={"density": 0.5, "fp8": True},
        reuse=0.3,
        guided=0.5,
        **large,
    )
    assert_same(found)
    model, shot = found.record["model"], found.record["shot"]
    assert model["attention"]["density"] == 0.5 and model["fp8_products"] is True
    assert (shot["reuse"], shot["guided"]) == (0.3, 0.5)
    slow = made("slow", files, **large)
    assert_same(slow)
    assert "attention" not in slow.record["model"] and not np.array_equal(slow.samples, found.samples)


def test_two_experts_are_not_together_where_memory_is_short(
    server: Any,
    pack: Path,
    in_comfyui: Callable[..., str],
    tiny_wan: Callable[..., Any],
    quantising: ModuleType,
) -> None:
    """In ComfyUI's own memory manager, on a card that is counted: loaded whole, one for the other, or partly."""
    files = tiny_wan("comfy", **EXPERTS).files
    style = server.base / "models/loras" / lora(server, "short", files, 4)
    files = fp8(quantising, files, "transformer", "transformer_low")
    paths = json.dumps({part: str(path) for part, path in files.paths.items()})
    script = Path(__file__).parent / "inside" / "memory.py"
    printed = json.loads(in_comfyui(BOOT, script, pack, paths, style).splitlines()[-1])
    assert printed["sizes"] == printed["bytes"]  # packed weights count
    size = printed["sizes"]["transformer"]
    runs = {run["name"]: run for run in printed["found"]}
    for run in runs.values():
        assert run["same_again"] and run["changed"] and run["sums"] == runs["both"]["sums"]
        assert run["vae"][0] == run["vae"][1]  # whole, for its layers are torch's
        assert all(sum(one["loaded"].values()) <= run["budget"] for one in run["seen"])
        assert [one["part"] for one in run["seen"]] == ["transformer"] * 3 + ["transformer_low"]
    assert runs["both"]["seen"][-1]["loaded"] == {"transformer": size, "transformer_low": size}
    last = runs["one"]["seen"][-1]["loaded"]
    assert last["transformer_low"] == size and last["transformer"] < 0.6 * size
    for one in runs["half"]["seen"] + runs["little"]["seen"]:
        other = {"transformer": "transformer_low", "transformer_low": "transformer"}[one["part"]]
        assert one["loaded"][other] == 0 and one["loaded"][one["part"]] < size
        assert one["behind"] > 0  # layers that bring their packed weights in each use
    assert all(0 < one["behind"] < one["layers"] for one in runs["half"]["seen"])


def test_files_that_do_not_go_together_are_refused_by_the_nodes_own_names(
    client: Any, server: Any, prompts: ModuleType, tiny_wan: Callable[..., Any], quantising: ModuleType
) -> None:
    """At /prompt, by the input that has to change, in sentences that name no argument of the core's."""
    pair = prompts.placed(server, tiny_wan("comfy", **EXPERTS).files, "wrong_pair")
    i2v = prompts.placed(server, tiny_wan("comfy", in_channels=36, image_dim=24).files, "wrong_i2v")
    plain = prompts.placed(server, tiny_wan("comfy").files, "wrong")
    foreign = tiny_wan("comfy").files
    quantising.write_fp8(foreign.vae, "plain", torch.float8_e4m3fn)
    vae = prompts.placed(server, foreign, "wrong_fp8")["vae"]
    swapped = {"model": pair["second_expert"], "second_expert": pair["model"]}
    for inputs, name, says in (
        (pair | swapped, "model", "the other way round"),
        (pair | {"second_expert": "none"}, "model", "tiny_t2v_low_noise.safetensors as its low-noise expert"),
        (pair | {"model": pair["second_expert"], "second_expert": "none"}, "model", "alone, the low-noise expert"),
        (pair | {"second_expert": "gone.safetensors"}, "second_expert", "file in ComfyUI's folder diffusion_models"),
        (plain | {"second_expert": i2v["model"]}, "second_expert", "which has other tensors"),
        (i2v | {"image_encoder": "none"}, "image_encoder", "none is given"),
        (i2v | {"image_encoder": "gone.safetensors"}, "image_encoder", "file in ComfyUI's folder clip_vision"),
        (plain | {"image_encoder": i2v["image_encoder"]}, "image_encoder", "reads no CLIP tokens"),
        (plain | {"vae": vae}, "vae", "it holds weights in F8_E4M3"),
        (plain | {"attention": 0.0}, "attention", "above 0 up to 1"),
        ({"second_expert": plain["model"]}, "second_expert", "for starter, which has its own"),
    ):
        prompt = prompts.plate()
        prompt["1"] = prompts.load_model(**inputs)
        message = client.refused(prompt)[f"1.{name}"].partition(" - ")[2]
        assert message.startswith(f"{name}:") and says in message, message
        assert not any(word in message for word in ("transformer:", "transformer_low", "clip:", "--")), message


def test_what_a_graph_cannot_know_is_one_sentence_on_its_node(
    client: Any, server: Any, prompts: ModuleType, tiny_wan: Callable[..., Any]
) -> None:
    """An expert that is not there, and LoRAs of the shot and of the model."""
    files = tiny_wan("comfy").files
    names, style = prompts.placed(server, files, "one"), lora(server, "one", files, 6)
    put_on = {"class_type": "RushesLoadLora", "inputs": {"model": ["1", 0], "lora": style, "strength": 1.0}}
    prompt = {
        "1": prompts.load_model(**names),
        "2": prompts.shot(**SHOT),
        "6": put_on,
        "3": prompts.generate(["6", 0], ["2", 0]),
        "4": prompts.write(latent=["3", 2], model=["6", 0], name="worn"),
    }
    assert client.run(prompt).end == "success"
    path = str(server.base / "output/rushes/worn_v001.%04d.exr")
    prompt["2"] = {"class_type": "RushesShotFromFile", "inputs": {"path": path}}
    assert client.run(prompt).end == "success"  # the same ones: once
    prompt["3"]["inputs"]["model"] = ["1", 0]
    assert client.run(prompt).end == "success"  # the shot's own
    records = [read_record(server.base / f"output/rushes/worn_v00{version}.1001.exr") for version in (1, 2, 3)]
    assert records[0]["shot"]["loras"] == records[1]["shot"]["loras"] == records[2]["shot"]["loras"]
    clips = []
    for version in (1, 2, 3):
        with read_frames(str(server.base / f"output/rushes/worn_v00{version}.%04d.exr")) as reader:
            clips.append(np.concatenate(list(reader)))
    assert np.array_equal(clips[0], clips[1]) and np.array_equal(clips[0], clips[2])
    prompt["3"]["inputs"]["model"], put_on["inputs"]["strength"] = ["6", 0], 0.5
    run = client.run(prompt)
    assert run.error["exception_message"].startswith("lora: the shot has one.safetensors of its own and the model one.")
    put_on["inputs"]["on"] = "low"
    run = client.run(prompt)
    assert run.error["exception_message"].startswith("on: got 'low'; one_tiny_transformer has one transformer, 'both'")


def test_a_models_name_and_lists_of_a_pack_for_gguf_are_offered(
    pack: Path, in_comfyui: Callable[..., str], tiny_wan: Callable[..., Any], tmp_path: Path
) -> None:
    """What `rushes models add` named, with all its files; what another pack lists; ComfyUI's tables are as before."""
    files = tiny_wan("comfy").files
    (tmp_path / "elsewhere/sub").mkdir(parents=True)
    (tmp_path / "elsewhere/sub/a.gguf").write_bytes(b"GGUF")
    script = Path(__file__).parent / "inside" / "offers.py"
    paths = json.dumps({part: str(path) for part, path in files.paths.items()})
    seen = json.loads(
        in_comfyui(BOOT, script, pack, paths, tmp_path / "elsewhere", tmp_path / "config").splitlines()[-1]
    )
    assert seen["before"] == [] and seen["shelf"] == ["mine"] and seen["offered"][:2] == ["starter", "mine"]
    assert seen["record"]["shot"]["model"] == "mine" and seen["record"]["model"]["name"] == "mine"
    assert (seen["record"]["model"]["solver"], seen["record"]["model"]["shift"]) == ("euler", 3.0)
    assert seen["refused"] == [
        "vae: got 'x.safetensors' for mine, which has its own; none is allowed",
        "second_expert: got 'x.safetensors' for mine, which has its own; none is allowed",
    ]
    assert "sub/a.gguf" in seen["gguf"] and seen["found"] == str(tmp_path / "elsewhere/sub/a.gguf")
    assert seen["tables_are_kept"]
