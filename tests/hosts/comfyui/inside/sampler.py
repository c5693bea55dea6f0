# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""One transformer file through ComfyUI's own loader and KSampler, and through ours: the largest difference of latents.

Arguments: transformer, text encoder and VAE. Prints the difference and the latents' deviation, in the VAE's own space.
"""

from __future__ import annotations

import sys
from pathlib import Path

FILES = sys.argv[1:4]

from session import comfy, nodes, torch  # noqa: E402  (it imports them as ComfyUI wants to be imported)

from rushes import Engine, Shot  # noqa: E402
from rushes.model.files import ModelFiles  # noqa: E402

# ComfyUI samples Wan with a shift of 8 where its graph does not say otherwise
engine = Engine.load(ModelFiles(*map(Path, FILES), solver="euler", shift=8.0), device="cpu")
shot = Shot("a red ball rolls to the right", "the ball", (64, 32), 5, seed=7, steps=4, guidance=4.0)
ours = engine.unscaled(engine.denoise(shot))
rows = engine.card.transformer.text_len
with torch.inference_mode():
    texts = [
        engine.parts["text"].encode([engine.card.tokenizer().encode(text)[0]], rows, torch.device("cpu"))
        for text in (shot.prompt, shot.negative)
    ]
    model = comfy.sd.load_diffusion_model(FILES[0])
    conditions = [[[text, {}]] for text in texts]
    empty = {"samples": torch.zeros_like(ours)}
    (made,) = nodes.KSampler().sample(model, 7, 4, 4.0, "euler", "simple", *conditions, empty, 1.0)
print((made["samples"] - ours).abs().max().item(), ours.std().item())
