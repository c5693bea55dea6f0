# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Names of models on the shelf, from what a transformer is and how its file or folder is called."""

from __future__ import annotations

import re

from rushes.model.sightings import Sighting

# Words that names of published files are made of; any other word is that of somebody's own version.
_USUAL = re.compile(
    r"wan|ai|wan2?|\d|t2v|i2v|ti2v|flf2v|vace|a?14b|1|3b|5b|480p|720p|diffusers|fp16|bf16|fp32|fp8|e4m3fn|e5m2|scaled|"
    r"high|low|noise|model|diffusion|pytorch|transformer|q\d|k|m|s|gguf|index|safetensors"
)


def own_name(one: Sighting) -> str:
    """wan2.1-t2v-1.3b for what is named as the published files are; else the name of the file or its folder."""
    stem = one.path.name.split(".safetensors")[0] if one.path.suffix != ".gguf" else one.path.stem
    facts = one.parts.get("transformer")
    folders = [folder.name for folder in one.path.parents if not re.fullmatch(r"[0-9a-f]{40}|snapshots", folder.name)]
    if re.fullmatch(r"diffusion_pytorch_model|model", stem):
        stem = next(
            (name for name in folders if not re.fullmatch(r"transformer(_2)?|(high|low)_noise_model", name)), stem
        )
        stem = stem.removeprefix("models--").rpartition("--")[2]
    words = re.split(r"[^a-z0-9]+", stem.lower())
    if facts is None or not all(_USUAL.fullmatch(word) for word in words if word):
        return slug(stem)
    is_22 = facts["form"] == "ti2v" or facts["expert"] or (facts["in_channels"] == 36 and not facts["image_width"])
    size = f"a{facts['size']}" if is_22 and facts["form"] != "ti2v" else facts["size"]
    pixels = [word for word in words if word in ("480p", "720p")]
    return "-".join([f"wan2.{2 if is_22 else 1}", facts["form"], size, *pixels[:1]])


def slug(stem: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-.") or "model"
