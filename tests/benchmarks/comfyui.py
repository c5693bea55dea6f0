# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What ComfyUI's nodes add, measured: `python tests/benchmarks/comfyui.py [--frames N] [--rounds N]`.

Generate and Write Plate in a real ComfyUI against the engine and the same writer in a process of their own, in turn,
the same shot to half-float EXR; and the peak memory of Write Plate for 33 and for 257 frames whose latents are there
already. Makes ComfyUI in RUSHES_HOST_ENVS or a temporary folder. Linux. A missed goal is printed, and is no error.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

from measuring import MEGABYTE, describe_machine

OVERHEAD, GROWTH = 1.05, 1.2  # goals
SIZE = {"width": 128, "height": 80}
HOST = Path(__file__).parent.parent / "hosts" / "comfyui"

# The engine alone: one line of input is one clip, one line of output its seconds.
ENGINE = """
import sys, time
import rushes
from rushes.media import open_outputs
engine = rushes.Engine.load("starter", device="cpu")
for line in sys.stdin:
    seed, frames, folder = line.split()
    started = time.perf_counter()
    asked = rushes.Shot("a red ball rolls to the right", size=(128, 80), frames=int(frames), seed=int(seed))
    shot = engine.resolve(asked)
    latents = engine.denoise(shot)
    with open_outputs([f"{folder}/{seed}.%04d.exr"], engine.record(shot)) as outputs:
        for chunk in engine.decode(latents):
            outputs.write(chunk)
    print(time.perf_counter() - started, flush=True)
"""


def support(name: str) -> ModuleType:
    """A module of the host tests' support."""
    package = "rushes_comfyui_support"
    if package not in sys.modules:
        folder = HOST / "support"
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


def alone(process: subprocess.Popen[str], seed: int, frames: int, folder: Path) -> float:
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None
    stdin.write(f"{seed} {frames} {folder}\n")
    stdin.flush()
    return float(stdout.readline())


def in_comfyui(client: Any, seed: int, frames: int) -> float:
    prompts = support("prompts")
    prompt = prompts.plate(**SIZE, frames=frames, seed=seed, steps=0, guidance=0.0, writes={"name": "bench"})
    run = client.run(prompt, timeout=600)
    assert run.end == "success", run.error
    return float(run.seconds)


def peak(server: Any, client: Any, frames: int) -> float:
    """Bytes that the server occupies at most while Write Plate alone runs."""
    prompts = support("prompts")
    prompt = prompts.plate(**SIZE, frames=frames, seed=1, steps=1, writes={"name": f"warm{frames}"})
    assert client.run(prompt, timeout=600).end == "success"
    prompt["4"]["inputs"]["name"] = f"peak{frames}"
    server.reset_peak_rss()
    assert "3" in client.run(prompt, timeout=600).cached
    return float(server.peak_rss())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print(*describe_machine(), sep="\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        comfyui = support("environment").make(Path(os.environ.get("RUSHES_HOST_ENVS", folder)).resolve())
        from rushes.commands.package import plugin_folder

        server = support("server").Server(comfyui, folder / "base", plugin_folder("comfyui"))
        environment = support("server").process_environment(comfyui.rushes)
        engine = subprocess.Popen(
            [str(comfyui.python), "-c", ENGINE],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            server.wait_until_up()
            client = support("server").Client(server)
            seconds: dict[str, list[float]] = {"alone": [], "in ComfyUI": []}
            for seed in range(given.rounds + 1):
                found = (alone(engine, seed, given.frames, folder), in_comfyui(client, seed, given.frames))
                for name, value in zip(seconds, found, strict=True):
                    seconds[name] += [value] if seed else []  # the first of each loads and warms
            peaks = {frames: peak(server, client, frames) for frames in (33, 257)}
        finally:
            engine.kill()
            server.stop()
    ours, theirs = (median(values) for values in seconds.values())
    print(f"a clip of {given.frames} frames to EXR, alone: {ours:.2f} s; in ComfyUI: {theirs:.2f} s")
    print(f"overhead of the nodes: {theirs / ours:.3f} (goal: at most {OVERHEAD})")
    line = ", ".join(f"{frames} frames {value / MEGABYTE:.0f} MB" for frames, value in peaks.items())
    print(f"peak memory of the server in Write Plate: {line}; {peaks[257] / peaks[33]:.3f} (goal: at most {GROWTH})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
