# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The double on real files: Reads, renders, scripts, the project's settings."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def _picture(session: Any, node: Any, frame: int) -> Any:
    from nuke_double.pictures import render  # type: ignore[import-not-found]

    return render(node, frame)


def _range(node: Any) -> tuple[int, int]:
    return node["first"].value(), node["last"].value()


# --- 5. Read


def test_from_user_text_looks_at_the_disk_and_set_value_does_not(nuke: Any, write_frames: Any) -> None:
    pattern = write_frames(range(1001, 1012), size=(50, 31))
    stuck = nuke.nodes.Read()
    stuck["file"].setValue(str(pattern))
    assert _range(stuck) == (1, 1) and stuck["format"].value() is None
    read = nuke.nodes.Read()
    read["file"].fromUserText(str(pattern))
    assert _range(read) == (1001, 1011)
    assert (read["format"].value().width(), read["format"].value().height()) == (50, 31)
    assert (read.width(), read.height()) == (50, 31)
    hashed = nuke.nodes.Read()
    hashed["file"].fromUserText(str(pattern).replace("%04d", "####") + " 1003-1005")
    assert _range(hashed) == (1003, 1005) and hashed["file"].value() == str(pattern)
    assert hashed["file"].evaluate(1003).endswith("plate.1003.exr")


def test_a_read_of_nothing_stays_as_it_is_and_is_in_error(nuke: Any, tmp_path: Path) -> None:
    read = nuke.nodes.Read()
    read["file"].fromUserText(str(tmp_path / "none.%04d.exr"))
    assert _range(read) == (1, 1) and read.hasError()
    read["file"].fromUserText(str(tmp_path / "none.%04d.exr 5-9"))
    assert _range(read) == (5, 9)


def test_the_first_read_sets_an_unlocked_range(nuke: Any, write_frames: Any) -> None:
    pattern = str(write_frames(range(20, 24)))
    nuke.nodes.Read()["file"].fromUserText(pattern)
    assert (nuke.root().firstFrame(), nuke.root().lastFrame()) == (20, 23)
    nuke.root()["first_frame"].setValue(1)
    nuke.nodes.Read()["file"].fromUserText(pattern)
    assert nuke.root().firstFrame() == 1


def test_a_locked_range_stays(nuke: Any, write_frames: Any) -> None:
    nuke.root()["lock_range"].setValue(True)
    nuke.nodes.Read()["file"].fromUserText(str(write_frames(range(20, 24))))
    assert (nuke.root().firstFrame(), nuke.root().lastFrame()) == (1, 100)


def test_new_pixels_are_seen_after_reload(session: Any, nuke: Any, write_frames: Any) -> None:
    pattern = write_frames([7])
    read = nuke.nodes.Read()
    read["file"].fromUserText(f"{pattern} 7-9")
    before = _picture(session, read, 7)
    assert before[0, 0, 0] == np.float16(7 / 2048) and not before[..., 3].any()
    (pattern.parent / "other").mkdir()
    write_frames([900], name="other/plate.%04d.exr")
    (pattern.parent / "other" / "plate.0900.exr").replace(pattern.parent / "plate.0007.exr")
    assert np.array_equal(_picture(session, read, 7), before)
    version = read["version"].value()
    read["reload"].execute()
    assert read["version"].value() == version + 1
    assert _picture(session, read, 7)[0, 0, 0] == np.float16(900 / 2048)


def test_gaps_are_shown_as_on_error_says(session: Any, nuke: Any, write_frames: Any) -> None:
    pattern = write_frames([1, 2, 5])
    cut = pattern.parent / "plate.0002.exr"
    cut.write_bytes(cut.read_bytes()[:-40])  # opens, and has pixels missing
    read = nuke.nodes.Read()
    read["file"].fromUserText(str(pattern))
    for frame in (2, 3):
        with pytest.raises(RuntimeError, match=f"plate.000{frame}.exr"):
            _picture(session, read, frame)
    read["on_error"].setValue("nearest frame")
    assert _picture(session, read, 4)[0, 0, 0] == np.float16(5 / 2048)
    assert _picture(session, read, 2)[0, 0, 0] == np.float16(1 / 2048)
    read["on_error"].setValue("black")
    assert not _picture(session, read, 3).any()
    read["on_error"].setValue("checkerboard")
    assert len(np.unique(_picture(session, read, 3))) == 2


def test_before_and_after_the_range(session: Any, nuke: Any, write_frames: Any) -> None:
    read = nuke.nodes.Read()
    read["file"].fromUserText(str(write_frames(range(10, 14))))
    read["auto_alpha"].setValue(True)
    for how, expected in {"hold": (10, 13), "loop": (13, 11), "bounce": (11, 11), "black": (0, 0)}.items():
        read["before"].setValue(how), read["after"].setValue(how)
        shown = tuple(_picture(session, read, frame)[0, 0, 0] for frame in (9, 15))
        assert shown == tuple(np.float16(number / 2048) for number in expected), how
    assert _picture(session, read, 12)[0, 0, 3] == 1
    read["frame_mode"].setValue("start at"), read["frame"].setValue("1001")
    assert _picture(session, read, 1002)[0, 0, 0] == np.float16(11 / 2048)
    read["frame_mode"].setValue("expression")
    for text, frame, expected in (("frame+9", 3, 12), ("10+floor((frame-1001)*3/2)", 1003, 13), ("frame*2", 6, 12)):
        read["frame"].setValue(text)
        assert _picture(session, read, frame)[0, 0, 0] == np.float16(expected / 2048), text
    read["frame"].setValue("open('x')")
    with pytest.raises(RuntimeError, match="cannot be evaluated"):
        _picture(session, read, 12)


def test_metadata_comes_from_the_file(nuke: Any, write_frames: Any) -> None:
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it

    told = {
        "ImageDescription": "what it is", "rushes:shot": "{}", "t2v/seed": 7,
        "framesPerSecond": (oiio.TypeDesc("rational"), [24000, 1001]),
    }  # fmt: skip
    pattern = write_frames(range(1001, 1003), attributes=told)
    group = nuke.nodes.Group()
    with group:
        read = nuke.nodes.Read()
        read["file"].fromUserText(str(pattern))
        nuke.nodes.Output(inputs=[nuke.nodes.Dot(inputs=[read])])
    found = group.metadata(time=1002)
    assert (found["exr/comments"], found["exr/rushes:shot"], found["exr/t2v/seed"]) == ("what it is", "{}", 7)
    assert found["input/filename"].endswith("plate.1002.exr") and found["input/frame"] == 1002
    assert group.metadata("exr/comments", 1001) == "what it is" and group.metadata("exr/none") is None


def test_versions_walk_by_the_v_in_the_name(nuke: Any) -> None:
    """Alt+Up and Alt+Down: text only."""
    import nukescripts  # type: ignore[import-not-found]

    read, other = nuke.nodes.Read(), nuke.nodes.Read()
    read["file"].setValue("/shots/sv010/v002/sh010_v002.%04d.exr"), other["file"].setValue("/a_v002.exr")
    read.selectOnly()
    nukescripts.version_up()
    assert read["file"].value() == "/shots/sv010/v003/sh010_v003.%04d.exr" and _range(read) == (1, 1)
    for _ in range(4):
        nukescripts.version_down()
    assert read["file"].value().endswith("/v001/sh010_v001.%04d.exr") and other["file"].value() == "/a_v002.exr"


def test_a_colour_space_knob_may_keep_what_it_had(session: Any, nuke: Any) -> None:
    """As with some configurations: only reading it back tells."""
    knob = nuke.nodes.Read()["colorspace"]
    session.deaf_to.add("ACEScg")
    knob.setValue("ACEScg")
    assert knob.value() == "default"
    with pytest.raises(TypeError):
        knob.setValue("ACES - ACEScg")
    session.deaf_to.clear()
    knob.setValue("ACEScg")
    assert knob.value() == "ACEScg"


# --- Write: what a keyframe is rendered with


def test_a_write_renders_its_input_in_the_colour_it_says(session: Any, nuke: Any, tmp_path: Path) -> None:
    """0.18 in the working space is 0.4614 in the sRGB curve."""
    nuke.addFormat("40 24 small")
    grey = nuke.nodes.Constant(format="small")
    grey["format"].setValue("small"), grey["color"].setValue([0.18, 0.18, 0.18, 1.0])
    write = nuke.nodes.Write(inputs=[grey], file=str(tmp_path / "key" / "key.%04d.png"))
    assert write["file_type"].value() == " " and write.knob("datatype") is None, "setValue looks at nothing"
    write["file"].fromUserText(str(tmp_path / "key" / "key.%04d.png"))
    assert write["file_type"].value() == "png" and write["datatype"].values() == ["8 bit", "16 bit"]
    with pytest.raises(RuntimeError, match="no folder"):
        nuke.execute(write, 5, 5)
    write["create_directories"].setValue(True)
    nuke.execute(write, 5, 6)
    assert session.executed == [(write.name(), 5), (write.name(), 6)]
    from nuke_double.files import read

    png = read(str(tmp_path / "key" / "key.0005.png"))
    assert png.shape == (24, 40, 4) and abs(float(png[3, 3, 0]) - 0.4614) < 1 / 255
    write["datatype"].setValue("16 bit")
    nuke.execute(write, 7, 7)
    assert abs(float(read(str(tmp_path / "key" / "key.0007.png"))[3, 3, 0]) - 0.4614) < 2e-4
    write["file"].fromUserText(str(tmp_path / "key.exr"))
    with pytest.raises(TypeError):
        write["datatype"].setValue("16 bit")
    nuke.undo()
    assert write["datatype"].values() == ["8 bit", "16 bit"]
    nuke.redo()
    nuke.execute(write.name(), 5, 5)
    assert read(str(tmp_path / "key.exr"))[0, 0, 0] == np.float16(0.18)
    write.setInput(0, None)
    with pytest.raises(RuntimeError, match="no input"):
        nuke.execute(write, 5, 5)


@pytest.mark.parametrize("major", [13, 17])
def test_nukes_own_colour_management_is_curves(install: Any, tmp_path: Path, major: int) -> None:
    session = install(major=major, config="nuke")
    nuke = session.nuke
    assert nuke.root()["colorManagement"].value() == "Nuke" and nuke.root()["workingSpaceLUT"].value() == "linear"
    nuke.addFormat("16 16 tiny")
    source = nuke.nodes.Constant(format="tiny", color="0.18 0.0 1.0 1.0")
    write = nuke.nodes.Write(inputs=[source], file=str(tmp_path / "c.tif"), file_type="tiff")
    write["datatype"].setValue("32 bit float")
    read = nuke.nodes.Read()
    for space, seen in (("sRGB", 0.46135), ("rec709", 0.40901), ("linear", 0.18)):
        write["colorspace"].setValue(space)
        nuke.execute(write, 1, 1)
        read["file"].fromUserText(str(tmp_path / "c.tif"))
        read["colorspace"].setValue(space), read["raw"].setValue(True)
        assert np.allclose(_picture(session, read, 1)[3, 3], [seen, 0, 1, 0], atol=1e-4)
        read["raw"].setValue(False), read["reload"].execute()
        assert np.allclose(_picture(session, read, 1)[3, 3], [0.18, 0, 1, 0], atol=1e-5)
    write["colorspace"].setValue("Cineon")
    with pytest.raises(RuntimeError, match="no such curve"):
        nuke.execute(write, 1, 1)


def test_exr_metadata_passes_a_write_only_where_asked(nuke: Any, write_frames: Any, tmp_path: Path) -> None:
    read = nuke.nodes.Read()
    read["file"].fromUserText(str(write_frames([3], attributes={"t2v/prompt": "a ball"})))
    write = nuke.nodes.Write(inputs=[read], file=str(tmp_path / "out.%04d.exr"), file_type="exr")
    again = nuke.nodes.Read()
    for how, expected in (("default metadata", None), ("default metadata and exr/*", "a ball")):
        write["metadata"].setValue(how)
        nuke.execute(write, 3, 3)
        again["file"].fromUserText(str(tmp_path / "out.%04d.exr"))
        assert again.metadata("exr/t2v/prompt", 3) == expected


def test_a_contact_sheet_has_a_cell_for_each_input(session: Any, nuke: Any, write_frames: Any) -> None:
    reads = []
    for number in (5, 9, 14):
        reads.append(nuke.nodes.Read())
        reads[-1]["file"].fromUserText(str(write_frames([number], size=(30, 20), name=f"{number}.%04d.exr")))
    sheet = nuke.nodes.ContactSheet(inputs=reads, width=80, height=58, rows=2, columns=2, gap=6, roworder="TopBottom")
    picture = _picture(session, sheet, 1)
    assert picture.shape == (58, 80, 4)
    cells = [picture[top, left, 0] for top, left in ((8, 8), (8, 45), (34, 8), (34, 45))]
    assert cells == [np.float16(number / 2048) for number in (5, 9, 14)] + [0]
    assert not picture[2].any() and not picture[:, 2].any()


# --- 9 and 10. scripts

_NASTY = ('a [red] "ball" for $5', "{", "}", "\\", "\\[", "[value label]", "# no comment", "two\nlines\tand a tab", " ",
          "tail \\", '"', "$", "$env(HOME)", "[exec rm]", "日本 ä", "{a} [b] $c; d", "1.5", "-", "a;b")  # fmt: skip


def _rushes_group(nuke: Any) -> Any:
    group = nuke.nodes.Group(name="Rushes1")
    group.addKnob(nuke.Tab_Knob("rushes", "Rushes"))
    group.addKnob(nuke.Multiline_Eval_String_Knob("prompt", "Prompt"))
    seed = nuke.Int_Knob("seed", "Seed")
    seed.setTooltip('the [seed], "fixed"')
    group.addKnob(seed)
    group.addKnob(nuke.Enumeration_Knob("size", "Size", ["128x80", "big\tThe big one"]))
    group.addKnob(nuke.PyScript_Knob("go", "Generate", "import rushes_nuke\nrushes_nuke.go(nuke.thisNode())"))
    group.addKnob(nuke.String_Knob("secret", "Secret"))
    group.addKnob(nuke.Boolean_Knob("on", "On", True))
    group["secret"].setFlag(nuke.DO_NOT_WRITE)
    group["on"].setFlag(nuke.INVISIBLE | nuke.STARTLINE)
    with group:
        read = nuke.nodes.Read(name="Plate")
        nuke.nodes.Output(inputs=[read])
    return group


@pytest.mark.parametrize("text", _NASTY)
def test_text_survives_a_script(install: Any, tmp_path: Path, text: str) -> None:
    session = install(major=random.Random(text).choice([13, 17]))
    nuke = session.nuke
    group = _rushes_group(nuke)
    group["prompt"].setValue(text), group["label"].setValue(text)
    nuke.scriptSaveAs(str(tmp_path / "shot.nk"))
    nuke.scriptOpen(str(tmp_path / "shot.nk"))
    again = nuke.toNode("Rushes1")
    assert again is not group
    assert again["prompt"].getText() == text and again["label"].getText() == text
    assert session.warnings == []


def test_tcl_eats_a_prompt_that_is_read_with_value(session: Any, nuke: Any) -> None:
    group = _rushes_group(nuke)
    prompt = group["prompt"]
    prompt.setValue("a [red] ball")
    assert prompt.value() != prompt.getText() == "a [red] ball" and session.tcl_errors
    group["seed"].setValue(7)
    prompt.setValue("seed [value seed], frame [frame], [file tail /a/b.exr], \\[kept\\]")
    assert prompt.value() == "seed 7, frame 1, b.exr, [kept]"
    plain = nuke.String_Knob("plain")
    group.addKnob(plain)
    plain.setValue("a [red] ball")
    assert plain.value() == "a [red] ball"


def test_a_script_holds_knobs_connections_groups_and_root(
    session: Any, nuke: Any, write_frames: Any, tmp_path: Path
) -> None:
    pattern = write_frames(range(4, 9))
    board, dot = nuke.nodes.CheckerBoard2(), nuke.nodes.Dot()
    dot.setInput(0, board)
    group = _rushes_group(nuke)
    group["seed"].setValue(7), group["size"].setValue("big"), group["secret"].setValue("x")
    group["on"].setValue(False)
    with group:
        nuke.toNode("Plate")["file"].fromUserText(str(pattern))
        nuke.nodes.Input(name="first"), nuke.nodes.Input(name="last", number=1)
        nuke.toNode("Plate")["before"].setExpression("parent.size")
    group.setInput(1, dot)
    switch = nuke.nodes.Switch(inputs=[dot, group], which=1)
    group.setSelected(True)
    nuke.root()["fps"].setValue(23.976), nuke.root()["last_frame"].setValue(77)
    path = str(tmp_path / "shot.nk")
    nuke.scriptSaveAs(path)
    with pytest.raises(RuntimeError, match="exists"):
        nuke.scriptSaveAs(path)
    text = Path(path).read_text()
    assert (
        text.index("name Rushes1")
        < text.index("addUserKnob {3 seed")
        < text.index("\n seed 7")
        < text.index("end_group")
    )
    loads: list[str] = []
    nuke.addOnScriptLoad(lambda: loads.append(nuke.thisNode().name()))
    nuke.scriptOpen(path)
    assert loads == [path] and nuke.scriptName() == path and not nuke.modified() and nuke.Undo().undoSize() == 0
    group, switch = nuke.toNode("Rushes1"), nuke.toNode(switch_name := "Switch1")
    assert switch.name() == switch_name
    assert switch.input(0) is nuke.toNode("Dot1") and switch.input(1) is group
    assert group.input(0) is None and group.input(1) is nuke.toNode("Dot1") and group.isSelected()
    assert nuke.toNode("Dot1").input(0) is nuke.toNode("CheckerBoard1") or nuke.toNode("Dot1").input(0) is not None
    assert (group["seed"].value(), group["size"].value(), group["secret"].value()) == (7, "big", "")
    assert group["on"].value() is False and not group["on"].visible() and group["on"].getFlag(nuke.STARTLINE)
    assert group["seed"].tooltip() == 'the [seed], "fixed"' and group["go"].command().startswith("import rushes_nuke\n")
    plate = nuke.toNode("Rushes1.Plate")
    assert _range(plate) == (4, 8) and plate["file"].value() == str(pattern) and plate["before"].value() == "loop"
    assert group.output().input(0) is plate
    assert nuke.root().lastFrame() == 77 and nuke.root().realFps() == 23.976 and nuke.root().fps() == 23
    nuke.scriptSaveAs(path, overwrite=1)
    addresses = re.compile(r"\bN[0-9a-f]+\b")
    assert addresses.sub("N", Path(path).read_text()) == addresses.sub("N", text)


def test_a_script_loads_and_renders_without_the_plug_in(
    session: Any, nuke: Any, write_frames: Any, tmp_path: Path
) -> None:
    """Only the button fails, when it is pressed."""
    group = _rushes_group(nuke)
    group.node("Plate")["file"].fromUserText(str(write_frames([7])))
    nuke.scriptSaveAs(str(tmp_path / "shot.nk"))
    nuke.scriptOpen(str(tmp_path / "shot.nk"))
    group = nuke.toNode("Rushes1")
    assert session.warnings == [] and not group.hasError()
    assert _picture(session, group, 7)[0, 0, 0] == np.float16(7 / 2048)
    with pytest.raises(ModuleNotFoundError):
        group["go"].execute()
    with pytest.raises(RuntimeError, match="Unknown command"):
        nuke.scriptReadText("RushesNode {\n name R\n}\n")
    nuke.scriptReadText("NoOp {\n inputs 0\n name N\n rushes_knob 7\n}\n")
    assert session.warnings == ["N: no such knob: rushes_knob"]


def test_copies_get_names_of_their_own(nuke: Any) -> None:
    group = _rushes_group(nuke)
    group["prompt"].setValue("a [red] ball"), group.selectOnly()
    nuke.nodeCopy("%clipboard%")
    copy = nuke.nodePaste("%clipboard%")
    assert copy.name() == "Rushes2" and copy["prompt"].getText() == "a [red] ball"
    assert nuke.toNode("Rushes2.Plate") is not nuke.toNode("Rushes1.Plate") is not None
    assert nuke.selectedNodes() == [copy]


# --- 11. the root


def test_root_formats_and_views(session: Any, nuke: Any) -> None:
    root = nuke.root()
    assert root.name() == "Root" and (root.firstFrame(), root.lastFrame(), root.realFps()) == (1, 100, 24.0)
    with pytest.raises(RuntimeError):
        nuke.scriptName()
    made = nuke.addFormat("832 480 1.0 rushes_832x480")
    assert (made.width(), made.height(), made.pixelAspect(), made.name()) == (832, 480, 1.0, "rushes_832x480")
    root["format"].setValue("rushes_832x480")
    assert root.format() is made
    with pytest.raises(TypeError):
        root["format"].setValue("no such format")
    assert "2K_Super_35(full-ap)" in [known.name() for known in nuke.formats()]
    assert str(nuke.addFormat("2048 1080 0 10 2048 1070 2K_wide")) == "2048 1080 0 10 2048 1070 1 2K_wide"
    with pytest.raises(RuntimeError):
        nuke.addFormat("wide high")
    assert nuke.views() == ["main"]
    nuke.frame(12)
    assert nuke.frame() == 12 == root["frame"].value()
    assert root["colorManagement"].value() == "OCIO" and root["workingSpaceLUT"].value().startswith("scene_linear")
    assert root["lock_range"].value() is False
