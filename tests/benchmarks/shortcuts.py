# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What steps that reuse blocks and steps without guidance spare, and how far off they are, on the starter.

    python tests/benchmarks/shortcuts.py [--frames 17] [--shots 2]

For each setting: the share of a full run's products and sums that is computed, and the relative error of the latents
(root mean square of the difference over that of the full run's) as the mean and the largest over the shots. Products
are counted, not timed: other work on the machine spoils times, and no count.
"""

from __future__ import annotations

import argparse

from rushes import Engine, Shot
from rushes.model.reuse import relative_error

PROMPTS = (
    "a red ball rolls to the right across a desert at sunset, slow push in",
    "a blue car drives left past the hills at night",
    "a green tree on the grass, pan left",
)
SETTINGS = (
    {"reuse": 0.02}, {"reuse": 0.05}, {"reuse": 0.1}, {"reuse": 0.2}, {"guided": 0.8}, {"guided": 0.6}, {"guided": 0.4},
    {"reuse": 0.05, "guided": 0.6},
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--shots", type=int, default=2)
    arguments = parser.parse_args()
    engine = Engine.load("starter", device="cpu")
    shots = [Shot(prompt, frames=arguments.frames, seed=7 + i) for i, prompt in enumerate(PROMPTS[: arguments.shots])]
    exact = [engine.denoise(shot) for shot in shots]
    layers = engine.card.transformer.layers
    print(f"starter, {arguments.frames} frames, {engine.card.defaults.steps} steps, {len(shots)} shots")
    print("| setting | computed | error, mean | error, largest |\n| --- | --- | --- | --- |")
    for setting in SETTINGS:
        errors, shares = [], []
        for shot, whole in zip(shots, exact, strict=True):
            asked = engine.resolve(shot.replace(**setting))
            errors.append(relative_error(engine.denoise(asked), whole))
            report = engine.reuse_report()
            steps = asked.steps or 1
            passes = [2 if step < round(asked.guided * steps) else 1 for step in range(steps)]
            reused = set() if report is None else set(report["reused_steps"])
            blocks = [1 / layers if step in reused else 1.0 for step in range(steps)]
            shares.append(sum(p * b for p, b in zip(passes, blocks, strict=True)) / (2 * steps))
        name = ", ".join(f"{key} {value:g}" for key, value in setting.items())
        share = sum(shares) / len(shares)
        print(f"| {name} | {share:.0%} | {sum(errors) / len(errors):.3f} | {max(errors):.3f} |", flush=True)


if __name__ == "__main__":
    main()
