# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The processes of wan.py: `wan_child.py FOLDER '{"job": "rushes", …}'`. One library each, for the peak memory."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHIFT = 8.0  # ComfyUI's default for Wan
PROMPT = "a red ball rolls to the right"
PIECES = ("<pad>", "</s>", "<unk>", "▁a", "▁red", "▁ball", "▁rolls", "▁to", "▁the", "▁right")
SEED = 7


class Watch:
    """Seconds and processor seconds of each step, and the peak of memory over that of the imports: all of it, and what
    is private to the process, without the mapped pages of a file, which the system can take back at any time."""

    def __init__(self) -> None:
        self._before, self._private_before = _peak(), _private()
        self._private = self._private_before
        self._marks: list[tuple[float, float]] = []
        if self._private_before is not None:
            threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:  # the system keeps no peak of this one
            self._private = max(self._private or 0, _private() or 0)
            time.sleep(0.02)

    def step(self, *_: object, **__: object) -> dict[str, Any]:
        """A step is done. diffusers takes the answer for changes, of which there are none."""
        self._marks.append((time.perf_counter(), time.process_time()))
        return {}

    def report(self) -> dict[str, Any]:
        pairs = list(zip(self._marks, self._marks[1:], strict=False))  # the first step warms up
        return {
            "seconds": [b[0] - a[0] for a, b in pairs],
            "processor": [b[1] - a[1] for a, b in pairs],
            "peak": _peak() - self._before,
            "private": None if self._private_before is None else (self._private or 0) - self._private_before,
        }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _private() -> int | None:
    """Bytes of the process that no file stands behind; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024 if "RssAnon" in lines else None


def write(folder: Path, task: dict[str, Any]) -> None:
    """The model's files in bfloat16, as artists have them: the transformer by Wan's own names and by diffusers'; a VAE
    and a text encoder as small as they may be, since neither is measured."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    from rushes.model.checkpoint import transformer_names_to_diffusers
    from rushes.model.config import WAN21_VAE, TransformerConfig
    from rushes.model.text import TIED_EMBEDDING, TextConfig, TextEncoder
    from rushes.model.transformer import Transformer
    from rushes.model.vae import VideoVAE

    torch.manual_seed(1)
    config = TransformerConfig(**task["model"])
    text = TextConfig(vocab_size=len(PIECES), dim=config.text_dim, heads=2, layers=1, ffn_dim=32, head_dim=8)
    vae = dataclasses.replace(WAN21_VAE, encoder_dim=8, decoder_dim=8)
    states = {
        name: module.bfloat16().state_dict()
        for name, module in {
            "transformer": Transformer(config),
            "text": TextEncoder(text),
            "vae": VideoVAE(vae),
        }.items()
    }
    for name, tensor in states["transformer"].items():
        if name.endswith(("norm_q.weight", "norm_k.weight")):
            tensor.mul_(2)  # so that softmax prefers some keys
    states["text"].pop(TIED_EMBEDDING)
    for part, state in states.items():
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / f"{part}.safetensors")
    names = transformer_names_to_diffusers(states["transformer"])
    (folder / "diffusers").mkdir()
    save_file(
        {names[name]: tensor.contiguous() for name, tensor in states["transformer"].items()},
        folder / "diffusers" / "diffusion_pytorch_model.safetensors",
        metadata={"format": "pt"},
    )
    backend = Tokenizer(models.Unigram([(piece, -2.0) for piece in PIECES], 2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.save(str(folder / "tokenizer.json"))
    print(json.dumps({"parameters": sum(t.numel() for t in states["transformer"].values())}))


def _engine(folder: Path, task: dict[str, Any]) -> tuple[Any, Any]:
    """The engine and the shot."""
    import torch

    from rushes import Engine, Shot
    from rushes.attention.layers import SparseAttention
    from rushes.model.files import ModelFiles

    solver = {"solver": "euler"} if task["solver"] == "euler" else {"schedule": "diffusers_unipc"}
    files = ModelFiles(
        *(folder / f"{part}.safetensors" for part in ("transformer", "text", "vae")), shift=SHIFT, **solver
    )
    attention = None if task["density"] == 1 else SparseAttention(density=task["density"])
    engine = Engine.load(files, device="cpu", dtype=getattr(torch, task["dtype"]), attention=attention)
    shot = Shot(
        PROMPT,
        size=tuple(task["size"]),
        frames=task["frames"],
        steps=task["steps"],
        guidance=1.0,
        negative="",
        seed=SEED,
    )
    return engine, shot


def rushes(folder: Path, task: dict[str, Any]) -> Any:
    """Latents, and what was delivered."""
    import rushes.engine
    import rushes.media  # noqa: F401

    watch = Watch()
    engine, shot = _engine(folder, task)
    latents = engine.denoise(shot, on_progress=lambda told: watch.step() if told.phase == "denoise" else None)
    report = engine.attention_report()
    return latents, watch.report() | {"kept": 1.0 if report is None else report["density"]}


def inputs(folder: Path, task: dict[str, Any]) -> None:
    """What the peers get: the first noise and the embedded prompt."""
    from safetensors.torch import save_file

    from rushes.sampling.noise import initial_noise

    engine, shot = _engine(folder, task)
    height, width = (side // 8 for side in task["size"][::-1])
    noise = initial_noise(16, engine.card.vae.latent_frames(task["frames"]), height, width, SEED)
    save_file({"noise": noise, "text": engine._features(shot)[0].float().contiguous()}, folder / "inputs.safetensors")


def diffusers(folder: Path, task: dict[str, Any]) -> Any:
    """As its users load it, but for the embedded prompt and the noise."""
    import torch
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from peer import transformer_options
    from safetensors.torch import load_file

    from rushes.model.config import TransformerConfig

    dtype = getattr(torch, task["dtype"])
    place = folder / "diffusers"
    options = transformer_options(TransformerConfig(**task["model"]))
    config = {"_class_name": "WanTransformer3DModel", **options}
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    given = load_file(folder / "inputs.safetensors")
    watch = Watch()
    pipeline = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=AutoencoderKLWan(base_dim=8, decoder_base_dim=8).to(dtype),
        transformer=WanTransformer3DModel.from_pretrained(place, torch_dtype=dtype),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT),
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        prompt_embeds=given["text"].to(dtype), latents=given["noise"], width=task["size"][0], height=task["size"][1],
        num_frames=task["frames"], num_inference_steps=task["steps"], guidance_scale=1.0, output_type="latent",
        callback_on_step_end=watch.step,
    ).frames  # fmt: skip
    return latents.float(), watch.report()


def comfyui(folder: Path, task: dict[str, Any]) -> Any:
    """ComfyUI's loader and sampler, in its own interpreter and folder."""
    sys.path.insert(0, os.getcwd())
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.sd
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    from safetensors.torch import load_file

    given = load_file(folder / "inputs.safetensors")
    watch = Watch()
    model = comfy.sd.load_diffusion_model(str(folder / "transformer.safetensors"))
    (model,) = ModelSamplingSD3().patch(model, SHIFT)
    words = [[given["text"], {}]]
    latents = comfy.sample.sample(
        model, given["noise"], task["steps"], 1.0, "euler", "simple", words, words, given["noise"] * 0,
        callback=watch.step, disable_pbar=True, seed=SEED,
    )  # fmt: skip
    # its samplers answer in the VAE's own numbers
    return model.model.latent_format.process_in(latents).float(), watch.report()


def compare(folder: Path, task: dict[str, Any]) -> None:
    """Relative distance of each pair of latents, in the L2 norm and in the maximum."""
    from safetensors.torch import load_file

    found = {}
    for name, reference in task["pairs"]:
        ours, theirs = (load_file(folder / f"{part}.latents")["latents"].double() for part in (name, reference))
        apart = ours - theirs
        found[f"{name}/{reference}"] = [
            (apart.norm() / theirs.norm()).item(), (apart.abs().max() / theirs.abs().max()).item(),
        ]  # fmt: skip
    print(json.dumps(found))


RUNS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {"rushes": rushes, "diffusers": diffusers, "comfyui": comfyui}
JOBS = {"write": write, "inputs": inputs, "compare": compare}


def main() -> None:
    folder, task = Path(sys.argv[1]), json.loads(sys.argv[2])
    if task["job"] in JOBS:
        JOBS[task["job"]](folder, task)
        return
    latents, report = RUNS[task["job"]](folder, task)
    from safetensors.torch import save_file

    save_file({"latents": latents.contiguous()}, folder / f"{task['name']}.latents")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
