# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Control in a real ComfyUI: what it keeps, and the clips, against the engine in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from rushes.media import read_pass, read_record

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]

SIZE, FRAMES = (64, 32), 9
SHOT = {"width": SIZE[0], "height": SIZE[1], "frames": FRAMES, "steps": 2, "guidance": 4.0}
VACE = {"layers": 4, "vace_in_channels": 96, "vace_layers": (0, 2)}

ENGINE = """
import json, sys
import numpy as np
from rushes import Engine, Shot
from rushes.model.files import ModelFiles
engine = Engine.load(ModelFiles(*json.loads(sys.argv[1])), device="cpu")
shot = engine.resolve(Shot.from_dict(json.loads(sys.argv[2])))
np.save(sys.argv[3], engine.unscaled(engine.denoise(shot)).numpy())
"""


@pytest.fixture(scope="module")
def drawn(server: Any) -> Callable[..., dict[str, Any]]:
    """drawn("name", count): noise as a batch of ComfyUI's: nodes by id, whose last one's output 0 is an IMAGE."""

    def draw(name: str, count: int, first: int) -> dict[str, Any]:
        dice = np.random.default_rng(first)
        nodes: dict[str, Any] = {}
        for number in range(count):
            picture = Image.fromarray(dice.integers(0, 256, (23, 41, 3), dtype=np.uint8))
            picture.save(server.base / "input" / f"{name}_{number}.png")
            nodes[f"{first + 2 * number}"] = {"class_type": "LoadImage", "inputs": {"image": f"{name}_{number}.png"}}
            if number:
                before = first + 2 * number - (2 if number == 1 else 1)
                batch = {"image1": [str(before), 0], "image2": [f"{first + 2 * number}", 0]}
                nodes[f"{first + 2 * number + 1}"] = {"class_type": "ImageBatch", "inputs": batch}
        return nodes

    return draw


def pixels(server: Any, name: str, count: int) -> np.ndarray:
    """[n, h, w, 3] of what was drawn, as ComfyUI loads it."""
    files = [server.base / "input" / f"{name}_{number}.png" for number in range(count)]
    return np.stack([np.asarray(Image.open(file), np.float32) / 255 for file in files])


@pytest.fixture
def vace(server: Any, prompts: ModuleType, tiny_wan: Callable[..., Any]) -> dict[str, str]:
    """A tiny VACE model in ComfyUI's folders; the inputs of Load Model."""
    return dict(prompts.placed(server, tiny_wan("comfy", **VACE).files, "vace"))


def test_control_is_kept_as_files_and_makes_the_engines_clip(
    client: Any,
    server: Any,
    prompts: ModuleType,
    vace: dict[str, str],
    drawn: Callable[..., dict[str, Any]],
    in_comfyui: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Depth with a mask and references, then normals at half strength from a later frame: bit for bit; the files show a
    model what the batches hold; asked for again, nothing is written.
    """
    depth, normal = drawn("depth", FRAMES, 100), drawn("normal", 4, 200)
    mask, references = drawn("mask", 1, 300), drawn("reference", 2, 400)
    prompt = {
        "1": prompts.load_model(**vace),
        **depth, **normal, **mask, **references,
        "5": {"class_type": "ImageToMask", "inputs": {"image": ["300", 0], "channel": "green"}},
        "6": {"class_type": "RushesControl", "inputs": {
            "kind": "depth", "strength": 1.0, "start": 0, "images": ["117", 0], "mask": ["5", 0],
            "references": ["403", 0],
        }},
        "7": {"class_type": "RushesControl", "inputs": {
            "kind": "normal", "strength": 0.5, "start": 3, "images": ["207", 0], "previous": ["6", 0],
        }},
        "2": prompts.shot(**SHOT, control=["7", 0]),
        "3": prompts.generate(["1", 0], ["2", 0]),
        "4": {"class_type": "SaveLatent", "inputs": {"samples": ["3", 2], "filename_prefix": "control"}},
        "8": prompts.write(latent=["3", 2], model=["1", 0], name="control"),
    }  # fmt: skip
    run = client.run(prompt)
    assert run.end == "success", run.error
    record = read_record(server.base / "output/rushes/control_v001.1001.exr")
    first, second = record["shot"]["control"]
    assert (first["kind"], first["strength"], first["start"], len(first["sha256"])) == ("depth", 1.0, 0, 4)
    assert (second["kind"], second["strength"], second["start"], len(second["sha256"])) == ("normal", 0.5, 3, 1)
    folder = str(server.base / "output/rushes/control")
    assert all(name.startswith(folder) for name in (first["path"], first["mask"], *first["references"], second["path"]))
    own = (41, 23)
    near = pixels(server, "depth", FRAMES)[..., :1]
    near = (near - near.min()) / (near.max() - near.min())
    assert np.abs(read_pass(first["path"], "depth", own, 99) - near).max() < 1e-6
    assert np.abs(read_pass(second["path"], "normal", own, 99) - pixels(server, "normal", 4)).max() < 1e-6
    held = read_pass(first["mask"], "mask", own, 99)
    assert np.array_equal(held[0], pixels(server, "mask", 1)[0, ..., 1:2].repeat(3, 2)) and len(held) == 1
    files = [str(server.base / "models" / prompts.FOLDERS[name] / file) for name, file in vace.items()]
    in_comfyui("-c", ENGINE, json.dumps(files), json.dumps(record["shot"]), tmp_path / "latents.npy")
    (saved,) = (server.base / "output").glob("control_*.latent")
    made = load_file(saved)["latent_tensor"]
    assert np.array_equal(made, np.load(tmp_path / "latents.npy"))
    before = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.exr")}
    prompt["2"]["inputs"]["seed"], prompt["6"]["inputs"]["strength"] = 8, 0.9
    assert client.run(prompt).end == "success"
    assert before == {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.exr")} and len(before) == 16


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ({}, "images, references: neither is linked; one of them, or both, is allowed"),
        ({"mask": ["5", 0]}, "mask: it is linked without images; images with it are allowed"),
        ({"images": ["300", 0], "kind": "depth"}, "control: got depth; starter takes no control passes"),
        ({"references": ["300", 0]}, "control: got reference; starter takes no control passes"),
    ],
)
def test_control_that_does_not_fit_is_one_sentence_on_the_node(
    client: Any, prompts: ModuleType, drawn: Callable[..., dict[str, Any]], links: dict[str, Any], says: str
) -> None:
    """Nothing to steer by; and a model that cannot be steered."""
    prompt = prompts.plate()
    inputs = {"kind": "pose", "strength": 1.0, "start": 0, **links}
    prompt |= {
        **drawn("mask", 1, 300),
        "5": {"class_type": "ImageToMask", "inputs": {"image": ["300", 0], "channel": "green"}},
        "6": {"class_type": "RushesControl", "inputs": inputs},
    }
    prompt["2"]["inputs"]["control"] = ["6", 0]
    run = client.run(prompt)
    message = run.error["exception_message"].strip()
    assert run.end == "error" and message.startswith(says) and "--" not in message and "\n" not in message, message
