# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The plug-in from Generate to a restored plate, in the double, with real workers. No thread violation in any of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import nuke_kit as kit
from nuke_kit import EVERYWHERE

Load = Callable[[Any], ModuleType]
TRICKY = 'a red [ball] rolls to the $right "slowly" {now} \\ 日本'


session, plugin = kit.session, kit.plugin  # fixtures


@pytest.fixture
def node(plugin: ModuleType, tiny_model: Path) -> Any:
    return _node(plugin, tiny_model)


def _node(plugin: ModuleType, model: Path) -> Any:
    """A Rushes node that asks for nine small frames."""
    made = plugin.node.create()
    made["prompt"].setValue(TRICKY)
    made["model_file"].setValue(str(model))
    made["size"].setValue("model")
    made["steps"].setValue(3)
    made["range"].setValue("own range")
    made["first_frame"].setValue(1001)
    made["last_frame"].setValue(1009)
    return made


def _take(plugin: ModuleType, node: Any) -> dict[str, Any]:
    return plugin.takes.read(node).take


def _made(session: Any, plugin: ModuleType, node: Any, state: str = "done") -> dict[str, Any]:
    """Pump until the node's take is so."""
    session.threads.pump_until(lambda: (_take(plugin, node) or {}).get("state") == state, 120)
    return _take(plugin, node)


def _range(read: Any) -> tuple[int, int]:
    return read["first"].value(), read["last"].value()


@EVERYWHERE
def test_generate_to_restore(session: Any, plugin: ModuleType, node: Any, script: Path) -> None:
    """A click, a placeholder, a plate in the script's colour, a second version, back and again.

    The bar appears and goes; the plate is reloaded once; undo takes a click back in one step.
    """
    from nuke_double.pictures import render  # type: ignore[import-not-found]

    nuke, read = session.nuke, plugin.readers.of(node)
    node["seed"].setValue("7")
    undo_before = nuke.Undo.undoSize()
    node["generate"].execute()
    session.threads.pump_until(lambda: "placeholder" in read["file"].value(), 120)
    assert not node.hasError() and _range(read) == (1, 1)
    session.threads.pump_until(session.visible_tasks, 120)
    _made(session, plugin, node)
    plate = script.parent / "rushes" / "plates" / f"{node.name()}_v001.%04d.exr"
    assert read["file"].value() == plate.as_posix() and _range(read) == (1001, 1009)
    assert nuke.Undo.undoSize() == undo_before + 1, "everything that came by itself is no step of undo"
    assert read["on_error"].value() == "error" and read["frame"].value() == ""
    assert read["localizationPolicy"].value() == "fromAutoLocalizePath", "left alone"
    assert plugin.colour.match(read["colorspace"].values(), {"name": "ACEScg", "aliases": [], "interop_id": ""}) in (
        read["colorspace"].value(), *read["colorspace"].value().split(" ")
    )  # fmt: skip
    picture = render(node, 1005)
    assert picture.shape[2] == 4 and np.isfinite(picture).all() and (picture[..., 3] == 1).all()
    assert node.metadata("exr/rushes/prompt", 1001) == plugin.takes.read(node).take["shot"]["prompt"] == TRICKY
    session.threads.pump_until(lambda: not session.visible_tasks(), 20)

    node["new_version"].execute()
    other = int(node["seed"].value())
    assert other != 7
    session.threads.pump_until(lambda: "_v002." in read["file"].value(), 120)
    assert _take(plugin, node)["shot"]["seed"] == other
    node["version_down"].execute()
    assert "_v001." in read["file"].value()
    nuke.undo()
    assert "_v002." in read["file"].value()
    node["version_up"].execute()
    assert session.messages.pop() == "version: this node has no later one"

    again = plugin.node.create()
    again["restore_from"].setValue(str(plate) % 1004)
    again["restore"].execute()
    session.threads.pump_until(lambda: "restored" in again["status"].value(), 60)
    assert again["prompt"].getText() == TRICKY and again["seed"].value() == "7"
    assert plugin.readers.of(again)["file"].value() == plate.as_posix()
    assert (render(again, 1005) == picture).all()
    again["plate"].setValue((script.parent / "again.####.exr").as_posix())
    again["generate"].execute()
    take = _made(session, plugin, again)
    assert take["pattern"] == (script.parent / "again_v001.%04d.exr").as_posix()
    assert (render(again, 1005) == picture).all(), "the same bits"


def test_frames_are_shown_as_they_come(session: Any, plugin: ModuleType, node: Any) -> None:
    """A clip that takes seconds to decode: the Read shows more and more of it, then the plate, with one reload."""
    read = plugin.readers.of(node)
    node["last_frame"].setValue(1401)
    node["size"].setValue("own")
    node["width"].setValue(128)
    node["height"].setValue(128)
    node["generate"].execute()
    session.threads.pump_until(session.visible_tasks, 120)
    versions, lengths = read["version"].value(), set()

    def is_done() -> bool:
        if "frames/%04d.png" in read["file"].value():
            lengths.add(_range(read)[1])
        return _take(plugin, node)["state"] == "done"

    session.threads.pump_until(is_done, 240)
    assert len(lengths) > 2, "the strip of frames grew"
    assert _range(read) == (1001, 1401) and read["version"].value() == versions + 1


@EVERYWHERE
def test_a_script_with_a_running_job_is_saved_and_reopened(
    session: Any, plugin: ModuleType, node: Any, script: Path
) -> None:
    """Nuke dies, the worker finishes; the script comes back, and the node follows its job. Prompts survive the file."""
    nuke = session.nuke
    node["steps"].setValue(40)
    node["generate"].execute()
    session.threads.pump_until(lambda: (_take(plugin, node) or {}).get("job"), 120)
    name = node.name()
    nuke.scriptSave()
    plugin.session.end()  # what is left of the session when Nuke is gone: a worker that finishes
    nuke.scriptClear()
    nuke.scriptOpen(str(script))
    node = nuke.toNode(name)
    assert node["prompt"].getText() == TRICKY
    take = _made(session, plugin, node)
    assert take["pattern"].endswith(f"{name}_v001.%04d.exr") and not node.hasError()


def test_the_worker_dies_and_reattach_goes_on(session: Any, plugin: ModuleType, node: Any) -> None:
    node["steps"].setValue(200)
    node["generate"].execute()
    controller = plugin.session.session().controller
    session.threads.pump_until(lambda: any(job.step > 3 for job in controller.jobs.values()), 120)
    controller.kill()
    take = _made(session, plugin, node, "interrupted")
    assert "the worker has ended" in node["status"].value() and not node.hasError()
    node["reattach"].execute()
    assert _made(session, plugin, node)["job"] == take["job"]
    node["reattach"].execute()
    assert "nothing is to be taken up" in session.messages.pop()


@pytest.mark.parametrize("way", ["bar", "button"])
def test_cancel_in_the_middle(session: Any, plugin: ModuleType, node: Any, way: str) -> None:
    """By the progress bar or the button: the node says so, keeps no half plate, and goes on when asked."""
    node["steps"].setValue(500)
    node["generate"].execute()
    controller = plugin.session.session().controller
    session.threads.pump_until(lambda: any(job.step > 2 for job in controller.jobs.values()), 120)
    if way == "bar":
        session.threads.pump_until(session.visible_tasks, 20)
        session.visible_tasks()[0].cancel()
    else:
        node["cancel"].execute()
    take = _made(session, plugin, node, "cancelled")
    assert not list(Path(take["delivery"]["outputs"][0]).parent.glob("*.exr"))
    session.threads.pump_until(lambda: not session.visible_tasks(), 20)
    node["cancel"].execute()
    assert "nothing is being made" in session.messages.pop()


@pytest.mark.parametrize(
    ("knob", "value", "words"),
    [
        ("seed", "abc", "seed: got 'abc'; a whole number from 0"),
        ("seed", "-1", "seed: got '-1'"),
        ("seed", str(2**63), "seed: got '9223372036854775808'"),
        ("prompt", "  ", "prompt: it is empty"),
        ("steps", -3, "steps: got -3; 0 or more is allowed"),
        ("steps", 5000, "steps: got 5000; a whole number from 1 to 1000"),
        ("last_frame", 1000, "range: got 1001-1000"),
        ("handles", -1, "handles: got -1"),
        ("handles", 2000, "range: 1001-1009 with handles of 2000 is -999-3009"),
        ("fps", "fast", "clip fps: got 'fast'"),
        ("fps", "0", "clip fps: got '0'"),
        ("plate", "plate.%04d.exr", "plate: got 'plate.%04d.exr'; a whole path"),
        ("plate", "/tmp/plate.mov", "plate: got '/tmp/plate.mov'"),
        ("keyframes", "0 first.png", "keyframes: got '0 first.png'; FRAME=IMAGE"),
        ("keyframes", "0=/none.png", "keyframe: /none.png cannot be read"),
        ("model_file", "/none.safetensors", "/none.safetensors"),
        ("size", "own", "size: got 0x0"),
        ("guidance", "1000", "guidance: got 1000"),
        ("guidance", "4,3,2", "guidance: got '4,3,2'; a number, two as in 4,3"),
        ("loras", "/none.safetensors:0.5", "lora"),
    ],
)
def test_wrong_values_are_sentences(
    install: Any, load_plugin: Load, tiny_model: Path, script: Path, knob: str, value: Any, words: str
) -> None:
    """Refused with what was got and what is allowed, in a dialogue or on the node; no file, no half node."""
    session = install(major=15)
    session.nuke.scriptSaveAs(str(script))
    plugin = load_plugin(session)
    node = _node(plugin, tiny_model)
    node[knob].setValue(value)
    node["generate"].execute()
    if not session.messages:
        session.threads.pump_until(lambda: words in node["status"].value(), 60)
    else:
        assert words in session.messages.pop()
    assert not list(script.parent.rglob("*.exr"))


@EVERYWHERE
def test_inputs_are_first_and_last_keyframe(session: Any, plugin: ModuleType, node: Any) -> None:
    """Rendered at the current frame, from the script's colours to sRGB, 16 bit; the Writes are gone, undo has one step.

    The last one stands at the last frame of the range, though the model makes more.
    """
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it

    nuke = session.nuke
    colours = [[0.18, 0.18, 0.18, 1.0], [0.5, 0.02, 0.9, 1.0]]
    for index, colour in enumerate(colours):
        source = nuke.nodes.Constant()
        source["color"].setValue(colour)
        node.setInput(index, source)
    node["last_frame"].setValue(1007)  # seven frames: the model makes nine
    undo_before = nuke.Undo.undoSize()
    node["generate"].execute()
    take = _made(session, plugin, node)
    assert nuke.Undo.undoSize() == undo_before + 1
    assert [keyframe["frame"] for keyframe in take["shot"]["keyframes"]] == [0, 6]
    assert {inner.Class() for inner in node.nodes()} == {"Input", "Read", "Output"}
    pictures = [oiio.ImageBuf(keyframe["image"]) for keyframe in take["shot"]["keyframes"]]
    grey = pictures[0].get_pixels(oiio.FLOAT)[0, 0]
    assert np.allclose(grey, 0.461, atol=0.002), "0.18 of the working space, sRGB encoded"
    assert {str(picture.spec().format) for picture in pictures} == {"uint16"}
    assert _range(plugin.readers.of(node)) == (1001, 1007) and take["shot"]["frames"] == 9
    assert len(list(Path(take["pattern"]).parent.glob("*.exr"))) == 9, "the two more lie on disk"


def test_frames_are_laid_by_the_rule_that_was_told(session: Any, plugin: ModuleType, node: Any) -> None:
    """Keep the speed: 12 frames of the script at 24 fps are 6 of the model's at 12; 9 are made, each shown twice."""
    from nuke_double.pictures import render

    node["last_frame"].setValue(1008)
    node["handles"].setValue(2)
    node["retime"].setValue("keep the speed")
    session.threads.pump_until(lambda: "memory" in node["plan"].value(), 120)
    told = node["plan"].value()
    assert "9 frames (4n+1) at 16x16, numbered from 999" in told and "they fill 999-1010; 3 more lie behind it" in told
    assert "12 fps in a scene of 24: each frame is shown 2 times" in told
    node["generate"].execute()
    take = _made(session, plugin, node)
    read = plugin.readers.of(node)
    assert _range(read) == (999, 1004) and len(list(Path(take["pattern"]).parent.glob("*.exr"))) == 9
    plate = session.nuke.nodes.Read()
    plate["file"].fromUserText(take["pattern"])
    plate["colorspace"].setValue(read["colorspace"].value())
    for frame in range(999, 1011):
        assert (render(node, frame)[..., :3] == render(plate, 999 + (frame - 999) // 2)[..., :3]).all(), frame
    node["retime"].setValue("frame for frame")
    session.threads.pump_until(lambda: "2 times as fast" in node["plan"].value(), 60)
    assert "13 frames" in node["plan"].value()


def test_a_range_that_no_clip_fills_is_told(session: Any, plugin: ModuleType, node: Any) -> None:
    node["last_frame"].setValue(2000)
    session.threads.pump_until(lambda: "memory" in node["plan"].value(), 120)
    assert "the range goes on to 2000, where the last frame is held" in node["plan"].value()
    assert "tiny makes up to 401 frames" in node["plan"].value()


def test_a_colour_that_the_script_lacks_is_refused_before_any_work(
    session: Any, plugin: ModuleType, node: Any, script: Path
) -> None:
    """And one that the node does not keep is told when the plate is there; the plate is whole then."""
    read = plugin.readers.of(node)
    session.threads.pump_until(lambda: len(node["plate_colorspace"].values()) > 3, 120)
    lacking = [
        item for item in read["colorspace"].values() if "cg" not in item.lower() and "linear" not in item.lower()
    ]
    node["plate_colorspace"].setValue("ACES2065-1")
    read["colorspace"].setValues([item for item in lacking if "2065" not in item])
    node["generate"].execute()
    session.threads.pump_until(lambda: "this script's menu has no 'ACES2065-1'" in node["status"].value(), 60)
    assert _take(plugin, node) is None and not list(script.parent.rglob("*.exr"))


@EVERYWHERE
def test_the_node_renders_where_the_plugin_is_missing(
    install: Any, session: Any, plugin: ModuleType, node: Any, script: Path, nuke_double: ModuleType
) -> None:
    """In `nuke -t` of a render machine: the script opens without a word, the picture is the same, a button explains.

    What the script holds is JSON of ours in base64, and no callback that would need the plug-in.
    """
    import sys

    from nuke_double.pictures import render

    node["generate"].execute()
    _made(session, plugin, node)
    before, name = render(node, 1003), node.name()
    session.nuke.scriptSave()
    plugin.session.end()
    for module in [module for module in sys.modules if module.partition(".")[0] == "rushes_nuke"]:
        del sys.modules[module]
    sys.path[:] = [path for path in sys.path if not path.endswith("/rushes")]
    farm = install(major=session.major, gui=False)
    farm.nuke.scriptOpen(str(script))
    assert farm.warnings == [] and farm.errors == []
    node = farm.nuke.toNode(name)
    assert (render(node, 1003) == before).all()
    node["generate"].execute()
    assert farm.messages.pop() == "Rushes is not installed here. The plate renders without it."


@pytest.mark.parametrize("major", [14, 17])
def test_terminal_mode_waits_for_the_plate(
    install: Any, load_plugin: Load, tiny_model: Path, script: Path, major: int
) -> None:
    """`nuke -t script.py`: generate returns when the plate is there, refuses by exceptions, and restores."""
    session = install(major=major, gui=False)
    session.nuke.scriptSaveAs(str(script))
    plugin = load_plugin(session)
    node = _node(plugin, tiny_model)
    seed = random.randrange(2**31)
    plugin.flow.generate(node, seed)
    take = _take(plugin, node)
    assert take["state"] == "done" and take["shot"]["seed"] == seed and not node.hasError()
    node["model_file"].setValue("/none.safetensors")
    with pytest.raises(ValueError, match=r"/none\.safetensors"):
        plugin.flow.generate(node)
    again = plugin.node.create()
    plugin.flow.restore(again, take["pattern"])
    assert again["seed"].value() == str(seed)
    with pytest.raises(ValueError, match="there is no such file"):
        plugin.flow.restore(again, str(script.parent / "none.%04d.exr"))


def test_a_wedge_is_versions_and_a_sheet(session: Any, plugin: ModuleType, node: Any) -> None:
    """Three seeds become three versions in their order, and a ContactSheet of plain Reads beside the node."""
    node["seed"].setValue("40")
    node["contact_sheet"].execute()
    assert "none of this node's versions is done" in session.messages.pop()
    keys = plugin.flow.wedge(node, 3)
    session.threads.pump_until(
        lambda: [take["state"] for take in plugin.takes.read(node).data["takes"]] == ["done"] * 3, 180
    )
    takes = plugin.takes.read(node).data["takes"]
    assert [take["key"] for take in takes] == keys and [take["shot"]["seed"] for take in takes] == [40, 41, 42]
    assert [take["pattern"][-13:-9] for take in takes] == ["v001", "v002", "v003"]
    steps = session.nuke.Undo.undoSize()
    node["contact_sheet"].execute()
    assert session.nuke.Undo.undoSize() == steps + 1
    sheets = [each for each in session.root.nodes() if each.Class() == "ContactSheet"]
    assert len(sheets) == 1 and [sheets[0].input(i)["file"].value() for i in range(3)] == [t["pattern"] for t in takes]
    assert (sheets[0]["rows"].value(), sheets[0]["columns"].value()) == (2, 2)
    assert not any(each.hasError() for each in session.root.nodes() if each.Class() == "Read")


def test_undo_makes_a_node_forget_and_reattach_finds_it_again(session: Any, plugin: ModuleType, node: Any) -> None:
    """The job goes on; redo brings the take back as it was asked for, and Re-attach brings it up to date."""
    nuke, read = session.nuke, plugin.readers.of(node)
    before = read["file"].value()
    node["generate"].execute()
    session.threads.pump_until(lambda: _take(plugin, node) is not None, 120)
    nuke.undo()
    assert _take(plugin, node) is None and read["file"].value() == before
    controller = plugin.session.session().controller
    session.threads.pump_until(lambda: all(job.state == "done" for job in controller.jobs.values()), 120)
    nuke.redo()
    assert _take(plugin, node)["state"] != "done"
    node["reattach"].execute()
    assert _made(session, plugin, node)["pattern"] == read["file"].value()


def test_review_and_publish(session: Any, plugin: ModuleType, node: Any, tmp_path: Path) -> None:
    """Unreviewed it is refused, with the reason on the node; reviewed it is published whole; Nuke is never blocked."""
    node["generate"].execute()
    _made(session, plugin, node)
    root = tmp_path / "publishes"
    node["publish_to"].setValue(str(root))
    node["publish"].execute()
    assert node["status"].value() == "publish: under way"
    session.threads.pump_until(lambda: "under way" not in node["status"].value(), 120)
    assert "review" in node["status"].value() and not list(tmp_path.glob("publishes/**/*.exr"))
    session.answers.extend(["Ada", 0])
    node["review"].execute()
    session.threads.pump_until(lambda: "under way" not in node["status"].value(), 120)
    assert "approved by Ada" in node["status"].value(), (node["status"].value(), session.messages)
    node["publish"].execute()
    session.threads.pump_until(lambda: "under way" not in node["status"].value(), 180)
    assert len(list(root.rglob("*.exr"))) == 9, node["status"].value()
    assert list(root.rglob("publish.json"))


def test_alt_down_on_the_read_finds_the_one_before(
    session: Any, plugin: ModuleType, node: Any, nuke_double: ModuleType
) -> None:
    """Nuke's own version walk on the Read inside finds what Generate has written, and nothing is overwritten."""
    for _ in range(2):
        node["generate"].execute()
        session.threads.pump_until(
            lambda: [take["state"] for take in plugin.takes.read(node).data["takes"]][-1:] == ["done"], 120
        )
    read = plugin.readers.of(node)
    assert "_v002." in read["file"].value()
    for other in node.nodes():
        other.setSelected(other is read)
    import nukescripts  # type: ignore[import-not-found]

    with node:
        nukescripts.version_down()
    session.nuke.frame(1001)
    assert "_v001." in read["file"].value() and not node.hasError()


def test_the_quote_is_a_sentence_for_what_is_refused(session: Any, plugin: ModuleType, node: Any) -> None:
    node["seed"].setValue("1e3")
    session.threads.pump_until(lambda: "seed: got '1e3'" in node["plan"].value(), 120)
    node["seed"].setValue("3")
    node["keyframes"].setValue("400=/none.png")
    session.threads.pump_until(lambda: "keyframe: got frame 400" in node["plan"].value(), 120)
    node["keyframes"].setValue("")
    node["prompt"].setValue("<b>bold</b>")
    session.threads.pump_until(lambda: "of memory" in node["plan"].value(), 120)


def test_a_missing_worker_and_broken_settings_are_told(
    session: Any, plugin: ModuleType, node: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RUSHES_WORKER", "/none/rushes")
    node["generate"].execute()
    assert "worker: RUSHES_WORKER names '/none/rushes'" in session.messages.pop()
    settings = tmp_path / "home" / ".nuke" / "rushes" / "settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("[")
    node["generate"].execute()
    assert "settings:" in session.messages.pop()
    settings.write_text('{"worker": "/other/rushes", "paths": [["/a", "/b"]]}')
    node["generate"].execute()
    assert "worker: the preference names '/other/rushes'" in session.messages.pop()
    assert _take(plugin, node) is None


def test_menus_come_from_the_worker(session: Any, plugin: ModuleType, node: Any) -> None:
    """No model, limit, space, depth or compression stands in the plug-in; what was chosen stays chosen."""
    assert [node[name].values() for name in ("model", "depth", "compression")] == [["default"]] * 3
    session.threads.pump_until(lambda: len(node["model"].values()) > 1, 120)
    assert "starter" in node["model"].values() and "float" in node["depth"].values()
    assert "ACES2065-1" in node["plate_colorspace"].values() and "dwaa" in node["compression"].values()
    assert any("ACES 1.0 - SDR Video" in item for item in node["look"].values())
    node["depth"].setValue("float")
    other = plugin.node.create()
    assert other["model"].values() == node["model"].values()
    plugin.session.session().fill(node)
    assert node["depth"].value() == "float"


@pytest.mark.parametrize("seed", range(3))
def test_any_prompt_survives_the_file(session: Any, plugin: ModuleType, node: Any, script: Path, seed: int) -> None:
    """Saved, opened, pasted: the letters that TCL reads stay letters, and nothing is evaluated."""
    dice = random.Random(seed)
    text = "".join(dice.choice("ab [](){}$\"'\\\n;#%é日") for _ in range(60))
    node["prompt"].setValue(text)
    node["negative"].setValue("[exit] $env(HOME)")
    session.nuke.scriptSave()
    session.nuke.scriptOpen(str(script))
    again = session.nuke.toNode(node._name)
    assert again["prompt"].getText() == text and again["negative"].getText() == "[exit] $env(HOME)"
    assert plugin.knobs.wish(again, "starter")["prompt"] == text and session.tcl_errors == []
