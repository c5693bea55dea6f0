# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What Blender adds, measured: `python tests/benchmarks/blender.py [--bpy 5.0.1] [--frames N] [--rounds N]`.

Enabling the extension; a cold clip in bpy against the same clip, cold, by `rushes generate` to PNG; cancel to freed
memory; how many kills of the worker a clip survives with its bits. The window's gaps need a window, and are printed by
`pytest -s tests/hosts/blender/gui`. Installs bpy into RUSHES_HOST_ENVS or a temporary folder. Linux. A missed goal is
printed, and is no error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from measuring import MEGABYTE, describe_machine

from rushes.jobs.client import Client

PROMPT = "a red ball rolls to the right"
INSIDE = Path(__file__).parent.parent / "hosts" / "blender" / "inside" / "run.py"


def bpy_python(version: str, folder: Path) -> Path:
    """An interpreter with bpy in an environment of its own, as tests/hosts/blender makes it."""
    place = folder / f"bpy-{version}"
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        subprocess.run([str(python), "-m", "pip", "install", "-q", f"bpy=={version}"], check=True, env=environment)
        (place / "complete").touch()
    return python


def write_worker(folder: Path) -> Path:
    """This installation of Rushes as one executable file."""
    path = folder / "rushes"
    source = os.environ.get("PYTHONPATH", "")
    lines = ["#!/bin/sh", *([f"export PYTHONPATH='{os.path.abspath(source)}'"] if source else [])]
    path.write_text("\n".join([*lines, f"exec '{sys.executable}' -m rushes \"$@\"\n"]))
    path.chmod(0o755)
    return path


def in_blender(python: Path, folder: Path, worker: Path, frames: int, rounds: int) -> dict[str, Any]:
    """The body `measure`, in bpy."""
    subprocess.run([str(worker), "package", "blender", "-o", str(folder)], check=True, stdout=subprocess.DEVNULL)
    (package,) = folder.glob("*.zip")
    config, report = folder / "config.json", folder / "report.json"
    told = {"zip": str(package), "worker": str(worker), "folder": str(folder), "model": "starter", "prompt": PROMPT}
    config.write_text(json.dumps({**told, "frames": frames, "rounds": rounds}))
    environment = {"PATH": os.environ["PATH"], "BLENDER_USER_RESOURCES": str(folder), "HOME": str(folder)}
    subprocess.run(
        [str(python), str(INSIDE), "measure", str(config), str(report)],
        env=environment,
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    answer: dict[str, Any] = json.loads(report.read_text())
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer


def by_command_line(folder: Path, worker: Path, frames: int, rounds: int) -> list[float]:
    """Seconds of `rushes generate` to a folder of PNG frames, cold."""
    seconds = []
    for number in range(rounds):
        out = folder / f"cli{number}"
        out.mkdir()
        began = time.perf_counter()
        command = [worker, "generate", PROMPT, "--frames", frames, "--seed", 7, "-o", out / "%04d.png"]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return seconds


def survived(folder: Path, worker: Path, kills: int) -> int:
    """Of so many kills -9 at random moments of one clip after another, those whose clip ended with unbroken bits."""
    client, whole, job, good, pending = Client(str(worker), folder / "jobs"), b"", "", 0, 0
    shot = {"prompt": PROMPT, "seed": 7, "frames": 33}
    seconds = 0.0
    while kills or job:
        client.start()
        ask = ("resume", {"job": job}) if job else ("submit", {"shot": shot})
        answer = _wait(client, lambda events, got: got, *ask)
        folder_of = Path(answer["folder"])
        job, limit = answer["job"], random.uniform(0, seconds) if kills and whole else 600.0
        began = time.monotonic()
        while time.monotonic() - began < limit:
            if {"done", "failed"} & {event.kind for event in client.tick()}:
                break
            time.sleep(0.002)
        if not (folder_of / "done.json").exists():
            client.kill()
            _wait(client, lambda events, got: not client.is_running)
            kills, pending = kills - 1, pending + 1
            continue
        frames = b"".join(path.read_bytes() for path in sorted((folder_of / "frames").glob("*.png")))
        whole, seconds = whole or frames, seconds or time.monotonic() - began
        good, pending, job = good + pending * (frames == whole), 0, ""
    client.kill()
    return good


def _wait(client: Client, is_true: Any, *request: Any) -> Any:
    """Tick until it is true; the request's answer."""
    got: list[Any] = []
    if request:
        client.request(*request, then=got.append, failed=got.append)
    while not is_true(client.tick(), got):
        time.sleep(0.002)
    return got[0] if got else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bpy", default="5.0.1")
    parser.add_argument("--frames", type=int, default=129)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    print("\n".join(describe_machine()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = bpy_python(arguments.bpy, Path(os.environ.get("RUSHES_HOST_ENVS") or folder))
        worker = write_worker(folder)
        found = in_blender(python, folder, worker, arguments.frames, arguments.rounds)
        bare = by_command_line(folder, worker, arguments.frames, arguments.rounds)
        survivors = survived(folder, worker, arguments.kills)
    clip, line = median(found["clips"]), median(bare)
    rows = [
        ("enable the extension", f"{median(found['import']) * 1000:.1f} ms", "< 50 ms", found["import"]),
        ("cancel to freed memory", f"{found['cancel']:.2f} s", "< 2 s", [found["cancel"]]),
        (f"{arguments.frames} frames in bpy {found['version']}, cold", f"{clip:.2f} s", "-", found["clips"]),
        (f"{arguments.frames} frames by rushes generate, cold", f"{line:.2f} s", "-", bare),
        ("host overhead", f"{(clip / line - 1) * 100:+.1f} %", "< 5 %", []),
        ("kills resumed bit-equal", f"{survivors} of {arguments.kills}", "all", []),
    ]
    for what, value, goal, samples in rows:
        spread = f"  ({min(samples):.3f} ... {max(samples):.3f} s in {len(samples)})" if samples else ""
        print(f"{what:<45} {value:>10}  goal {goal:<8}{spread}")
    resident = f"{found['before'] / MEGABYTE:.0f} MB before, {found['after'] / MEGABYTE:.0f} MB after"
    gone = "gone" if found["freed"] == [{"freed": False}] else "STILL THERE"  # what `free` finds when asked once more
    print(f"worker's resident memory at the cancel: {resident}; the model was {gone}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
