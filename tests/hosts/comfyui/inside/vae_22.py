# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Inside ComfyUI: its Wan 2.2 VAE, made small, streamed by our pack and decoded whole. Prints what came of it as JSON.

Arguments: the pack's folder.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

PACK_FOLDER = Path(sys.argv[1])

import session  # noqa: E402, I001 - first, for it readies ComfyUI

import comfy.ldm.wan.vae2_2  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402


def main() -> None:
    small = functools.partial(comfy.ldm.wan.vae2_2.WanVAE, dec_dim=16)

    def made(dim: int, **options: object) -> torch.nn.Module:
        return small(dim=16, **options)

    comfy.ldm.wan.vae2_2.WanVAE = made
    options = {"z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
    torch.manual_seed(3)
    state = {name: torch.randn_like(tensor) * 0.05 for name, tensor in made(160, **options).state_dict().items()}
    with torch.inference_mode():
        vae = comfy.sd.VAE(state)
        samples = torch.randn(1, 48, 4, 2, 3)
        pieces: list[torch.Tensor] = []
        decoding = session.pack_module(PACK_FOLDER, "decoding")
        decoding.decode_theirs(vae, samples, lambda frames: pieces.append(torch.from_numpy(frames.copy())))
        whole = vae.decode(samples)[0]
        expected = decoding.frames_expected(vae, samples)
    found = {
        "class": type(vae.first_stage_model).__module__,
        "pieces": [len(piece) for piece in pieces],
        "shape": list(whole.shape),
        "expected": expected,
        "equal": torch.equal(torch.cat(pieces), whole),
        "spread": float(whole.std()),
    }
    print(json.dumps(found))


main()
