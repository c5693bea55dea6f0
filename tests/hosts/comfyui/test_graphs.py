# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What comes with the pack and the frontend shows: examples, pages, the locale. In a real ComfyUI."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rushes.media import read_frames, read_record

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]

UPDATE = "RUSHES_UPDATE_LOCALE"  # set: the locale's file is written anew


@pytest.fixture(scope="module")
def info(server: Any) -> Any:
    return server.get("/object_info")


def example(pack: Path, name: str) -> Any:
    return json.loads((pack / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_locale_says_what_the_schema_says(info: Any, pack: Path, support: Callable[[str], ModuleType]) -> None:
    """Names and tooltips have one source; the file is what the frontend asks for."""
    ours = {name: node for name, node in info.items() if node["python_module"] == "custom_nodes.rushes"}
    wanted = support("locales").node_definitions(ours)
    path = pack / "locales/en/nodeDefs.json"
    if os.environ.get(UPDATE):
        path.write_text(json.dumps(wanted, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == wanted, f"run this test with {UPDATE}=1"


def test_the_server_offers_examples_pages_and_locale(server: Any, pack: Path) -> None:
    """Where the frontend looks for them."""
    assert sorted(server.get("/workflow_templates")["rushes"]) == sorted(
        path.stem for path in (pack / "example_workflows").glob("*.json")
    )
    assert server.get("/i18n")["en"]["nodeDefs"]["RushesShot"]["display_name"] == "Rushes Shot"
    assert server.get("/extensions/rushes/docs/RushesShot.md").startswith(b"# Rushes Shot")
    assert [path for path in server.get("/extensions") if "/rushes/" in path] == ["/extensions/rushes/js/preview.js"]
    for path in (pack / "example_workflows").glob("*.json"):
        assert server.get(f"/api/workflow_templates/rushes/{path.stem}.jpg").startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", ["rushes_text_to_plate", "rushes_image_to_video", "rushes_wan_to_plate"])
def test_an_example_has_every_input_of_its_nodes(
    info: Any, pack: Path, support: Callable[[str], ModuleType], name: str
) -> None:
    """Its links and values make a prompt in which nothing is missing, and which is the graph again."""
    graph = example(pack, name)
    prompt = support("graphs").to_prompt(graph, info)
    for node in prompt.values():
        required = info[node["class_type"]]["input"].get("required") or {}
        assert not required.keys() - node["inputs"].keys(), node
    places = {
        str(node["id"]): (node["pos"][0] // 360, node["pos"][1], *node["size"])
        for node in graph["nodes"]
        if str(node["id"]) in prompt
    }
    again = support("graphs").to_graph(prompt, info, places)
    kept = [node for node in graph["nodes"] if node["type"] != "MarkdownNote"]
    assert again["links"] == graph["links"] and again["nodes"] == kept


def test_the_first_example_leaves_a_movie_and_a_plate_on_disk(
    client: Any, server: Any, info: Any, pack: Path, support: Callable[[str], ModuleType]
) -> None:
    """Loaded, queued, found: 33 frames in each, the graph itself among their metadata."""
    graph = example(pack, "rushes_text_to_plate")
    run = client.run(support("graphs").to_prompt(graph, info), workflow=graph)
    assert run.end == "success", run.error
    folder = server.base / "output/rushes"
    clips = []
    for name in ("ball_v001.%04d.exr", "ball_v001.mp4"):
        with read_frames(str(folder / name)) as reader:
            assert (reader.frames, reader.size, reader.fps) == (33, (128, 80), 12)
            clips.append(np.concatenate(list(reader)))
        assert read_record(str(folder / name))["comfyui"]["workflow"] == graph
    assert np.abs(clips[0] - clips[1]).mean() < 0.02


def test_the_second_example_starts_at_its_picture(
    client: Any, server: Any, info: Any, pack: Path, support: Callable[[str], ModuleType]
) -> None:
    """Whose frame is the first one of the ProRes."""
    picture = np.zeros((80, 128, 3), np.uint8)
    picture[:, :64] = (180, 60, 40)
    Image.fromarray(picture).save(server.base / "input/example.png")
    graph = example(pack, "rushes_image_to_video")
    run = client.run(support("graphs").to_prompt(graph, info), workflow=graph)
    assert run.end == "success", run.error
    with read_frames(str(server.base / "output/rushes/from_image_v001.mov")) as reader:
        first = next(iter(reader))[0]
        assert reader.frames == 33
    assert np.abs(first - picture / 255).mean() < 0.12  # a small decoder's idea of it


NEW = {"RushesLoadModel": 4, "RushesShot": 2}  # widgets that graphs of before do not have


def test_a_graph_from_before_the_optional_inputs_is_valid(
    client: Any, info: Any, pack: Path, support: Callable[[str], ModuleType]
) -> None:
    """As it was saved, with fewer values; and as a prompt that names none of them: the same clip."""
    graph = example(pack, "rushes_text_to_plate")
    now = support("graphs").to_prompt(graph, info)
    for node in graph["nodes"]:
        if count := NEW.get(node["type"]):
            del node["inputs"][-count:], node["widgets_values"][-count:]
    assert support("graphs").to_prompt(graph, info) == now
    old = {key: {"class_type": node["class_type"], "inputs": dict(node["inputs"])} for key, node in now.items()}
    for node in (*old.values(), *now.values()):
        if node["class_type"] == "RushesShot":
            node["inputs"] |= {"width": 32, "height": 32, "frames": 5, "steps": 1}
    for node in old.values():
        for name in info[node["class_type"]]["input"].get("optional") or {}:
            if node["class_type"] in NEW and not isinstance(node["inputs"].get(name), list):
                node["inputs"].pop(name, None)
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["3", 4]}}
    records = []
    for prompt in (old, now):
        run = client.run({**{key: prompt[key] for key in ("1", "2", "3")}, "9": shown})
        assert run.end == "success", run.error
        records.append(run.executed["9"]["text"][0])
    assert records[0] == records[1]
