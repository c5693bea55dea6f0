# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Operators that have clips made, after the control pass that the panel asks for: with a window a frame at a time, and
Escape ends it; without one, all at once. Either way one undo step, and none when it is cancelled.
"""

from __future__ import annotations

from typing import Any

from . import compat, properties, timer
from .guides import Guide
from .vendor.client import WorkerMissing
from .vendor.plan import Wish, describe_error

# What an artist can do something about; shown as a sentence
REFUSALS = (WorkerMissing, OSError, RuntimeError)


def refuse(operator: Any, error: Exception) -> set[str]:
    """The sentence into Blender's status bar."""
    operator.report({"ERROR"}, describe_error(error))
    return {"CANCELLED"}


class Guided:
    """Calls `make(context, wish, start)` of its operator, which may raise what REFUSALS names. start: a scene frame."""

    def execute(self, context: Any) -> set[str]:
        try:
            self._begin(context)
            if self._guide is not None:
                self._render_all(context.window_manager)
            return self._make(context)
        except REFUSALS as error:
            return refuse(self, error)

    def invoke(self, context: Any, event: Any) -> set[str]:
        """By a button. With a pass to render it stays, as Blender's modal operators do."""
        if not compat.has_window():
            return self.execute(context)
        try:
            self._begin(context)
            if self._guide is None:
                return self._make(context)
        except REFUSALS as error:
            return refuse(self, error)
        manager = context.window_manager
        manager.progress_begin(0, self._guide.frames)
        self._pulse = manager.event_timer_add(0.01, window=context.window)
        manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context: Any, event: Any) -> set[str]:
        if event.type == "ESC":
            self.cancel(context)
            self.report({"INFO"}, "control: cancelled; no clip has been asked for")
            return {"CANCELLED"}
        if event.type != "TIMER":
            return {"RUNNING_MODAL"}
        guide = self._guide
        try:
            guide.step()
            context.window_manager.progress_update(guide.done)
            context.workspace.status_text_set(f"Control pass {guide.done} of {guide.frames}; Escape cancels")
        except REFUSALS as error:
            self.cancel(context)
            return refuse(self, error)
        if not guide.is_done:
            return {"RUNNING_MODAL"}
        self._let_go(context)
        try:
            return self._make(context)
        except REFUSALS as error:
            return refuse(self, error)

    def cancel(self, context: Any) -> None:
        """Blender calls it too, where another file is opened meanwhile."""
        self._let_go(context)
        self._guide.discard()

    def _let_go(self, context: Any) -> None:
        if self._pulse is None:
            return
        context.window_manager.event_timer_remove(self._pulse)
        context.window_manager.progress_end()
        context.workspace.status_text_set(None)
        self._pulse = None

    def _begin(self, context: Any) -> None:
        """The wish as the panel has it now: what the artist changes while a pass is rendered is for the next clip."""
        scene = compat.editor_scene(context)
        values = properties.settings(scene)
        if not values.is_seed_locked:
            values.seed = properties.random_seed()
        self._wish: Wish = properties.wish_of(scene)
        self._guide: Guide | None = None
        self._start = properties.range_of(scene)[0]
        self._pulse: Any = None
        if self._wish["guide"]:
            limits = timer.controller().limits.get(self._wish["model"])
            self._guide = Guide(context, self._start, self._wish, limits)

    def _render_all(self, manager: Any) -> None:
        guide = self._guide
        assert guide is not None
        manager.progress_begin(0, guide.frames)
        try:
            while not guide.is_done:
                guide.step()
                manager.progress_update(guide.done)
        except BaseException:
            guide.discard()
            raise
        finally:
            manager.progress_end()

    def _make(self, context: Any) -> set[str]:
        self.make(context, self._wish if self._guide is None else self._guide.wish, self._start)
        return {"FINISHED"}
