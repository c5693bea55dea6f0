# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The plug-in's rules without a worker: frames of a clip on frames of a script, and colour spaces in menus."""

from __future__ import annotations

import ast
import math
import random
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rushes.engine import Model
from rushes.media.color import list_spaces

LIMITS = Model.open("starter").limits()


@pytest.fixture
def plugin(session: Any, load_plugin: Any) -> ModuleType:
    return load_plugin(session)


def _space(name: str) -> dict[str, Any]:
    return next(space for space in list_spaces() if space["name"] == name)


@pytest.mark.parametrize("seed", range(20))
def test_every_frame_of_the_range_shows_the_clip_frame_of_its_time(install: Any, load_plugin: Any, seed: int) -> None:
    """Counted with fractions, against the expression in the Read; the range that is shown is all that it asks for."""
    ranges, dice = load_plugin(install()).ranges, random.Random(seed)
    clip, script = (Fraction(dice.choice([12, 16, 24, 25, 30, Fraction(24000, 1001)])) for _ in range(2))
    start, length = dice.randrange(2000), dice.randint(1, 60)
    file_start = dice.choice([1, start])
    expression = ranges.frame_expression(start, file_start, clip, script) or "frame"
    first, last = ranges.shown_range(start, length, 10_000, clip, script)
    shown = set()
    for frame in range(start, start + length):
        number = eval(expression, {"frame": frame, "floor": math.floor})
        assert number == file_start + math.floor((frame - start) * clip / script)
        shown.add(number - file_start + start)
    assert (min(shown), max(shown)) == (first, last)


def test_the_rule_is_told_in_full(plugin: ModuleType) -> None:
    from rushes_nuke.vendor.plan import plan  # type: ignore[import-not-found]

    wish = {
        "prompt": "a", "negative": "", "model": "starter", "seed": 3, "steps": 0, "guidance": None, "fps": "24",
        "scene_fps": "24", "keyframes": [], "size": {"mode": "MODEL", "scene": [1920, 1080], "custom": [0, 0]},
        "length": {"mode": "RANGE", "frames": 0, "scene_frames": 56, "from": "RANGE"},
    }  # fmt: skip
    said = plugin.ranges.describe(993, plan(wish, LIMITS), wish, LIMITS, Fraction(24))
    assert said == [
        "57 frames (4n+1) at 128x80, numbered from 993",
        "they fill 993-1048; 1 more lie behind it on disk",
        "frame for frame: the model moves things at 12 fps, so at the script's rate they are 2 times as fast",
        "length: 56 frames become 57, the rest is cut off",
    ]


@pytest.mark.parametrize("name", ["ACEScg", "ACES2065-1", "sRGB Encoded Rec.709 (sRGB)", "Linear Rec.709 (sRGB)"])
@pytest.mark.parametrize(
    "config", ["ocio://cg-config-v1.0.0_aces-v1.3_ocio-v2.1", "ocio://studio-config-v2.2.0_aces-v1.3_ocio-v2.4"]
)
@pytest.mark.parametrize("major", [13, 16])
def test_a_space_is_found_in_every_menu(install: Any, load_plugin: Any, name: str, config: str, major: int) -> None:
    """Whatever a configuration calls it: what is set there is the same space by OpenColorIO's own names."""
    import PyOpenColorIO as ocio  # noqa: N813 - the field's name for it

    session = install(major=major, config=config)
    colour, read = load_plugin(session).colour, session.nuke.nodes.Read()
    colour.put(read["colorspace"], _space(name))
    chosen = read["colorspace"].value()
    theirs, ours = ocio.Config.CreateFromFile(config), _space(name)
    assert theirs.getColorSpace(chosen).getName() in [name, *ours["aliases"]]


def test_the_id_goes_before_the_label_and_both_before_an_alias(plugin: ModuleType) -> None:
    space = {
        "name": "ACEScg",
        "aliases": ["lin_ap1", "ACES - ACEScg"],
        "interop_id": "lin_ap1_scene",
        "is_linear": True,
    }
    match = plugin.colour.match
    assert match(["a\tACEScg", "ACEScg\tACES/other", "lin_ap1"], space) == "ACEScg"
    assert match(["lin_ap1", "a\tACES/ACEScg"], space) == "a"
    assert match(["scene_linear (ACES - ACEScg)", "ACES - ACEScg"], space) == "ACES - ACEScg"
    assert match(["scene_linear (ACES - ACEScg)", "sRGB"], space) == "scene_linear (ACES - ACEScg)"
    assert match(["Linear Rec.709 (ACEScg)", "default"], space) is None, "a name with a bracket is no role"
    linear = _space("Linear Rec.709 (sRGB)")
    assert match(["linear", "sRGB", "rec709"], linear) == "linear"
    assert match(["linear", "sRGB", "rec709"], _space("sRGB Encoded Rec.709 (sRGB)")) == "sRGB"


def test_the_working_space_is_the_scripts(install: Any, load_plugin: Any) -> None:
    session = install(major=15)
    colour = load_plugin(session).colour
    assert colour.chosen(colour.WORKING, list_spaces())["name"] == "ACEScg"
    session.nuke.root()["workingSpaceLUT"].setValue("ACES2065-1")
    assert colour.chosen(colour.WORKING, list_spaces())["name"] == "ACES2065-1"
    with pytest.raises(ValueError, match="the worker has no 'ACESxx'"):
        colour.chosen("ACESxx", list_spaces())


def test_the_plugin_is_python_of_nukes_oldest(plugin_folder: Path) -> None:
    """3.9 for all of it; the two files that Nuke runs itself also in 3.7, where they say what is missing."""
    files = sorted(plugin_folder.rglob("*.py"))
    assert {"init.py", "menu.py"} < {path.name for path in files} and (plugin_folder / "rushes_nuke/vendor").is_dir()
    for path in files:
        version = (3, 7) if path.parent == plugin_folder else (3, 9)
        ast.parse(path.read_text(encoding="utf-8"), feature_version=version)
