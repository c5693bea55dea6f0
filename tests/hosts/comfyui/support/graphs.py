# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Graphs as the frontend saves them (its format 0.4), from prompts and back, by what /object_info tells of nodes."""

from __future__ import annotations

from typing import Any

Prompt = dict[str, dict[str, Any]]
Graph = dict[str, Any]
Info = dict[str, Any]

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
AFTER_GENERATE = "control_after_generate"
COLUMN, ROW = 360, 60


def inputs_of(info: Info, kind: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, type, options) of a node's inputs in the frontend's order, required before optional."""
    found = []
    for group in ("required", "optional"):
        for name, (type_, *options) in (info[kind]["input"].get(group) or {}).items():
            given = options[0] if options else {}
            found.append((name, "COMBO" if isinstance(type_, list) else type_, given))
    return found


def to_graph(prompt: Prompt, info: Info, places: dict[str, tuple[int, int, int, int]]) -> Graph:
    """places: column, top, width and height of each node in the picture."""
    links: list[list[Any]] = []
    nodes = []
    for order, (key, node) in enumerate(prompt.items()):
        kind, given = node["class_type"], node["inputs"]
        sockets: list[dict[str, Any]] = []
        widgets: list[dict[str, Any]] = []
        values: list[Any] = []
        for name, type_, options in inputs_of(info, kind):
            if type_ not in WIDGETS:
                sockets.append({"name": name, "type": type_, "link": None})
                if name in given:
                    source, slot = given[name]
                    sockets[-1]["link"] = len(links) + 1
                    links.append([len(links) + 1, int(source), slot, int(key), len(sockets) - 1, type_])
                continue
            widgets.append({"name": name, "type": type_, "widget": {"name": name}, "link": None})
            values.append(given[name])
            if options.get(AFTER_GENERATE):
                values.append("fixed")
        column, top, width, height = places[key]
        made = {
            "id": int(key), "type": kind, "pos": [column * COLUMN, top], "size": [width, height], "flags": {},
            "order": order, "mode": 0, "inputs": sockets + widgets, "outputs": _outputs(info[kind]),
            "properties": {"Node name for S&R": kind}, "widgets_values": values,
        }  # fmt: skip
        nodes.append(made)
    for link, source, slot, *_ in links:
        outputs = next(node["outputs"] for node in nodes if node["id"] == source)
        outputs[slot]["links"] = [*(outputs[slot]["links"] or []), link]
    return {
        "id": "", "revision": 0, "last_node_id": max(map(int, prompt)), "last_link_id": len(links), "nodes": nodes,
        "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def _outputs(node: Info) -> list[dict[str, Any]]:
    return [
        {"name": name, "type": type_, "links": None}
        for name, type_ in zip(node["output_name"], node["output"], strict=True)
    ]


def to_prompt(graph: Graph, info: Info) -> Prompt:
    """What the frontend would submit."""
    sources = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt: Prompt = {}
    for node in graph["nodes"]:
        if node["type"] in ("Note", "MarkdownNote"):
            continue
        linked = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        values, given = iter(node["widgets_values"]), {}
        for name, type_, options in inputs_of(info, node["type"]):
            if type_ in WIDGETS:
                given[name] = next(values, options.get("default"))  # a graph from before an input was there
                if options.get(AFTER_GENERATE):
                    next(values)
        assert not list(values), node["type"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": given | linked}
    return prompt
