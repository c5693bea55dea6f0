# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Prompts as the frontend sends them, with the starter at its smallest unless told otherwise."""

from __future__ import annotations

import shutil
from typing import Any

Prompt = dict[str, dict[str, Any]]
Link = list[Any]

FOLDERS = {
    "model": "diffusion_models", "text_encoder": "text_encoders", "vae": "vae", "second_expert": "diffusion_models",
    "image_encoder": "clip_vision",
}  # fmt: skip
INPUTS = {"transformer": "model", "text": "text_encoder", "transformer_low": "second_expert", "clip": "image_encoder"}
TINY = {"width": 32, "height": 32, "frames": 5, "steps": 2, "guidance": 1.0}


def load_model(**changes: Any) -> dict[str, Any]:
    inputs = {
        "model": "starter", "text_encoder": "none (the starter has its own)", "vae": "none (the starter has its own)",
        "precision": "auto", "solver": "from the model", "shift": 0.0,
    }  # fmt: skip
    return {"class_type": "RushesLoadModel", "inputs": inputs | changes}


def shot(**changes: Any) -> dict[str, Any]:
    inputs = {
        "prompt": "a red ball rolls to the right", "negative": "", "width": 0, "height": 0, "frames": 0, "fps": 0.0,
        "seed": 7, "steps": 0, "guidance": 0.0,
    }  # fmt: skip
    return {"class_type": "RushesShot", "inputs": inputs | changes}


def generate(model: Link, shot: Link, **changes: Any) -> dict[str, Any]:
    return {"class_type": "RushesGenerate", "inputs": {"model": model, "shot": shot, "decode": "when linked"} | changes}


def write(**changes: Any) -> dict[str, Any]:
    inputs = {
        "folder": "rushes", "name": "plate", "format": "EXR", "start_frame": 1001, "fps": 0.0, "colorspace": "ACEScg",
        "depth": "half", "compression": "zip", "sidecar": True,
    }  # fmt: skip
    return {"class_type": "RushesWritePlate", "inputs": inputs | changes}


def read(path: str, **changes: Any) -> dict[str, Any]:
    inputs = {"path": path, "colorspace": "as the file says", "first": 0, "count": 0}
    return {"class_type": "RushesReadPlate", "inputs": inputs | changes}


def plate(writes: dict[str, Any] | None = None, **changes: Any) -> Prompt:
    """Model 1, shot 2, generate 3, write 4 from the latent."""
    return {
        "1": load_model(),
        "2": shot(**TINY | changes),
        "3": generate(["1", 0], ["2", 0]),
        "4": write(latent=["3", 2], model=["1", 0], **writes or {}),
    }


def placed(server: Any, files: Any, prefix: str) -> dict[str, str]:
    """A model's files where ComfyUI looks for them; returns the inputs of Load Model."""
    names = {}
    for part, path in files.paths.items():
        name = INPUTS.get(part, part)
        folder = server.base / "models" / FOLDERS[name]
        folder.mkdir(parents=True, exist_ok=True)
        names[name] = f"{prefix}_{path.name}"
        shutil.copy(path, folder / names[name])
    return names
