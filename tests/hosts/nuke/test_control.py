# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The node's input `control`, its files and references, in the double, with real workers and a tiny VACE model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nuke_kit as kit
from nuke_kit import EVERYWHERE
from rushes import Engine
from rushes.media import read_latents
from rushes.shot import Shot

VACE = {"layers": 4, "vace_in_channels": 96, "vace_layers": (0, 2)}


session, plugin = kit.session, kit.plugin  # fixtures


@pytest.fixture
def make(plugin: ModuleType) -> Callable[[Path], Any]:
    """make(model): a node that asks for nine frames of 64x32."""

    def build(model: Path) -> Any:
        node = plugin.node.create()
        for name, value in {
            "prompt": "a red ball", "model_file": str(model), "size": "own", "width": 64, "height": 32, "steps": 2,
            "range": "own range", "first_frame": 1001, "last_frame": 1009,
        }.items():  # fmt: skip
            node[name].setValue(value)
        return node

    return build


@pytest.fixture
def vace(tiny_wan: Callable[..., Any]) -> Path:
    return Path(tiny_wan("diffusers", **VACE).files.transformer.parent)


@pytest.fixture
def ramp(session: Any, write_frames: Any) -> Any:
    """A Read whose picture is the frame's number over 2048, everywhere."""
    pattern = write_frames(range(1001, 1014))
    read = session.nuke.nodes.Read(first=1001, last=1013)
    read["file"].setValue(pattern.as_posix())
    read["raw"].setValue(True)
    return read


def _made(session: Any, plugin: ModuleType, node: Any) -> dict[str, Any]:
    def take() -> Any:
        return plugin.takes.read(node).take or {}

    session.threads.pump_until(lambda: take().get("state") in ("done", "failed"), 120)
    assert take()["state"] == "done", take()
    return dict(take())


def _stored(path: str) -> np.ndarray:
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it

    return np.asarray(oiio.ImageBuf(path).get_pixels(oiio.FLOAT))


@EVERYWHERE
@pytest.mark.usefixtures("one_thread")
def test_the_input_steers_the_clip_and_a_plate_brings_it_back(
    session: Any, plugin: ModuleType, make: Callable[[Path], Any], vace: Path, ramp: Any, script: Path, tmp_path: Path
) -> None:
    """Distances of each frame to the last bit, a mask and a reference from disk; the clip is the engine's, bit for bit;
    one step of undo, no Write; restored from the plate it is the same shot.
    """
    node, dice = make(vace), np.random.default_rng(6)
    for name in ("edges", "mask", "one"):
        Image.fromarray(dice.integers(0, 256, (33, 47, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    node.setInput(2, ramp)
    node["control"].setValue("depth: distance")
    node["control_strength"].setValue(0.75)
    node["control_files"].setValue(f"edges:0.5@2={tmp_path}/edges.png within {tmp_path}/mask.png")
    node["references"].setValue(f"{tmp_path}/one.png")
    undo_before = session.nuke.Undo.undoSize()
    node["generate"].execute()
    take = _made(session, plugin, node)
    assert session.nuke.Undo.undoSize() == undo_before + 1
    assert {inner.Class() for inner in node.nodes()} == {"Input", "Read", "Output"}
    edges, reference, depth = take["shot"]["control"]
    assert (edges["kind"], edges["strength"], edges["start"]) == ("edges", 0.5, 2) and len(edges["sha256"]) == 2
    assert reference["references"] == [f"{tmp_path}/one.png"]
    assert (depth["kind"], depth["strength"], len(depth["sha256"])) == ("depth", 0.75, 1)
    assert depth["path"].startswith((script.parent / "rushes" / "control").as_posix())
    files = sorted(Path(depth["path"]).parent.iterdir())
    assert [path.name for path in files] == [f"depth.{number:04d}.exr" for number in range(1, 10)]
    for number, path in enumerate(files, 1001):
        assert np.array_equal(np.unique(_stored(str(path))), np.unique(np.float32(np.float16(number / 2048))))
    engine = Engine.load(vace, device="cpu")
    made = engine.denoise(engine.resolve(Shot.from_dict(take["shot"]))).numpy()
    latents = read_latents(Path(take["home"]) / take["job"] / "latents.safetensors")[0]
    assert latents.tobytes() == made.tobytes()
    node["control"].setValue("none")
    node["restore_from"].setValue(take["pattern"] % 1004)
    node["restore"].execute()
    session.threads.pump_until(lambda: "restored from" in node["status"].value(), 120)
    node["generate"].execute()
    session.threads.pump_until(lambda: "_v002." in plugin.readers.of(node)["file"].value(), 120)
    again = _made(session, plugin, node)["shot"]["control"]
    assert sorted(map(str, again)) == sorted(map(str, [edges, {**depth}, reference]))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("depth: near is white", "depth.%04d.png", lambda number: number / 2048),
        ("normal", "normal.%04d.exr", lambda number: number / 2048),
        ("grey", "grey.%04d.png", lambda number: 1.055 * (number / 2048) ** (1 / 2.4) - 0.055),
    ],
)
def test_each_kind_is_written_as_it_is_read(
    session: Any,
    plugin: ModuleType,
    make: Callable[[Path], Any],
    vace: Path,
    ramp: Any,
    kind: str,
    name: str,
    value: Any,
) -> None:
    """Numbers as they are, colours as sRGB; at half the script's rate every second frame, from the range's first on."""
    node = make(vace)
    node.setInput(2, ramp)
    node["control"].setValue(kind)
    node["retime"].setValue("keep the speed")
    node["fps"].setValue("12")
    node["range"].setValue("own range")
    node["last_frame"].setValue(1010)  # ten frames of the script: five of the clip
    node["generate"].execute()
    (control,) = _made(session, plugin, node)["shot"]["control"]
    assert Path(control["path"]).name == name
    for number in range(1, 6):
        (level,) = np.unique(_stored(control["path"] % number).round(3))
        assert abs(level - value(1001 + 2 * (number - 1))) < 2e-3


def test_what_cannot_steer_is_refused_in_a_sentence(
    session: Any, plugin: ModuleType, make: Callable[[Path], Any], vace: Path, tiny_model: Path, script: Path, ramp: Any
) -> None:
    """Another model, no input, a bad line, an input that cannot be rendered: no take, and nothing left on disk."""

    def refused(node: Any, words: str) -> None:
        node["generate"].execute()
        if session.messages:
            assert words in session.messages.pop()
        else:
            session.threads.pump_until(lambda: words in node["status"].value(), 120)
        assert plugin.takes.read(node).take is None and not list(script.parent.rglob("*.exr"))

    other = make(tiny_model)
    other["size"].setValue("model")
    other["control"].setValue("grey")
    refused(other, "control: tiny takes no control; none, or a VACE model with it, is allowed")
    node = make(vace)
    node["control"].setValue("normal")
    refused(node, "control: got 'normal' with nothing at the input 'control'")
    node["control_files"].setValue("depth /z.exr")
    refused(node, "control files: got 'depth /z.exr'; KIND:STRENGTH@FRAME=FILE")
    node["control_files"].setValue("")
    broken = session.nuke.nodes.Read(first=1001, last=1003)
    broken["file"].setValue("/none/plate.%04d.exr")
    node.setInput(2, broken)
    refused(node, "control: the input 'control' cannot be rendered at frame 1001")
    assert not list((script.parent / "rushes" / "control").glob("*"))
