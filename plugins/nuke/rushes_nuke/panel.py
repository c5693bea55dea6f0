# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The panel: the queue with previews, seed wedges, and a contact sheet of the selected node's versions.

Qt is Nuke's own, PySide2 up to Nuke 15 and PySide6 from 16 on. Everything here runs on the main thread, which is Qt's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import contact, flow, host, places, preferences
from .refusal import Refusal
from .session import REFUSALS, describe_job, session
from .vendor.controller import Job
from .vendor.plan import describe_error, frame_name

if host.has_pyside6():
    from PySide6 import QtCore, QtGui, QtWidgets
else:
    from PySide2 import QtCore, QtGui, QtWidgets

REFRESH = 300  # milliseconds
THUMB = (128, 80)  # pixels
COLUMNS = ("", "clip", "state", "")
CLIP_WIDTH, BAR_WIDTH = 190, 90  # pixels; the state has the rest
MOST_SEEDS = 64


def picture_of(job: Job) -> Path | None:
    """What there is to see of a job: the middle of its finished frames, or the rough picture of its denoising."""
    if job.frames and job.id:
        return job.folder / "frames" / frame_name((job.frames + 1) // 2)
    return Path(job.preview) if job.preview else None


def thumbnail(path: Path | None) -> Any:
    """A small picture; grey where there is none, or half of one."""
    picture = QtGui.QPixmap(str(path)) if path is not None else QtGui.QPixmap()
    if picture.isNull():
        picture = QtGui.QPixmap(*THUMB)
        picture.fill(QtGui.QColor(48, 48, 48))
    return picture.scaled(*THUMB, QtCore.Qt.KeepAspectRatio, QtCore.Qt.SmoothTransformation)


class QueuePanel(QtWidgets.QWidget):
    """All jobs of this session, newest first."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._keys: list[str] = []
        self._pictures: dict[str, tuple[str, int]] = {}  # what a row's thumbnail was made from
        self.worker = QtWidgets.QLabel(wordWrap=True)
        self.message = QtWidgets.QLabel(wordWrap=True)
        self.table = self._make_table()
        self.sheet = QtWidgets.QListWidget()
        self.sheet.setViewMode(QtWidgets.QListView.IconMode)
        self.sheet.setResizeMode(QtWidgets.QListView.Adjust)
        self.sheet.setIconSize(QtCore.QSize(*THUMB))
        self.seeds = QtWidgets.QSpinBox()
        self.seeds.setRange(2, MOST_SEEDS)
        self.seeds.setValue(4)
        layout = QtWidgets.QVBoxLayout(self)
        for part in (
            self.worker,
            self.table,
            self._make_job_buttons(),
            self._make_wedge_line(),
            self.sheet,
            self.message,
        ):
            layout.addLayout(part) if isinstance(part, QtWidgets.QLayout) else layout.addWidget(part)
        self._timer = QtCore.QTimer(self)
        self._timer.timeout.connect(self.refresh)
        self._timer.start(REFRESH)
        self.refresh()

    # --- made once ----------------------------------------------------------------------------------------------------

    def _make_table(self) -> Any:
        table = QtWidgets.QTableWidget(0, len(COLUMNS))
        table.setHorizontalHeaderLabels(list(COLUMNS))
        table.setIconSize(QtCore.QSize(*THUMB))
        table.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectRows)
        table.setSelectionMode(QtWidgets.QAbstractItemView.SingleSelection)
        table.setEditTriggers(QtWidgets.QAbstractItemView.NoEditTriggers)
        table.verticalHeader().setDefaultSectionSize(THUMB[1] + 4)
        for column, width in enumerate((THUMB[0] + 8, CLIP_WIDTH, 0, BAR_WIDTH)):
            table.setColumnWidth(column, width)
        table.horizontalHeader().setSectionResizeMode(2, QtWidgets.QHeaderView.Stretch)
        return table

    def _make_job_buttons(self) -> Any:
        row = QtWidgets.QHBoxLayout()
        for text, work in (
            ("Cancel", self.cancel),
            ("Retry", self.retry),
            ("Open Folder", self.open_folder),
            ("Remove from List", self.forget),
            ("Free Memory", self.free),
            ("End Worker", self.end_worker),
            ("Worker…", self.choose_worker),
        ):
            row.addWidget(self._button(text, work))
        return row

    def _make_wedge_line(self) -> Any:
        row = QtWidgets.QHBoxLayout()
        row.addWidget(QtWidgets.QLabel("seeds"))
        row.addWidget(self.seeds)
        row.addWidget(self._button("Wedge", self.wedge))
        row.addWidget(self._button("Contact Sheet", self.contact_sheet))
        row.addStretch(1)
        return row

    def _button(self, text: str, work: Any) -> Any:
        button = QtWidgets.QPushButton(text)
        button.clicked.connect(lambda: self._do(work))
        return button

    def _do(self, work: Any) -> None:
        """A button's work; what refuses is said in the panel."""
        try:
            work()
            self.message.setText("")
        except REFUSALS as error:
            self.message.setText(describe_error(error))
        self.refresh()

    # --- what the buttons do ------------------------------------------------------------------------------------------

    def chosen(self) -> Job:
        """The job of the chosen row. Raises Refusal."""
        rows = self.table.selectionModel().selectedRows()
        if not rows or rows[0].row() >= len(self._keys):
            raise Refusal("queue: no row is chosen; choose one")
        return session().controller.jobs[self._keys[rows[0].row()]]

    def cancel(self) -> None:
        session().cancel(self.chosen().key)

    def retry(self) -> None:
        session().controller.retry(self.chosen().key)
        session().need()

    def forget(self) -> None:
        session().controller.forget(self.chosen().key)

    def open_folder(self) -> None:
        job = self.chosen()
        QtGui.QDesktopServices.openUrl(QtCore.QUrl.fromLocalFile(str(job.folder if job.id else job.home)))

    def free(self) -> None:
        session().controller.free()
        session().need()

    def end_worker(self) -> None:
        session().controller.kill()
        session().need()

    def choose_worker(self) -> None:
        """Name the executable `rushes` for all scripts."""
        path, _ = QtWidgets.QFileDialog.getOpenFileName(
            self, "The executable `rushes`", str(places.user_folder().parent)
        )
        if path:
            preferences.put(path)

    def wedge(self) -> None:
        """One version for each seed, on the selected node."""
        flow.wedge(flow.selected(), self.seeds.value())

    def contact_sheet(self) -> None:
        """Of the selected node's finished versions, in the node graph."""
        contact.make(flow.selected())

    # --- what is seen -------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the panel to what the session knows. Called by a timer."""
        if self.isHidden() and self._keys:
            return
        now = session()
        lines = (now.controller.worker, now.controller.trouble, now.message)
        self.worker.setText("\n".join(line for line in lines if line) or "no worker runs; the first change starts one")
        jobs = list(reversed(list(now.controller.jobs.values())))
        keys = [job.key for job in jobs]
        if keys != self._keys:
            self._keys = keys
            self._pictures.clear()
            self.table.setRowCount(len(jobs))
            for row in range(len(jobs)):
                for column in range(len(COLUMNS) - 1):
                    self.table.setItem(row, column, QtWidgets.QTableWidgetItem())
                self.table.setCellWidget(row, len(COLUMNS) - 1, QtWidgets.QProgressBar())
        for row, job in enumerate(jobs):
            self._show(row, job)
        self._show_sheet(jobs)

    def _show(self, row: int, job: Job) -> None:
        self.table.item(row, 1).setText(f"{job.wish['prompt'][:60]}\nseed {job.wish['seed']}")
        said = describe_job(job)
        self.table.item(row, 2).setText(
            said.replace(job.patterns[0], Path(job.patterns[0]).name) if job.patterns else said
        )
        self.table.item(row, 2).setToolTip(said)
        self.table.cellWidget(row, len(COLUMNS) - 1).setValue(round(100 * job.done_share))
        path = picture_of(job)
        seen = (str(path), job.step)
        if path is not None and self._pictures.get(job.key) != seen:
            self._pictures[job.key] = seen
            self.table.item(row, 0).setIcon(QtGui.QIcon(thumbnail(path)))

    def _show_sheet(self, jobs: list[Job]) -> None:
        """The middle frame of each finished version, oldest first."""
        done = [job for job in reversed(jobs) if job.state == "done"]
        names = [f"{version_name(job)} seed {job.wish['seed']}" for job in done]
        if [self.sheet.item(row).text() for row in range(self.sheet.count())] != names:
            self.sheet.clear()
            for job, name in zip(done, names):
                self.sheet.addItem(QtWidgets.QListWidgetItem(QtGui.QIcon(thumbnail(picture_of(job))), name))


def version_name(job: Job) -> str:
    """`v003` of a plate, or the job's name where it wrote none."""
    name = Path(job.patterns[0]).name if job.patterns else job.id
    return next((part for part in name.replace(".", "_").split("_") if part[:1] == "v" and part[1:].isdigit()), name)
