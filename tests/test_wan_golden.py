# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Every form against latents that diffusers' pipelines made once, so that a run without diffusers is checked too.

The weights and pictures are NumPy's legacy random numbers, which never change, seeded by their names. With the extra
`parity` the kept latents are made again and compared; RUSHES_WRITE_GOLDEN=1 writes them instead.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from rushes import Control, Engine, Keyframe, Shot
from rushes.model.clip import clip_pixels

Make = Callable[..., Any]
KEPT = Path(__file__).parent / "fixtures" / "wan_golden.safetensors"
WIDTH, HEIGHT, FRAMES = 64, 32, 9
PROMPT, NEGATIVE, SEED = "a red ball rolls to the right", "the ball", 11
EXPERTS = ("golden_high_noise", "golden_low_noise")
CLIP = {"in_channels": 36, "image_dim": 24}
VACE = {"layers": 4, "vace_in_channels": 96, "vace_layers": (0, 2)}

FORMS: dict[str, dict[str, Any]] = {
    "t2v": {"pipeline": "WanPipeline"},
    "t2v_experts": {"pipeline": "WanPipeline", "names": EXPERTS, "boundary_ratio": 0.875, "guidance": (4.0, 3.0)},
    "i2v": {"pipeline": "WanImageToVideoPipeline", "fields": CLIP, "ends": 1},
    "flf2v": {"pipeline": "WanImageToVideoPipeline", "fields": {**CLIP, "image_positions": 10}, "ends": 2},
    "i2v_experts": {
        "pipeline": "WanImageToVideoPipeline", "fields": {"in_channels": 36}, "ends": 1, "names": EXPERTS,
        "boundary_ratio": 0.9, "guidance": (3.5, 2.0),
    },
    "ti2v": {"pipeline": "WanPipeline", "family": "2.2", "expand_timesteps": True},
    "ti2v_picture": {"pipeline": "WanImageToVideoPipeline", "family": "2.2", "ends": 1, "expand_timesteps": True},
    "vace": {"pipeline": "WanVACEPipeline", "fields": VACE, "control": True},
}  # fmt: skip


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weight(part: str, name: str, like: Tensor) -> Tensor:
    """Of a size that keeps activations near one; gains are near one themselves."""
    values = torch.from_numpy(drawn(f"{part} {name}", tuple(like.shape)))
    if like.ndim == 1 or like.shape[1:].numel() == 1 or "modulation" in name or name == "img_emb.emb_pos":
        is_gain = name.endswith(("norm.weight", "gamma")) or ("norm" in name and name.endswith("weight"))
        return 0.1 * values + float(is_gain)
    return values * like.shape[1:].numel() ** -0.5


def picture(folder: Path, name: str) -> str:
    """A file of noise."""
    pixels = np.clip(drawn(name, (HEIGHT, WIDTH, 3)) * 50 + 128, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    return str(folder / f"{name}.png")


@pytest.fixture
def golden(tiny_wan: Make, tmp_path: Path) -> Callable[[str], tuple[SimpleNamespace, Shot]]:
    """golden("i2v"): the files of a form with weights that never change, and the shot."""

    def build(form: str) -> tuple[SimpleNamespace, Shot]:
        asked = FORMS[form]
        wan = tiny_wan(
            "comfy", asked.get("family", "2.1"), names=asked.get("names", ("golden",)), **asked.get("fields", {})
        )
        for part, path in wan.files.paths.items():
            state = wan.states[part]
            for name, tensor in state.items():
                state[name] = weight(part, name, tensor)
            if part == "text":
                state["encoder.embed_tokens.weight"] = state["shared.weight"]
            tensors = load_file(path)
            for key in tensors:
                ours = [name for name in state if key == name or key.endswith(f".{name}")]
                if ours:  # the longest: what is before it is the file's prefix
                    tensors[key] = state[max(ours, key=len)].clone()
            heads = '{"num_heads": 2}'
            save_file(tensors, path, {"config": heads} if part not in ("text", "vae") else None)
        ends = [Keyframe(-i, picture(tmp_path, f"end {i}")) for i in range(asked.get("ends", 0))]
        names = [picture(tmp_path, f"guide.{frame:04d}") for frame in range(FRAMES)] if "control" in asked else []
        reference = Control("reference", references=(picture(tmp_path, "reference"),))
        control = (Control("pose", str(Path(names[0]).with_name("guide.%04d.png"))), reference) if names else ()
        return wan, Shot(
            PROMPT, NEGATIVE, size=(WIDTH, HEIGHT), frames=FRAMES, seed=SEED, steps=4,
            guidance=asked.get("guidance", 5.0), keyframes=tuple(ends), control=control,
        )  # fmt: skip

    return build


def assert_close(got: Tensor, kept: Tensor, relative: float) -> None:
    error = ((got - kept).abs().max() / kept.abs().max()).item()
    print(f"\nlargest difference, relative: {error:.1e}")
    assert got.shape == kept.shape and kept.std() > 0.1 and error <= relative


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_latents_that_diffusers_made(golden: Make, form: str) -> None:
    """Within 1e-4: other processors sum in another order, and nothing else may differ."""
    wan, shot = golden(form)
    files = dataclasses.replace(wan.files, schedule="diffusers_unipc", shift=5.0)
    assert_close(Engine.load(files, device="cpu").denoise(shot), load_file(KEPT)[form], 1e-4)


def test_what_is_kept_is_small() -> None:
    assert KEPT.stat().st_size < 2**20 and load_file(KEPT).keys() == FORMS.keys()


def theirs(pipeline: Any, shot: Shot, form: str) -> Tensor:
    """What diffusers makes of the shot."""
    high, low = shot.guidance_pair
    options: dict[str, Any] = {
        "prompt": shot.prompt, "negative_prompt": shot.negative, "width": WIDTH, "height": HEIGHT,
        "num_frames": FRAMES, "num_inference_steps": 4, "guidance_scale": high, "output_type": "latent",
        "generator": torch.Generator("cpu").manual_seed(SEED),
    }  # fmt: skip
    if isinstance(shot.guidance, tuple):
        options["guidance_scale_2"] = low
    pictures = [Image.open(keyframe.image) for keyframe in shot.keyframes]
    options |= dict(zip(("image", "last_image"), pictures, strict=False))
    if getattr(pipeline, "image_encoder", None) is not None:
        pixels = torch.stack([torch.from_numpy(np.asarray(one, np.float32)).permute(2, 0, 1) / 255 for one in pictures])
        inputs = clip_pixels(pixels, pipeline.image_encoder.config.image_size)
        with torch.inference_mode():
            tokens = pipeline.image_encoder(inputs, output_hidden_states=True).hidden_states[-2]
        pipeline.encode_image = lambda images, device=None: tokens
    if shot.control:
        guide, reference = shot.control
        options["video"] = [Image.open(guide.path % frame) for frame in range(FRAMES)]
        options["reference_images"] = [Image.open(path) for path in reference.references]
    return pipeline(**options).frames[:, :, len(options.get("reference_images", ())) :].contiguous()


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMS)
def test_the_kept_latents_are_diffusers(golden: Make, wan_pipeline: Make, form: str) -> None:
    """Made again by the pipelines themselves."""
    wan, shot = golden(form)
    asked = FORMS[form]
    options = {name: asked[name] for name in ("boundary_ratio", "expand_timesteps") if name in asked}
    spiece = bytes(load_file(wan.files.text)["text_encoders.umt5xxl.transformer.spiece_model"].numpy())
    made = theirs(wan_pipeline(wan, asked["pipeline"], spiece=spiece, **options), shot, form)
    if os.environ.get("RUSHES_WRITE_GOLDEN") == "1":
        save_file({**(load_file(KEPT) if KEPT.exists() else {}), form: made}, KEPT)
    assert_close(made, load_file(KEPT)[form], 2e-5)
