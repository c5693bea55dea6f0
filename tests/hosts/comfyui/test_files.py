# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Read Plate and Shot from File in a real ComfyUI."""

from __future__ import annotations

import json
import os
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rushes.media import load_image, open_outputs, read_frames
from rushes.media.color import SRGB
from rushes.shot import Shot

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]

EXACT = {"colorspace": SRGB, "depth": "float"}


def frames_of(server: Any, name: str) -> np.ndarray:
    with read_frames(str(server.base / "output/rushes" / name)) as reader:
        return np.concatenate(list(reader))


def test_a_plate_comes_back_as_the_images_it_was_written_from(client: Any, server: Any, prompts: ModuleType) -> None:
    """Float EXR to the last bit; half within half's steps; ProRes near. Rate, first frame and record come along."""
    prompt = prompts.plate(frames=9, seed=31, fps=12.0, writes={"name": "back", "format": "ProRes MOV"})
    prompt["5"] = prompts.write(images=["3", 0], record=["3", 3], name="back", colorspace="lin_p3d65", start_frame=7)
    prompt["6"] = prompts.write(images=["3", 0], record=["3", 3], name="back_exact", **EXACT)
    assert client.run(prompt).end == "success"
    exact = frames_of(server, "back_exact_v001.%04d.exr")
    for path, near in (
        ("rushes/back_exact_v001.%04d.exr", 0.0),
        ("rushes/back_v001.####.exr", 1e-3),
        ("rushes/back_v001.mov [output]", 0.05),
    ):
        name = f"read_{path[7:12]}{near}".replace(".", "_")
        reading = {
            "1": prompts.read(path),
            "2": prompts.write(images=["1", 0], record=["1", 3], name=name, **EXACT),
            "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
            "4": {"class_type": "PreviewAny", "inputs": {"source": ["1", 2]}},
        }
        run = client.run(reading)
        assert run.end == "success", run.error
        found = frames_of(server, f"{name}_v001.%04d.exr")
        assert found.shape == exact.shape and np.abs(found - exact).mean() <= near, path
        first = 7 if "####" in path else 1001 if "exr" in path else 0
        assert run.executed["3"]["text"] == ["12.0"] and run.executed["4"]["text"] == [str(first)]


def test_a_part_of_a_clip_can_be_read(client: Any, server: Any, prompts: ModuleType) -> None:
    """Five frames from the third on, by both bounds; more than there is, is what there is."""
    folder = server.base / "input"
    clip = np.random.default_rng(6).random((9, 12, 16, 3)).astype(np.float32)
    record = {"rushes": "0", "shot": Shot("x", size=(16, 12), frames=9, fps=24).to_dict()}
    with open_outputs([folder / "part.%03d.exr"], record, colorspace=SRGB, depth="float") as outputs:
        outputs.write(clip)
    for first, count, want in ((2, 5, clip[2:7]), (6, 0, clip[6:]), (0, 50, clip)):
        name = f"part_{first}_{count}"
        run = client.run(
            {
                "1": prompts.read("part.%03d.exr", first=first, count=count),
                "2": prompts.write(images=["1", 0], name=name, **EXACT),
            }
        )
        assert run.end == "success", run.error
        assert np.array_equal(frames_of(server, f"{name}_v001.%04d.exr"), want)


def test_a_file_that_changed_is_read_again(client: Any, server: Any, prompts: ModuleType) -> None:
    """Unchanged it is cached; with other pixels under the same name it is not."""
    path = server.base / "input/still.png"

    def paint(value: float) -> None:
        record = {"rushes": "0", "shot": Shot("x", size=(8, 8), frames=1, fps=24).to_dict()}
        with open_outputs([path], record, overwrite=True) as outputs:
            outputs.write(np.full((1, 8, 8, 3), value, np.float32))
        os.utime(path, (1e9 + value, 1e9 + value))

    prompt = {"1": prompts.read("still.png"), "2": prompts.write(images=["1", 0], name="still", format="PNG")}
    paint(0.2)
    client.run(prompt)
    assert "1" in client.run(prompt).cached
    paint(0.8)
    assert client.run(prompt).ran("1")
    found = load_image(server.base / "output/rushes/still_v002.1001.png", (8, 8))
    assert np.allclose(found, 0.8, atol=1 / 255)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.%04d.exr", "a.%04d.png", "a.otio", "a.safetensors"])
def test_the_shot_comes_back_from_every_output(
    client: Any, server: Any, prompts: ModuleType, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of the command line's own files, named absolutely; Generate makes the same frames of it."""
    folder = server.base / "output/cli"
    if not folder.exists():
        write_with_the_engine(folder)
    prompt = {
        "1": {"class_type": "RushesShotFromFile", "inputs": {"path": str(folder / name)}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 3]}},
        "3": prompts.load_model(),
        "4": prompts.generate(["3", 0], ["1", 0]),
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 4]}},
    }
    run = client.run(prompt)
    assert run.end == "success", run.error
    stored, made = (json.loads(run.executed[node]["text"][0]) for node in ("2", "5"))
    assert stored["shot"] == made["shot"] and stored["shot"]["seed"] == 2**61 + 3
    assert stored["model"] == made["model"]


def write_with_the_engine(folder: Any) -> None:
    """One shot in every format. Its seed is beyond what a browser's numbers hold."""
    import rushes

    engine = rushes.Engine.load("starter", device="cpu")
    shot = rushes.Shot("a blue cube rises", size=(32, 32), frames=5, steps=1, guidance=1, seed=2**61 + 3)
    clip = engine.generate(shot)
    names = ("a.mp4", "a.mov", "a.%04d.exr", "a.%04d.png", "a.otio", "a.safetensors")
    clip.write(*(folder / name for name in names))
