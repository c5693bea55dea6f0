# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The extension in real bpy 4.2, 4.5 and 5.0, with a real worker. The bodies are in inside/."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

Inside = Callable[..., "dict[str, Any]"]
StartInside = Callable[..., "tuple[subprocess.Popen[str], Path]"]

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # the first test of a version installs it
    pytest.mark.skipif(sys.platform != "linux", reason="run on Linux only so far"),
]


def _blender_cli(python: Path) -> Path:
    """Blender's own command line for extensions, which needs no bpy to run."""
    (path,) = python.parent.parent.glob("lib/python*/site-packages/bpy/*/scripts/addons_core/bl_pkg/cli/blender_ext.py")
    return path


def _run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_blenders_own_command_line_takes_the_package(bpy_python: Path, package_zip: Path, tmp_path: Path) -> None:
    """It validates and builds the sources, validates our zip, and its index of the zip is ours."""
    cli, source = _blender_cli(bpy_python), tmp_path / "source"
    _run(sys.executable, "-m", "zipfile", "-e", package_zip, source)
    _run(bpy_python, cli, "validate", source)
    _run(bpy_python, cli, "validate", package_zip)
    _run(bpy_python, cli, "build", "--source-dir", source, "--output-dir", tmp_path)
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / package_zip.name).write_bytes(package_zip.read_bytes())
    _run(bpy_python, cli, "server-generate", "--repo-dir", repository)
    theirs = json.loads((repository / "index.json").read_text())
    ours = json.loads((package_zip.parent / "index.json").read_text())
    (their_entry,), (our_entry,) = theirs.pop("data"), ours.pop("data")
    assert ours == theirs
    assert {name: our_entry[name] for name in their_entry} == their_entry


def test_it_is_installed_enabled_drawn_and_gone_again(inside: Inside) -> None:
    """Installed from disk and used; after disabling and uninstalling nothing of it is left."""
    told = inside("life")
    assert told["installed"] and told["left"] == []
    assert {"Generate", "Variations", "Reattach"} <= set(told["labels"])


@pytest.mark.usefixtures("one_thread")
def test_a_clip_lands_on_the_timeline(inside: Inside, rushes: Callable[..., Any], tmp_path: Path) -> None:
    """The starter's: placeholder, growth, mapping, colour, name, record, undo and redo, save and reload.

    Its latents are those of the command line, bit for bit.
    """
    from rushes.media import read_latents, read_record

    told = inside("clip", 300)
    assert len(told["grown"]) > 3, "the strip grew while frames came"
    made, record = read_latents(told["latents"])
    assert read_record(told["first"]) == record and record["model"]["sha256"] == told["sha256"]
    assert "each frame is shown 2 times" in " ".join(told["labels"])
    done = rushes("generate", "--from", told["latents"], "-o", "again.safetensors", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert read_latents(tmp_path / "again.safetensors")[0].tobytes() == made.tobytes()


@pytest.mark.usefixtures("one_thread")
def test_a_blocked_scene_steers_a_clip(
    inside: Inside, tiny_wan: Callable[..., Any], rushes: Callable[..., Any], tmp_path: Path
) -> None:
    """Depth, normals and grey with a mask and a reference, in their values; the clips are the command line's."""
    from rushes.media import read_latents

    told = inside("guides", 300, vace=_vace(tiny_wan))
    latents = [read_latents(path) for path in told["latents"]]
    assert len({made.tobytes() for made, _ in latents}) == 4, "each pass, and each seed, makes another clip"
    for number, (made, record) in enumerate(latents):
        assert all(one["sha256"] for one in record["shot"]["control"])
        if number in (0, 2):
            done = rushes(
                "generate", "--from", told["latents"][number], "-o", f"{number}.safetensors", "--device", "cpu"
            )
            assert done.returncode == 0, done.stderr
            assert read_latents(tmp_path / f"{number}.safetensors")[0].tobytes() == made.tobytes()


@pytest.mark.usefixtures("one_thread")
def test_a_clip_is_made_faster(inside: Inside, rushes: Callable[..., Any], tmp_path: Path) -> None:
    """Reuse, guidance in half of the steps and a density of attention: the latents are the command line's."""
    from rushes.media import read_latents

    told = inside("speed", 300)
    made, record = read_latents(told["latents"])
    assert (record["shot"]["reuse"], record["shot"]["guided"]) == (0.1, 0.5)
    assert record["model"]["attention"]["density"] == 0.3 and "fp8_products" not in record["model"]
    done = rushes("generate", "--from", told["latents"], "-o", "again.safetensors", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert read_latents(tmp_path / "again.safetensors")[0].tobytes() == made.tobytes()


@pytest.mark.parametrize("body", ["refusals", "unsaved"])
def test_control(inside: Inside, tiny_wan: Callable[..., Any], body: str) -> None:
    """What cannot be rendered or is broken off leaves nothing; footage goes where its clips go."""
    inside(body, 240, vace=_vace(tiny_wan))


def _vace(tiny_wan: Callable[..., Any]) -> str:
    """A folder with a tiny VACE model of random weights."""
    files = tiny_wan("diffusers", layers=4, vace_in_channels=96, vace_layers=(0, 2)).files
    return str(files.transformer.parent)


@pytest.mark.parametrize(
    "body",
    [
        "mapping", "channels", "takes", "pictures", "files", "moving", "losses", "queue", "no_worker", "typed",
        "rendering", "stuck", "worker_killed",
    ],
)  # fmt: skip
def test_inside(inside: Inside, body: str) -> None:
    """Rates and ranges; channels; takes; pictures both ways; files, collected and moved; losses; the queue; refusals,
    and what artists get wrong; while Blender renders; a worker that is silent, and one that was killed.
    """
    print(body, inside(body, 240))


def test_movies_have_their_colours_in_the_sequencer(inside: Inside, tmp_path: Path) -> None:
    """Matrix, range and curve of each codec, as Blender's own reader takes them from the tags.

    With another matrix (BT.601) the green would be some 25 levels off, with another range the black 16.
    """
    import numpy as np

    from rushes.media import open_outputs
    from rushes.media.record import SOURCE_TYPE
    from rushes.shot import Shot

    colours = [(0, 0, 0), (255, 255, 255), (26, 173, 42), (220, 40, 30), (30, 60, 200), (240, 200, 20), (118, 118, 118)]
    cell, size = 64, (64 * len(colours), 128)
    frame = np.repeat(np.repeat(np.array(colours, np.float32)[None] / 255, cell, axis=1), size[1], axis=0)
    shot = Shot("a chart", size=size, frames=5, fps=Fraction(24), steps=1, guidance=1.0)
    record = {"rushes": "test", "shot": shot.to_dict(), "model": {"name": "chart"}, "source_type": SOURCE_TYPE}
    movies = {}
    for codec, suffix in (
        ("h264", "mp4"), ("h264-10bit", "mov"), ("prores-422hq", "mov"), ("prores-4444", "mov"), ("dnxhr-hqx", "mov"),
    ):  # fmt: skip
        movies[codec] = str(tmp_path / f"{codec}.{suffix}")
        with open_outputs([movies[codec]], record, codec=codec) as outputs:
            outputs.write(np.repeat(frame[None], 5, axis=0))
    points = [(cell * index + cell // 2, size[1] // 2) for index in range(len(colours))]
    told = inside("movie_colours", 240, movies=movies, size=size, points=points)
    for codec, seen in told.items():
        off = np.abs(np.array(seen["colours"]) - np.array(colours)).max()
        print(f"{codec}: {off} levels off at most")
        assert seen["frames"] == 5 and off <= 4, (codec, seen["colours"])


def test_blender_ends_with_the_extension_enabled(start_inside: StartInside, tmp_path: Path) -> None:
    """By itself, while a clip is made, and with no timer pending: one can hang 4.5 and crash 4.2 as they end."""
    process, report = start_inside("leave")
    try:
        status = process.wait(120)
    finally:
        process.kill()
    told = json.loads(report.read_text())
    assert "error" not in told, told
    assert status == 0 and json.loads((tmp_path / "pending.json").read_text()) == [False]


@pytest.mark.parametrize("with_worker", [False, True], ids=["Blender alone", "Blender and the worker"])
def test_a_killed_blender_loses_nothing(
    start_inside: StartInside, inside: Inside, tmp_path: Path, with_worker: bool
) -> None:
    """kill -9 in the middle; opening the file again ends with every frame and the bits of an unbroken run."""
    process, report = start_inside("begin")
    try:
        now = _wait_for(tmp_path / "now.json", process, report)
    finally:
        process.kill()
        process.wait()
    if with_worker:
        os.killpg(now["worker"], signal.SIGKILL)
    told = inside("after_crash", 700, file=now["file"])
    assert told["was_elsewhere"] is not with_worker


def _wait_for(path: Path, process: subprocess.Popen[str], report: Path) -> dict[str, Any]:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if path.exists():
            return dict(json.loads(path.read_text()))
        time.sleep(0.02)
    raise AssertionError(report.read_text() if report.exists() else "it said nothing in two minutes")
