# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a pyblish context has been through: failures, and what is to be done about them. Imports no pyblish."""

from __future__ import annotations

from typing import Any

from rushes.publish.publication import KEY, Publication
from rushes.shot import ShotError


def results(context: Any) -> list[dict[str, Any]]:
    """pyblish's results so far, those of its actions left out."""
    return [result for result in context.data.get("results", []) if not result["action"]]


def failed_instances(context: Any, plugin: Any) -> list[Any]:
    """Instances whose last run through a plug-in has failed."""
    last = {str(result["instance"].id): result for result in results(context) if _is_of(result, plugin)}
    return [result["instance"] for result in last.values() if result["error"] is not None]


def _is_of(result: dict[str, Any], plugin: Any) -> bool:
    return result["plugin"].__name__ == plugin.__name__ and result["instance"] is not None


def refuse_after_failure(context: Any, order: float) -> None:
    """Raise ShotError where the last run of any plug-in before `order` has failed. Those after it had their own."""
    last = {}
    for result in results(context):
        instance = result["instance"]
        if result["plugin"].order < order:
            last[result["plugin"].__name__, instance.id if instance is not None else None] = result
    for result in last.values():
        if result["error"] is not None:
            raise ShotError(f"version: {result['plugin'].__name__} has failed; nothing is published after a failure")


def discard_unpublished(context: Any) -> None:
    """Give back every reserved number, with what was written for it."""
    for instance in context:
        found = instance.data.get(KEY)
        if isinstance(found, Publication):
            found.discard()
