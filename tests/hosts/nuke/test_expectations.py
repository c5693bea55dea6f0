# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a compositor takes for granted of a node that makes plates, with real workers in the double."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

Load = Callable[[Any], ModuleType]
only_16 = pytest.mark.parametrize("session", [16], indirect=True, ids=["Nuke 16"])


def _plugin(session: Any, load_plugin: Load, script: Path) -> ModuleType:
    session.nuke.scriptSaveAs(str(script))
    return load_plugin(session)


def _node(plugin: ModuleType, model: Path, **knobs: Any) -> Any:
    """A Rushes node that asks for five small frames."""
    made = plugin.node.create()
    values = {"prompt": "a red ball", "model_file": str(model), "size": "model", "range": "own range",
              "first_frame": 1001, "last_frame": 1005, "steps": 2} | knobs  # fmt: skip
    for name, value in values.items():
        made[name].setValue(value)
    return made


def _takes(plugin: ModuleType, node: Any) -> list[dict[str, Any]]:
    return list(plugin.takes.read(node).data["takes"])


def _made(session: Any, plugin: ModuleType, node: Any, count: int = 1) -> dict[str, Any]:
    """Pump until the node has so many finished takes; the last of them."""
    session.threads.pump_until(lambda: [take["state"] for take in _takes(plugin, node)].count("done") == count, 120)
    return _takes(plugin, node)[-1]


@only_16
def test_versions_copies_and_groups(session: Any, load_plugin: Load, script: Path, tiny_model: Path) -> None:
    """Alt+Up on a plain Read of a plate finds the next version; a copied node follows the job that runs, and then makes
    plates of its own; a node in a group works there, and its contact sheet lies beside it. Nothing is overwritten.
    """
    import nukescripts  # type: ignore[import-not-found]

    plugin, nuke = _plugin(session, load_plugin, script), session.nuke
    node = _node(plugin, tiny_model)
    node["generate"].execute()
    session.threads.pump_until(lambda: _takes(plugin, node), 120)
    node.selectOnly()
    nuke.nodeCopy("%clipboard%")
    copy = nuke.nodePaste("%clipboard%")
    first = _made(session, plugin, node)["pattern"]
    assert _made(session, plugin, copy)["pattern"] == first == plugin.readers.of(copy)["file"].value()
    bytes_before = (Path(first % 1003)).read_bytes()
    node["new_version"].execute()
    second = _made(session, plugin, node, 2)["pattern"]
    copy["generate"].execute()
    third = _made(session, plugin, copy, 2)["pattern"]
    assert second == first.replace("_v001.", "_v002.") and third == first.replace("Rushes_v001", "Rushes1_v001")
    assert (Path(first % 1003)).read_bytes() == bytes_before

    read = nuke.nodes.Read()
    read["file"].fromUserText(first)
    read.selectOnly()
    nukescripts.version_up()
    assert (
        read["file"].value() == second and not read.hasError() and (read.firstFrame(), read.lastFrame()) == (1001, 1005)
    )

    with nuke.nodes.Group(name="Comp") as comp:
        inner = _node(plugin, tiny_model)
    inner["generate"].execute()
    assert _made(session, plugin, inner)["pattern"].endswith("/Rushes_v003.%04d.exr"), "the same name, another version"
    inner["contact_sheet"].execute()
    assert [each.Class() for each in comp.nodes()].count("ContactSheet") == 1 and session.messages == []


@pytest.mark.parametrize("major", [14])  # colour management is one code in all versions
def test_nukes_own_colour_management(
    install: Any, load_plugin: Load, script: Path, tiny_model: Path, major: int
) -> None:
    """What a new script has: the working space is linear Rec.709, and so is the plate; the input is seen as sRGB."""
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it
    from nuke_double.pictures import render  # type: ignore[import-not-found]

    session = install(major=major, config="nuke")
    plugin, nuke = _plugin(session, load_plugin, script), session.nuke
    node = _node(plugin, tiny_model)
    grey = nuke.nodes.Constant(color="0.18 0.18 0.18 1")
    node.setInput(0, grey)
    node["generate"].execute()
    take = _made(session, plugin, node)
    read = plugin.readers.of(node)
    assert read["colorspace"].value() == "linear"
    assert node.metadata("exr/colorInteropID", 1001) == "lin_rec709_scene"
    key = oiio.ImageBuf(take["shot"]["keyframes"][0]["image"]).get_pixels(oiio.FLOAT)
    assert abs(float(key[0, 0, 0]) - 0.4614) < 1e-3
    frame = oiio.ImageBuf(take["pattern"] % 1003).get_pixels(oiio.FLOAT)
    assert np.array_equal(render(node, 1003)[..., :3], frame[..., :3])


@only_16
def test_a_colour_space_that_does_not_hold_is_told(
    session: Any, load_plugin: Load, script: Path, tiny_model: Path
) -> None:
    """Some configurations drop names that stand in the menu. The plate is there, and the node says what to do."""
    plugin = _plugin(session, load_plugin, script)
    node = _node(plugin, tiny_model)
    session.deaf_to |= {"ACEScg", "scene_linear"}
    node["generate"].execute()
    take = _made(session, plugin, node)
    assert "was set and the node says" in node["status"].value() and "set it by hand" in node["status"].value()
    assert plugin.readers.of(node)["file"].value() == take["pattern"] and not node.hasError()
    assert session.messages == []


@only_16
@pytest.mark.parametrize("name", ["a {b} 'c'", "sh [010]", "50$ off"])
def test_folders_of_any_name(session: Any, load_plugin: Load, tmp_path: Path, tiny_model: Path, name: str) -> None:
    """A file knob evaluates brackets and dollars, so a clip cannot lie there: told at once, before any work."""
    folder = tmp_path / name
    folder.mkdir()
    plugin = _plugin(session, load_plugin, folder / "sh010.nk")
    node = _node(plugin, tiny_model)
    node["generate"].execute()
    if set("[]$") & set(name):
        for words in ("plate: got", "script: got"):
            assert words in session.messages[0] and session.messages.pop().endswith("a path without [ ] $ is allowed")
            node["plate"].setValue((tmp_path / "plates" / "sh010.%04d.exr").as_posix())
            node["generate"].execute()
        assert not _takes(plugin, node) and not list(tmp_path.rglob("*.exr"))
        return
    take = _made(session, plugin, node)
    assert Path(take["pattern"] % 1001).is_file() and not node.hasError()
    session.nuke.scriptSave()
    session.nuke.scriptOpen(str(folder / "sh010.nk"))
    assert not session.nuke.allNodes("Group")[0].hasError()


@pytest.mark.parametrize("session", [17], indirect=True, ids=["Nuke 17"])
def test_the_starter_from_a_sentence_to_a_publish(
    session: Any, load_plugin: Load, script: Path, starter: str, tmp_path: Path
) -> None:
    """Generate, a plate that grows, a second version, settings back from a frame, a review and a publish, all from the
    node's buttons. What the node shows at each stage is what lies on disk, and a frame that is gone is missed.
    """
    from nuke_double.files import read as read_file  # type: ignore[import-not-found]
    from nuke_double.pictures import render

    plugin, nuke = _plugin(session, load_plugin, script), session.nuke
    nuke.root()["first_frame"].setValue(1001), nuke.root()["last_frame"].setValue(1009)
    nuke.root()["format"].setValue(nuke.addFormat("128 80 1.0 starter_size"))
    node = plugin.node.create()
    node["prompt"].setValue("a red ball rolls to the right"), node["steps"].setValue(2)
    read = plugin.readers.of(node)
    node["generate"].execute()
    grown: list[tuple[int, Any]] = []

    def is_done() -> bool:
        if read["file"].value().endswith("frames/%04d.png") and (not grown or grown[-1][0] != read["last"].value()):
            grown.append((read["last"].value(), render(node, 1000 + read["last"].value())))
        return [take["state"] for take in _takes(plugin, node)] == ["done"]

    session.threads.pump_until(is_done, 200)
    take = _takes(plugin, node)[0]
    assert take["shot"]["model"] == starter and grown, "frames were shown before the plate was there"
    assert [last for last, _ in grown] == sorted({last for last, _ in grown})
    for last, seen in grown:  # 8 bit of the same frames, through sRGB
        plate = read_file(take["pattern"] % (1000 + last))
        assert np.abs(seen[..., :3] - plate[..., :3]).max() < 0.02, last
    assert np.array_equal(render(node, 1004)[..., :3], read_file(take["pattern"] % 1004)[..., :3])

    node["new_version"].execute()
    _made(session, plugin, node, 2)
    assert "_v002." in read["file"].value()
    again = plugin.node.create()
    again["restore_from"].setValue(take["pattern"] % 1004)
    again["restore"].execute()
    session.threads.pump_until(lambda: again["prompt"].getText() == "a red ball rolls to the right", 60)
    assert again["seed"].value() == str(take["shot"]["seed"]) != node["seed"].value()

    def press(button: str) -> str:
        node[button].execute()
        session.threads.pump_until(lambda: "under way" not in node["status"].value(), 200)
        return str(node["status"].value())

    root = tmp_path / "publishes"
    node["publish_to"].setValue(root.as_posix())
    session.answers.extend(["Ada", 0])
    assert "approved by Ada" in press("review")
    press("publish")
    published = sorted(root.rglob("*.exr"))
    shown = sorted(Path(_takes(plugin, node)[1]["pattern"]).parent.glob("*_v002.*.exr"))
    assert [path.read_bytes() for path in published] == [path.read_bytes() for path in shown] != []
    assert session.messages == ["Reviewed by", "Ada finds it"], "no other dialogue in all of it"

    Path(_takes(plugin, node)[1]["pattern"] % 1003).unlink()
    read["reload"].execute()
    nuke.frame(1003)
    assert node.hasError(), "a frame that is gone is not passed over"
