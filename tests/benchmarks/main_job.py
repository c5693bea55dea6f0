# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The main job, measured: `python tests/benchmarks/main_job.py [--model NAME|PATH] [--quick]`. See README.md here.

Ratios of times and memory taken in one run on one machine, each beside its goal. Exit 1 when diffusers, given the
same weights and noise, makes other frames: then no ratio means anything. A goal that is missed is no error.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from measuring import MEGABYTE, Samples, Work, counted, describe_machine, in_turn, run_child

if TYPE_CHECKING:
    from peer import Peer

    from rushes.engine import Engine
    from rushes.shot import Shot

PROMPT = "a red ball rolls to the right"
CLIPS = (17, 33)  # frames of the warm clips
SHORT, LONG = 33, 257  # frames of the two clips whose memory is compared
TOLERANCE = 1e-2  # largest difference of two frames, in [0, 1], that still counts as the same output
IMPORT, COLD, WARM = 'python -c "import torch"', "rushes generate, cold", "rushes, warm, own schedule"


@dataclass(frozen=True)
class Effort:
    """How often each thing is measured. discarded: cold starts before those that count; steps: denoising steps, the
    model's own number when None."""

    discarded: int
    cold: int
    memory: int
    warm: int
    steps: int | None = None


FULL = Effort(discarded=1, cold=7, memory=3, warm=7)
QUICK = Effort(discarded=0, cold=1, memory=1, warm=1, steps=2)


@dataclass(frozen=True)
class Row:
    """One line of the table. goal: the ratio that is asked for, as its least or greatest; None where none is."""

    quantity: str
    ours: str
    peer: str
    ratio: float
    at_most: float | None = None
    at_least: float | None = None

    def cells(self) -> tuple[str, ...]:
        goal, verdict = "-", ""
        if self.at_most is not None:
            goal, verdict = f"<= {self.at_most:g}", "met" if self.ratio <= self.at_most else "MISSED"
        elif self.at_least is not None:
            goal, verdict = f">= {self.at_least:g}", "met" if self.ratio >= self.at_least else "MISSED"
        return self.quantity, self.ours, self.peer, f"{self.ratio:.2f}", goal, verdict


@dataclass(frozen=True)
class Processes:
    """What fresh processes took. times: IMPORT and COLD; peaks: bytes by number of frames, 0 for bare torch."""

    times: Samples
    peaks: dict[int, int]


def measure_processes(model: str, effort: Effort) -> Processes:
    """Cold starts in turn with bare imports, then the memory of a short and a long clip, all without torch here."""
    assert "torch" not in sys.modules, "its memory would be counted as the children's"
    options = ["--model", model, "--device", "cpu", "--overwrite"]
    options += ["--steps", str(effort.steps)] if effort.steps else []
    bare = ["-c", "import torch"]
    generate = ["-m", "rushes", "generate", PROMPT, *options]
    times, peaks = Samples(), {0: 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        movie = [*generate, "-o", "shot.mp4"]
        for arguments in (bare, movie) * effort.discarded:  # they fill the disk's cache and write .pyc files
            run_child(arguments, folder)
        for _ in range(effort.cold):
            child = run_child(bare, folder)
            times.add(IMPORT, child.seconds)
            peaks[0] = max(peaks[0], child.peak)
            times.add(COLD, run_child(movie, folder).seconds)
        for frames in (SHORT, LONG):
            plates = [*generate, "--frames", str(frames), "-o", "shot.mp4", "-o", "plate.%04d.exr"]
            peaks[frames] = int(median(run_child(plates, folder).peak for _ in range(effort.memory)))
    return Processes(times, peaks)


@dataclass(frozen=True)
class Agreement:
    """How far two clips of one shot lie apart. difference: largest; contrast: standard deviation of all values."""

    frames: int
    difference: float
    contrast: float

    @property
    def holds(self) -> bool:
        return self.difference <= TOLERANCE  # NaN does not


def compare(engine: Engine, peer: Peer, shot: Shot) -> Agreement:
    """Make the shot in both, which also warms them up."""
    import numpy as np

    ours = engine.generate(shot).frames
    theirs = peer.generate(shot, peer.embed(shot))
    if ours.shape != theirs.shape:
        raise RuntimeError(f"frames: Rushes made {ours.shape}, diffusers {theirs.shape}")
    return Agreement(len(ours), float(np.abs(ours - theirs).max()), float(ours.std()))


def measure_warm(engine: Engine, peer: Peer, shot: Shot, rounds: int) -> Samples:
    """Whole clips: text to frames of ours; embedded text to frames of diffusers'."""
    embeds = peer.embed(shot)
    tasks = {"rushes": lambda: engine.generate(shot), "diffusers": lambda: peer.generate(shot, embeds)}
    return in_turn(tasks, rounds)


def measure_decode(engine: Engine, peer: Peer, shot: Shot, rounds: int) -> Samples:
    """The same latents to frames: ours as the engine streams them, diffusers' as its autoencoder returns them."""
    latents = engine.denoise(shot)

    def drain() -> None:
        for _ in engine.decode(latents):
            pass

    tasks = {"rushes": drain, "diffusers": lambda: peer.decode(latents)}
    in_turn(tasks, 1)
    return in_turn(tasks, rounds)


def count_work(engine: Engine, peer: Peer, shot: Shot) -> dict[str, Work]:
    """The counts behind the ratio."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanDecoder3d

    from rushes.model.transformer import Transformer
    from rushes.model.vae import Decoder

    embeds = peer.embed(shot)
    with counted(Transformer, Decoder) as ours:
        engine.generate(shot)
    with counted(type(peer.transformer), WanDecoder3d) as theirs:
        peer.generate(shot, embeds)
    return {"rushes": ours, "diffusers": theirs}


def wan_form(bundle: Path, folder: Path, schedule: str) -> Path:
    """The bundle as rows 2 and 3 compare it: on the peer's schedule, since outputs can only be equal along the same
    one, and without its pooled text and the guess from variances, which neither Wan nor diffusers has.
    """
    from rushes.model.bundle import read_card, read_weights, write_bundle

    card, weights = read_card(bundle), read_weights(bundle)
    ours = ("pooled_embedding.", "variances")
    plain = {name: t for name, t in weights["transformer"].items() if not name.startswith(ours)}
    card = dataclasses.replace(
        card,
        transformer=dataclasses.replace(card.transformer, pooled_dim=0, preconditioned=False),
        defaults=dataclasses.replace(card.defaults, schedule=schedule),
    )
    write_bundle(folder / "wan_form.safetensors", card, {**weights, "transformer": plain})
    return folder / "wan_form.safetensors"


def report(model: str, effort: Effort, processes: Processes) -> bool:
    """Measure what needs torch, print everything, and tell whether the two libraries agree."""
    from peer import SCHEDULE, Peer

    from rushes.engine import Engine
    from rushes.shot import Shot

    engine = Engine.load(model, device="cpu")
    own = engine.resolve(Shot(PROMPT, model=model, steps=effort.steps))
    engine.generate(own)
    generation = in_turn({WARM: lambda: engine.generate(own)}, effort.warm)
    kept = tempfile.TemporaryDirectory()  # until the end: a clip's record reads the file again
    path = wan_form(engine.path, Path(kept.name), SCHEDULE)
    engine, peer = Engine.load(path, device="cpu"), Peer(path)
    shots = {frames: engine.resolve(own.replace(frames=frames)) for frames in CLIPS}
    agreements = [compare(engine, peer, shot) for shot in shots.values()]
    warm = {frames: measure_warm(engine, peer, shot, effort.warm) for frames, shot in shots.items()}
    decode = measure_decode(engine, peer, shots[CLIPS[-1]], effort.warm)
    work = count_work(engine, peer, shots[CLIPS[0]])

    print("\n".join(describe_software(engine, own)))
    print_table(rows(processes, generation, own, warm, decode))
    print_agreement(agreements)
    print_spreads(processes.times, generation, warm, decode)
    print_work(work)
    return all(agreement.holds for agreement in agreements)


def rows(processes: Processes, generation: Samples, own: Shot, warm: dict[int, Samples], decode: Samples) -> list[Row]:
    """The table."""
    bare, cold, made = processes.times.median(IMPORT), processes.times.median(COLD), generation.median(WARM)
    found = [
        Row(
            f"1 cold start to MP4 of {own.frames} frames, {cold:.2f} s, less generation, {made:.2f} s",
            f"{cold - made:.2f} s",
            f"{bare:.2f} s",
            (cold - made) / bare,
            at_most=4,
        )
    ]
    for frames, samples in warm.items():
        ours, theirs = samples.median("rushes"), samples.median("diffusers")
        quantity = f"2 warm clip of {frames} frames"
        found.append(Row(quantity, f"{ours:.3f} s", f"{theirs:.3f} s", theirs / ours, at_least=1.3))
    ours, theirs = (CLIPS[-1] / decode.median(name) for name in ("rushes", "diffusers"))
    found.append(Row(f"3 VAE decode of {CLIPS[-1]} frames", f"{ours:.1f} fps", f"{theirs:.1f} fps", ours / theirs))
    long, short = processes.peaks[LONG], processes.peaks[SHORT]
    quantity = f"4 peak memory of {LONG} frames, against {SHORT}"
    memory = f"{long / MEGABYTE:.0f} MB", f"{short / MEGABYTE:.0f} MB"
    return [*found, Row(quantity, *memory, long / short, at_most=1.3)]


def describe_software(engine: Engine, shot: Shot) -> list[str]:
    """Versions, threads, and what was made."""
    import diffusers
    import torch

    from rushes._version import __version__

    assert shot.size is not None
    model = engine.record(shot)["model"]
    return [
        f"software  Rushes {__version__}, torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"diffusers {diffusers.__version__}, Python {platform.python_version()}",
        f"model     {model['name']} (SHA-256 {model['sha256'][:8]}), float32 on the CPU",
        f"shot      {shot.size[0]}x{shot.size[1]}, {shot.steps} steps, guidance {shot.guidance:g}",
    ]


def print_table(table: Sequence[Row]) -> None:
    lines = [("quantity", "Rushes", "peer", "ratio", "goal", ""), *(row.cells() for row in table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for line in lines:
        first, *others = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join((first, *others)).rstrip())
    print(
        f"\npeers: 1 {IMPORT}; 2 diffusers' WanPipeline, same weights, noise, solver; 3 its AutoencoderKLWan;"
        f"\n       4 Rushes itself with {SHORT} frames; Rushes writes MP4 and EXR in both"
    )


def print_agreement(agreements: Sequence[Agreement]) -> None:
    print("\noutput of 2, Rushes against diffusers")
    for found in agreements:
        verdict = "agree" if found.holds else "DO NOT AGREE"
        print(
            f"  {found.frames} frames {verdict}: largest difference {found.difference:.1e} "
            f"(up to {TOLERANCE:g} is allowed), standard deviation of the picture {found.contrast:.3f}"
        )


def print_spreads(cold: Samples, generation: Samples, warm: dict[int, Samples], decode: Samples) -> None:
    print("\nfastest ... slowest (the table has medians)")
    named = {"1": cold, "1 ": generation, "3 decode": decode}
    named |= {f"2 {frames} frames": samples for frames, samples in warm.items()}
    for label, samples in sorted(named.items()):
        for name in samples.seconds:
            print(f"  {label.strip() + ' ' + name:<38}{samples.spread(name)}")


def print_work(work: dict[str, Work]) -> None:
    ours, theirs = work["rushes"], work["diffusers"]
    print(f"\nwork in one warm clip of {CLIPS[0]} frames, counted       Rushes   diffusers")
    names = {
        "passes": "passes through the transformer",
        "chunks": "chunks through the decoder",
        "linears": "calls of linear layers",
        "operations": "calls of torch's kernels",
    }
    for name, label in names.items():
        print(f"  {label:<42}{getattr(ours, name):>10}{getattr(theirs, name):>12}")
    print(f"  {'products and convolutions, GFLOP':<42}{ours.flops / 1e9:>10.1f}{theirs.flops / 1e9:>12.1f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the main job; see README.md beside this file.")
    parser.add_argument("--model", default="starter", help="name, folder or .safetensors file of a Rushes model")
    parser.add_argument("--quick", action="store_true", help="once each with 2 steps: tries the script, not the speed")
    options = parser.parse_args(argv)
    if not hasattr(os, "wait4"):
        print("main_job: a child's peak memory needs wait4; Linux and macOS are allowed", file=sys.stderr)
        return 2
    if missing := [name for name in ("rushes", "diffusers") if importlib.util.find_spec(name) is None]:
        print(f'main_job: {missing[0]} is missing; pip install ".[parity]" brings it', file=sys.stderr)
        return 2
    model = str(Path(options.model).resolve()) if Path(options.model).exists() else options.model
    effort = QUICK if options.quick else FULL
    print("\n".join(describe_machine()), flush=True)
    if options.quick:
        print("quick     once each, with 2 steps: this tries the script and says nothing about speed", flush=True)
    return 0 if report(model, effort, measure_processes(model, effort)) else 1


if __name__ == "__main__":
    sys.exit(main())
