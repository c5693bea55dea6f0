# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Load Model and Rushes Load LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from rushes.model.files import ModelFiles, files_card
from rushes.shot import ShotError

from .host import plain, spoken_plainly
from .model import PRECISIONS, RushesModel
from .sockets import CATEGORY, ModelSocket

STARTER = "starter"
INSIDE = "none (the starter has its own)"
SOLVERS = ("from the model", "unipc", "euler")


def _files(folder: str) -> list[str]:
    """Weights that lie in a folder of ComfyUI's, those of extra_model_paths.yaml included."""
    return [name for name in folder_paths.get_filename_list(folder) if name.endswith((".safetensors", ".pth", ".pt"))]


def _chosen(model: str, text_encoder: str, vae: str, precision: str, solver: str, shift: float) -> ModelFiles | str:
    """What to load, by full paths. Raises ShotError naming the input that does not fit."""
    if precision not in PRECISIONS:
        raise ShotError(f"precision: got {precision!r}; allowed are {', '.join(PRECISIONS)}")
    if solver not in SOLVERS:
        raise ShotError(f"solver: got {solver!r}; allowed are {', '.join(SOLVERS)}")
    if not 0 <= shift <= 100:
        raise ShotError(f"shift: got {shift}; 0 (the model's own) to 100 is allowed")
    if model == STARTER:
        if solver != SOLVERS[0] or shift:
            name, got = ("shift", shift) if solver == SOLVERS[0] else ("solver", repr(solver))
            raise ShotError(f"{name}: got {got} for the starter, which has its own; it is allowed with files")
        return STARTER
    paths = []
    for name, value, folder in (
        ("model", model, "diffusion_models"),
        ("text_encoder", text_encoder, "text_encoders"),
        ("vae", vae, "vae"),
    ):
        path = None if value == INSIDE else folder_paths.get_full_path(folder, value)
        if path is None or value not in _files(folder):
            got = "none" if value == INSIDE else repr(value)
            raise ShotError(f"{name}: got {got}; a .safetensors file in ComfyUI's folder {folder} is allowed")
        paths.append(Path(path))
    return ModelFiles(*paths, solver=None if solver == SOLVERS[0] else solver, shift=shift or None)


def _by_our_names(message: str) -> str:
    """The core's names of a model's parts are not those of the inputs."""
    for theirs, ours in (("transformer:", "model:"), ("text:", "text_encoder:")):
        if message.startswith(theirs):
            return ours + message.removeprefix(theirs)
    return message


class RushesLoadModel(io.ComfyNode):
    """The starter, or a diffusion model with its text encoder and VAE, in ComfyUI's memory manager."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesLoadModel",
            display_name="Rushes Load Model",
            category=CATEGORY,
            description="The starter model, which comes with Rushes, or Wan files from where they lie.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[STARTER, *_files("diffusion_models")],
                    default=STARTER,
                    tooltip="starter (20 MB, comes with Rushes, needs no download), or a file in diffusion_models.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=[INSIDE, *_files("text_encoders")],
                    default=INSIDE,
                    tooltip="A file in text_encoders, UMT5-XXL for Wan. The starter has its own.",
                ),
                io.Combo.Input(
                    "vae",
                    options=[INSIDE, *_files("vae")],
                    default=INSIDE,
                    tooltip="A file in vae: Wan 2.1's for 2.1, Wan 2.2's for 2.2 5B. The starter has its own.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="Numbers that weights and work are in. auto: float32 for the starter and on a processor, "
                    "else ComfyUI's own choice for the device (bfloat16 or float32).",
                ),
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default=SOLVERS[0],
                    tooltip="Sampler of the flow equation, for files. 'from the model' is what it was published with.",
                ),
                io.Float.Input(
                    "shift",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Time shift of the schedule, for files: 1 is none, more spends more steps at high noise "
                    "(0 to 100). 0: what the model was published with.",
                ),
            ],
            outputs=[ModelSocket.Output(display_name="model", tooltip="For the other Rushes nodes.")],
        )

    @classmethod
    def validate_inputs(
        cls, model: str, text_encoder: str, vae: str, precision: str, solver: str, shift: float
    ) -> bool | str:
        if None in (model, text_encoder, vae, precision, solver, shift):
            return True  # it comes over a wire; it is looked at when it is there
        try:
            files = _chosen(model, text_encoder, vae, precision, solver, shift)
            if isinstance(files, ModelFiles):
                files_card(files)
        except ShotError as error:
            return _by_our_names(plain(error))
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str, text_encoder: str, vae: str, **others: Any) -> Any:
        """Another file under the same name is another model."""
        found = []
        for folder, name in (("diffusion_models", model), ("text_encoders", text_encoder), ("vae", vae)):
            path = folder_paths.get_full_path(folder, name)
            if path is not None and model != STARTER:
                status = Path(path).stat()
                found.append((path, status.st_size, status.st_mtime_ns))
        return found

    @classmethod
    def execute(
        cls, model: str, text_encoder: str, vae: str, precision: str, solver: str, shift: float
    ) -> io.NodeOutput:
        with spoken_plainly():
            files = _chosen(model, text_encoder, vae, precision, solver, shift)
            try:
                return io.NodeOutput(RushesModel.load(files, precision))
            except ShotError as error:
                raise ShotError(_by_our_names(str(error))) from error


class RushesLoadLora(io.ComfyNode):
    """A LoRA on a copy of the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesLoadLora",
            display_name="Rushes Load LoRA",
            category=CATEGORY,
            description="Puts a LoRA on the model's transformer. Chain several; the incoming model stays as it is.",
            inputs=[
                ModelSocket.Input("model", tooltip="From Rushes Load Model or another LoRA."),
                io.Combo.Input(
                    "lora", options=_files("loras"), tooltip="A .safetensors file in loras, in any usual naming of Wan."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.05,
                    tooltip="Factor of the LoRA's change (-20 to 20): 0 is none, 1 is what it was trained for.",
                ),
            ],
            outputs=[ModelSocket.Output(display_name="model", tooltip="A copy of the model with the LoRA on it.")],
        )

    @classmethod
    def validate_inputs(cls, lora: str) -> bool | str:
        if lora is not None and lora not in _files("loras"):
            return f"lora: got {lora!r}; a .safetensors file in ComfyUI's folder loras is allowed"
        return True

    @classmethod
    def fingerprint_inputs(cls, lora: str, **others: Any) -> Any:
        status = Path(folder_paths.get_full_path_or_raise("loras", lora)).stat()
        return (status.st_size, status.st_mtime_ns)

    @classmethod
    def execute(cls, model: RushesModel, lora: str, strength: float) -> io.NodeOutput:
        with spoken_plainly():
            return io.NodeOutput(model.with_lora(folder_paths.get_full_path_or_raise("loras", lora), strength))
