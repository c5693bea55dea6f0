# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Attention inside ComfyUI, on the processor: against the attention that ComfyUI takes there by itself.

One of Wan 1.3B's thirty blocks (random weights) through the model's own entry point, on a grid of 9x20x36 tokens.
`attention` rows are the self-attention call alone, with everything that the node adds to it; `pass` rows are the whole
model, whose linear layers no attention makes faster. Rounds are in turn, A B A B ...; a ratio is the median of each
round's ratio. ComfyUI's default on a processor is its sub-quadratic attention; torch's own, which it takes under
--use-pytorch-cross-attention, is in the table beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
HOST = HERE.parent / "hosts" / "comfyui"
ENVIRONMENTS = "RUSHES_HOST_ENVS"
LATENT = (1, 16, 9, 40, 72)  # 33 frames of 576x320
WORDS = 512
SHARE = 0.2  # of the scores, in the rows by tiles


def outside(arguments: list[str]) -> int:
    """Make a ComfyUI if there is none, and run this file in its interpreter."""
    sys.path.insert(0, str(HOST))
    from support import environment

    from rushes.commands.package import plugin_folder

    with tempfile.TemporaryDirectory() as fresh:
        comfyui = environment.make(Path(os.environ.get(ENVIRONMENTS) or fresh).resolve())
        variables = {**os.environ, "PYTHONPATH": str(comfyui.rushes), "CUDA_VISIBLE_DEVICES": ""}
        variables["RUSHES_PACK"] = str(plugin_folder("comfyui"))
        boot = str(HOST / "support" / "boot.py")
        command = [str(comfyui.python), boot, str(Path(__file__).resolve()), "--inside", *arguments]
        return subprocess.run(command, cwd=comfyui.folder, env=variables).returncode


def inside(options: argparse.Namespace) -> int:
    """Print the machine and the table."""
    sys.path[:0] = [str(HERE), str(HOST / "inside")]
    import session  # isort: skip  # the first of ComfyUI
    import comfy.ldm.modules.attention as theirs
    import torch
    from attention import Bench
    from comfyui_version import __version__ as version
    from measuring import describe_machine

    node = session.pack_module(Path(os.environ["RUSHES_PACK"]), "attention_node")
    print("\n".join(describe_machine()))
    print(f"software  ComfyUI {version}, torch {torch.__version__}, default {theirs.optimized_attention.__name__}")
    bench = Bench(options.threads, options.rounds)
    clock = "processor time" if options.threads == 1 else "wall time"
    print(
        f"protocol  {options.threads} threads, {options.rounds} rounds in turn, {clock}, latent {list(LATENT)}, float32"
    )
    print(f"\n{'quantity':<52} {'ratio':>5}  {'spread':<15} {'goal':<5} {'ours':>11} {'theirs':>11}  note")
    with torch.inference_mode():
        model = session.wan(dim=1536, layers=1, ffn=8960)
        made = {
            "dense": node.patched(model, node.HostedSettings()),
            "window 3x3x3": node.patched(model, node.HostedSettings(mode="window", window=(3, 3, 3))),
            f"density {SHARE:.0%}": node.patched(model, node.HostedSettings(mode="density", density=SHARE)),
        }
        _alone(bench, theirs, node, made, 3.5)
        _passes(bench, theirs, node, model, made)
    return 0


def _alone(bench: Any, theirs: Any, node: Any, made: dict[str, Any], goal: float) -> None:
    """The call of a layer, with tensors as a layer has them."""
    import torch

    tokens = LATENT[2] * LATENT[3] * LATENT[4] // 4
    q, k, v = torch.randn(3, 1, tokens, 1536)
    exact = theirs.attention_pytorch(q[..., :128].double(), k[..., :128].double(), v[..., :128].double(), 1)  # a head
    for name, model in made.items():
        hosted = model.get_attachment(node.KEY)
        options = {node.OVERRIDE: model.model_options["transformer_options"][node.OVERRIDE]}
        options[node.KEY] = hosted.begin_pass(LATENT[2:], patch=(1, 2, 2))

        def ours(options: dict[str, Any] = options) -> Any:
            return theirs.optimized_attention(q, k, v, heads=12, transformer_options=options)

        found = ours()  # and the buffers of the pass: one layer of thirty pays for them
        error = (found[..., :128] - exact).norm() / exact.norm()
        times = bench.in_turn(
            ours,
            lambda: theirs.optimized_attention(q, k, v, heads=12),
            lambda: theirs.attention_pytorch(q, k, v, heads=12),
        )
        # random tokens have no tiles that matter less: what tiles leave out is no measure of quality here
        note = f"{_note(hosted)}, error {error:.1e}" if name == "dense" else _note(hosted)
        _row(f"attention {name} / ComfyUI's default", times[0], times[1], 1.2 if name == "dense" else goal, note)
        _row(f"attention {name} / torch's", times[0], times[2], None, "")


def _passes(bench: Any, theirs: Any, node: Any, model: Any, made: dict[str, Any]) -> None:
    """A block with its text, patch embedding and head: what a sampler's step asks for, with 1 of 30 blocks."""
    import torch

    x, context = torch.randn(LATENT), torch.randn(1, WORDS, 4096)
    sigma = torch.tensor([0.9])

    def evaluate(patcher: Any, override: Any = None) -> Any:
        options = dict(patcher.model_options["transformer_options"])
        options["wrappers"] = patcher.wrappers
        if override is not None:
            options[node.OVERRIDE] = override
        return model.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options)

    def by_torch(function: Any, *arguments: Any, **keywords: Any) -> Any:
        return theirs.attention_pytorch(*arguments, **keywords)

    for name, patcher in made.items():
        times = bench.in_turn(
            lambda patcher=patcher: evaluate(patcher), lambda: evaluate(model), lambda: evaluate(model, by_torch)
        )
        _row(f"pass {name} / ComfyUI's default", times[0], times[1], None, "")
        _row(f"pass {name} / torch's", times[0], times[2], None, "")


def _note(hosted: Any) -> str:
    tally = hosted.tally
    rows = [*tally.sparse.items(), *tally.dense.items()]
    ((backend, _), row) = rows[0]
    row.settle()
    sparse = f", {tally.density.mean:.1%} kept, {row.moving / row.seconds:.0%} of it ordering" if tally.sparse else ""
    return f"{backend}{sparse}"


def _row(name: str, ours: list[float], theirs: list[float], goal: float | None, note: str) -> None:
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    spread = f"{ratios[0]:.2f} ... {ratios[-1]:.2f}"
    times = f"{median(ours) * 1e3:>8.1f} ms {median(theirs) * 1e3:>8.1f} ms"
    print(f"{name:<52} {median(ratios):>5.2f}  {spread:<15} {goal or '':<5} {times}  {note}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--inside", action="store_true", help="in ComfyUI's own interpreter already")
    options = parser.parse_args()
    return inside(options) if options.inside else outside(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
