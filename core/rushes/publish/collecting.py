# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""From what a context or the environment asks for to complete instances. Imports no pyblish."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rushes.publish.publication import KEY, Publication
from rushes.publish.settings import Settings, find_settings
from rushes.publish.subject import find_subject
from rushes.shot import ShotError

SOURCES, ROOT, SETTINGS, OPTIONS = "rushesSources", "rushesRoot", "rushesSettings", "rushesOptions"
SOURCES_VARIABLE, ROOT_VARIABLE = "RUSHES_PUBLISH_SOURCES", "RUSHES_PUBLISH_ROOT"


def families(instance: Any) -> list[str]:
    """All families of a pyblish instance."""
    return [*instance.data.get("families", []), instance.data.get("family", "")]


def sources(context: Any) -> list[str]:
    """Patterns and jobs to make instances of. Raises ShotError for a wrong type."""
    found = context.data.get(SOURCES)
    if found is None:
        found = [part for part in os.environ.get(SOURCES_VARIABLE, "").split(os.pathsep) if part]
    if not isinstance(found, (list, tuple)) or not all(isinstance(source, str) and source for source in found):
        raise ShotError(f"{SOURCES}: got {found!r}; a list of jobs and patterns is allowed")
    return list(found)


def complete(instance: Any) -> None:
    """Give an instance its Publication, once. Raises ShotError."""
    if isinstance(instance.data.get(KEY), Publication):
        return
    source, context = instance.data.get("source"), instance.context
    if not isinstance(source, str) or not source:
        raise ShotError(f"source: got {source!r} in the instance {instance}; a job or a pattern is allowed")
    options = context.data.get(OPTIONS, {})
    root = _root(context)
    subject = find_subject(source, options.get("home"), options.get("shot"), options.get("name"))
    subject.files()
    instance.data[KEY] = Publication(subject, _settings(context, root), root, options.get("version"))


def describe(instance: Any) -> str:
    """The plate in a line."""
    subject = instance.data[KEY].subject
    return f"{subject.pattern}: shot {subject.shot}, name {subject.name}"


def _root(context: Any) -> Path:
    root = context.data.get(ROOT) or os.environ.get(ROOT_VARIABLE)
    if not isinstance(root, (str, os.PathLike)) or not os.fspath(root):
        raise ShotError(
            f"--to: got {root!r}; a folder is allowed, as data[{ROOT!r}] of the context or as {ROOT_VARIABLE}"
        )
    path = Path(root).absolute()
    if path.exists() and not path.is_dir():
        raise ShotError(f"--to: {path} is not a folder; a folder is allowed")
    return path


def _settings(context: Any, root: Path) -> Settings:
    given = context.data.get(SETTINGS)
    return given if isinstance(given, Settings) else find_settings(root, given)
