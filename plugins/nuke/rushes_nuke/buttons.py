# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The node's buttons and the menu's entries: what refuses says so in a dialogue, or as an exception in `nuke -t`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nuke

from . import contact, flow, host, publishing
from . import node as nodes
from .refusal import Refusal
from .session import REFUSALS
from .vendor.plan import describe_error

VERDICTS = ("approved", "rejected")


def _guarded(work: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return work(*arguments)
    except REFUSALS as error:
        sentence = describe_error(error)
        if not host.is_gui():
            raise Refusal(sentence) from error
        nuke.message(sentence)
        return None


def generate(node: Any) -> None:
    _guarded(flow.generate, node)


def new_version(node: Any) -> None:
    _guarded(flow.new_version, node)


def cancel(node: Any) -> None:
    _guarded(flow.cancel, node)


def reattach(node: Any) -> None:
    _guarded(flow.reattach, node)


def version_up(node: Any) -> None:
    _guarded(flow.step_version, node, 1)


def version_down(node: Any) -> None:
    _guarded(flow.step_version, node, -1)


def contact_sheet(node: Any) -> None:
    _guarded(contact.make, node)


def restore(node: Any) -> None:
    path = str(node["restore_from"].getEvaluatedValue() or "")
    if not path and host.is_gui():
        path = nuke.getFilename("A frame of a plate that Rushes has written", "*.exr") or ""
    _guarded(flow.restore, node, path)


def publish(node: Any) -> None:
    root = str(node["publish_to"].getEvaluatedValue() or "")
    if not root and host.is_gui():
        root = nuke.getFilename("The folder of the publishes") or ""
    _guarded(publishing.publish, node, root)


def review(node: Any) -> None:
    """Ask who has looked at it, and for the verdict."""
    name = nuke.getInput("Reviewed by", "")
    if name:
        verdict = nuke.choice("Rushes", f"{name} finds it", list(VERDICTS))
        if verdict is not None:
            _guarded(publishing.review, node, name, VERDICTS[verdict])


def create() -> None:
    """Menu: a new node."""
    _guarded(nodes.create)


def create_from_plate() -> None:
    """Menu: a new node with the settings of the selected Read's plate, or of a file that is chosen."""
    reads: list[Any] = [node for node in nuke.selectedNodes() if node.Class() == "Read"]
    path = str(reads[0]["file"].getEvaluatedValue() or "") if reads else ""
    path = path or nuke.getFilename("A frame of a plate that Rushes has written", "*.exr") or ""
    if path:
        _guarded(flow.restore, nodes.create(), path)


def on_selected(action: Callable[[Any], None]) -> None:
    """Menu: an action on the selected node of ours."""
    node = _guarded(flow.selected)
    if node is not None:
        action(node)
