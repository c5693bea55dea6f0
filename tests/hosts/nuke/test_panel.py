# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The panel in a Qt without a screen, with a real worker: opened, filled in, its buttons pressed, and looked at."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

PANEL = "org.rushes.queue"
PICTURE = "RUSHES_PANEL_PICTURE"  # a file for the grabbed panel; tests/assets/nuke_panel.png was made so
WIDTH, HEIGHT = 760, 560
only_16 = pytest.mark.parametrize("session", [16], indirect=True, ids=["Nuke 16"])  # nothing in it differs by version


class Screen:
    """The panel as an artist has it: Qt's events and Nuke's main thread take turns."""

    def __init__(self, session: Any, qt: Any, plugin: ModuleType, widget: Any) -> None:
        self.session, self.qt, self.plugin, self.widget = session, qt, plugin, widget
        self.widgets = importlib.import_module(f"{'PySide2' if session.major < 16 else 'PySide6'}.QtWidgets")

    def wait(self, is_true: Callable[[], Any], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not is_true():
            self.qt.processEvents()
            self.session.pump()
            assert time.monotonic() < end, (self.text(), self.rows())
            time.sleep(0.01)
        self.widget.refresh()
        self.qt.processEvents()

    def press(self, text: str) -> None:
        (button,) = [each for each in self.widget.findChildren(self.widgets.QPushButton) if each.text() == text]
        button.click()
        self.qt.processEvents()

    def text(self) -> str:
        return str(self.widget.message.text())

    def rows(self) -> list[tuple[str, str]]:
        """(clip, state) of each row."""
        table = self.widget.table
        return [tuple(table.item(row, column).text() for column in (1, 2)) for row in range(table.rowCount())]

    def versions(self) -> list[str]:
        return [self.widget.sheet.item(row).text() for row in range(self.widget.sheet.count())]

    def jobs(self) -> list[Any]:
        return list(self.plugin.session.session().controller.jobs.values())

    def grab(self, path: Path) -> Any:
        """uint8 [height, width, 3] of what is seen, by way of a file."""
        import OpenImageIO as oiio  # noqa: N813 - the field's name for it

        assert self.widget.grab().save(str(path))
        return oiio.ImageBuf(str(path)).get_pixels(oiio.UINT8)[..., :3]


@pytest.fixture
def screen(session: Any, qt: Any, load_plugin: Any, nuke_double: ModuleType, script: Path) -> Any:
    """The panel, opened from Nuke's menu of panes."""
    session.nuke.scriptSaveAs(str(script))
    plugin = load_plugin(session)
    nuke_double.run_menus()
    assert session.nuke.menu("Pane").findItem("Rushes") is not None
    widget = nuke_double.open_panel(PANEL)
    widget.resize(WIDTH, HEIGHT)
    widget.show()
    yield Screen(session, qt, plugin, widget)
    widget.close()
    widget.deleteLater()
    qt.processEvents()


def _node(screen: Screen, model: str, **knobs: Any) -> Any:
    node = screen.plugin.node.create()
    values = {"prompt": "a red ball rolls to the right", "model_file": model, "size": "model", "range": "own range",
              "first_frame": 1001, "last_frame": 1005, "steps": 2} | knobs  # fmt: skip
    for name, value in values.items():
        node[name].setValue(value)
    return node


def _is_selected_row(screen: Screen, row: int) -> None:
    screen.widget.table.selectRow(row)
    screen.qt.processEvents()


@pytest.mark.parametrize("session", [13, 16], indirect=True, ids=["PySide2", "PySide6"])
def test_a_wedge_is_seen_as_it_is_made(screen: Screen, tiny_model: Path, tmp_path: Path) -> None:
    """Rows newest first, each with seed, state and picture; finished versions in the sheet, and in the node graph."""
    screen.press("Wedge")
    assert screen.text() == "selection: it holds no Rushes node; select one"
    node = _node(screen, str(tiny_model), seed="40")
    node.selectOnly()
    empty = screen.grab(tmp_path / "empty.png")
    screen.widget.seeds.setValue(3)
    screen.press("Wedge")
    assert screen.text() == ""
    screen.wait(lambda: len(screen.jobs()) == 3 and all(job.state == "done" for job in screen.jobs()))
    rows = screen.rows()
    assert [clip.splitlines()[1] for clip, _ in rows] == ["seed 42", "seed 41", "seed 40"]
    assert all(clip.startswith("a red ball rolls") and state.startswith("done:") for clip, state in rows)
    assert screen.versions() == ["v001 seed 40", "v002 seed 41", "v003 seed 42"]
    table = screen.widget.table
    assert not any(table.item(row, 0).icon().isNull() for row in range(3))
    assert [table.cellWidget(row, 3).value() for row in range(3)] == [100, 100, 100]
    filled = screen.grab(tmp_path / "filled.png")
    assert filled.shape == (HEIGHT, WIDTH, 3) and np.mean(np.any(filled != empty, axis=-1)) > 0.05
    screen.press("Contact Sheet")
    assert screen.text() == ""
    (sheet,) = [each for each in screen.session.root.nodes() if each.Class() == "ContactSheet"]
    assert sheet.inputs() == 3 and not sheet.hasError()


@only_16
def test_the_starters_pictures_are_in_the_panel(screen: Screen, starter: str, tmp_path: Path) -> None:
    """The thumbnail is the middle frame of the clip, as it lies on disk, and not grey."""
    import OpenImageIO as oiio  # noqa: N813 - the field's name for it

    steps = 0 if os.environ.get(PICTURE) else 3  # 0: as many as it was trained for
    node = _node(screen, "", size="own", width=128, height=80, steps=steps, seed="7")
    node.selectOnly()
    screen.widget.seeds.setValue(2)
    screen.press("Wedge")
    screen.wait(lambda: len(screen.jobs()) == 2 and all(job.state == "done" for job in screen.jobs()))
    newest = screen.jobs()[-1]
    assert newest.wish["model"] == starter
    frame = oiio.ImageBuf(str(newest.folder / "frames" / "0003.png")).get_pixels(oiio.UINT8)[..., :3]
    shown = screen.widget.table.item(0, 0).icon().pixmap(frame.shape[1], frame.shape[0])
    path = tmp_path / "thumbnail.png"
    assert shown.save(str(path))
    seen = oiio.ImageBuf(str(path)).get_pixels(oiio.UINT8)[..., :3]
    assert seen.shape == frame.shape and np.abs(seen.astype(int) - frame).mean() < 3
    grabbed = screen.grab(tmp_path / "panel.png")
    assert screen.rows()[0][1] == "done: Rushes_v002.%04d.exr", "the whole path is in the tooltip"
    assert str(tmp_path) in screen.widget.table.item(0, 2).toolTip()
    colours = np.unique(grabbed.reshape(-1, 3), axis=0)
    assert len(colours) > 500, "pictures, not only the greys of widgets"
    if path_wanted := os.environ.get(PICTURE):
        assert screen.widget.grab().save(path_wanted)


@only_16
def test_the_buttons_of_a_row(screen: Screen, tiny_model: Path) -> None:
    """Cancel, Retry and Remove from List work on the chosen row, and say so when there is none; End Worker ends it."""
    for text in ("Cancel", "Retry", "Remove from List"):
        screen.press(text)
        assert screen.text() == "queue: no row is chosen; choose one"
    node = _node(screen, str(tiny_model), steps=500)
    screen.plugin.flow.generate(node)
    screen.wait(lambda: screen.jobs() and screen.jobs()[0].step > 2)
    _is_selected_row(screen, 0)
    screen.press("Cancel")
    screen.wait(lambda: screen.jobs()[0].state == "cancelled")
    assert screen.rows()[0][1].startswith("cancelled")
    screen.press("Retry")
    screen.wait(lambda: screen.jobs()[0].state == "running")
    screen.press("Cancel")
    screen.wait(lambda: screen.jobs()[0].state == "cancelled")
    screen.press("Remove from List")
    assert screen.jobs() == [] and screen.rows() == []
    screen.press("End Worker")
    screen.wait(lambda: not screen.plugin.session.session().controller.is_running)
    node["steps"].setValue(2)
    screen.plugin.flow.generate(node)  # starts another
    screen.wait(lambda: screen.jobs() and screen.jobs()[0].state == "done")
    assert [version[:5] for version in screen.versions()] == ["v001 "]
