# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The double behaves as Nuke is documented to, and as public integrations have met it: threads, nodes, knobs, undo."""

from __future__ import annotations

import functools
import gc
import importlib
import random
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Elsewhere = Any


def _elsewhere(call: Any, seconds: float = 10) -> list[Any]:
    """Run it on another thread: [result], or [exception]."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="reader")
    thread.start()
    thread.join(seconds)
    return outcome


# --- 1. the queue of the main thread


def test_a_posted_call_waits_for_the_pump(session: Any, nuke: Any) -> None:
    """Also on the main thread, and an argument that is no tuple is one argument."""
    seen: list[Any] = []
    nuke.executeInMainThread(seen.append, "one")
    assert _elsewhere(lambda: nuke.executeInMainThread(seen.append, args=("two",))) == [None]
    nuke.executeInMainThread(lambda **given: seen.append(given), kwargs={"three": 3})
    assert seen == []
    assert session.pump(1) == 1 and seen == ["one"]
    assert session.pump() == 2 and seen == ["one", "two", {"three": 3}]
    assert session.pump() == 0


def test_a_call_posted_by_a_posted_call_waits_for_the_next_pump(session: Any, nuke: Any) -> None:
    seen: list[int] = []

    def again() -> None:
        seen.append(len(seen))
        nuke.executeInMainThread(again)

    nuke.executeInMainThread(again)
    assert session.pump() == 1 and seen == [0]
    assert session.pump() == 1 and seen == [0, 1]


def test_with_result_waits_and_gives_none_for_an_exception(session: Any, nuke: Any) -> None:
    results: list[Any] = []

    def ask() -> None:
        results.append(nuke.executeInMainThreadWithResult(lambda a, b: a + b, (2, 3)))
        results.append(nuke.executeInMainThreadWithResult(lambda: 1 / 0))

    thread = threading.Thread(target=ask)
    thread.start()
    session.threads.pump_until(lambda: not thread.is_alive())
    thread.join()
    assert results == [5, None]
    assert [type(error) for error in session.errors] == [ZeroDivisionError]
    session.errors.clear()


def test_with_result_on_the_main_thread_is_refused(session: Any, nuke: Any, nuke_double: ModuleType) -> None:
    """The original hangs for ever."""
    with pytest.raises(nuke_double.ThreadViolation, match="hangs"):
        nuke.executeInMainThreadWithResult(lambda: 1)
    assert len(session.violations) == 1
    session.violations.clear()


def test_a_dialogue_in_a_posted_call_is_refused(session: Any, nuke: Any) -> None:
    nuke.message("before")
    nuke.executeInMainThread(nuke.message, "inside")
    session.pump()
    assert session.messages == ["before"]
    assert "dialogue" in session.violations[0]
    session.violations.clear(), session.errors.clear()


def test_nuke_t_has_no_queue_that_runs(install: Any) -> None:
    session = install(major=15, gui=False)
    nuke = session.nuke
    assert nuke.GUI is False and nuke.env["gui"] is False
    nuke.executeInMainThread(nuke.nodes.Dot)
    with pytest.raises(RuntimeError, match="nuke -t"):
        session.pump()
    for refused in (lambda: nuke.menu("Nodes"), lambda: nuke.ask("sure?")):
        with pytest.raises(RuntimeError, match="nuke -t"):
            refused()
    nuke.message("printed")  # goes to the terminal


# --- 2. the guard


@pytest.mark.parametrize(
    "use",
    [
        lambda nuke, node: nuke.createNode("Dot"), lambda nuke, node: nuke.nodes.Dot(),
        lambda nuke, node: nuke.delete(node), lambda nuke, node: node["label"].setValue("x"),
        lambda nuke, node: node.addKnob(nuke.Int_Knob("n")), lambda nuke, node: node.setInput(0, None),
        lambda nuke, node: nuke.message("x"), lambda nuke, node: node["file"].fromUserText("x.exr"),
        lambda nuke, node: node["reload"].execute(), lambda nuke, node: node["label"].value(),
        lambda nuke, node: nuke.root(), lambda nuke, node: nuke.toNode("Read1"),
        lambda nuke, node: nuke.menu("Nodes"), lambda nuke, node: nuke.Undo().begin(),
        lambda nuke, node: nuke.addOnCreate(print), lambda nuke, node: nuke.execute(node, 1, 1),
    ],
)  # fmt: skip
def test_only_the_main_thread_may_touch_nuke(install: Any, nuke_double: ModuleType, use: Any) -> None:
    session = install()
    nuke = session.nuke
    node = nuke.nodes.Read()
    (error,) = _elsewhere(lambda: use(nuke, node))
    assert isinstance(error, nuke_double.ThreadViolation)
    assert len(session.violations) == 1 and "thread reader" in session.violations[0]
    assert [each.name() for each in nuke.allNodes()] == ["Read1"] and node["label"].value() == ""
    session.violations.clear()


# --- 3. nodes, names, groups, connections


def test_a_missing_knob_is_a_name_error_or_none(nuke: Any) -> None:
    node = nuke.nodes.NoOp()
    with pytest.raises(NameError, match="colour"):
        node["colour"]
    assert node.knob("colour") is None


def test_names_give_way(nuke: Any) -> None:
    first, second = nuke.nodes.Group(name="Rushes1"), nuke.nodes.Group(name="Rushes1")
    assert (first.name(), second.name()) == ("Rushes1", "Rushes2")
    second.setName("Rushes1")
    assert second.name() == "Rushes2"
    with pytest.raises(ValueError, match="taken"):
        second.setName("Rushes1", uncollide=False)
    for bad in ("two words", "", "a.b", "1st"):
        with pytest.raises(ValueError):
            first.setName(bad)
    first["name"].setValue("Other")
    assert nuke.toNode("Other").name() == "Other" and nuke.toNode("Rushes1") is None


def test_groups_are_contexts(nuke: Any) -> None:
    """The same name in two groups is two nodes; toNode looks in the context, or from the root when told."""
    outer = nuke.nodes.Group(name="Outer")
    with outer:
        inner = nuke.nodes.Group(name="Inner")
        read = nuke.nodes.Read(name="R")
        with inner:
            assert nuke.thisGroup() is inner
            deep = nuke.nodes.Read(name="R")
            assert nuke.toNode("R") is deep
        assert nuke.toNode("R") is read and nuke.toNode("Outer") is None and nuke.toNode("root.Outer") is outer
        with nuke.root():
            assert nuke.toNode("R") is None
    assert nuke.toNode("R") is None
    assert nuke.toNode("Outer.Inner.R") is nuke.toNode("root.Outer.Inner.R") is deep
    assert deep.fullName() == "Outer.Inner.R" and outer.node("Inner.R") is deep
    assert [node.name() for node in nuke.allNodes()] == ["Outer"]
    assert {node.fullName() for node in nuke.allNodes("Read", recurseGroups=True)} == {"Outer.R", "Outer.Inner.R"}
    with pytest.raises(ZeroDivisionError), outer:
        raise ZeroDivisionError
    assert nuke.thisGroup() is nuke.root()


def test_selection_and_create_node(session: Any, nuke: Any) -> None:
    """createNode splices into the selection and opens a panel; nuke.nodes does neither."""
    with pytest.raises(ValueError, match="no node selected"):
        nuke.selectedNode()
    a = nuke.createNode("CheckerBoard2")
    b = nuke.createNode("Dot")
    assert b.input(0) is a and nuke.selectedNode() is b and b.shown()
    a.selectOnly()
    c = nuke.createNode("NoOp", "label {between them}", inpanel=False)
    assert (b.input(0), c.input(0)) == (c, a) and not c.shown()
    assert c["label"].value() == "between them"
    d = nuke.nodes.Dot()
    assert d.input(0) is None and nuke.selectedNodes() == [c]
    with pytest.raises(RuntimeError, match="Unknown command"):
        nuke.createNode("RushesGenerate")


def test_a_deleted_node_is_let_go_and_refuses(nuke: Any) -> None:
    a = nuke.nodes.Dot()
    b = nuke.nodes.Dot(inputs=[a])
    nuke.delete(a)
    assert b.input(0) is None and nuke.toNode("Dot1") is None
    for use in (a.name, lambda: a["label"], lambda: nuke.delete(a)):
        with pytest.raises(ValueError, match="not attached"):
            use()


def test_connections_that_cannot_be(nuke: Any) -> None:
    a, b, group = nuke.nodes.Dot(), nuke.nodes.Dot(), nuke.nodes.Group()
    assert b.setInput(0, a) and not a.setInput(0, b), "a loop"
    assert not b.setInput(1, a) and not group.setInput(0, a), "more inputs than there are"
    with group:
        nuke.nodes.Input()
        assert not nuke.nodes.Dot().setInput(0, a), "from outside of the group"
    assert group.maxInputs() == 1 and group.setInput(0, a)
    assert a.dependent() == [b, group] or set(a.dependent()) == {b, group}


# --- 4. knobs


def test_an_enumeration_takes_what_is_in_its_menu(nuke: Any) -> None:
    node = nuke.nodes.NoOp()
    knob = nuke.Enumeration_Knob("mode", "Mode", ["draft", "final\tFinal quality", "a<b>"])
    node.addKnob(knob)
    assert (knob.value(), knob.getValue(), knob.values()) == ("draft", 0.0, ["draft", "final\tFinal quality", ""])
    for given in ("final", "final\tFinal quality", 1, 1.0):
        knob.setValue(0)
        knob.setValue(given)
        assert knob.value() == "final"
    for bad in ("best", 3, -1, None, "Final quality"):
        with pytest.raises(TypeError):
            knob.setValue(bad)
    knob.setValues(["x", "final", "y"])
    assert knob.value() == "final"
    knob.setValues(["x", "y"])
    assert knob.value() == "x"
    with pytest.raises(TypeError):
        knob.setValues("xy")


def test_values_are_coerced_or_refused(nuke: Any) -> None:
    node = nuke.nodes.NoOp()
    number = random.Random(5).uniform(2, 90)
    for knob in (nuke.Int_Knob("i"), nuke.Double_Knob("d"), nuke.Boolean_Knob("b", "B", True), nuke.String_Knob("s")):
        node.addKnob(knob)
    node["i"].setValue(number), node["d"].setValue(number), node["b"].setValue(0)
    assert (node["i"].value(), node["d"].value()) == (int(number), number)
    assert node["b"].value() is False and node["b"].getValue() == 0.0
    for name, bad in (("i", "7"), ("d", None), ("b", "on"), ("s", 7), ("s", None)):
        with pytest.raises(TypeError):
            node[name].setValue(bad)
    with pytest.raises(RuntimeError, match="already"):
        node.addKnob(nuke.Int_Knob("i"))
    with pytest.raises(TypeError):
        nuke.String_Knob(7)


# --- 6. callbacks


def test_callbacks_run_class_first_once_each_and_in_context(session: Any, nuke: Any) -> None:
    seen: list[Any] = []
    nuke.addOnCreate(lambda: seen.append(("all", nuke.thisNode().name())))
    nuke.addOnCreate(seen.append, args="read", nodeClass="Read")
    nuke.addOnCreate(seen.append, args=("read",), nodeClass="Read")
    nuke.nodes.Read()
    assert seen == ["read", ("all", "Read1")]
    nuke.removeOnCreate(seen.append, args="read", nodeClass="Read")
    nuke.nodes.Dot()
    assert seen[2:] == [("all", "Dot1")]
    with pytest.raises(ValueError):
        nuke.addOnCreate("not callable")


def test_knob_changed_knows_node_and_knob_and_does_not_recurse(session: Any, nuke: Any) -> None:
    seen: list[tuple[str, str]] = []

    def changed() -> None:
        knob = nuke.thisKnob()
        seen.append((nuke.thisNode().name(), knob.name()))
        nuke.thisNode()["label"].setValue(f"{len(seen)}")

    nuke.addKnobChanged(changed, nodeClass="NoOp")
    node = nuke.nodes.NoOp()
    node["cached"].setValue(True)
    node["cached"].setValue(True)  # no change
    node.showControlPanel(), node.hideControlPanel()
    node.setInput(0, nuke.nodes.Dot())
    assert seen == [("NoOp1", name) for name in ("cached", "showPanel", "hidePanel", "inputChange")]


def test_a_callback_that_raises_does_not_stop_the_next(session: Any, nuke: Any) -> None:
    seen: list[int] = []
    nuke.addOnCreate(lambda: 1 / 0)
    nuke.addOnCreate(seen.append, args=1)
    nuke.nodes.Dot()
    assert seen == [1] and [type(error) for error in session.errors] == [ZeroDivisionError]
    session.errors.clear()


def test_a_button_of_a_group_works_inside_the_group(session: Any, nuke: Any) -> None:
    group = nuke.nodes.Group(name="Rushes1")
    group.addKnob(nuke.PyScript_Knob("go", "Go", "made = (nuke.thisNode().name(), nuke.createNode('Dot').fullName())"))
    group["go"].execute()
    assert session.main_namespace["made"] == ("Rushes1", "Rushes1.Dot1")
    group["go"].setCommand("1 / 0")
    with pytest.raises(ZeroDivisionError):
        group["go"].execute()
    group["go"].setEnabled(False)
    group["go"].execute()


# --- 7. undo


def _begin(nuke: Any, name: str) -> Any:
    """The way that works in all versions."""
    undo = nuke.Undo()
    undo.begin()
    undo.name(name)
    return undo


def test_one_group_is_one_step_that_reverts_everything(session: Any, nuke: Any) -> None:
    keep = nuke.nodes.Dot()
    user = nuke.nodes.NoOp(inputs=[keep])
    steps = nuke.Undo().undoSize()
    undo = _begin(nuke, "Rushes: generate")
    made = nuke.nodes.Group(name="Rushes1")
    made.addKnob(nuke.Int_Knob("seed"))
    made["seed"].setValue(7)
    nested = _begin(nuke, "inner")
    made.setName("Renamed")
    nested.end()
    user.setInput(0, None), nuke.delete(keep)
    undo.end()
    assert nuke.Undo().undoSize() == steps + 1 and nuke.Undo().undoDescribe() in ("Rushes: generate", "inner")
    for _ in range(2):
        nuke.undo()
        assert [node.name() for node in nuke.allNodes()] == ["NoOp1", "Dot1"] and user.input(0) is keep
        nuke.redo()
        assert {node.name() for node in nuke.allNodes()} == {"NoOp1", "Renamed"} and user.input(0) is None
        assert made["seed"].value() == 7
    nuke.undo()
    keep["label"].setValue("another way")
    nuke.redo()
    assert nuke.toNode("Renamed") is None, "what was undone is gone after a change"


def test_undo_disabled_and_cancelled(session: Any, nuke: Any) -> None:
    node = nuke.nodes.NoOp()
    steps = nuke.Undo().undoSize()
    nuke.Undo().disable()
    node["label"].setValue("status")
    nuke.Undo().enable()
    assert nuke.Undo().undoSize() == steps
    undo = _begin(nuke, "x")
    node["label"].setValue("no"), nuke.nodes.Dot()
    undo.cancel()
    assert node["label"].value() == "status" and nuke.toNode("Dot1") is None and nuke.Undo().undoSize() == steps
    with nuke.Undo():
        node["label"].setValue("a"), node["cached"].setValue(True)
    assert nuke.Undo().undoSize() == steps + 1
    with pytest.raises(RuntimeError):
        nuke.Undo().end()


# --- 8. progress


def test_a_progress_bar_lives_as_long_as_it_is_held(session: Any, nuke: Any) -> None:
    task = nuke.ProgressTask("Rushes")
    assert [each.title for each in session.visible_tasks()] == ["Rushes"]
    assert _elsewhere(functools.partial(task.setProgress, 40)) == [None], "any thread may"
    task.setMessage("step 2 of 4")
    assert (task.progress, task.message, task.isCancelled()) == (40, "step 2 of 4", False)
    for bad in (40.0, "40", None):
        with pytest.raises(TypeError):
            task.setProgress(bad)
    task.cancel()
    assert task.isCancelled()
    del task
    gc.collect()
    assert session.visible_tasks() == []


# --- 12. versions


def test_the_versions_differ_where_they_do(install: Any) -> None:
    import sys

    old = install(major=13).nuke
    assert "nuke_internal" not in sys.modules and old.NUKE_VERSION_MAJOR == 13
    with pytest.raises(TypeError):
        old.ProgressTask("x", 100)
    with pytest.raises(TypeError):
        old.Undo().begin("name")
    assert "scene_linear (ACEScg)" in old.nodes.Read()["colorspace"].values()
    new = install(major=17).nuke
    assert sys.modules["nuke_internal"] is new
    assert new.ProgressTask("x", 10).maximum == 10
    new.Undo().begin("name"), new.Undo().end()
    assert "scene_linear\tscene_linear (ACEScg)" in new.nodes.Read()["colorspace"].values()


def test_a_panel_is_registered_by_the_text_of_an_expression(session: Any, nuke: Any, nuke_double: ModuleType) -> None:
    import nukescripts  # type: ignore[import-not-found]

    class Widget:
        pass

    with pytest.raises(TypeError, match="string"):
        nukescripts.panels.registerWidgetAsPanel(Widget, "Rushes", "org.rushes.Panel")
    nukescripts.panels.registerWidgetAsPanel("some.Widget", "Rushes", "org.rushes.Panel")
    with pytest.raises(NameError):
        nuke_double.open_panel("org.rushes.Panel")  # nothing of that name in __main__
    session.main_namespace["some"] = type("some", (), {"Widget": Widget})
    assert isinstance(nuke_double.open_panel("org.rushes.Panel"), Widget)
    nuke.menu("Pane").findItem("Rushes").invoke()


def test_a_version_has_its_own_binding_of_qt_only(session: Any, qt: Any) -> None:
    here, missing = ("PySide2", "PySide6") if session.major < 16 else ("PySide6", "PySide2")
    widgets, gui = importlib.import_module(f"{here}.QtWidgets"), importlib.import_module(f"{here}.QtGui")
    assert hasattr(widgets if session.major < 16 else gui, "QAction")
    assert not hasattr(gui if session.major < 16 else widgets, "QAction")
    assert widgets.QLabel("seen").grab().width() > 0
    for statement in (f"import {missing}", f"from {missing} import QtWidgets", f"import {missing}.QtCore as core"):
        with pytest.raises(ImportError):
            exec(statement, {"__name__": "plug_in"})
    exec(f"from {here} import QtCore, QtGui, QtWidgets", {"__name__": "plug_in"})


def test_plug_in_folders_run_init_at_once_and_menu_with_the_window(
    session: Any, nuke: Any, nuke_double: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "init.py").write_text("import nuke\nloaded = ['init']\n")
    (tmp_path / "menu.py").write_text(
        "nuke.menu('Nodes').addMenu('Rushes').addCommand('Go/Now', 'loaded.append(3)', 'alt+r')\n"
        "loaded.append('menu')\n"
    )
    nuke.pluginAddPath(str(tmp_path))
    assert session.main_namespace["loaded"] == ["init"] and nuke.pluginPath() == [str(tmp_path)]
    nuke_double.run_menus()
    nuke.menu("Nodes").findItem("Rushes/Go/Now").invoke()
    assert session.main_namespace["loaded"] == ["init", "menu", 3]
    with pytest.raises(RuntimeError, match="no such folder"):
        nuke.pluginAddPath(str(tmp_path / "none"))
