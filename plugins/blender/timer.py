# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The extension's heartbeat: Blender's timer moves messages and brings strips to what their jobs have made.

One session lives from register() to unregister(). Handlers only mark what is to be looked at; all work on Blender's
data is done in `tick()`, on the main thread, and never while Blender renders. A pending timer at the interpreter's exit
hangs or crashes Blender 4.2 and 4.5, so it is taken away by unregister() and, should that not run, by atexit.
"""

from __future__ import annotations

import atexit
import os
import time
import traceback
from typing import Any

import bpy
from bpy.app.handlers import persistent

from . import backdrops, compat, places, preferences, properties, sheets, strips
from .vendor.client import Client, WorkerMissing, find_worker
from .vendor.controller import Controller, Job
from .vendor.plan import describe_error

BUSY, IDLE = 0.05, 0.3  # seconds between ticks
REDRAW = 0.2  # seconds between redraws
LOOK = 0.5  # seconds between looks at the scene for the price
QUIET = 0.4  # seconds after the last change in the panel before its cost is asked for


class Session:
    """What lasts as long as the extension is enabled; nothing in it points into Blender's data."""

    def __init__(self) -> None:
        self.controller = Controller(_connect)
        self.message = ""  # for the panel: why something did not work
        self.has_strays = False  # clips in the user folder though the .blend is saved
        self.unplaced: set[str] = set()  # keys of jobs that no strip shows
        self.sheets: list[sheets.Wanted] = []
        self.movies: list[backdrops.Movie] = []
        self._dirty: set[str] = set()
        self._synced: dict[str, tuple[Any, ...]] = {}  # by key: what the strips have been brought to
        self.shown_scene = ""  # name of the one whose panel was drawn last
        self._is_stale = False  # what is drawn
        self._told: tuple[Any, ...] = ()  # what was drawn of the worker
        self._next_redraw = 0.0
        self._quote_due = 0.0
        self._next_look = 0.0
        self._asked: Any = None  # the last wish whose price was asked for
        self._is_loaded = False  # a file has been opened and not been looked at

    def tick(self) -> float:
        """Once around. Returns the seconds until the next."""
        self._dirty |= self.controller.tick()
        told = (self.controller.worker, self.controller.trouble, self.controller.quote, self.message)
        if told != self._told:
            self._told, self._is_stale = told, True
        if not compat.is_rendering():
            if self._is_loaded:
                self._is_loaded = False
                self.after_load()
            self._sync()
            self._place_movies()
        self._ask_quote()
        self._redraw()
        is_busy = any(job.is_active for job in self.controller.jobs.values()) or self._quote_due or self.movies
        return BUSY if is_busy else IDLE

    def _sync(self) -> None:
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, set()
        for key in dirty:
            if job := self.controller.jobs.get(key):
                self._sync_job(job)
        for wanted in [wanted for wanted in self.sheets if not self._is_waited_for(wanted)]:
            self.sheets.remove(wanted)
            try:
                self.message = sheets.make(wanted, self.controller.jobs)
            except (OSError, RuntimeError) as error:  # a full disk, or a frame that is gone
                self.message = f"{wanted.name}: {describe_error(error)}"
        self._is_stale = True

    def _sync_job(self, job: Job) -> None:
        now = (job.id, job.home, job.state == "done", job.frames, job.length, job.shot is None, job.record is None)
        if self._synced.get(job.key) == now:
            return  # progress alone is nothing for the strips, and comes often
        self._synced[job.key] = now
        try:
            (self.unplaced.discard if strips.sync(job) else self.unplaced.add)(job.key)
        except RuntimeError as error:  # no channel for a strip that grows; the other jobs go on
            self.message = str(error)

    def _place_movies(self) -> None:
        for movie in [movie for movie in self.movies if movie.is_over]:
            self.movies.remove(movie)
            try:
                self.message = movie.place()
            except RuntimeError as error:  # no free channel
                self.message = str(error)
            self._is_stale = True

    def _is_waited_for(self, wanted: sheets.Wanted) -> bool:
        jobs = [self.controller.jobs.get(key) for key in wanted.keys]
        return any(job is not None and job.is_active for job in jobs)

    def mark_all(self) -> None:
        """Look at every job's strips again: undo, or the artist, has changed them."""
        self._dirty |= set(self.controller.jobs)
        self._synced.clear()

    # --- the panel's price ------------------------------------------------------------------------------------------

    def want_quote(self) -> None:
        self._quote_due = time.monotonic() + QUIET

    def _ask_quote(self) -> None:
        now = time.monotonic()
        # A timer has no window, and without one Blender 5.0 does not say which scene its sequencer shows
        scene = bpy.data.scenes.get(self.shown_scene) or compat.editor_scene(bpy.context)
        if scene is None or not properties.prompt_of(scene):
            self._quote_due = 0.0
            return
        if not self._quote_due and self.controller.is_ready and now > self._next_look:
            self._next_look = now + LOOK
            if properties.wish_of(scene) != self._asked:  # the scene has changed: its size, rate, range or active strip
                self.want_quote()
        if not self._quote_due or now < self._quote_due:
            return
        self._quote_due, self._asked = 0.0, properties.wish_of(scene)
        try:
            self.controller.ask_quote(self._asked, places.jobs_home())
            self.message = ""
        except (WorkerMissing, OSError) as error:
            self.message = describe_error(error)
        self._is_stale = True

    def _redraw(self) -> None:
        """What shows us, and not too often: where a redraw is slow, it is what makes Blender stand still."""
        now = time.monotonic()
        if not self._is_stale or now < self._next_redraw:
            return
        self._is_stale, self._next_redraw = False, now + REDRAW
        manager = bpy.context.window_manager
        for area in (area for window in manager.windows for area in window.screen.areas) if manager else ():
            if area.type in ("SEQUENCE_EDITOR", "VIEW_3D"):  # what a strip gains, Blender itself draws anew
                for region in area.regions:
                    if region.type == "UI":
                        region.tag_redraw()

    # --- jobs of earlier sessions -----------------------------------------------------------------------------------

    def load_is_due(self) -> None:
        self._is_loaded = True

    def after_load(self) -> None:
        """Take up the jobs on the strips of a file that has just been opened."""
        self.find_strays()
        if preferences.get().resume_on_load:
            self.reattach(is_resuming=False)
        self.mark_all()

    def reattach(self, is_resuming: bool, only: Any = None) -> int:
        """Take up the jobs of all strips, or of one. Returns how many there were; `message` says why one failed."""
        count = 0
        for item in list(strips.tagged()):
            if only is not None and item.strip != only:
                continue
            for take in item.data["takes"]:
                count += 1
                try:
                    self._take_up(take, is_resuming)
                except WorkerMissing as error:
                    self.message = str(error)
        self.mark_all()
        return count

    def _take_up(self, take: strips.Take, is_resuming: bool) -> None:
        controller, key = self.controller, take["key"]
        known = controller.jobs.get(key)
        if known is not None and (known.is_active or known.state == "done"):
            return
        home = strips.home_of(take)
        wish = strips.wish_of(take)
        job = Job(key, wish, home, take["job"], take["shot"], take["length"])
        if take["job"] and (job.folder / "done.json").is_file():
            controller.show(job)
        elif take["job"]:
            controller.attach(key, wish, home, take["job"], is_resuming)
        elif is_resuming:
            controller.submit(key, wish, home)
        else:
            job.state, job.message = "interrupted", "Blender ended before the worker had it"
            controller.jobs[key] = job

    # --- where files lie --------------------------------------------------------------------------------------------

    def find_strays(self) -> None:
        takes = (take["home"] for item in strips.tagged() for take in item.data["takes"])
        pictures = (key.image for scene in bpy.data.scenes for key in properties.settings(scene).keyframes)
        self.has_strays = places.is_saved() and any(map(places.is_in_user_folder, (*takes, *pictures)))


_session: Session | None = None


def session() -> Session:
    if _session is None:
        raise RuntimeError("Rushes is not enabled")
    return _session


def controller() -> Controller:
    return session().controller


def _connect() -> Client:
    values = preferences.get()
    home = places.user_folder()
    worker, log = find_worker(values.worker), home / "worker.log"
    return Client(worker, home / "jobs", values.path_table(), log, memory=values.memory.strip())


def _tick() -> float | None:
    if _session is None:
        return None
    try:
        return _session.tick()
    except Exception as error:  # Blender takes away a timer that raises, and with it everything that is being made
        traceback.print_exc()
        _session.message = f"{type(error).__name__}: {error}; the console has the rest"
        return IDLE


# --- handlers -------------------------------------------------------------------------------------------------------


@persistent
def _on_load(*_: Any) -> None:
    if _session is not None:
        _session.load_is_due()


@persistent
def _on_undo(*_: Any) -> None:
    if _session is not None:
        _session.mark_all()


@persistent
def _before_save(path: Any = "", *_: Any) -> None:
    """Saved under another folder, Blender moves its own `//` paths; those that it does not know are ours to move."""
    before, after = os.path.dirname(bpy.data.filepath), os.path.dirname(path if isinstance(path, str) else "")
    if not after or before == after:
        return
    for item in strips.tagged():
        for take in item.data["takes"]:
            strips.move(take, after)
        strips.write(item.strip, item.data)
    for scene in bpy.data.scenes:
        for key in properties.settings(scene).keyframes:
            key.image = places.relative_to(places.real_path(key.image), after)


@persistent
def _after_save(*_: Any) -> None:
    if _session is not None:
        _session.find_strays()


_HANDLERS = (("load_post", _on_load), ("undo_post", _on_undo), ("redo_post", _on_undo),
             ("save_pre", _before_save), ("save_post", _after_save))  # fmt: skip


def _stop_timer() -> None:
    if bpy.app.timers.is_registered(_tick):
        bpy.app.timers.unregister(_tick)


def register() -> None:
    global _session
    _session = Session()
    properties.listen(_session.want_quote, lambda: controller().limits)
    for name, handler in _HANDLERS:
        getattr(bpy.app.handlers, name).append(handler)
    bpy.app.timers.register(_tick, first_interval=IDLE, persistent=True)
    atexit.register(_stop_timer)
    _session.load_is_due()  # enabled with a file open


def unregister() -> None:
    global _session
    _stop_timer()
    atexit.unregister(_stop_timer)
    for name, handler in _HANDLERS:
        handlers = getattr(bpy.app.handlers, name)
        if handler in handlers:
            handlers.remove(handler)
    if _session is not None:
        _session.controller.close()
    _session = None
