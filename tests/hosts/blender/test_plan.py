# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""From the panel to a shot, and from clip frames to scene frames, without Blender."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rushes.attention.layers import SparseAttention
from rushes.engine import Model
from rushes.shot import Shot
from rushes.speed import Speed

LIMITS = Model.open("starter").limits()


def _wish(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": "a red ball", "negative": "", "model": "starter", "seed": 3, "steps": 0, "guidance": None, "fps": "",
        "scene_fps": "24", "keyframes": [], "size": {"mode": "SCENE", "scene": [1920, 1080], "custom": [128, 80]},
        "length": {"mode": "FRAMES", "frames": 0, "scene_frames": 0, "from": "FRAMES"}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_every_plan_is_a_shot_that_the_model_takes(plan_module: ModuleType, seed: int) -> None:
    """Whatever the panel and the scene say, resolve() takes it as it is: nothing is fitted behind the artist's back."""
    dice = random.Random(seed)
    wish = _wish(
        size={
            "mode": dice.choice(["SCENE", "MODEL", "CUSTOM"]),
            "scene": [dice.randint(8, 8000), dice.randint(8, 8000)],
            "custom": [dice.randint(8, 4000), dice.randint(8, 4000)],
        },
        length={"mode": dice.choice(["FRAMES", "RANGE"]), "frames": dice.randint(0, 999),
                "scene_frames": dice.randint(1, 3000), "from": "FRAMES"},
        scene_fps=dice.choice(["24", "25", "24000/1001", "60", "8"]),
        fps=dice.choice(["", "16", "30"]),
    )  # fmt: skip
    made = plan_module.plan(wish, LIMITS)
    shot = Shot.from_dict(made.shot)
    resolved = Model.open("starter").resolve(shot)
    assert (resolved.size, resolved.frames, resolved.fps) == (shot.size, shot.frames, shot.fps)
    scene, clip = Fraction(wish["scene_fps"]), Fraction(wish["fps"] or LIMITS["fps"])
    assert 0 < made.length <= math.ceil(shot.frames * scene / clip)  # type: ignore[operator]
    if wish["length"]["mode"] == "RANGE":
        covered = made.length == wish["length"]["scene_frames"]
        assert covered or any("makes up to" in note for note in made.notes)


def test_what_is_faster_is_off_unless_it_is_asked_for(plan_module: ModuleType) -> None:
    """Also in wishes of a Rushes that had none of it, and with a LoRA of few steps: then nothing more is sent."""
    lora = {"path": "/lightx2v_4steps.safetensors", "strength": 1.0, "expert": ""}
    for wish in (_wish(), _wish(loras=[lora]), _wish(attention=None, fp8_products=False), _wish(attention=1.0)):
        shot = plan_module.plan(wish, LIMITS).shot
        assert (shot["reuse"], shot["guided"]) == (0.0, 1.0) and plan_module.speed(wish) == {}
    fast = _wish(reuse=0.1, guided=0.5, attention=0.3, fp8_products=True)
    shot = Shot.from_dict(plan_module.plan(fast, LIMITS).shot)
    assert (shot.reuse, shot.guided) == (0.1, 0.5)
    asked = Speed.read(plan_module.speed(fast))
    assert asked == Speed(SparseAttention(density=0.3), True), "as the worker reads it"


def test_a_scene_keeps_its_shape(plan_module: ModuleType) -> None:
    """16:9 and 9:16 come out at about the model's own number of pixels, and the panel says so."""
    wide = plan_module.plan(_wish(), LIMITS)
    tall = plan_module.plan(_wish(size={"mode": "SCENE", "scene": [1080, 1920], "custom": [8, 8]}), LIMITS)
    assert wide.shot["size"] == [128, 80] == tall.shot["size"][::-1]
    assert wide.notes == ["size: 1920x1080 becomes 128x80, in steps of 16 pixels"]


@pytest.mark.parametrize(
    ("clip", "scene", "words"),
    [
        ("12", "24", "each frame is shown 2 times"),
        ("16", "24", "each is shown 1 or 2 times"),
        ("24", "24", "frame for frame"),
        ("24", "12", "2 frames of the clip to one of the scene; the others are left out"),
        ("24", "24000/1001", "24 fps in a scene of 23.976: 1.001 frames of the clip to one"),
    ],
)
def test_the_mapping_is_told_as_it_is(plan_module: ModuleType, clip: str, scene: str, words: str) -> None:
    assert words in plan_module.describe_rate(Fraction(clip), Fraction(scene))


@pytest.mark.parametrize("seed", range(20))
def test_frames_lie_where_time_says(elements_module: ModuleType, seed: int) -> None:
    """Each scene frame shows the clip frame that began last, and more finished frames only add elements."""
    dice = random.Random(seed)
    clip, scene = (Fraction(dice.randint(1, 60000), dice.choice([1, 1001]) * 100) for _ in range(2))
    frames = dice.randint(1, 40)
    names = elements_module.element_names(frames, clip, scene)
    for element, name in enumerate(names):
        begun = max(number for number in range(frames) if Fraction(number) / clip <= Fraction(element) / scene)
        assert name == f"{begun + 1:04d}.png"
    assert Fraction(len(names) - 1) / scene < Fraction(frames) / clip <= Fraction(len(names)) / scene
    part = elements_module.element_names(max(1, frames // 2), clip, scene)
    assert names[: len(part)] == part


def test_a_conformed_folder_has_a_file_for_each_scene_frame(elements_module: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "frames"
    source.mkdir()
    for number in range(1, 4):
        (source / f"{number:04d}.png").write_bytes(bytes([number]))
    names = elements_module.element_names(3, Fraction(10), Fraction(25))
    for _ in range(2):  # again over what is there
        made = elements_module.conform(source, tmp_path / "at 25", names)
    assert [(tmp_path / "at 25" / name).read_bytes()[0] for name in made] == [1, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("base", [1.0, 1.001, 1.00100004673])  # the last is what a float32 makes of it
def test_blenders_rate_is_exact(elements_module: ModuleType, base: float) -> None:
    assert elements_module.scene_rate(24, base) == (Fraction(24) if base == 1 else Fraction(24000, 1001))


@pytest.mark.parametrize("prompt", ["a ball", "x" * 200, "ä日本" * 40, "two\nlines  and spaces"])
def test_names_fit_blender_and_keep_the_seed(elements_module: ModuleType, prompt: str) -> None:
    name = elements_module.strip_name(prompt, 2**31 - 1)
    assert name.endswith(f" · seed {2**31 - 1}") and len(name.encode()) <= 63 and "\n" not in name


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (59, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_times_are_read_at_a_glance(plan_module: ModuleType, seconds: float, words: str) -> None:
    assert plan_module.describe_time(seconds) == words
