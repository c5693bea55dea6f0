# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Captions of the starter's world: all in the vocabulary, true, and varied."""

from __future__ import annotations

import random
import re

import pytest

from rushes.starter.captions import (
    ACROSS,
    CAMERA_PHRASES,
    COLOR_WORDS,
    KIND_WORDS,
    MOTION_PHRASES,
    PLACES,
    SETTING_PHRASES,
    caption,
    concepts,
    full_caption,
    participle,
    vocabulary,
    words,
)
from rushes.starter.scene import ATTRIBUTES, Scene
from rushes.starter.world import sample_scenes


@pytest.fixture
def seed() -> int:
    """A new seed for each run."""
    return random.SystemRandom().randrange(2**31)


def naive_words(text: str) -> set[str]:
    """Words of a text, without the code under test."""
    return {word.strip(",.") for word in text.split()} - {""}


def test_every_word_of_a_caption_is_in_the_vocabulary(seed: int) -> None:
    """Whatever is said can be read by the model."""
    known = set(vocabulary())
    for k, scene in enumerate(sample_scenes(3000, seed, split="all")):
        for text in (caption(scene, seed + k), full_caption(scene)):
            assert text == text.lower()
            assert naive_words(text) <= known, text


def test_every_word_of_the_vocabulary_is_said() -> None:
    """No word is left without training."""
    said: set[str] = set()
    for k, scene in enumerate(sample_scenes(8000, 5, split="all")):
        said |= naive_words(caption(scene, k))
    assert said == set(vocabulary())


def test_vocabulary_is_sorted_small_and_has_the_readmes_sentence() -> None:
    """Sorted, without doubles, about two hundred words."""
    known = vocabulary()
    assert known == sorted(set(known))
    assert 180 <= len(known) <= 260
    assert all(re.fullmatch("[a-z]+", word) for word in known)
    sentence = "a red ball rolls to the right across a desert at sunset, slow push in"
    assert naive_words(sentence) <= set(known)


def test_full_caption_is_the_readmes_sentence() -> None:
    """The plain sentence has every clause in a fixed order."""
    scene = Scene("sunset", "desert", "ball", "red", "right", "push_in")
    assert full_caption(scene) == "a red ball rolls to the right across a desert at sunset, push in"


def test_same_seed_gives_the_same_caption_and_others_vary(seed: int) -> None:
    """One seed, one caption; many seeds, many captions, long and short."""
    scene = sample_scenes(1, seed)[0]
    assert caption(scene, seed) == caption(scene, seed)
    texts = {caption(scene, k) for k in range(200)}
    assert len(texts) > 100
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 8 and max(lengths) >= 13


def test_captions_tell_the_truth(seed: int) -> None:
    """No caption names a colour, a kind or a setting that is not there, or the wrong direction of a move."""
    for k, scene in enumerate(sample_scenes(2000, seed, split="all")):
        text = caption(scene, seed + k)
        things = [scene] if scene.second is None else [scene, scene.second]
        for table, allowed in (
            (COLOR_WORDS, {w for thing in things for w in COLOR_WORDS[thing.color]}),
            (KIND_WORDS, {w for thing in things for w in KIND_WORDS[thing.kind]}),
        ):
            every = {word for row in table.values() for word in row}
            # Places have colours and trees of their own.
            bare = re.sub("green hills|green meadow|green field|white snow|pine trees", "", text)
            assert naive_words(bare) & every <= allowed, text
        if "pan" not in text and "pans" not in text:
            ends = text.replace("from left to right", "right").replace("from right to left", "left")
            assert naive_words(ends) & {"left", "right"} <= {scene.motion}, text


def test_most_captions_name_color_and_kind(seed: int) -> None:
    """The subject is hardly ever left out; other clauses often are."""
    scenes = [scene for scene in sample_scenes(2000, seed) if scene.second is None]
    named = placed = filmed = 0
    for k, scene in enumerate(scenes):
        text = caption(scene, seed + k)
        named += any(w in text for w in COLOR_WORDS[scene.color]) and any(
            w in text for w in (*KIND_WORDS[scene.kind], "someone")
        )
        placed += any(p in text for table in (SETTING_PHRASES, ACROSS, PLACES) for p in table[scene.setting])
        filmed += any(p in text for p in CAMERA_PHRASES[scene.camera])
    assert named / len(scenes) > 0.9
    assert 0.82 < placed / len(scenes) < 0.94
    assert 0.7 < filmed / len(scenes) < 0.9


def test_every_class_has_words() -> None:
    """What `models show` prints covers every class of every attribute, in words of the vocabulary."""
    known, told = set(vocabulary()), concepts()
    assert set(told) == set(ATTRIBUTES)
    for name, classes in ATTRIBUTES.items():
        assert set(told[name]) == set(classes)
        for value in classes:
            assert told[name][value], (name, value)
            assert len(set(told[name][value])) == len(told[name][value]), (name, value)
            for phrase in told[name][value]:
                assert "{" not in phrase
                assert naive_words(phrase) <= known, phrase


def test_no_phrase_stands_for_two_classes() -> None:
    """Within an attribute a phrase means one class only."""
    for name, classes in concepts().items():
        seen: dict[str, str] = {}
        for value, phrases in classes.items():
            for phrase in phrases:
                assert seen.setdefault(phrase, value) == value, (name, phrase)


def test_participles_of_all_motions_exist() -> None:
    """Every motion phrase has an -ing form."""
    assert participle("rolls to the left") == "rolling to the left"
    assert participle("is parked") == "parked"
    for phrases in MOTION_PHRASES.values():
        for phrase in phrases:
            assert participle(phrase.format(go="rolls"))


def test_words_split_as_the_model_reads() -> None:
    """Case and punctuation do not matter."""
    assert words("A red BALL, rolls;fast!") == ["a", "red", "ball", "rolls", "fast"]
