# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Plates against the bare writer: `python tests/benchmarks/plates.py [--compression zip] [--rounds N]`.

The peer is a loop around OpenImageIO that writes the very half floats that Rushes writes, with the same compression,
and nothing else: no colour, no tags, no check, no hash. Both write the same frames in turn (A B A B ...) in one
process. Rushes takes float32 sRGB frames, four at a time as a decoder gives them, and ends when all files have their
names. Ratios are Rushes / peer:
*wall* of time, which is what the goal is about and which other work on the machine spoils; *best* of each one's fastest
round, which it spoils less; *cpu* of processor time. Linux or macOS. A missed goal is printed, and is no error.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it
from measuring import Samples, describe_machine, in_turn

from rushes._version import __version__
from rushes.media import color, open_outputs
from rushes.media.paths import COMPRESSIONS
from rushes.shot import Shot

SIZES = {(832, 480): 36, (1280, 720): 20, (1920, 1080): 12}  # pixels, and frames that are written
GOAL = 1.15
CHUNK = 4
PEER, PROVEN, PLAIN = "OpenImageIO alone", "Rushes", "Rushes, no manifest"


def picture(size: tuple[int, int], frames: int) -> np.ndarray:
    """Waves with the grain of a decoder, so that compression has as much to do as with a picture: [n, h, w, 3]."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
    clip = np.empty((frames, size[1], size[0], 3), np.float32)
    for number in range(frames):
        for channel, (u, v) in enumerate(((97, 211), (53, -77), (131, 400))):
            clip[number, ..., channel] = 0.5 + 0.5 * np.sin(x / u + y / v + number / 9)
    clip += random.normal(0, 0.004, clip.shape).astype(np.float32)
    return np.clip(clip, 0, 1)


def write_bare(folder: Path, halves: list[np.ndarray], compression: str) -> None:
    folder.mkdir()
    for number, half in enumerate(halves):
        spec = oiio.ImageSpec(half.shape[1], half.shape[0], 3, oiio.HALF)
        spec.attribute("compression", compression)
        out = oiio.ImageOutput.create("openexr")
        if not (out.open(f"{folder}/p.{number:04d}.exr", spec) and out.write_image(half) and out.close()):
            raise RuntimeError(out.geterror())
    shutil.rmtree(folder)


def write_plate(folder: Path, clip: np.ndarray, compression: str, manifest: bool) -> None:
    size = (clip.shape[2], clip.shape[1])
    shot = Shot(prompt="waves", frames=len(clip), size=size, fps="24", seed=1, steps=4)  # type: ignore[arg-type]
    record = {"rushes": __version__, "shot": shot.to_dict(), "model": {"name": "none", "sha256": "0" * 64}}
    with open_outputs([folder / "p.%04d.exr"], record, compression=compression, manifest=manifest) as outputs:
        for start in range(0, len(clip), CHUNK):
            outputs.write(clip[start : start + CHUNK])
    shutil.rmtree(folder)


def measure(size: tuple[int, int], frames: int, compression: str, rounds: int, folder: Path) -> Samples:
    clip = picture(size, frames)
    halves = [color.convert_display(frame, color.DEFAULT_SPACE) for frame in clip]
    tasks: dict[str, Callable[[], object]] = {
        PEER: partial(write_bare, folder / "bare", halves, compression),
        PROVEN: partial(write_plate, folder / "plate", clip, compression, True),
        PLAIN: partial(write_plate, folder / "plain", clip, compression, False),
    }
    in_turn(tasks, 1)  # what is loaded and allocated once
    return in_turn(tasks, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compression", choices=COMPRESSIONS, default=COMPRESSIONS[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--folder", help="where to write; a disk of memory leaves the real disk out (default: temporary)"
    )
    arguments = parser.parse_args()
    for line in describe_machine():
        print(line)
    print(
        f"software  Rushes {__version__}, OpenImageIO {oiio.__version__}, {oiio.get_int_attribute('threads')} threads"
    )
    print(f"protocol  ACEScg half floats in {arguments.compression}, {arguments.rounds} rounds in turn, medians\n")
    head = f"{'size':<11}{'writer':<21}{'fps':>7}{'wall ms':>9}{'cpu ms':>8}{'wall':>7}{'best':>6}{'cpu':>6}"
    print(f"{head}  spread of all frames")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for size, frames in SIZES.items():
            times = measure(size, frames, arguments.compression, arguments.rounds, Path(folder))
            for name in (PEER, PROVEN, PLAIN):
                wall, cpu = times.median(name), times.processor_median(name)
                ratio = wall / times.median(PEER)
                best = min(times.seconds[name]) / min(times.seconds[PEER])
                verdict = f"  <= {GOAL} {'met' if ratio <= GOAL else 'missed'}"
                print(
                    f"{f'{size[0]}x{size[1]}':<11}{name:<21}{frames / wall:>7.1f}{1e3 * wall / frames:>9.1f}"
                    f"{1e3 * cpu / frames:>8.1f}{ratio:>7.2f}{best:>6.2f}{cpu / times.processor_median(PEER):>6.2f}"
                    f"  {times.spread(name)}{'' if name == PEER else verdict}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
