# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Versions in names, as artists step through them in Nuke with Alt+Up and Alt+Down: `plate_v003.%04d.exr`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from rushes.media.paths import PICTURES, STILLS, Target, frame_pattern, is_being_written, manifest_name

# What Nuke takes for a version: a v after a slash, an underscore or a dot, in either case, and its digits
_VERSION = re.compile(r"(?:^|(?<=[/\\_.]))v([0-9]+)", re.IGNORECASE)
_SEPARATORS = "._-"
_FIRST = "v001"


def next_version(path: str | os.PathLike[str]) -> str:
    """The name of the first version, from that in `path` on, of which no file exists; the rest is as given.

    "plate_v003.%04d.exr" stays, or becomes "plate_v004.%04d.exr" and so on; "plate.%04d.exr" is tried as
    "plate_v001.%04d.exr"; the number of digits stays. A version is taken by any frame of it, by its manifest, and
    by another process that is writing it. As in Nuke the last version of the name counts, and folders change with
    it which end with the same one; a folder alone has a version only where its whole name is one, such as v003.
    Nothing is reserved: `open_outputs` refuses a name that was taken meanwhile, and the caller asks again.
    Raises ShotError for a name that is no output's.
    """
    text = os.fspath(path)
    Target.parse(text)
    places = _places(text)
    if not places:
        text = _with_first_version(text)
        places = _places(text)
    digits = places[-1][1] - places[-1][0]
    number = int(text[slice(*places[-1])])
    while _is_taken(name := _replaced(text, places, f"{number:0{digits}d}")):
        number += 1
    return name


def versions_of(path: str | os.PathLike[str]) -> list[str]:
    """The names of all versions of an output that are on disk, in their order; empty for a name without a version.

    What changes from one to the next is what `next_version` changes, in names and folders. Raises ShotError for a name
    that is no output's.
    """
    text = os.fspath(path)
    Target.parse(text)
    places = _places(text)
    if not places:
        return []
    start, end = places[0]
    begin = start - len(re.split(r"[/\\]", text[:start])[-1])  # of the first part of the path that changes
    folder, prefix = text[:begin] or os.curdir, text[begin:start]
    if not os.path.isdir(folder):
        return []
    found = (re.match(rf"{re.escape(prefix)}([0-9]{{{end - start},}})", name) for name in os.listdir(folder))
    numbers = sorted({int(match[1]) for match in found if match})
    names = (_replaced(text, places, f"{number:0{end - start}d}") for number in numbers)
    return [name for name in names if Target.parse(name).existing()]


def _is_taken(name: str) -> bool:
    target = Target.parse(name)
    has_manifest = target.kind in PICTURES and os.path.lexists(target.folder / manifest_name(target))
    return bool(target.existing()) or has_manifest or is_being_written(target)


def _places(text: str) -> list[tuple[int, int]]:
    """Where the digits of the version stand, start and end; the last place is the one that counts."""
    name_start = len(text) - len(os.path.basename(text))
    in_name = [match.span(1) for match in _VERSION.finditer(text) if match.start() >= name_start]
    folders = list(_folder_versions(text, name_start, only_whole=not in_name))
    if not in_name and not folders:
        return []
    last = (in_name or folders)[-1]
    # the same digits, not only the same number: tool_v3 in a path has nothing to do with shot_v003
    return [place for place in (*folders, *in_name) if text[slice(*place)] == text[slice(*last)]]


def _folder_versions(text: str, name_start: int, only_whole: bool) -> Iterator[tuple[int, int]]:
    for match in _VERSION.finditer(text, 0, name_start):
        begins_folder = match.start() == 0 or text[match.start() - 1] in "/\\"
        if text[match.end()] in "/\\" and (begins_folder or not only_whole):
            yield match.span(1)


def _replaced(text: str, places: list[tuple[int, int]], digits: str) -> str:
    for start, end in reversed(places):
        text = text[:start] + digits + text[end:]
    return text


def _with_first_version(text: str) -> str:
    """v001 before the frame pattern, or before the suffix where there is none."""
    folder, name = text[: len(text) - len(os.path.basename(text))], os.path.basename(text)
    stem, suffix = os.path.splitext(name)
    found = frame_pattern(name) if suffix[1:].lower() in STILLS else None
    before, after = (name[: found.start()], name[found.start() :]) if found else (stem, suffix)
    bare = before.rstrip(_SEPARATORS)
    # what separated the name from the frame number goes on doing so, or a dot: v0011001 would be one number
    between = before[len(bare) :] or ("." if found else "")
    return f"{folder}{bare}{'_' if bare else ''}{_FIRST}{between}{after}"


def without_version(name: str) -> str:
    """A file's name, or its stem, without its version and what separates that: "sh010_v003" is "sh010"."""
    places = _places(name)
    if not places:
        return name
    start, end = places[-1]
    return name[: start - 1].rstrip(_SEPARATORS) + name[end:]
