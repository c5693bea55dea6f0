# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The knobs that make a clip faster at the cost of an error: read as a part of the wish, and set again from a plate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nuke

FP8 = "fp8_products"
SHARES = {"reuse": 0.0, "guided": 1.0, "attention": 1.0}  # knobs, and where they are off
_TILE = [4, 4, 4]  # that a density is of where nobody says


def knobs() -> list[Any]:
    """Made anew for a node, all of them off."""
    reuse, guided = nuke.Double_Knob("reuse", "reuse blocks"), nuke.Double_Knob("guided", "guided share")
    attention = nuke.Double_Knob("attention", "attention density")
    products = nuke.Boolean_Knob(FP8, "fp8 products", False)
    reuse.setTooltip(
        "0 to 1, 0 is off. Faster, with an error: steps that change by less than this share take most of their work "
        "from the step before. 0.1 is a fifth faster with 3 % of error on the starter"
    )
    guided.setTooltip(
        "0 to 1, 1 guides all steps. Faster, with an error: after this share of the steps guidance is left out, which "
        "halves what they cost. 0.8 is a tenth faster with 7 % of error on the starter"
    )
    attention.setTooltip(
        "above 0 to 1, 1 is all of it. Faster, with an error: the share of self-attention that is computed, the parts "
        "that matter most. 0.2 gives large clips in a third of the time, with 3 % of error on random weights"
    )
    products.setTooltip(
        "faster, with an error: multiply in fp8 where the model's file is in it, on a CUDA card from sm_89 on. "
        "About 4 % off in one layer"
    )
    for knob in (reuse, guided, attention):
        knob.setValue(SHARES[knob.name()])
    return [nuke.Text_Knob("speed_line", ""), reuse, guided, attention, products]


def wish(node: Any) -> dict[str, Any]:
    """What the knobs say; nothing for a node of a Rushes that had none of them. The worker refuses what is wrong."""
    if node.knob(FP8) is None:
        return {}
    shares = {name: float(node[name].value()) for name in SHARES}
    return {
        **shares, "attention": None if shares["attention"] == 1 else shares["attention"],
        FP8: bool(node[FP8].value()),
    }  # fmt: skip


def offer(node: Any, is_on_cuda: bool) -> None:
    """Products in fp8 can be chosen where the worker has a card for them; what is set can be taken back anywhere."""
    if node.knob(FP8) is not None:
        node[FP8].setEnabled(is_on_cuda or bool(node[FP8].value()))


def restore(node: Any, found: Mapping[str, Any]) -> list[str]:
    """Set the knobs as they were for a plate. found: the worker's answer to `record`. A sentence for what they cannot
    say."""
    if node.knob(FP8) is None:
        return []
    shot, model = found["shot"], found["record"].get("model") or {}
    attention = model.get("attention") or {}
    density = attention.get("density", 1.0) if attention.get("mode") == "density" else 1.0
    values = {"reuse": shot.get("reuse", 0.0), "guided": shot.get("guided", 1.0), "attention": density}
    for name, value in values.items():
        node[name].setValue(value)
    node[FP8].setValue(bool(model.get(FP8)))
    others = {name: value for name, value in attention.items() if name not in ("mode", "density", "tile", "window")}
    is_said = attention.get("mode") in (None, "dense", "density") and not any(others.values())
    if is_said and list(attention.get("tile", _TILE)) == _TILE:
        return []
    return ["attention: the plate was made with more settings than a density, which the command line takes: other bits"]
