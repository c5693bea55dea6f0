# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Wan files from ComfyUI's own folders, through our nodes. A small Wan with random weights stands in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from rushes.media import read_frames, read_record
from rushes.media.color import SRGB

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]

HERE = Path(__file__).parent
BOOT = HERE / "support" / "boot.py"
SHOT = {"width": 64, "height": 32, "frames": 5, "steps": 3, "guidance": 4.0, "negative": "the ball"}

ENGINE = """
import json, sys
import numpy as np
from rushes import Engine, Shot
from rushes.model.files import ModelFiles
given = json.loads(sys.argv[1])
engine = Engine.load(ModelFiles(*given["files"], solver=given["solver"], shift=given["shift"]), device="cpu")
shot = Shot("a red ball rolls to the right", "the ball", (64, 32), 5, seed=7, steps=3, guidance=4.0)
clip = engine.generate(shot)
np.savez(sys.argv[2], frames=clip.frames, samples=engine.unscaled(clip.latents).numpy(), record=json.dumps(clip.record))
"""


def test_files_make_the_engines_clip(
    client: Any,
    server: Any,
    prompts: ModuleType,
    in_comfyui: Callable[..., str],
    tiny_wan: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Bit for bit, with a solver and a shift of one's own; the record names the files; their VAE sees the same."""
    names = prompts.placed(server, tiny_wan("comfy").files, "bits")
    # the same weights without a prefix, which ComfyUI's VAE loader does not take
    shutil.copy(tiny_wan("original").files.vae, server.base / "models/vae" / names["vae"])
    prompt = {
        "1": prompts.load_model(**names, solver="euler", shift=3.0),
        "2": prompts.shot(**SHOT),
        "3": prompts.generate(["1", 0], ["2", 0]),
        "4": prompts.write(images=["3", 0], record=["3", 3], name="wan", colorspace=SRGB, depth="float"),
        "5": {"class_type": "SaveLatent", "inputs": {"samples": ["3", 2], "filename_prefix": "wan"}},
        "6": {"class_type": "VAELoader", "inputs": {"vae_name": names["vae"]}},
        "7": prompts.write(latent=["3", 2], vae=["6", 0], name="wan_theirs", colorspace=SRGB, depth="float"),
    }
    run = client.run(prompt)
    assert run.end == "success", run.error
    paths = [str(server.base / "models" / prompts.FOLDERS[name] / file) for name, file in names.items()]
    given = {"files": paths, "solver": "euler", "shift": 3.0}
    in_comfyui("-c", ENGINE, json.dumps(given), tmp_path / "clip.npz")
    want = np.load(tmp_path / "clip.npz")
    folder = server.base / "output/rushes"
    with read_frames(str(folder / "wan_v001.%04d.exr")) as reader:
        frames = np.concatenate(list(reader))
    assert np.array_equal(frames, want["frames"])
    (saved,) = (server.base / "output").glob("wan_*.latent")
    assert np.array_equal(load_file(saved)["latent_tensor"], want["samples"])
    record = read_record(folder / "wan_v001.1001.exr")
    assert record["model"] == json.loads(str(want["record"]))["model"] and record["model"]["solver"] == "euler"
    with read_frames(str(folder / "wan_theirs_v001.%04d.exr")) as reader:
        theirs = np.concatenate(list(reader))
    assert np.abs(theirs - frames).max() < 1e-4  # another implementation of the same decoder


def test_comfyuis_own_sampler_makes_the_same_latents(
    in_comfyui: Callable[..., str], tiny_wan: Callable[..., Any]
) -> None:
    """Its loader, its KSampler (euler, simple), the same file, noise and text: equal within 1e-4 in float32."""
    files = tiny_wan("comfy", text_width=4096, dim=256).files
    script = HERE / "inside" / "sampler.py"
    printed = in_comfyui(BOOT, script, files.transformer, files.text, files.vae).split()
    difference, deviation = float(printed[-2]), float(printed[-1])
    print(f"\nKSampler against Rushes: largest difference {difference:.1e}, deviation of the latents {deviation:.2f}")
    assert deviation > 0.1 and difference < 1e-4


def test_files_that_do_not_go_together_are_refused(
    client: Any, server: Any, prompts: ModuleType, tiny_wan: Callable[..., Any]
) -> None:
    """At /prompt, by the input that has to change."""
    names = prompts.placed(server, tiny_wan("comfy").files, "pair")
    others = prompts.placed(server, tiny_wan("comfy", "2.2").files, "other")
    for changes, name, says in (
        ({"vae": others["vae"]}, "vae", "a VAE of 16"),
        ({"text_encoder": names["vae"]}, "text_encoder", ""),
        ({"text_encoder": "none (the starter has its own)"}, "text_encoder", "folder text_encoders"),
        ({"model": "../secret.safetensors"}, "model", "folder diffusion_models"),
    ):
        if name == "text_encoder" and "text_encoder" in changes and changes["text_encoder"] == names["vae"]:
            source = server.base / "models/vae" / names["vae"]
            shutil.copy(source, server.base / "models/text_encoders" / names["vae"])
        prompt = prompts.plate()
        prompt["1"] = prompts.load_model(**names | changes)
        found = client.refused(prompt)
        message = found[f"1.{name}"].partition(" - ")[2]
        assert message.startswith(f"{name}:") and says in message, found
