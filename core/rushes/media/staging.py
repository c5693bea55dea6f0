# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Staging: outputs are written in hidden folders beside their targets, then moved into place together."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from rushes.media.paths import PICTURES, Target, manifest_name
from rushes.replacing import temporary_name
from rushes.shot import ShotError


class Staging:
    """Hidden folders, one for each target and beside it (so that the move stays inside one file system)."""

    def __init__(self, targets: Sequence[Target], is_overwriting: bool) -> None:
        self._targets = list(targets)
        self._is_overwriting = is_overwriting
        self._folders: list[Path] = []
        self._created: list[Path] = []  # parents that were missing, outermost first

    def open(self) -> list[Path]:
        """Create the folders, and missing parents. Returns each target's staging folder. Raises OSError."""
        try:
            for target in self._targets:
                self._create_parents(target.folder)
                folder = target.folder / temporary_name(target.name)
                folder.mkdir()
                self._folders.append(folder)
        except BaseException:
            self.discard(keep_parents=False)
            raise
        return list(self._folders)

    def _create_parents(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            self._created.append(parent)

    def publish(self, files: Sequence[Sequence[str]]) -> list[Path]:
        """Move the staged files of each target into place: all, or none and the old ones are put back.

        files: names for each target, in the order of the targets. When overwriting, other frames of a
        sequence's pattern are removed last, so that old and new frames never stand side by side.
        """
        done: list[tuple[Path, Path, Path | None]] = []  # staged, final, the old file's second name
        try:
            for target, folder, names in zip(self._targets, self._folders, files, strict=True):
                if not self._is_overwriting and (there := target.existing()):
                    raise ShotError(f"-o {target.text}: {there[0][1].name} has appeared meanwhile; give another name")
                for name in names:
                    final = target.folder / name
                    done.append((folder / name, final, _kept(final, folder) if self._is_overwriting else None))
                    if self._is_overwriting:
                        os.replace(folder / name, final)
                    elif not _moved_to_new_name(folder / name, final):
                        raise ShotError(f"-o {target.text}: {name} has appeared meanwhile; give another name")
        except BaseException:
            for staged, final, old in reversed(done):
                if not staged.exists() or (final.exists() and staged.samefile(final)):  # it was moved
                    _put_back(final, old)
            raise
        if self._is_overwriting:
            for target, names in zip(self._targets, files, strict=True):
                _remove_stale(target, names)
        return [final for _, final, _ in done]

    def discard(self, keep_parents: bool) -> None:
        """Remove the staging folders, and unless kept the empty parents that `open` has created."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._folders = []
        if keep_parents:
            return
        for parent in reversed(self._created):
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _moved_to_new_name(staged: Path, final: Path) -> bool:
    """Give the file its name; False where somebody has just taken that, for which looking first is too early."""
    try:
        os.link(staged, final, follow_symlinks=False)
    except (OSError, NotImplementedError):  # the name is taken, or it is a file system without hard links
        if os.path.lexists(final):
            return False
        os.rename(staged, final)  # which on Windows never replaces a file
    else:
        staged.unlink()
    return True


def _kept(final: Path, folder: Path) -> Path | None:
    """A second name for the file that is about to be replaced, or None where there is no file yet."""
    if not os.path.lexists(final):
        return None
    old = folder / f"old-{final.name}"
    try:
        os.link(final, old, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a file system without hard links
        shutil.copy2(final, old, follow_symlinks=False)
    return old


def _put_back(final: Path, old: Path | None) -> None:
    try:
        if old is not None:
            os.replace(old, final)
        else:
            final.unlink(missing_ok=True)
    except OSError as error:  # the others are still to be put back, and the first error is the one to raise
        warnings.warn(f"{final}: the file from before could not be put back ({error})", RuntimeWarning, stacklevel=2)


def _remove_stale(target: Target, names: Sequence[str]) -> None:
    new = set(names)
    if target.kind in PICTURES and manifest_name(target) not in new:
        (target.folder / manifest_name(target)).unlink(missing_ok=True)
    if target.padding is None:
        return
    for _, path in target.existing():
        if path.name not in new:
            path.unlink()
