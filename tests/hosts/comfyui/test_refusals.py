# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Bad input is refused at /prompt where it can be known, by a sentence that names the input; else on the node."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]

SHOT, WRITE = "2", "4"


@pytest.mark.parametrize(
    ("node", "name", "value", "says"),
    [
        (SHOT, "prompt", "  ", "a sentence that says what is seen"),
        (SHOT, "width", 100, "96 or 112"),
        (SHOT, "height", 8, "multiples of 16"),
        (SHOT, "height", 0, "both or none"),
        (SHOT, "frames", 34, "33 or 37"),
        (SHOT, "frames", 2, "1 or 5"),
        (SHOT, "frames", -3, "4n+1"),
        (SHOT, "fps", 1200.0, "up to 1000"),
        (SHOT, "seed", -1, "min of 0"),
        (SHOT, "steps", 1001, "max of 1000"),
        (SHOT, "guidance", 101.0, "max of 100"),
        ("1", "model", "nothing.safetensors", "diffusion_models"),
        ("1", "precision", "float8", "bfloat16"),
        ("1", "solver", "heun", "unipc"),
        ("1", "shift", 3.0, "for the starter, which has its own"),
        ("3", "decode", "never", "when linked"),
        (WRITE, "folder", "../elsewhere", "inside ComfyUI's output folder"),
        (WRITE, "folder", "/tmp", "inside ComfyUI's output folder"),
        (WRITE, "folder", "a/../../b", "inside ComfyUI's output folder"),
        (WRITE, "folder", "C:\\x", "inside ComfyUI's output folder"),
        (WRITE, "name", "a/b", "a file name without"),
        (WRITE, "name", "", "a file name without"),
        (WRITE, "name", "shot.%04d", "a file name without"),
        (WRITE, "name", "..", "a file name without"),
        (WRITE, "format", "TIFF", "ProRes MOV"),
        (WRITE, "colorspace", "ACEScgg", "ACEScg"),
        (WRITE, "depth", "double", "half, float"),
        (WRITE, "compression", "jpeg", "dwaa"),
        (WRITE, "start_frame", -1, "0 to"),
    ],
)
def test_a_value_is_refused_before_anything_runs(
    client: Any, prompts: ModuleType, node: str, name: str, value: Any, says: str
) -> None:
    """HTTP 400, the input's name, and what is allowed."""
    prompt = prompts.plate(writes={"name": "refused"})
    prompt[node]["inputs"][name] = value
    found = client.refused(prompt)
    assert f"{node}.{name}" in found, found
    assert name in found[f"{node}.{name}"] and says in found[f"{node}.{name}"], found


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ({}, "latent, images: neither is linked"),
        ({"latent": ["3", 2], "images": ["3", 0], "model": ["1", 0]}, "latent, images: both are linked"),
        ({"latent": ["3", 2]}, "model, vae: neither is linked"),
        ({"latent": ["3", 0], "model": ["1", 0]}, "latent: got IMAGE; LATENT is allowed"),
    ],
)
def test_what_is_linked_to_write_plate_must_fit(client: Any, prompts: ModuleType, links: Any, says: str) -> None:
    """One source, and for a latent one decoder."""
    prompt = prompts.plate()
    prompt["4"] = prompts.write(**links)
    assert all(says in message for key, message in client.refused(prompt).items() if key.startswith("4."))


@pytest.mark.parametrize("node", ["RushesReadPlate", "RushesShotFromFile"])
@pytest.mark.parametrize(
    ("path", "says"),
    [("", "it is empty"), ("no/such.%04d.exr", "it is in neither"), ("/no/such.mov", "it is not there")],
)
def test_a_file_that_is_not_there_is_refused(client: Any, prompts: ModuleType, node: str, path: str, says: str) -> None:
    """The message says where it was looked for."""
    prompt = {
        "1": prompts.read(path) if node == "RushesReadPlate" else {"class_type": node, "inputs": {"path": path}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    found = client.refused(prompt)
    assert says in found["1.path"] and "path" in found["1.path"]


def test_a_lora_that_is_not_there_is_refused(client: Any, prompts: ModuleType) -> None:
    """By its name and the folder it belongs in."""
    prompt = prompts.plate()
    prompt["5"] = {
        "class_type": "RushesLoadLora",
        "inputs": {"model": ["1", 0], "lora": "no.safetensors", "strength": 1},
    }
    prompt["3"]["inputs"]["model"] = ["5", 0]
    assert "folder loras" in client.refused(prompt)["5.lora"]


def test_what_only_the_model_knows_is_one_sentence_on_the_node(client: Any, prompts: ModuleType) -> None:
    """Too large for the starter: named, with what is allowed, without the command line's options."""
    run = client.run(prompts.plate(width=1024, height=1024))
    assert run.end == "error" and run.error["node_id"] == "3"
    message = run.error["exception_message"].strip()
    assert message.startswith("size: got 1024x1024; starter takes up to 512x512") and "--" not in message


def test_keyframes_that_do_not_fit_are_one_sentence_on_the_node(client: Any, prompts: ModuleType) -> None:
    """A frame beyond the clip; a batch where one picture is wanted."""
    picture = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 255}}
    prompt = prompts.plate()
    prompt["6"] = picture
    prompt["7"] = {"class_type": "RushesKeyframe", "inputs": {"image": ["6", 0], "frame": 99}}
    prompt["2"]["inputs"]["keyframes"] = ["7", 0]
    assert client.run(prompt).error["exception_message"].startswith("keyframe: got frame 99; -5 to 4 is allowed")
    picture["inputs"]["batch_size"] = 3
    assert client.run(prompt).error["exception_message"].startswith("image: got a batch of 3; one picture is allowed")
