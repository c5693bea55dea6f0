# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Write Plate in a real ComfyUI: formats, streaming, versions, and what it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 - the field's name for it
import pytest
from safetensors.numpy import save_file

from rushes.media import read_frames, read_record, verify
from rushes.media.color import SRGB

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(1200)]

EXACT = {"colorspace": SRGB, "depth": "float"}


def frames_of(path: Path) -> np.ndarray:
    with read_frames(str(path)) as reader:
        return np.concatenate(list(reader))


def pixels_of(path: Path) -> np.ndarray:
    """What is stored, unconverted."""
    picture = oiio.ImageInput.open(str(path))
    pixels = picture.read_image(oiio.FLOAT)
    picture.close()
    return np.asarray(pixels)


def test_a_plate_from_the_latent_is_the_plate_from_the_images(client: Any, server: Any, prompts: ModuleType) -> None:
    """The same half floats in ACEScg, from frame 1001, each with the record and the time code of its number."""
    prompt = prompts.plate(frames=9, seed=21, writes={"name": "latent", "folder": "show/sh010"})
    prompt["5"] = prompts.write(images=["3", 0], record=["3", 3], name="images", folder="show/sh010")
    run = client.run(prompt)
    assert run.end == "success", run.error
    folder = server.base / "output/show/sh010"
    names = sorted(path.name for path in folder.iterdir())
    numbers = range(1001, 1010)
    assert names == sorted(
        [f"{name}_v001.{number}.exr" for name in ("latent", "images") for number in numbers]
        + ["latent_v001.json", "images_v001.json", "latent_v001.exr.manifest.json", "images_v001.exr.manifest.json"]
    )
    assert verify(folder / "latent_v001.%04d.exr").ok
    for number in numbers:
        pair = [pixels_of(folder / f"{name}_v001.{number}.exr") for name in ("latent", "images")]
        assert np.array_equal(*pair), number
    spec = oiio.ImageInput.open(str(folder / "latent_v001.1003.exr")).spec()
    assert spec.format == oiio.HALF and spec.getattribute("colorInteropID") == "lin_ap1_scene"
    records = [read_record(folder / f"{name}_v001.1001.exr") for name in ("latent", "images")]
    assert records[0] == records[1] and records[0]["shot"]["seed"] == 21
    sidecar = json.loads((folder / "latent_v001.json").read_text())
    assert sidecar.pop("files") == {"first": "latent_v001.1001.exr", "count": 9, "start_frame": 1001}
    assert sidecar == records[0]


@pytest.mark.parametrize(
    ("kind", "name", "suffix"), [("ProRes MOV", "pro", ".mov"), ("MP4", "h264", ".mp4"), ("PNG", "png", ".%04d.png")]
)
def test_each_format_holds_the_clip_and_is_shown(
    client: Any, server: Any, prompts: ModuleType, kind: str, name: str, suffix: str
) -> None:
    """All frames at the shot's rate, near to the images, with the record; the node shows a movie that browsers play."""
    prompt = prompts.plate(frames=9, seed=22, fps=23.976, writes={"name": name, "format": kind})
    prompt["5"] = prompts.write(images=["3", 0], name=f"{name}_exact", **EXACT)
    run = client.run(prompt)
    assert run.end == "success", run.error
    path = server.base / "output/rushes" / f"{name}_v001{suffix}"
    with read_frames(str(path)) as reader:
        assert (reader.frames, reader.size) == (9, (32, 32))
        assert reader.fps in (None, read_fps(path))
        found = np.concatenate(list(reader))
    exact = frames_of(server.base / "output/rushes" / f"{name}_exact_v001.%04d.exr")
    assert np.abs(found - exact).mean() < 0.02
    record = read_record(str(path))
    assert (
        record["shot"]["fps"] == "24000/1001" and record["comfyui"]["prompt"]["4"]["class_type"] == "RushesWritePlate"
    )
    (shown,) = run.executed["4"]["images"]
    assert shown["filename"].endswith(".mp4") and shown["type"] == ("output" if kind == "MP4" else "temp")
    movie = server.base / shown["type"] / shown["subfolder"] / shown["filename"]
    with read_frames(str(movie)) as reader:
        assert reader.frames == 9


def read_fps(path: Path) -> Any:
    from fractions import Fraction

    return Fraction(read_record(str(path))["shot"]["fps"])


def test_depth_compression_start_and_rate_are_as_asked(client: Any, server: Any, prompts: ModuleType) -> None:
    """Float, DWAA, linear Rec.709, from 17, at 25 frames a second."""
    asked = {"depth": "float", "compression": "dwaa", "colorspace": "lin_rec709", "start_frame": 17, "fps": 25.0}
    run = client.run(prompts.plate(seed=23, writes={"name": "asked", **asked, "sidecar": False}))
    assert run.end == "success", run.error
    folder = server.base / "output/rushes"
    assert sorted(path.name for path in folder.glob("asked*.exr")) == [f"asked_v001.00{n}.exr" for n in range(17, 22)]
    spec = oiio.ImageInput.open(str(folder / "asked_v001.0017.exr")).spec()
    assert spec.format == oiio.FLOAT and spec.getattribute("compression").startswith("dwaa")
    assert spec.getattribute("colorInteropID") == "lin_rec709_scene"
    assert read_record(folder / "asked_v001.0017.exr")["shot"]["fps"] == "25"


def test_an_unchanged_graph_writes_nothing_and_a_changed_one_a_new_version(
    client: Any, server: Any, prompts: ModuleType
) -> None:
    """Queued again, nothing runs. Another seed is version 2, and version 1 stays as it was."""
    prompt = prompts.plate(seed=24, writes={"name": "versions"})
    folder = server.base / "output/rushes"
    first = client.run(prompt)
    before = {path.name: path.read_bytes() for path in folder.glob("versions_*")}
    again = client.run(prompt)
    assert sorted(again.cached) == ["1", "2", "3", "4"] and again.executed["4"] == first.executed["4"]
    assert sorted(path.name for path in folder.glob("versions_*")) == sorted(before)
    prompt["2"]["inputs"]["seed"] = 25
    run = client.run(prompt)
    assert run.executed["4"]["text"][0].endswith("versions_v002.%04d.exr")
    assert {name: (folder / name).read_bytes() for name in before} == before
    names = [path.name for path in folder.glob("versions_v002.*")]
    assert len(names) == 7 and "versions_v002.exr.manifest.json" in names  # five frames, sidecar, manifest


def test_images_that_no_shot_made_say_so(client: Any, server: Any, prompts: ModuleType) -> None:
    """EmptyImage has no record: the plate names its size, length and rate, and cannot be mistaken for a shot."""
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 40, "height": 24, "batch_size": 3, "color": 0xFF8000}},
        "2": prompts.write(images=["1", 0], name="foreign"),
    }
    assert client.run(prompt).end == "success"
    path = server.base / "output/rushes/foreign_v001.1001.exr"
    record = read_record(path)
    assert record["without_shot"] is True and record["shot"]["size"] == [40, 24] and record["shot"]["fps"] == "24"
    status, body = client.submit(
        {
            "1": {"class_type": "RushesShotFromFile", "inputs": {"path": str(path)}},
            "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
        }
    )
    assert status == 400 and "no shot of Rushes made its frames" in json.dumps(body)


def test_changed_images_name_what_they_were_made_from(client: Any, server: Any, prompts: ModuleType) -> None:
    """Twice as large, with the record linked: their own size in the shot's place, and the old record whole."""
    prompt = prompts.plate(seed=26, writes={"name": "small"})
    inputs = {"image": ["3", 0], "upscale_method": "nearest-exact", "scale_by": 2.0}
    prompt["5"] = {"class_type": "ImageScaleBy", "inputs": inputs}
    prompt["6"] = prompts.write(images=["5", 0], record=["3", 3], name="large")
    assert client.run(prompt).end == "success"
    record = read_record(server.base / "output/rushes/large_v001.1001.exr")
    assert record["shot"]["size"] == [64, 64] and record["made_from"]["shot"]["seed"] == 26
    run = client.run(
        {
            "1": {"class_type": "RushesShotFromFile", "inputs": {"path": "rushes/large_v001.%04d.exr"}},
            "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
        }
    )
    assert run.executed["2"]["text"] == ["a red ball rolls to the right"]


def test_a_latent_that_another_node_changed_is_not_taken_for_the_shots(
    client: Any, server: Any, prompts: ModuleType
) -> None:
    """Its samples are decoded, not what Rushes Generate remembers, and the record does not claim the shot."""
    prompt = prompts.plate(seed=27, writes={"name": "kept"})
    prompt["5"] = {"class_type": "LatentMultiply", "inputs": {"samples": ["3", 2], "multiplier": 0.5}}
    prompt["6"] = prompts.write(latent=["5", 0], model=["1", 0], name="halved")
    assert client.run(prompt).end == "success"
    folder = server.base / "output/rushes"
    kept, halved = (frames_of(folder / f"{name}_v001.%04d.exr") for name in ("kept", "halved"))
    assert kept.shape == halved.shape and np.abs(kept - halved).mean() > 0.01
    assert read_record(folder / "halved_v001.1001.exr")["without_shot"] is True


def test_a_vae_of_comfyui_streams_what_vae_decode_makes(client: Any, server: Any, prompts: ModuleType) -> None:
    """A small Wan 2.1 VAE with random weights and random latents: the same frames to the last bit, piece by piece."""
    save_file(tiny_wan_vae(), make_folder(server.base / "models/vae") / "tiny_wan.safetensors")
    samples = np.random.default_rng(5).normal(size=(1, 16, 4, 3, 5)).astype(np.float32)
    tensors = {"latent_tensor": samples, "latent_format_version_0": np.zeros(0, np.float32)}
    save_file(tensors, server.base / "input/random.latent")
    prompt = {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_wan.safetensors"}},
        "2": {"class_type": "LoadLatent", "inputs": {"latent": "random.latent"}},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 0]}},
        "4": prompts.write(images=["3", 0], name="theirs_whole", **EXACT),
        "5": prompts.write(latent=["2", 0], vae=["1", 0], name="theirs_streamed", **EXACT),
    }
    run = client.run(prompt)
    assert run.end == "success", run.error
    folder = server.base / "output/rushes"
    whole, streamed = (frames_of(folder / f"theirs_{name}_v001.%04d.exr") for name in ("whole", "streamed"))
    assert streamed.shape == (13, 24, 40, 3) and np.array_equal(whole, streamed)
    assert "decodes a clip only whole" not in server.log
    assert [most for _, most in run.progress["5"]] == [13] * 13


def test_the_vae_of_wan_22_streams_too(in_comfyui: Callable[..., str], pack: Path) -> None:
    """Its pictures come in packed channels. Made small in ComfyUI's own process, as no server loads a small one."""
    here = Path(__file__).parent
    told = in_comfyui(here / "support/boot.py", here / "inside/vae_22.py", pack)
    found = json.loads(told.splitlines()[-1])
    assert found["class"] == "comfy.ldm.wan.vae2_2" and found["equal"], found
    assert found["pieces"] == [1, 4, 4, 4] and found["shape"] == [13, 32, 48, 3] and found["expected"] == 13
    assert found["spread"] > 1e-3, "the test's frames are flat"


def tiny_wan_vae() -> dict[str, np.ndarray]:
    import torch

    from rushes.model.config import VAEConfig
    from rushes.model.vae import VideoVAE

    channels = 16
    config = VAEConfig(
        latent_channels=channels,
        encoder_dim=8,
        decoder_dim=8,
        latents_mean=(0.0,) * channels,
        latents_std=(1.0,) * channels,
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return {key: (tensor.clone() + 0.02).numpy() for key, tensor in VideoVAE(config).state_dict().items()}


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_memory_does_not_grow_with_the_length(client: Any, server: Any, prompts: ModuleType) -> None:
    """Write Plate alone, of latents that are there: 257 frames take at most 1.2 times what 33 take.

    The long one comes first too, uncounted: what its sampling leaves to the process is there in both that count.
    """
    peaks = {}
    for turn, frames in enumerate((257, 33, 257)):
        prompt = prompts.plate(
            width=128, height=80, frames=frames, seed=28, steps=1, writes={"name": f"warm{turn}", "format": "MP4"}
        )
        assert client.run(prompt).end == "success"
        prompt["4"]["inputs"]["name"] = f"length{turn}"
        server.reset_peak_rss()
        run = client.run(prompt)
        assert run.end == "success" and run.cached and "3" in run.cached
        peaks[frames] = server.peak_rss() / 2**20
    print(f"peak of the server while it writes: 33 frames {peaks[33]:.0f} MB, 257 frames {peaks[257]:.0f} MB")
    assert peaks[257] <= 1.2 * peaks[33], peaks
