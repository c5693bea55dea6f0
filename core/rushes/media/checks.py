# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Every refusal of outputs, before any work and before anything is created."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rushes.media.format import OutputFormat
from rushes.media.paths import CODECS, PICTURES, STILLS, Target, manifest_name
from rushes.shot import ShotError


def check_outputs(
    paths: Sequence[str | os.PathLike[str]],
    frames: int | None,
    overwrite: bool,
    colorspace: str | None,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> list[Target]:
    """Refuse, before any work, every set of outputs that could not be written. Creates and writes nothing.

    paths: names as after `-o`; frames: number of frames, None when not yet known; colorspace: None means
    ACEScg for plates; size: (width, height) in pixels when known; options: the further fields of OutputFormat.
    Returns the names as Targets. Raises ShotError.
    """
    return checked_targets(paths, frames, overwrite, OutputFormat(colorspace, **options), size)


def checked_targets(
    paths: Sequence[str | os.PathLike[str]],
    frames: int | None,
    overwrite: bool,
    form: OutputFormat,
    size: tuple[int, int] | None = None,
) -> list[Target]:
    """`check_outputs` for a form that is known already."""
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    if not paths:
        raise ShotError("-o: no output is given; one or more file names are allowed")
    targets = [Target.parse(path) for path in paths]
    for index, target in enumerate(targets):
        for earlier in targets[:index]:
            if target.clashes(earlier):
                raise ShotError(f"-o {target.text}: it is the same output as -o {earlier.text}; give each name once")
    for target in targets:
        _check_pattern(target, frames)
        _check_size(target, size, form)
        _check_place(target, overwrite)
    _check_manifests(targets, overwrite, form)
    _check_timeline(targets)
    form.check(targets)
    form.check_shot(frames, size)
    return targets


def _check_pattern(target: Target, frames: int | None) -> None:
    if target.kind in STILLS and target.padding is None and frames is not None and frames > 1:
        stem = target.prefix[: -len(target.kind) - 1]
        raise ShotError(
            f"-o {target.text}: it names one file and the shot has {frames} frames; a frame pattern "
            f"such as {stem}.%04d.{target.kind} or {stem}.####.{target.kind} is allowed"
        )


def _check_size(target: Target, size: tuple[int, int] | None, form: OutputFormat) -> None:
    if size is None or target.kind not in CODECS:
        return
    codec = form.codec or CODECS[target.kind][0]
    if codec == "dnxhr-hqx" and (size[0] < 256 or size[1] < 120):
        raise ShotError(f"-o {target.text}: the size is {size[0]}x{size[1]}; DNxHR allows 256x120 and more")
    if not codec.startswith("h264") or not any(side % 2 for side in size):
        return
    low, high = [side - side % 2 for side in size], [side + side % 2 for side in size]
    raise ShotError(
        f"-o {target.text}: the size is {size[0]}x{size[1]}; H.264 in 4:2:0 needs an even width and height, "
        f"such as {low[0]}x{low[1]} or {high[0]}x{high[1]} (ProRes takes any size)"
    )


def _check_place(target: Target, overwrite: bool) -> None:
    ancestor = target.folder
    while not os.path.lexists(ancestor) and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise ShotError(f"-o {target.text}: {ancestor} is not a folder; a name inside a folder is allowed")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise ShotError(f"-o {target.text}: the folder {ancestor} is not writable; a folder of your own is allowed")
    there = target.existing()
    for _, path in there:
        if path.is_dir():
            raise ShotError(f"-o {target.text}: {path} is a folder; the name of a file is allowed")
    if there and not overwrite:
        raise ShotError(f"-o {target.text}: {there[0][1].name} already exists; give another name or --overwrite")


def _check_timeline(targets: Sequence[Target]) -> None:
    for target in targets:
        if target.kind == "otio" and not any(other.kind in PICTURES for other in targets):
            raise ShotError(
                f"-o {target.text}: a timeline refers to pictures and none are written beside it; "
                "add another -o such as plate.%04d.exr or shot.mov"
            )


def _check_manifests(targets: Sequence[Target], overwrite: bool, form: OutputFormat) -> None:
    taken: dict[tuple[str, str], Target] = {}
    for target in targets:
        if target.kind not in PICTURES:
            continue
        name = manifest_name(target)
        path = target.folder / name
        # with or without a new one: beside other files an old one would say that these have been altered
        if os.path.lexists(path) and (path.is_dir() or not overwrite):
            raise ShotError(f"-o {target.text}: {name} already exists; give another name or --overwrite")
        if form.wants_manifest(target):
            other = taken.setdefault((os.path.realpath(target.folder), os.path.normcase(name)), target)
            if other is not target:
                raise ShotError(
                    f"-o {target.text}: its manifest would be {name}, as that of -o {other.text}; give another name"
                )
