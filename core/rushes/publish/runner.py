# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Runs pyblish's plug-ins in their order, for the host that we are in, and stops at the first stage that fails.

pyblish's own `util.publish` neither sorts nor filters what it is given, goes on to integrate after a failed extractor,
and prints to standard output. Plug-ins of a studio, from PYBLISHPLUGINPATH or registered, run beside ours.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rushes.publish import collecting
from rushes.publish.progress import TOLD, Cancelled, Step
from rushes.publish.publication import KEY, Publication
from rushes.publish.repairs import discard_unpublished
from rushes.publish.report import Outcome, Report, Row
from rushes.publish.settings import Settings
from rushes.shot import ShotError

PLUGINS = (
    "CollectRushesPlates", "ValidateRushesFrames", "ValidateRushesRange", "ValidateRushesRate", "ValidateRushesSize",
    "ValidateRushesColor", "ValidateRushesProvenance", "ValidateRushesReview", "ExtractRushesPlate",
    "ExtractRushesProxy", "ExtractRushesThumbnail", "ExtractRushesContactSheet", "ExtractRushesTimeline",
    "IntegrateRushesVersion", "CleanUpRushes",
)  # fmt: skip
_STAGES = 4  # collect, validate, extract, integrate: orders from n - 0.5 to n + 0.5


def plugin_folder() -> Path:
    """The folder for PYBLISHPLUGINPATH or `register_plugin_path`. Needs no pyblish."""
    return Path(__file__).parent / "plugins"


def pyblish_module() -> ModuleType:
    """pyblish's public face. Raises ShotError where it is not installed."""
    try:
        from pyblish import api
    except ImportError as error:
        raise ShotError('publish: pyblish-base is not installed; `pip install "rushes[publish]"` brings it') from error
    return api


def register(host: str | None = None) -> None:
    """Make the plug-ins known to pyblish in this process, for its GUIs and for `pyblish.util.publish`.

    host: the name of the program we are in, such as "nuke" or "blender", by which studios' plug-ins are chosen.
    """
    api, folder = pyblish_module(), os.path.normpath(plugin_folder())
    if folder not in api.registered_paths():
        api.register_plugin_path(folder)
    if host is not None:
        api.register_host(host)


def run(
    sources: Sequence[str],
    root: str | os.PathLike[str],
    *,
    settings: Settings | str | os.PathLike[str] | None = None,
    shot: str | None = None,
    name: str | None = None,
    version: int | None = None,
    home: Path | None = None,
    host: str | None = None,
    is_repairing: bool = False,
    on_progress: Callable[[Step], object] | None = None,
    cancel: threading.Event | None = None,
) -> Report:
    """Publish jobs and plates under `root`: all of them, or none of those that had not been published before a failure.

    sources: jobs and patterns, as `find_subject`; settings: or their file, None looks for one; shot, name, version: of
    the published version, None chooses; home: where jobs are; host: as for `register`; is_repairing: run the actions
    of failed checks, then check again; on_progress: called with a Step; cancel: stops it, which leaves nothing behind.
    Raises ShotError where pyblish is missing or one of our plug-ins cannot be read. Everything else is in the report.
    """
    if isinstance(sources, (str, bytes)) or not sources:
        raise ShotError(f"sources: got {sources!r}; a list of jobs and patterns is allowed")
    if version is not None and (type(version) is not int or not 1 <= version <= 99_999):
        raise ShotError(f"version: got {version!r}; a whole number from 1 to 99999 is allowed")
    register(host)
    context = pyblish_module().Context()
    options = {"shot": shot, "name": name, "version": version, "home": home}
    wanted = {collecting.SOURCES: list(sources), collecting.ROOT: root, collecting.SETTINGS: settings}
    context.data.update({**wanted, collecting.OPTIONS: options})
    session = _Session(context, on_progress, cancel)
    try:
        with _quiet():
            session.publish(is_repairing)
            report = session.report()
            if report.ok:
                pyblish_module().emit("published", context=context)
    finally:
        discard_unpublished(context)
    return report


def discovered() -> list[Any]:
    """All plug-ins that this host allows, in their order. Raises ShotError where one of ours is missing."""
    api = pyblish_module()
    plugins: list[Any] = api.discover()
    hosts = {*api.registered_hosts(), "*"}
    plugins = [plugin for plugin in plugins if hosts & set(plugin.hosts)]
    missing = sorted(set(PLUGINS) - {plugin.__name__ for plugin in plugins})
    if missing:  # pyblish skips a file that it cannot read, and says so in a log alone
        raise ShotError(
            f"publish: pyblish has not found {', '.join(missing)} in {plugin_folder()}; install Rushes again"
        )
    plugins.sort(key=lambda plugin: (plugin.order, plugin.__name__))
    return plugins


class _Session:
    """One context on its way through the stages."""

    def __init__(
        self, context: Any, on_progress: Callable[[Step], object] | None, cancel: threading.Event | None
    ) -> None:
        self.context = context
        self._on_progress, self._cancel = on_progress, cancel
        self._stdout = sys.stdout
        self._rows: list[Row] = []
        self._repaired: list[str] = []
        self._stopped = ""
        self._label = ""
        context.data[TOLD] = self._tell

    def publish(self, is_repairing: bool) -> None:
        plugins = discovered()
        stages = [[plugin for plugin in plugins if _stage(plugin) == stage] for stage in range(_STAGES)]
        for number, stage in enumerate(stages):
            begun = len(self._rows)
            self._run(stage)
            if number == 1 and is_repairing and self._repair(self._rows[begun:], stage):
                del self._rows[begun:]
                self._run(stage)
            if self._stopped or any(row.outcome == "failed" for row in self._rows):
                break
        skipped = [plugin for stage in stages[number + 1 :] for plugin in stage]
        self._rows += [Row(plugin.__name__, _label(plugin), "", "skipped") for plugin in skipped]

    def report(self) -> Report:
        found = [instance.data.get(KEY) for instance in self.context]
        folders = [one.published for one in found if isinstance(one, Publication) and one.published is not None]
        return Report(tuple(self._rows), tuple(self._repaired), tuple(folders), self._stopped)

    def _run(self, plugins: Sequence[Any]) -> None:
        import pyblish.plugin

        failed_orders: set[float] = set()
        for plugin, instance in self._turns(plugins):
            if stopped := pyblish_module().registered_test()(nextOrder=plugin.order, ordersWithError=failed_orders):
                self._stopped = str(stopped)
                return
            self._label = _label(plugin)
            self._tell(0, 1)
            result = pyblish.plugin.process(plugin, self.context, instance)
            error = result["error"]
            if isinstance(error, Cancelled):
                raise error
            if error is not None:
                failed_orders.add(plugin.order)
            self._rows.append(_row(plugin, instance, result))
            if error is not None and _stage(plugin) != 1:
                return  # of the checks all are shown; of anything else what follows rests on it
            self._tell(1, 1)

    def _turns(self, plugins: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Each plug-in with each instance that is its own; found out when its turn comes, as collectors add some."""
        import pyblish.logic

        api = pyblish_module()
        targets = ["default", *api.registered_targets()]
        for plugin in pyblish.logic.plugins_by_targets(plugins, targets):
            if not plugin.active:
                continue
            if not plugin.__instanceEnabled__:
                yield plugin, None
                continue
            for instance in pyblish.logic.instances_by_plugin(self.context, plugin):
                if instance.data.get("publish") is not False:
                    yield plugin, instance

    def _repair(self, rows: Sequence[Row], plugins: Sequence[Any]) -> bool:
        """Run the actions that failures themselves have named; whether any of them worked."""
        import pyblish.plugin

        wanted = {(row.plugin, row.repair) for row in rows if row.repair}
        before = len(self._repaired)
        for plugin in plugins:
            for action in plugin.actions:
                if (plugin.__name__, action.label) not in wanted:
                    continue
                result = pyblish.plugin.process(plugin, self.context, None, action.id)
                if result["error"] is None:
                    self._repaired += [record.getMessage() for record in result["records"]]
        return len(self._repaired) > before

    def _tell(self, done: int, total: int) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("it was stopped")
        if self._on_progress is not None:
            with contextlib.redirect_stdout(self._stdout):  # whoever is told may well speak there
                self._on_progress(Step(self._label, done, total))


def _stage(plugin: Any) -> int:
    return min(max(int(plugin.order + 0.5), 0), _STAGES - 1)


def _label(plugin: Any) -> str:
    return plugin.label or plugin.__name__


def _row(plugin: Any, instance: Any, result: dict[str, Any]) -> Row:
    error, found = result["error"], instance.data.get(KEY) if instance is not None else None
    subject = found.subject.text if isinstance(found, Publication) else str(instance or "")
    seconds = round((result["duration"] or 0.0) / 1000, 3)
    outcome: Outcome = "ok" if error is None else "failed"
    if error is None:
        notes = [record.getMessage() for record in result["records"] if record.levelno >= logging.INFO]
        return Row(plugin.__name__, _label(plugin), subject, outcome, notes[-1] if notes else "", seconds=seconds)
    repair = next((action.label for action in plugin.actions if action.__name__ == getattr(error, "repair", "")), "")
    if isinstance(error, ShotError):
        return Row(plugin.__name__, _label(plugin), subject, outcome, str(error), repair, seconds=seconds)
    trace = str(getattr(error, "formatted_traceback", ""))
    message = f"{_label(plugin)}: {_sentence(error)}"
    return Row(plugin.__name__, _label(plugin), subject, outcome, message, repair, trace, seconds)


def _sentence(error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        where = f" ({cause.filename})" if cause.filename else ""
        return f"{cause.strerror}{where}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Standard output may carry a protocol: what plug-ins print goes to standard error. Failures are in the report, so
    pyblish's own log of them is not written a second time.
    """
    log = logging.getLogger("pyblish.plugin")
    was_disabled, log.disabled = log.disabled, True
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        log.disabled = was_disabled
        if printed.getvalue():
            print(printed.getvalue(), end="", file=sys.stderr)
