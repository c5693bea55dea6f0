# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What a clip of the starter's world is called: the words that the starter model knows."""

from __future__ import annotations

import random
import re
from functools import cache

from rushes.starter.scene import KINDS, Scene

COLOR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "scarlet"), "orange": ("orange",), "yellow": ("yellow",), "green": ("green",),
    "cyan": ("cyan", "turquoise"), "blue": ("blue",), "purple": ("purple", "violet"),
    "pink": ("pink", "magenta"), "white": ("white",), "black": ("black",),
}  # fmt: skip
KIND_WORDS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "sphere"), "cube": ("cube", "box", "block"), "cone": ("cone", "pyramid"),
    "cylinder": ("cylinder", "drum", "pillar"), "car": ("car", "vehicle"),
    "person": ("person", "figure", "man", "woman"), "tree": ("tree",),
}  # fmt: skip
TIME_PHRASES: dict[str, tuple[str, ...]] = {
    "day": ("by day", "in daylight", "at noon", "during the day", "on a sunny day", "in the afternoon"),
    "sunset": ("at sunset", "at dusk", "in the evening", "at golden hour", "in the evening light"),
    "dawn": ("at dawn", "in the early morning", "at sunrise", "on a misty morning", "at first light"),
    "night": ("at night", "under the moon", "in the moonlight", "at midnight", "after dark"),
}
SETTING_PHRASES: dict[str, tuple[str, ...]] = {
    "desert": ("in the desert", "in a desert", "in the dunes", "on the sand", "among sand dunes"),
    "snow": ("in the snow", "on a snowy plain", "on white snow", "in a winter landscape"),
    "grass": ("on the grass", "in a meadow", "on a green meadow", "in a grassy field"),
    "sea": ("on the sea", "on the water", "over the ocean", "on the waves"),
    "city": ("in the city", "on a city street", "in front of buildings", "on a street in town"),
    "hills": ("in the hills", "in front of green hills", "among green hills", "in hilly country"),
    "mountains": ("in the mountains", "in front of mountains", "below snowy peaks", "among rocky mountains"),
    "forest": ("in the forest", "in a forest", "in the woods", "in front of pine trees"),
}
ACROSS: dict[str, tuple[str, ...]] = {
    "desert": ("across a desert", "across the desert", "across the sand"),
    "snow": ("across the snow", "across a snowy plain"),
    "grass": ("across a meadow", "across the grass", "over a green field"),
    "sea": ("across the sea", "over the water", "across the ocean"),
    "city": ("along a city street", "across the street", "past buildings"),
    "hills": ("across the hills", "past green hills"),
    "mountains": ("past the mountains", "past snowy peaks"),
    "forest": ("through the forest", "past the woods", "through the woods"),
}
"""For subjects that travel to the left or right."""
PLACES: dict[str, tuple[str, ...]] = {
    "desert": ("desert", "sand dunes"), "snow": ("snow", "snowy plain"), "grass": ("meadow", "grass"),
    "sea": ("sea", "ocean"), "city": ("city", "city street"), "hills": ("hills", "green hills"),
    "mountains": ("mountains", "rocky peaks"), "forest": ("forest", "woods"),
}  # fmt: skip
MOMENTS: dict[str, tuple[str, ...]] = {
    "day": ("day", "daylight", "noon"), "sunset": ("sunset", "dusk", "golden hour", "evening"),
    "dawn": ("dawn", "sunrise", "early morning", "misty sunrise"), "night": ("night", "moonlight"),
}  # fmt: skip
TRAVEL: dict[str, tuple[str, ...]] = {
    "ball": ("rolls", "moves"), "cube": ("slides", "moves"), "cone": ("slides", "glides"),
    "cylinder": ("slides", "moves"), "car": ("drives", "moves", "travels"),
    "person": ("walks", "runs", "moves"), "tree": ("moves", "drifts", "glides"),
}  # fmt: skip
MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    "still": ("stands still", "rests", "stays in place", "is still", "does not move"),
    "left": ("{go} to the left", "{go} left", "{go} from right to left"),
    "right": ("{go} to the right", "{go} right", "{go} from left to right"),
    "rise": ("rises", "floats up", "lifts off", "rises into the air", "goes up", "flies up"),
    "fall": ("falls", "drops", "falls down", "drops to the ground", "falls from the sky", "comes down"),
    "bounce": ("bounces", "hops", "bounces up and down", "hops up and down", "jumps"),
    "approach": (
        "comes closer", "{go} toward the camera", "{go} towards the camera", "approaches", "comes toward us",
        "approaches the camera",
    ),
    "recede": ("goes away", "{go} away from the camera", "recedes", "{go} into the distance", "moves away"),
}  # fmt: skip
RESTS: dict[str, tuple[str, ...]] = {
    "ball": ("lies still",), "cube": ("lies still",), "cone": ("stands",), "cylinder": ("stands",),
    "car": ("is parked",), "person": ("stands", "waits"), "tree": ("stands",),
}  # fmt: skip
CAMERA_PHRASES: dict[str, tuple[str, ...]] = {
    "static": ("static camera", "locked off", "fixed camera", "static shot", "the camera does not move"),
    "pan_left": ("pan left", "the camera pans to the left", "the camera pans left", "slow pan left"),
    "pan_right": ("pan right", "the camera pans to the right", "the camera pans right", "slow pan right"),
    "tilt_up": ("tilt up", "the camera tilts up", "slow tilt up", "the camera looks up"),
    "tilt_down": ("tilt down", "the camera tilts down", "slow tilt down", "the camera looks down"),
    "push_in": (
        "push in", "slow push in", "dolly in", "zoom in", "the camera pushes in", "the camera moves in",
    ),
    "pull_out": ("pull out", "slow pull out", "dolly out", "zoom out", "pull back", "the camera pulls back"),
    "orbit": ("orbit", "the camera circles around", "slow orbit", "the camera orbits", "orbit shot"),
}  # fmt: skip
BESIDE = ("next to", "beside")
OPENERS = ("a shot of", "a video of", "a clip of", "a wide shot of")
PARTICIPLES = {
    "is": "", "does": "", "rolls": "rolling", "moves": "moving", "slides": "sliding", "glides": "gliding",
    "drives": "driving", "travels": "traveling", "walks": "walking", "runs": "running", "drifts": "drifting",
    "stands": "standing", "rests": "resting", "stays": "staying", "waits": "waiting", "lies": "lying",
    "rises": "rising", "floats": "floating", "lifts": "lifting", "goes": "going", "flies": "flying",
    "falls": "falling", "drops": "dropping", "comes": "coming", "bounces": "bouncing", "hops": "hopping",
    "jumps": "jumping", "approaches": "approaching", "recedes": "receding",
}  # fmt: skip
DROP = {"motion": 0.08, "setting": 0.12, "time": 0.12, "camera": 0.12}
"""How often a clause is left out; a still subject and a static camera oftener: silence means them."""
DROP_STILL, DROP_STATIC, DROP_SECOND, DROP_COLOR, DROP_KIND = 0.35, 0.40, 0.2, 0.03, 0.02


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _noun(color: str, kind: str, dice: random.Random) -> str:
    """A colour and a kind in words, with an article."""
    hue, thing = dice.choice(COLOR_WORDS[color]), dice.choice(KIND_WORDS[kind])
    if kind == "person":
        form = dice.choice(("plain", "plain", "in", "coat", "someone"))
        if form == "in":
            return f"{_article(thing)} in {hue}"
        if form == "coat":
            return f"{_article(thing)} in {_article(hue)} coat"
        if form == "someone":
            return f"someone in {hue}"
    if kind == "tree" and dice.random() < 0.3:
        return f"a tree with {hue} leaves"
    return f"the {hue} {thing}" if dice.random() < 0.06 else _article(f"{hue} {thing}")


def _subject(scene: Scene, dice: random.Random) -> str:
    chance = dice.random()
    if chance < DROP_COLOR:
        return _article(dice.choice(KIND_WORDS[scene.kind]))
    if chance < DROP_COLOR + DROP_KIND:
        return f"something {dice.choice(COLOR_WORDS[scene.color])}"
    return _noun(scene.color, scene.kind, dice)


def _motion(scene: Scene, dice: random.Random) -> str:
    phrase = dice.choice(MOTION_PHRASES[scene.motion])
    if scene.motion == "still" and dice.random() < 0.3:
        phrase = dice.choice(RESTS[scene.kind])
    return phrase.format(go=dice.choice(TRAVEL[scene.kind]))


def participle(phrase: str) -> str:
    """A motion phrase in its -ing form: `rolls left` becomes `rolling left`."""
    verb, _, rest = phrase.partition(" ")
    return f"{PARTICIPLES[verb]} {rest}".strip()


def caption(scene: Scene, seed: int) -> str:
    """One way to say what a clip shows: lower case, clauses in varying order, some left out."""
    dice = random.Random(seed)
    keeps = {name: dice.random() >= rate for name, rate in DROP.items()}
    if scene.motion == "still":
        keeps["motion"] = dice.random() >= DROP_STILL
    if scene.camera == "static":
        keeps["camera"] = dice.random() >= DROP_STATIC
    subject = _subject(scene, dice)
    motion = _motion(scene, dice) if keeps["motion"] else ""
    if scene.second is not None and dice.random() >= DROP_SECOND:
        # `and` would make the verb a plural.
        glue = dice.choice(BESIDE if motion else (*BESIDE, "and"))
        subject += f" {glue} {_noun(scene.second.color, scene.second.kind, dice)}"
    camera = dice.choice(CAMERA_PHRASES[scene.camera]) if keeps["camera"] else ""
    if dice.random() < 0.15:
        return _tags(scene, subject, motion, camera, keeps, dice)
    travels = scene.motion in ("left", "right") and bool(motion)
    places = ACROSS if travels and dice.random() < 0.5 else SETTING_PHRASES
    place = dice.choice(places[scene.setting]) if keeps["setting"] else ""
    moment = dice.choice(TIME_PHRASES[scene.time]) if keeps["time"] else ""
    if motion and dice.random() < 0.25 and not motion.startswith("does"):
        subject, motion = f"{dice.choice(OPENERS)} {subject}", participle(motion)
    comma = ", " if dice.random() < 0.8 else " "
    core = [subject, motion]
    order = dice.choice(("place time", "place time", "place time", "time place", "time first", "place first"))
    if order == "time first" and moment:
        sentence = moment + comma + _join(" ", *core, place)
    elif order == "place first" and place and not travels:
        sentence = place + comma + _join(" ", *core, moment)
    elif order == "time place":
        sentence = _join(" ", *core, moment, place)
    else:
        sentence = _join(" ", *core, place, moment)
    return _join(comma, camera, sentence) if dice.random() < 0.25 else _join(comma, sentence, camera)


def _tags(scene: Scene, subject: str, motion: str, camera: str, keeps: dict[str, bool], dice: random.Random) -> str:
    """A list of key words, as many people write prompts."""
    subject = re.sub(r"\b(a|an|the) ", "", subject)
    if motion and not motion.startswith("does"):
        motion = participle(motion)
    parts = [
        motion,
        dice.choice(PLACES[scene.setting]) if keeps["setting"] else "",
        dice.choice(MOMENTS[scene.time]) if keeps["time"] else "",
        camera,
    ]
    if dice.random() < 0.4:
        dice.shuffle(parts)
    return _join(", ", subject, *parts)


def _join(glue: str, *parts: str) -> str:
    return glue.join(part for part in parts if part)


def full_caption(scene: Scene) -> str:
    """The plain sentence with every clause, for evaluation."""
    subject = _article(f"{COLOR_WORDS[scene.color][0]} {KIND_WORDS[scene.kind][0]}")
    if scene.second is not None:
        second = _article(f"{COLOR_WORDS[scene.second.color][0]} {KIND_WORDS[scene.second.kind][0]}")
        subject += f" next to {second}"
    motion = MOTION_PHRASES[scene.motion][0].format(go=TRAVEL[scene.kind][0])
    place = (ACROSS if scene.motion in ("left", "right") else SETTING_PHRASES)[scene.setting][0]
    return f"{subject} {motion} {place} {TIME_PHRASES[scene.time][0]}, {CAMERA_PHRASES[scene.camera][0]}"


def words(text: str) -> list[str]:
    """The lower-case words of a text; what is neither letter nor apostrophe separates them."""
    return re.findall(r"[a-z']+", text.lower())


@cache
def _vocabulary() -> tuple[str, ...]:
    tables = (
        COLOR_WORDS, KIND_WORDS, TIME_PHRASES, SETTING_PHRASES, ACROSS, PLACES, MOMENTS, TRAVEL, RESTS,
        CAMERA_PHRASES,
    )  # fmt: skip
    phrases = [phrase for table in tables for row in table.values() for phrase in row]
    phrases += [phrase.replace("{go}", "") for row in MOTION_PHRASES.values() for phrase in row]
    phrases += [*BESIDE, *OPENERS, *PARTICIPLES, *PARTICIPLES.values()]
    phrases += ["a an the and", "someone in", "something", "coat", "with leaves"]
    return tuple(sorted({word for phrase in phrases for word in words(phrase)}))


def vocabulary() -> list[str]:
    """Every word that a caption can contain, sorted."""
    return list(_vocabulary())


def _with_verbs(phrases: tuple[str, ...]) -> list[str]:
    verbs = dict.fromkeys(verb for row in TRAVEL.values() for verb in row)
    return [phrase.format(go=verb) for phrase in phrases for verb in (verbs if "{go}" in phrase else [""])]


def concepts() -> dict[str, dict[str, list[str]]]:
    """What the starter model knows: attribute -> class -> words and phrases for it."""
    motions = {k: list(dict.fromkeys(_with_verbs(v))) for k, v in MOTION_PHRASES.items()}
    motions["still"] += dict.fromkeys(phrase for rests in RESTS.values() for phrase in rests)
    return {
        "time": {k: [*v, *MOMENTS[k]] for k, v in TIME_PHRASES.items()},
        "setting": {k: [*v, *ACROSS[k], *PLACES[k]] for k, v in SETTING_PHRASES.items()},
        "kind": {k: list(KIND_WORDS[k]) for k in KINDS},
        "color": {k: list(v) for k, v in COLOR_WORDS.items()},
        "motion": motions,
        "camera": {k: list(v) for k, v in CAMERA_PHRASES.items()},
    }
