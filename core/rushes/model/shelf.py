# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The shelf: every model that can be put together from the files found on this machine, each under a name.

A transformer makes a model; the VAE and the text encoder that go with it follow from its shapes: those of as many
latent channels and of as many values a token, and among several the nearest on the disk.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rushes.model import added
from rushes.model.bundle import SHIPPED, bundle_path, read_card
from rushes.model.experts import other_name
from rushes.model.files import EXPECTED, FOLDERS, VAE_FILES, ModelFiles, files_card
from rushes.model.names import own_name, slug
from rushes.model.offers import Source
from rushes.model.places import Place, comfyui_place, is_comfyui, usual_places, weights_in
from rushes.model.sightings import Memory, Sighting, sight, stamp
from rushes.model.spelling import tokenizer_file
from rushes.shot import ShotError

ORIGINS = ("shipped", "added", "comfyui", "hub")
PRECISIONS = ("bf16", "fp16", "fp32", "fp8")  # which of several files of the same model is taken first
_FILE_PARTS = {
    "transformer_low": "transformer",
    "transformer_high": "transformer",
}  # what a file of a part is by itself


@dataclass(frozen=True)
class Entry:
    """One model on the shelf.

    files: None while a part is missing; `missing` then says, a sentence each, what and where it is looked for. refusal:
    why files that are all there do not make a model. limits: see `Card.limits`, None for what cannot be used.
    """

    name: str
    origin: str
    paths: dict[str, Path]
    bytes: int
    precision: str = ""
    files: ModelFiles | None = None
    missing: tuple[str, ...] = ()
    refusal: str = ""
    limits: dict[str, Any] | None = field(default=None, compare=False)

    @property
    def is_ready(self) -> bool:
        return self.limits is not None


@dataclass(frozen=True)
class Found:
    """A sighting, where it belongs. group: of files that were named together, -1 for none."""

    sighting: Sighting
    origin: str
    rank: int
    group: int = -1

    @property
    def path(self) -> Path:
        return self.sighting.path


class Shelf:
    """What was found at one look. notes: a sentence for each place or file that could not be read."""

    def __init__(self, entries: Sequence[Entry], sightings: Sequence[Sighting], notes: Sequence[str]) -> None:
        self.entries, self.sightings, self.notes = tuple(entries), tuple(sightings), tuple(notes)

    def find(self, name: str) -> Entry | None:
        """The model of that name, capitals or not; or of the file of that name."""
        wanted = name.casefold()
        for entry in self.entries:
            if entry.name.casefold() == wanted:
                return entry
        stems = [e for e in self.entries if any(p.stem.casefold() == wanted for p in e.paths.values())]
        return stems[0] if len(stems) == 1 else None


def look() -> Shelf:
    """Look through what was added, ComfyUI's folders and the Hugging Face cache; each header is read once, ever."""
    notes: list[str] = []
    try:
        rows = added.read_added()
    except ShotError as error:  # the rest of the shelf is still there
        rows = []
        notes.append(str(error).removeprefix("models: "))
    places = [added_place(row, notes) for row in rows] + usual_places(notes)
    named = {i for i, row in enumerate(rows) if row.name}
    memory = Memory()
    found: list[Found] = []
    for rank, place in enumerate(places):
        group = rank if rank in named else -1
        sightings = [sight(path, memory) for path in weights_in(place, notes)]
        notes.extend(one.reason for one in sightings if one.reason)
        found.extend(Found(one, place.origin, rank, group) for one in sightings if one.parts)
    found = distinct(found)
    entries = [_shipped(name) for name in SHIPPED]
    entries += [named_entry(rows[group].name, group, found, memory) for group in sorted(named)]
    entries += _unnamed(found, {entry.name for entry in entries}, memory)
    memory.save()
    return Shelf(entries, [one.sighting for one in found], notes)


def lacking(shelf: Shelf, sources: Sequence[Source]) -> list[Source]:
    """Those of a model's sources whose part is not on this machine. The transformer is asked for always."""

    def is_here(source: Source) -> bool:
        return any(
            set(source.facts) <= one.parts[source.part].items()
            and (source.part != "text" or one.parts["text"]["has_tokenizer"] or tokenizer_file(one.path) is not None)
            for one in shelf.sightings
            if source.part in one.parts
        )

    return [source for source in sources if not source.facts or not is_here(source)]


def added_place(row: added.Added, notes: list[str]) -> Place:
    for path in row.paths:
        if not path.exists():
            notes.append(f"{path} is not there; `rushes models remove {row.name or path}` forgets it")
    comfyui = [comfyui_place(path, notes) for path in row.paths if path.is_dir() and is_comfyui(path)]
    others = [path for path in row.paths if not (path.is_dir() and is_comfyui(path))]
    paths = (*others, *(path for place in comfyui for path in place.paths))
    return Place("added", row.name or str(row.paths[0]), paths)


def distinct(found: Iterable[Found]) -> list[Found]:
    """Each file once in a group and once outside of all, by what a link points to, where it was met first."""
    seen: dict[tuple[str, int], Found] = {}
    for one in found:
        seen.setdefault((os.path.realpath(one.path), one.group), one)
    return list(seen.values())


def _shipped(name: str) -> Entry:
    path = bundle_path(name)
    return Entry(name, "shipped", {"model": path}, path.stat().st_size, limits=read_card(path).limits())


def _having(found: Iterable[Found], part: str) -> list[Found]:
    return [one for one in found if part in one.sighting.parts]


def named_entry(name: str, group: int, found: Sequence[Found], memory: Memory) -> Entry:
    """The one model that the files of a group make, with what else it needs from the shelf."""
    mine = [one for one in found if one.group == group]
    if bundles := _having(mine, "bundle"):
        return _bundle(name, bundles[0])
    transformers = _makers(mine)
    if not transformers:
        paths = {part: one.path for one in mine for part in one.sighting.parts}
        sentence = f"no transformer is there; {EXPECTED['transformer']} is expected"
        return Entry(name, "added", paths, sum(one.sighting.bytes for one in mine), missing=(sentence,))
    if len(transformers) > 1 and len({own_name(one.sighting) for one in transformers}) > 1:
        names = " and ".join(one.path.name for one in transformers[:2])
        raise ShotError(f"model: got {name!r}, which holds {names}; the path of one of them is allowed")
    return _entry(name, transformers[0], found, memory)


def _bundle(name: str, one: Found) -> Entry:
    limits: dict[str, Any] | None
    try:
        limits, refusal = {**read_card(one.path).limits(), "name": name}, ""
    except ShotError as error:
        limits, refusal = None, str(error)
    return Entry(name, one.origin, {"model": one.path}, one.sighting.bytes, refusal=refusal, limits=limits)


def _makers(found: Sequence[Found]) -> list[Found]:
    """Transformers, the better ones first; of two experts the high-noise one, where it is there."""
    transformers = sorted(_having(found, "transformer"), key=_rank)
    facts = [one.sighting.parts["transformer"] for one in transformers]
    pairs = {(own["form"], own["size"]) for own in facts if own["expert"] == "high"}
    return [
        one
        for one, own in zip(transformers, facts, strict=True)
        if own["expert"] != "low" or (own["form"], own["size"]) not in pairs
    ]


def _unnamed(found: Sequence[Found], taken: set[str], memory: Memory) -> list[Entry]:
    """A model for each transformer and each bundle that was found and not named; the better of two has the name."""
    entries = []
    named = {os.path.realpath(one.path) for one in found if one.group >= 0}
    free = [one for one in found if one.group < 0 and os.path.realpath(one.path) not in named]
    makers = [*_makers(free), *_having(free, "bundle")]
    for one in makers:
        facts = one.sighting.parts.get("transformer")
        own = own_name(one.sighting)
        choices = [own, f"{own}-{facts['precision']}" if facts else own, f"{own}-{slug(one.path.stem)}"]
        choices += [f"{own}-{i}" for i in range(2, len(makers) + 3)]
        name = next(choice for choice in choices if choice not in taken)
        taken.add(name)
        entries.append(_bundle(name, one) if facts is None else _entry(name, one, found, memory))
    return entries


def _entry(name: str, transformer: Found, found: Sequence[Found], memory: Memory) -> Entry:
    facts = transformer.sighting.parts["transformer"]
    chosen, missing = {"transformer": transformer}, []
    for part, fits in _companions(facts).items():
        fitting = [one for one in _having(found, _FILE_PARTS.get(part, part)) if fits(one)]
        if fitting:
            chosen[part] = min(fitting, key=lambda one: _distance(part, one, transformer))
        else:
            missing.append(_lacking(part, transformer))
    paths = {part: one.path for part, one in chosen.items()}
    total = sum({one.path: one.sighting.bytes for one in chosen.values()}.values())
    entry = Entry(name, transformer.origin, paths, total, facts["precision"], missing=tuple(missing))
    if missing:
        return entry
    low, clip = paths.get("transformer_low"), paths.get("clip")
    files = ModelFiles(transformer.path, paths["text"], paths["vae"], clip=clip, transformer_low=low, reference=name)
    return _judged(replace(entry, files=files), memory)


def _companions(facts: dict[str, Any]) -> dict[str, Callable[[Found], bool]]:
    """Which parts go with a transformer, and how one that fits is told."""
    needed: dict[str, Callable[[Found], bool]] = {}
    if facts["expert"] == "low":  # alone, or the high-noise one would stand for both
        needed["transformer_high"] = lambda one: False
    elif facts["expert"]:
        same = ("form", "size", "layers", "channels", "in_channels", "width")
        needed["transformer_low"] = lambda one: (
            one.sighting.parts["transformer"]["expert"] == "low"
            and all(one.sighting.parts["transformer"][key] == facts[key] for key in same)
        )
    needed["text"] = lambda one: one.sighting.parts["text"]["width"] == facts["width"]
    needed["vae"] = lambda one: one.sighting.parts["vae"]["channels"] == facts["channels"]
    if facts["image_width"]:
        needed["clip"] = lambda one: one.sighting.parts["clip"]["width"] == facts["image_width"]
    return needed


def _judged(entry: Entry, memory: Memory) -> Entry:
    """With the model's limits, or the reason why the files do not go together."""
    assert entry.files is not None
    try:
        beside = tokenizer_file(entry.files.text)
        now = stamp([*entry.files.paths.values(), *([beside] if beside else [])])
    except OSError as error:
        return replace(entry, refusal=f"model: {entry.name} cannot be read ({error})")
    key = "\n".join(str(path) for path in entry.files.paths.values())
    judgement = memory.recall(key, now)
    if judgement is None:
        try:
            judgement = {"refusal": "", "limits": files_card(entry.files).limits()}
        except ShotError as error:
            judgement = {"refusal": str(error), "limits": None}
        memory.remember(key, now, judgement)
    limits = judgement["limits"] and {**judgement["limits"], "name": entry.files.name}
    return replace(entry, refusal=judgement["refusal"], limits=limits)


def _lacking(part: str, transformer: Found) -> str:
    facts = transformer.sighting.parts["transformer"]
    usual = VAE_FILES.get(facts["channels"])
    what = {
        "transformer_low": f"the low-noise expert such as {other_name(transformer.path)}",
        "transformer_high": f"the high-noise expert such as {other_name(transformer.path)}",
        "text": f"a text encoder of {facts['width']} values a token such as umt5_xxl_fp16.safetensors",
        "vae": f"a VAE of {facts['channels']} latent channels{f' such as {usual}' if usual else ''}",
        "clip": "CLIP's ViT-H/14 vision tower such as clip_vision_h.safetensors",
    }[part]
    return f"it lacks {what}; ComfyUI has it in {FOLDERS[part]}, and `rushes models add PATH` takes it from anywhere"


def _distance(part: str, one: Found, transformer: Found) -> tuple[Any, ...]:
    """What makes one file of a part a better choice than another; the smallest is taken."""
    facts = one.sighting.parts[_FILE_PARTS.get(part, part)]
    lacks_tokenizer = part == "text" and not (facts["has_tokenizer"] or tokenizer_file(one.path))
    is_other = "wan" not in one.path.stem.lower() and part == "vae"  # another program's VAE may have Wan's shapes
    if part == "transformer_low":
        is_other = one.path.name != other_name(transformer.path)
    is_apart = one.group < 0 or one.group != transformer.group
    return (
        lacks_tokenizer, is_apart, -_shared(one.path, transformer.path), is_other, _precision_rank(facts), one.rank,
        str(one.path),
    )  # fmt: skip


def _shared(a: Path, b: Path) -> int:
    """How many folders two files have in common, counted from the root."""
    pairs = zip(a.absolute().parts, b.absolute().parts, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _rank(one: Found) -> tuple[Any, ...]:
    facts = one.sighting.parts.get("transformer", {})
    return ORIGINS.index(one.origin), _precision_rank(facts), one.rank, str(one.path)


def _precision_rank(facts: dict[str, Any]) -> int:
    precision = facts.get("precision", "")
    return PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)
