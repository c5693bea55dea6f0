# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What fits which card: the plans of `rushes estimate --memory` for the published models, as README's table has them.

    python tests/benchmarks/cards.py

Files with the names and shapes of the published ones and nothing in them stand in for the weights (Linux, macOS).
"""

from __future__ import annotations

import gzip
import json
import tempfile
from math import prod
from pathlib import Path

import torch

from rushes import Shot
from rushes.model.files import ModelFiles, files_card
from rushes.model.placement import Plan, make_plan

KEYS = Path(__file__).parents[1] / "fixtures" / "wan_keys"
CARDS = (8, 12, 16, 24, 48, 80)  # GB
MODELS = (  # name, transformers, VAE, CLIP?, size, frames
    ("T2V 1.3B", ("wan21_t2v_1.3b",), "wan21_vae", False, (832, 480), 81),
    ("TI2V 5B", ("wan22_ti2v_5b",), "wan22_vae", False, (1280, 704), 121),
    ("T2V 14B", ("wan21_t2v_14b",), "wan21_vae", False, (832, 480), 81),
    ("I2V 14B", ("wan21_i2v_14b",), "wan21_vae", True, (832, 480), 81),
    ("VACE 14B", ("wan21_vace_14b",), "wan21_vae", False, (832, 480), 81),
    ("T2V A14B", ("wan22_t2v_a14b", "wan22_t2v_a14b"), "wan21_vae", False, (832, 480), 81),
    ("T2V A14B, 720p", ("wan22_t2v_a14b", "wan22_t2v_a14b"), "wan21_vae", False, (1280, 720), 81),
)


def hollow(path: Path, name: str, kind: str) -> Path:
    """A file of a published one's names and shapes; matrices of blocks in fp8 where asked."""
    with gzip.open(KEYS / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        shapes = json.load(file)["tensors"]
    header, end = {}, 0
    for key, shape in shapes.items():
        packs = kind == "fp8" and len(shape) == 2 and "block" in key
        size = prod(shape) * (1 if packs else 2)
        header[key] = {"dtype": "F8_E4M3" if packs else "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
    return path


def cell(plan: Plan) -> str:
    """Peak on the card in GB, and what is not simply there."""
    if not plan.fits:
        return "–"
    marks = ("s" if plan.place("transformer") == "streamed" else "") + ("t" if plan.place("text") == "cpu" else "")
    marks += "" if plan.decoding.tile is None else "d"
    return f"{plan.peak / 1e9:.1f}{f' {marks}' if marks else ''}"


def main() -> None:
    print("| model, size, frames | weights | " + " | ".join(f"{card} GB" for card in CARDS) + " |")
    print("| --- " * (len(CARDS) + 2) + "|")
    for name, transformers, vae, has_clip, size, frames in MODELS:
        for kind in ("bf16", "fp8"):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                (place / "tokenizer.json").write_text("{}")
                names = ("x_high_noise", "x_low_noise") if len(transformers) > 1 else ("x",)
                paths = [
                    hollow(place / f"{stem}.safetensors", f"original.{key}", kind)
                    for stem, key in zip(names, transformers, strict=True)
                ]
                text = hollow(place / "text.safetensors", "transformers.umt5_xxl_encoder", kind)
                clip = "transformers.clip_vit_h14_vision"
                card = files_card(
                    ModelFiles(
                        paths[0], text, hollow(place / "vae.safetensors", f"original.{vae}", "bf16"),
                        transformer_low=paths[1] if len(paths) > 1 else None,
                        clip=hollow(place / "clip.safetensors", clip, "bf16") if has_clip else None,
                    )
                )  # fmt: skip
                shot = Shot("x", size=size, frames=frames, guidance=5.0, steps=50)
                cells = [cell(make_plan(card, shot, torch.bfloat16, "cuda", int(0.9 * gb * 1e9))) for gb in CARDS]
            row = f"{name}, {size[0]}x{size[1]}, {frames}"
            print(f"| {row} | {kind} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
