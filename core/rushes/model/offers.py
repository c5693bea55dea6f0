# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Models that `rushes models get` fetches: Wan's own repositories, all of them under Apache-2.0.

Only names stand here. Sizes, hashes and the licence come from the hub when somebody asks, and so are never out of date.
"""

from __future__ import annotations

from dataclasses import dataclass

LICENSE = "apache-2.0"


@dataclass(frozen=True)
class Source:
    """Files of one part in one repository. patterns: of their paths in it; each has to match a file.

    facts: what tells such a part among those that a machine has already, see `sightings`.
    """

    part: str
    repository: str
    patterns: tuple[str, ...]
    facts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Offer:
    """One model. about: a few words for people."""

    about: str
    sources: tuple[Source, ...]


# One copy of what several models share: the encoder alone has eleven gigabytes.
_TEXT = Source(
    "text",
    "Wan-AI/Wan2.1-T2V-1.3B",
    ("models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json"),
    (("width", 4096),),
)
_VAE21 = Source("vae", "Wan-AI/Wan2.1-T2V-1.3B", ("Wan2.1_VAE.pth",), (("channels", 16),))
_VAE22 = Source("vae", "Wan-AI/Wan2.2-TI2V-5B", ("Wan2.2_VAE.pth",), (("channels", 48),))
_CLIP = Source("clip", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", ("image_encoder/*.safetensors",), (("width", 1280),))
_WHOLE = ("diffusion_pytorch_model*.safetensors*",)
_EXPERTS = ("high_noise_model/*.safetensors*", "low_noise_model/*.safetensors*")


def _wan(about: str, repository: str, *shared: Source, patterns: tuple[str, ...] = _WHOLE) -> Offer:
    return Offer(about, (Source("transformer", f"Wan-AI/{repository}", patterns), _TEXT, *(shared or (_VAE21,))))


OFFERS = {
    "wan2.1-t2v-1.3b": _wan("text to video, the smallest", "Wan2.1-T2V-1.3B"),
    "wan2.1-t2v-14b": _wan("text to video", "Wan2.1-T2V-14B"),
    "wan2.1-i2v-14b-480p": _wan("a first picture to video", "Wan2.1-I2V-14B-480P", _VAE21, _CLIP),
    "wan2.1-i2v-14b-720p": _wan("a first picture to video", "Wan2.1-I2V-14B-720P", _VAE21, _CLIP),
    "wan2.1-flf2v-14b-720p": _wan("a first and a last picture to video", "Wan2.1-FLF2V-14B-720P", _VAE21, _CLIP),
    "wan2.1-vace-1.3b": _wan("control passes, masks and references to video", "Wan2.1-VACE-1.3B"),
    "wan2.1-vace-14b": _wan("control passes, masks and references to video", "Wan2.1-VACE-14B"),
    "wan2.2-t2v-a14b": _wan("text to video, two experts", "Wan2.2-T2V-A14B", patterns=_EXPERTS),
    "wan2.2-i2v-a14b": _wan("a first picture to video, two experts", "Wan2.2-I2V-A14B", patterns=_EXPERTS),
    "wan2.2-ti2v-5b": _wan("text or a first picture to video", "Wan2.2-TI2V-5B", _VAE22),
}
