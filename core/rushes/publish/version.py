# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Version folders: a number of its own for each publisher, and a folder that appears whole, or not at all.

A version is made in a hidden folder beside its place, with a lock that the kernel lets go of when its process dies.
The number belongs to whoever has that folder; one without a holder is what a kill has left, and the next publisher
removes it. Numbers are given and folders renamed under the lock of the root, so that no two publishers meet.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rushes.publish.settings import VERSION_FIELD, Settings
from rushes.shot import ShotError

LOCK = ".rushes-publish.lock"
SHARED = 0o666  # of a lock's file, which holds nothing: a root and its reviews are written by many users
_MARK = ".rushes-publish-"
_WAIT = 60.0  # seconds; what the root's lock is held for takes milliseconds


class Version:
    """A reserved version. Write into `building`, then `commit`; `discard` gives the number back."""

    def __init__(
        self, root: Path, final: Path, number: int, staging: Path, lock: FileLock, created: list[Path]
    ) -> None:
        self.root, self.final, self.number = root, final, number
        self._staging, self._lock, self._created = staging, lock, created

    @property
    def building(self) -> Path:
        """The folder that becomes the version. Empty at first."""
        return self._staging / "version"

    @property
    def is_open(self) -> bool:
        """Neither committed nor discarded."""
        return self._lock.is_locked

    def commit(self) -> Path:
        """The folder gets its name, with everything in it on the disk. Raises ShotError and OSError."""
        for folder, _, names in os.walk(self.building):
            for path in (*(os.path.join(folder, name) for name in names), folder):
                _sync(path)
        with _locked(self.root):
            if os.path.lexists(self.final):
                raise ShotError(f"version: {self.final} exists already; another number is allowed")
            os.rename(self.building, self.final)
            _sync(self.final.parent)
        self._created = []
        self.discard()
        return self.final

    def discard(self) -> None:
        """Remove what was made; twice does no harm."""
        self._lock.release()
        shutil.rmtree(self._staging, ignore_errors=True)
        for parent in reversed(self._created):
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        self._created = []


def reserve(settings: Settings, root: Path, shot: str, name: str, asked: int | None = None) -> Version:
    """The next version of a plate, or the one that is asked for.

    Raises ShotError where that number is taken, by a folder or by somebody who is publishing it now, and for a root
    that cannot be written.
    """
    parent = settings.folder(root, shot, name, 1).parent
    created: list[Path] = []
    try:
        _create(root, created)
        with _locked(root):
            _create(parent, created)
            _remove_leftovers(parent)
            taken = _taken(settings, root, shot, name, parent)
            number = asked if asked is not None else max(taken, default=0) + 1
            if number in taken:
                raise ShotError(f"version: {number} of {name} in {parent} {taken[number]}; another number is allowed")
            final = settings.folder(root, shot, name, number)
            staging = parent / f".{final.name}{_MARK}{secrets.token_hex(4)}"
            staging.mkdir()
            # plug-ins of one publish may run in several threads of a host
            lock = FileLock(staging / "lock", timeout=0, thread_local=False)
            lock.acquire()
            (staging / "version").mkdir()
    except OSError as error:
        for folder in reversed(created):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        reason = error.strerror or error
        raise ShotError(f"--to: {root} cannot be written ({reason}); a writable folder is allowed") from error
    return Version(root, final, number, staging, lock, created)


def _create(folder: Path, created: list[Path]) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        created.append(path)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        with FileLock(root / LOCK, timeout=_WAIT, mode=SHARED):
            yield
    except Timeout as error:
        raise ShotError(f"--to: somebody else has held {root / LOCK} for {_WAIT:.0f} s; end that process") from error


def _taken(settings: Settings, root: Path, shot: str, name: str, parent: Path) -> dict[int, str]:
    """Numbers of versions that exist or are being made, and which of the two, as the end of a sentence."""
    mark = "\0"
    model = settings.template.rpartition("/")[2]
    before, _, after = VERSION_FIELD.sub(mark, model).partition(mark)
    fields = {"root": "", "shot": shot, "name": name}
    pattern = re.compile(re.escape(before.format(**fields)) + r"(\d+)" + re.escape(after.format(**fields)))
    found: dict[int, str] = {}
    for path in parent.iterdir():
        is_building = path.name.startswith(".") and _MARK in path.name
        known = pattern.fullmatch(path.name[1:].partition(_MARK)[0] if is_building else path.name)
        if known:
            found[int(known[1])] = "is being published by somebody else" if is_building else "exists already"
    return found


def _remove_leftovers(parent: Path) -> None:
    for path in parent.glob(f".*{_MARK}*"):
        lock = FileLock(path / "lock", timeout=0)
        try:
            lock.acquire()
        except (Timeout, OSError):  # somebody is at it, or it is somebody else's to remove
            continue
        lock.release()
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: str | os.PathLike[str]) -> None:
    """Onto the disk; Windows knows no such thing for a folder."""
    if os.name == "nt" and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
