# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The English locale of our nodes, from the schema itself: one source for every name and tooltip."""

from __future__ import annotations

from typing import Any


def node_definitions(info: dict[str, Any]) -> dict[str, Any]:
    """locales/en/nodeDefs.json for the nodes that /object_info tells of."""
    return {name: _node(node) for name, node in sorted(info.items())}


def _node(node: dict[str, Any]) -> dict[str, Any]:
    inputs = {}
    for group in ("required", "optional"):
        for name, (_, options) in (node["input"].get(group) or {}).items():
            inputs[name] = {"name": options.get("display_name") or name, "tooltip": options["tooltip"]}
    outputs = {
        str(slot): {"name": name, "tooltip": tooltip}
        for slot, (name, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"], strict=True))
    }
    return {
        "display_name": node["display_name"], "description": node["description"], "inputs": inputs, "outputs": outputs,
    }  # fmt: skip
