# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Load Model, Shot, Keyframe, LoRA and Generate in a real ComfyUI, against the engine in a process of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from rushes.media import read_frames, read_record
from rushes.media.color import SRGB

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]

EXACT = {"colorspace": SRGB, "depth": "float"}  # the numbers of an IMAGE as they are
SHOT = {"width": 64, "height": 48, "frames": 9, "steps": 3, "guidance": 3.0, "fps": 23.976}

ENGINE = """
import json, sys
import numpy as np
from fractions import Fraction
from rushes import Engine, Keyframe, Shot
given = json.loads(sys.argv[1])
keyframes = tuple(Keyframe(*pair) for pair in given.pop("keyframes", ()))
shot = Shot("a red ball rolls to the right", size=(64, 48), frames=9, steps=3, guidance=3.0, fps=Fraction("23.976"),
            seed=7, keyframes=keyframes)
engine = Engine.load("starter", device="cpu")
clip = engine.generate(shot)
np.savez(sys.argv[2], frames=clip.frames, samples=engine.unscaled(clip.latents).numpy(), record=json.dumps(clip.record))
"""


def images_of(server: Any, pattern: str) -> np.ndarray:
    """Frames of a plate that was written with EXACT, [n, h, w, 3]."""
    with read_frames(str(server.base / "output" / pattern)) as reader:
        return np.concatenate(list(reader))


@pytest.fixture(scope="module")
def expected(in_comfyui: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """expected(keyframes=[]): the same shot by the engine alone: frames, samples, record."""

    def run(**given: Any) -> Any:
        out = tmp_path_factory.mktemp("engine") / "clip.npz"
        in_comfyui("-c", ENGINE, json.dumps(given), out)
        return np.load(out)

    return run


def test_every_node_is_there_and_every_input_says_what_it_takes(server: Any) -> None:
    """Eleven nodes under one category, no id without our prefix, and no input or output without a tooltip."""
    found = {
        name: node
        for name, node in server.get("/object_info").items()
        if node["python_module"] == "custom_nodes.rushes"
    }
    assert len(found) == 11, sorted(found)
    for name, node in found.items():
        assert name.startswith("Rushes") and node["category"] == "Rushes" and node["description"], name
        for kind in ("required", "optional"):
            for key, (_, options) in (node["input"].get(kind) or {}).items():
                assert len(options.get("tooltip", "")) > 10, f"{name}.{key}"
        assert all(node["output_tooltips"]), name


def test_frames_latents_and_record_are_the_engines(
    client: Any, server: Any, prompts: ModuleType, expected: Any
) -> None:
    """Bit for bit, for the same shot on the same machine, previews and all."""
    prompt = {
        "1": prompts.load_model(),
        "2": prompts.shot(**SHOT),
        "3": prompts.generate(["1", 0], ["2", 0]),
        "4": prompts.write(images=["3", 0], record=["3", 3], name="bits", **EXACT),
        "5": {"class_type": "SaveLatent", "inputs": {"samples": ["3", 2], "filename_prefix": "bits"}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["3", 4]}},
    }
    run = client.run(prompt)
    assert run.end == "success", run.error
    want = expected()
    assert np.array_equal(images_of(server, "rushes/bits_v001.%04d.exr"), want["frames"])
    (saved,) = (server.base / "output").glob("bits_*.latent")
    assert np.array_equal(load_file(saved)["latent_tensor"], want["samples"])
    record = json.loads(str(want["record"]))
    assert json.loads(run.executed["6"]["text"][0]) == record
    written = read_record(server.base / "output/rushes/bits_v001.1001.exr")
    assert {key: written[key] for key in record} == record
    assert written["comfyui"]["prompt"]["3"]["class_type"] == "RushesGenerate"


def test_each_step_tells_its_progress_and_shows_a_moving_preview(client: Any, prompts: ModuleType) -> None:
    """Progress never goes back and ends; a preview a step, animated, with a frame for each latent frame."""
    run = client.run(prompts.plate(frames=9, steps=4, seed=11, writes={"name": "progress"}))
    values = [value for value, _ in run.progress["3"]]
    assert values == sorted(values) and values[-1] == 4 and len(run.progress["4"]) == 9
    assert len(run.previews["3"]) == 4
    picture = Image.open(io.BytesIO(run.previews["3"][-1]))
    assert picture.n_frames == 3 and max(picture.size) >= 128


def test_images_are_decoded_only_where_something_reads_them(client: Any, prompts: ModuleType) -> None:
    """Progress shows it. When they are linked later the clip is made again, rather than handed on without frames."""
    prompt = prompts.plate(frames=9, seed=12, writes={"name": "linked"})
    assert client.run(prompt).progress["3"][-1] == (2, 2)
    prompt["5"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    run = client.run(prompt)
    assert run.end == "success" and run.ran("3") and run.progress["3"][-1] == (5, 5)  # 2 steps, 3 latent frames
    assert len(run.executed["5"]["images"]) == 9
    always = prompts.plate(frames=9, seed=13, writes={"name": "always"})
    always["3"]["inputs"]["decode"] = "always"
    assert client.run(always).progress["3"][-1] == (5, 5)
    always["5"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    run = client.run(always)
    assert run.end == "success" and not run.ran("3") and not run.ran("4")


def test_the_video_is_the_clip(client: Any, server: Any, prompts: ModuleType) -> None:
    """ComfyUI's own Save Video writes all its frames at its rate; Get Video Components has the same pictures."""
    prompt = {
        "1": prompts.load_model(),
        "2": prompts.shot(**prompts.TINY, fps=12.0),
        "3": prompts.generate(["1", 0], ["2", 0]),
        "4": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["3", 1], "filename_prefix": "clip", "format": "mp4", "codec": "h264"},
        },
        "5": {"class_type": "GetVideoComponents", "inputs": {"video": ["3", 1]}},
        "6": prompts.write(images=["5", 0], name="video", **EXACT),
        "7": prompts.write(images=["3", 0], name="video_images", **EXACT),
    }
    assert client.run(prompt).end == "success"
    (movie,) = (server.base / "output").glob("clip_*.mp4")
    with read_frames(movie) as reader:
        assert (reader.frames, reader.size, reader.fps) == (5, (32, 32), 12)
    frames = images_of(server, "rushes/video_v001.%04d.exr")
    assert np.array_equal(frames, images_of(server, "rushes/video_images_v001.%04d.exr"))


def test_keyframes_are_files_that_the_record_can_name_later(
    client: Any, server: Any, prompts: ModuleType, expected: Any
) -> None:
    """An IMAGE at frame 0 and another at the end: stored once each, and the engine makes the same clip of the files."""
    for name, color in (("first", (200, 40, 30)), ("last", (20, 60, 220))):
        Image.new("RGB", (64, 48), color).save(server.base / "input" / f"{name}.png")
    prompt = {
        "1": prompts.load_model(),
        "8": {"class_type": "LoadImage", "inputs": {"image": "first.png"}},
        "9": {"class_type": "LoadImage", "inputs": {"image": "last.png"}},
        "10": {"class_type": "RushesKeyframe", "inputs": {"image": ["8", 0], "frame": 0}},
        "11": {"class_type": "RushesKeyframe", "inputs": {"image": ["9", 0], "frame": -1, "previous": ["10", 0]}},
        "2": prompts.shot(**SHOT, keyframes=["11", 0]),
        "3": prompts.generate(["1", 0], ["2", 0]),
        "4": prompts.write(images=["3", 0], record=["3", 3], name="keyframes", **EXACT),
    }
    run = client.run(prompt)
    assert run.end == "success", run.error
    keyframes = read_record(server.base / "output/rushes/keyframes_v001.1001.exr")["shot"]["keyframes"]
    assert [keyframe["frame"] for keyframe in keyframes] == [0, 8] and all(keyframe["sha256"] for keyframe in keyframes)
    stored = sorted((server.base / "output/rushes/keyframes").iterdir())
    assert sorted(keyframe["image"] for keyframe in keyframes) == [str(path) for path in stored]
    with read_frames(keyframes[0]["image"]) as reader:
        (picture,) = next(iter(reader))
    assert np.array_equal(picture, np.full((48, 64, 3), np.float32([200, 40, 30]) / np.float32(255)))
    want = expected(keyframes=[(keyframe["frame"], keyframe["image"]) for keyframe in keyframes])
    assert np.array_equal(images_of(server, "rushes/keyframes_v001.%04d.exr"), want["frames"])


def test_a_lora_changes_a_copy_and_the_record_names_it(
    client: Any, server: Any, prompts: ModuleType, tmp_path: Path
) -> None:
    """Styles of names that trainers use; half the strength is another clip; without it the clip is the old one."""
    from rushes.model.bundle import bundle_path, read_weights

    weights = read_weights(bundle_path("starter"))["transformer"]
    rows, columns = weights["blocks.0.ffn.0.weight"].shape
    random = np.random.default_rng(3)
    up, down = random.normal(size=(rows, 4)), random.normal(size=(4, columns))
    pair = [array.astype(np.float32) / 4 for array in (up, down)]
    (server.base / "models/loras").mkdir(parents=True, exist_ok=True)
    for name, stem, ends in (
        ("original", "diffusion_model.blocks.0.ffn.0", ("lora_B.weight", "lora_A.weight")),
        ("kohya", "lora_unet_blocks_0_ffn_0", ("lora_up.weight", "lora_down.weight")),
        ("diffusers", "transformer.blocks.0.ffn.net.0.proj", ("lora_B.weight", "lora_A.weight")),
    ):
        tensors = {f"{stem}.{end}": array for end, array in zip(ends, pair, strict=True)}
        save_file(tensors, server.base / f"models/loras/{name}.safetensors")

    def make(name: str, lora: str | None, strength: float = 1.0) -> np.ndarray:
        prompt = {
            "1": prompts.load_model(),
            "2": prompts.shot(**prompts.TINY),
            "3": prompts.generate(["1", 0], ["2", 0]),
            "4": prompts.write(images=["3", 0], record=["3", 3], name=name, **EXACT),
        }
        if lora is not None:
            inputs = {"model": ["1", 0], "lora": f"{lora}.safetensors", "strength": strength}
            prompt["5"] = {"class_type": "RushesLoadLora", "inputs": inputs}
            prompt["3"]["inputs"]["model"] = ["5", 0]
        run = client.run(prompt)
        assert run.end == "success", run.error
        return images_of(server, f"rushes/{name}_v001.%04d.exr")

    plain, changed = make("lora_none", None), make("lora_full", "original")
    assert not np.array_equal(plain, changed)
    assert not np.array_equal(changed, make("lora_half", "original", 0.5))
    for style in ("kohya", "diffusers"):
        assert np.array_equal(make(f"lora_{style}", style), changed), style
    assert np.array_equal(make("lora_gone", None), plain)
    (named,) = read_record(server.base / "output/rushes/lora_half_v001.1001.exr")["model"]["loras"]
    assert (named["name"], named["strength"], len(named["sha256"])) == ("original.safetensors", 0.5, 64)


def test_a_lora_of_another_model_is_an_error_in_one_sentence(client: Any, server: Any, prompts: ModuleType) -> None:
    """Nothing of it fits: it is not passed over in silence."""
    (server.base / "models/loras").mkdir(parents=True, exist_ok=True)
    save_file({"unet.x.lora_up.weight": np.ones((2, 2), np.float32)}, server.base / "models/loras/other.safetensors")
    prompt = prompts.plate(seed=14, writes={"name": "other"})
    inputs = {"model": ["1", 0], "lora": "other.safetensors", "strength": 1.0}
    prompt["5"] = {"class_type": "RushesLoadLora", "inputs": inputs}
    prompt["3"]["inputs"]["model"] = ["5", 0]
    run = client.run(prompt)
    assert run.end == "error"
    assert run.error["exception_message"].startswith("lora: got other.safetensors; it changes nothing in starter")


def test_two_graphs_share_one_loaded_model(client: Any, server: Any, prompts: ModuleType) -> None:
    """The second prompt finds the loader's output, and no weights are moved again."""
    client.run(prompts.plate(seed=15, writes={"name": "share_a"}))
    before = server.log.count("Requested to load Transformer")
    other = prompts.plate(seed=16, frames=9, writes={"name": "share_b", "format": "MP4"})
    moved = {str(int(node) + 20): value for node, value in other.items()}
    for node in moved.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][key] = [str(int(value[0]) + 20), value[1]]
    run = client.run(moved)
    assert run.end == "success" and "21" in run.cached
    assert server.log.count("Requested to load Transformer") == before
