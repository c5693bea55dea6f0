# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Shot: what is refused, what is kept, and that JSON gives the same shot back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rushes.shot import CONTROL_KINDS, MAX_PROMPT, MAX_SEED, Control, Keyframe, Shot, ShotError, parse_fps, parse_size

# Each ends in why it is there.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),  # nothing
    ({"prompt": " \n\t"}, "prompt"),  # nothing that can be seen
    ({"prompt": "x" * (MAX_PROMPT + 1)}, "prompt"),  # one too long
    ({"prompt": "a\0b"}, "prompt"),  # ends a C string in the middle
    ({"prompt": 7}, "prompt"),
    ({"negative": 3}, "negative"),
    ({"negative": "x" * (MAX_PROMPT + 1)}, "negative"),
    ({"size": (7, 64)}, "width"),
    ({"size": (64, 16385)}, "height"),
    ({"size": (64, 64.0)}, "height"),  # a float that equals a whole number is still not one
    ({"size": (64, True)}, "height"),  # bool is an int to Python
    ({"size": 64}, "size"),
    ({"size": (64, 64, 3)}, "size"),
    ({"frames": 0}, "frames"),
    ({"frames": 100_001}, "frames"),
    ({"frames": "33"}, "frames"),
    ({"frames": True}, "frames"),
    ({"fps": 0}, "fps"),
    ({"fps": -24}, "fps"),
    ({"fps": 1001}, "fps"),
    ({"fps": "fast"}, "fps"),
    ({"fps": "24/0"}, "fps"),
    ({"fps": float("inf")}, "fps"),
    ({"fps": float("nan")}, "fps"),
    ({"seed": -1}, "seed"),
    ({"seed": MAX_SEED + 1}, "seed"),
    ({"seed": 1.0}, "seed"),
    ({"steps": 0}, "steps"),
    ({"steps": 1001}, "steps"),
    ({"guidance": -0.1}, "guidance"),
    ({"guidance": float("nan")}, "guidance"),
    ({"guidance": 101}, "guidance"),
    ({"guidance": "4"}, "guidance"),
    ({"guidance": ()}, "guidance"),
    ({"shift": 0}, "shift"),
    ({"shift": 101}, "shift"),
    ({"shift": float("nan")}, "shift"),
    ({"shift": "5"}, "shift"),
    ({"shift": True}, "shift"),
    ({"guidance": [4.0]}, "guidance"),
    ({"guidance": (4.0, 3.0, 2.0)}, "guidance"),
    ({"guidance": (4.0, -1)}, "guidance"),
    ({"guidance": (True, 4.0)}, "guidance"),
    ({"model": ""}, "model"),
]


def _random_shot(dice: random.Random) -> Shot:
    words = ["a red ball", "eine gefüllte Straße", "夕焼けの砂漠", '"quoted" \\ back', "line\nbreak", "🎬"]
    maybe = dice.random
    return Shot(
        prompt=dice.choice(words),
        negative=dice.choice([None, "", *words]),
        size=None if maybe() < 0.3 else (dice.randint(8, 16384), dice.randint(8, 16384)),
        frames=None if maybe() < 0.3 else dice.randint(1, 100_000),
        fps=None if maybe() < 0.3 else Fraction(dice.randint(1, 100), dice.choice([1, 1001, 3])),
        seed=dice.choice([0, MAX_SEED, dice.randint(0, MAX_SEED)]),
        steps=None if maybe() < 0.3 else dice.randint(1, 1000),
        guidance=dice.choice([None, dice.uniform(0, 100), (dice.uniform(0, 100), dice.uniform(0, 100))]),
        model=dice.choice(["starter", "C:\\models\\größe.safetensors"]),
        shift=dice.choice([None, dice.uniform(0.01, 100)]),
        control=tuple(
            dice.choice(
                [
                    Control("depth", "z.%04d.exr", dice.uniform(0, 10), "ü.png", start=dice.randint(0, 99)),
                    Control("reference", references=("a.png", "b.png"), sha256=("ab" * 32, "cd" * 32)),
                ]
            )
            for _ in range(dice.randint(0, 2))
        ),
        keyframes=tuple(Keyframe(dice.randint(-9, 9), f"ü{i}.png", "ab" * 32) for i in range(dice.randint(0, 3))),
    )


@pytest.mark.parametrize(("fields", "name"), REFUSED)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], name: str) -> None:
    """One sentence that names the field; the value is not taken over silently."""
    with pytest.raises(ShotError, match=name) as caught:
        Shot(**{"prompt": "a red ball", **fields})
    assert "\n" not in str(caught.value)
    assert re.search(r"allowed|it is empty", str(caught.value)), "says what is allowed"


def test_the_edges_of_each_range_are_allowed() -> None:
    """The first and last allowed value of each field."""
    Shot("x" * MAX_PROMPT, "x" * MAX_PROMPT, (8, 8), 1, Fraction(1, 1000), 0, 1, 0)
    Shot("x", "", (16384, 16384), 100_000, Fraction(1000), MAX_SEED, 1000, 100)


def test_json_gives_the_same_shot_back() -> None:
    """For shots of every shape, and in ASCII whatever the prompt."""
    dice = random.Random()
    for _ in range(200):
        shot = _random_shot(dice)
        text = shot.to_json()
        assert text.isascii() and "\n" not in text
        assert Shot.from_json(text) == shot
        assert Shot.from_dict(json.loads(json.dumps(shot.to_dict()))) == shot


def test_equal_shots_have_equal_hashes_and_json() -> None:
    """Two shots said differently but meaning the same are the same shot."""
    one = Shot("a", size=[64, 32], fps="24000/1001", guidance=4, keyframes=[Keyframe(0, "a.png")])  # type: ignore[arg-type]
    two = Shot("a", size=(64, 32), fps=Fraction(24000, 1001), guidance=4.0, keyframes=(Keyframe(0, "a.png"),))
    assert one == two and hash(one) == hash(two) and one.to_json() == two.to_json()


def test_a_shot_does_not_change() -> None:
    """It is frozen, and replace checks again."""
    shot = Shot("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        shot.seed = 3  # type: ignore[misc]
    assert shot.replace(seed=3).seed == 3 and shot.seed == 0
    with pytest.raises(ShotError, match="seed"):
        shot.replace(seed=-3)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], "JSON object"),
        ({"prompt": "a", "version": 2}, "update Rushes"),
        ({"prompt": "a", "version": "1"}, "version"),
        ({"prompt": "a", "colour": "red"}, "'colour'"),
        ({"seed": 1}, "'prompt' is missing"),
        ({"prompt": "a", "keyframes": [{"frame": 0, "picture": "a.png"}]}, "keyframe"),
        ({"prompt": "a", "keyframes": [{"frame": "0", "image": "a.png"}]}, "keyframe"),
        ({"prompt": "a", "keyframes": [{"frame": 0, "image": ""}]}, "keyframe"),
        ({"prompt": "a", "size": [64]}, "size"),
        ({"prompt": "a", "fps": "soon"}, "fps"),
    ],
)
def test_a_bad_record_is_refused(record: Any, words: str) -> None:
    """A record of a newer version, with unknown fields or of wrong types never becomes a shot."""
    with pytest.raises(ShotError, match=re.escape(words)):
        Shot.from_dict(record)


def test_text_that_is_not_json_is_refused() -> None:
    """With the place where it stops being JSON."""
    with pytest.raises(ShotError, match="character 9"):
        Shot.from_json('{"seed": }')


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        (24, Fraction(24)),
        ("25", Fraction(25)),
        (12.5, Fraction(25, 2)),
        ("24000/1001", Fraction(24000, 1001)),
        ("23.976", Fraction(24000, 1001)),  # how people write the NTSC rates
        (23.976, Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        ("47.952", Fraction(48000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("119.88", Fraction(120000, 1001)),
        ("1/3", Fraction(1, 3)),
        (30, Fraction(30)),  # near 29.97 and still itself
        ("24.0", Fraction(24)),
    ],
)
def test_frame_rates_are_exact(value: object, rate: Fraction) -> None:
    """Decimals of NTSC rates become the ratio that cameras and editors mean."""
    assert parse_fps(value) == rate


def test_every_exact_rate_survives_as_it_is() -> None:
    """A record's ratio must come back unchanged, or a shot made again would have another frame rate."""
    for nominal in (24, 25, 30, 48, 50, 60, 120):
        for rate in (Fraction(nominal), Fraction(nominal * 1000, 1001)):
            assert parse_fps(str(rate)) == rate


@pytest.mark.parametrize("text", ["128", "128x", "x80", "axb", "128*80", "-128x80", "128x80x3", "1e2x80", ""])
def test_a_size_that_is_not_width_x_height_is_refused(text: str) -> None:
    """By name, with an example."""
    with pytest.raises(ShotError, match="size"):
        parse_size(text)


def test_a_size_is_read_as_width_and_height() -> None:
    """In that order, with a small or a large x."""
    assert parse_size("128x80") == (128, 80) and parse_size("8X16") == (8, 16)


def test_a_keyframe_knows_its_picture(tmp_path: Path) -> None:
    """Sealing adds the digest; the same picture passes again, a changed or missing one is refused."""
    picture = tmp_path / "first.png"
    picture.write_bytes(b"one")
    sealed = Keyframe(0, str(picture)).sealed()
    assert sealed.sha256 == hashlib.sha256(b"one").hexdigest()
    assert sealed.sealed() == sealed
    picture.write_bytes(b"two")
    with pytest.raises(ShotError, match="not the picture"):
        sealed.sealed()
    picture.unlink()
    with pytest.raises(ShotError, match="cannot be read"):
        sealed.sealed()


@pytest.mark.parametrize(("frame", "image"), [(0.0, "a.png"), (True, "a.png"), (0, ""), (0, None)])
def test_a_bad_keyframe_is_refused(frame: Any, image: Any) -> None:
    """By name."""
    with pytest.raises(ShotError, match="keyframe"):
        Keyframe(frame, image)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "colour", "path": "a.png"},
        {"kind": ["depth"], "path": "a.png"},
        {"kind": "depth"},
        {"kind": "depth", "path": 3},
        {"kind": "depth", "path": "a.png", "mask": 3},
        {"kind": "depth", "path": "a.png", "strength": -0.1},
        {"kind": "depth", "path": "a.png", "strength": "1"},
        {"kind": "depth", "path": "a.png", "strength": float("nan")},
        {"kind": "depth", "path": "a.png", "start": -1},
        {"kind": "depth", "path": "a.png", "start": 1.0},
        {"kind": "reference"},
        {"kind": "reference", "references": [""]},
        {"kind": "reference", "references": "a.png"},
        {"kind": "reference", "references": [3]},
        {"kind": "reference", "references": ["a.png"] * 17},
        {"kind": "reference", "path": "a.png", "references": ["a.png"]},
        {"kind": "depth", "path": "a.png", "sha256": "ab"},
        {"kind": "depth", "path": "a.png", "colour": "red"},
        {"path": "a.png"},
        "depth",
        3,
    ],
)
def test_a_bad_control_is_refused_by_name(fields: Any) -> None:
    """From a record, which may hold anything: one sentence."""
    record = {**Shot("a red ball").to_dict(), "control": [fields]}
    with pytest.raises(ShotError, match=r"^control: .*allowed") as caught:
        Shot.from_dict(record)
    assert "\n" not in str(caught.value)


def test_too_many_controls_are_refused() -> None:
    for control in (3, [Control("depth", "a.png").__dict__] * 17):
        with pytest.raises(ShotError, match=r"^control: got"):
            Shot.from_dict({**Shot("a red ball").to_dict(), "control": control})
    assert {"source", "depth", "normal", "pose", "grey"} <= set(CONTROL_KINDS)
