# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Load Model and Rushes Load LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from rushes.shot import ShotError

from .choices import INSIDE, NAMES, NONE, SOLVERS, STARTER, Choice, chosen, files_in, files_of, on_the_shelf
from .host import plain, spoken_plainly
from .model import BOTH, EXPERTS, PRECISIONS, RushesModel
from .sockets import CATEGORY, ModelSocket


class RushesLoadModel(io.ComfyNode):
    """The starter, or a diffusion model with what belongs to it, in ComfyUI's memory manager."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesLoadModel",
            display_name="Rushes Load Model",
            category=CATEGORY,
            description="The starter, which comes with Rushes, a model that Rushes knows by name, or files of Wan.",
            inputs=[*_files(), *_work(), *_further_files(), *_speed()],
            outputs=[ModelSocket.Output(display_name="model", tooltip="For the other Rushes nodes.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        model: str,
        text_encoder: str,
        vae: str,
        precision: str,
        solver: str,
        shift: float,
        second_expert: str = NONE,
        image_encoder: str = NONE,
        attention: float = 1.0,
    ) -> bool | str:
        values = (model, text_encoder, vae, precision, solver, shift, second_expert, image_encoder, attention)
        if None in values:
            return True  # it comes over a wire; it is looked at when it is there
        try:
            chosen(Choice(*values))
        except ShotError as error:
            return plain(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        """Another file under the same name is another model."""
        status = [(path, path.stat()) for path in files_of(Choice(**inputs))]
        return [(str(path), there.st_size, there.st_mtime_ns) for path, there in status]

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        with spoken_plainly():
            choice = Choice(**inputs)
            try:
                model = RushesModel.load(chosen(choice), choice.precision, choice.attention, choice.fp8_products)
            except ShotError as error:
                raise error.renamed(NAMES) from error
            return io.NodeOutput(model)


def _files() -> list[io.Input]:
    return [
        io.Combo.Input(
            "model",
            options=[STARTER, *on_the_shelf(), *files_in("diffusion_models")],
            default=STARTER,
            tooltip="starter (20 MB, comes with Rushes, needs no download), a name that `rushes models add` gave, or a "
            "file in diffusion_models, quantised or not. Of Wan 2.2 A14B: the high-noise file.",
        ),
        io.Combo.Input(
            "text_encoder",
            options=[INSIDE, *files_in("text_encoders")],
            default=INSIDE,
            tooltip="A file in text_encoders, UMT5-XXL for Wan. The starter and models by name have their own.",
        ),
        io.Combo.Input(
            "vae",
            options=[INSIDE, *files_in("vae")],
            default=INSIDE,
            tooltip="A file in vae: Wan 2.2's for 2.2 5B, Wan 2.1's for others. The starter and models by name have "
            "their own.",
        ),
    ]


def _work() -> list[io.Input]:
    return [
        io.Combo.Input(
            "precision",
            options=list(PRECISIONS),
            default="auto",
            tooltip="Numbers that weights and work are in. auto: float32 for the starter and on a processor, "
            "else ComfyUI's own choice for the device (bfloat16 or float32). Quantised weights stay as they are.",
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
    ]


def _further_files() -> list[io.Input]:
    return [
        io.Combo.Input(
            "second_expert",
            options=[NONE, *files_in("diffusion_models")],
            default=NONE,
            optional=True,
            tooltip="Of Wan 2.2 A14B, which is two files: the low-noise one, with the high-noise one as 'model'. Where "
            "memory is short they are on the device one after the other.",
        ),
        io.Combo.Input(
            "image_encoder",
            options=[NONE, *files_in("clip_vision")],
            default=NONE,
            optional=True,
            tooltip="Of Wan 2.1 image-to-video (I2V, FLF2V): clip_vision_h in clip_vision. No other model reads one.",
        ),
    ]


def _speed() -> list[io.Input]:
    return [
        io.Float.Input(
            "attention",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Faster, with an error: share of self-attention that is computed, in the tiles that fit best "
            "(above 0 to 1). 1: all of it.",
        ),
        io.Boolean.Input(
            "fp8_products",
            default=False,
            optional=True,
            tooltip="Faster, with an error: transformers whose file is in fp8 multiply in it. For cards from sm_89.",
        ),
    ]


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
                    "lora",
                    options=files_in("loras"),
                    tooltip="A .safetensors file in loras, in any usual naming of Wan.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.05,
                    tooltip="Factor of the LoRA's change (-20 to 20): 0 is none, 1 is what it was trained for.",
                ),
                io.Combo.Input(
                    "on",
                    options=list(EXPERTS),
                    default=BOTH,
                    optional=True,
                    tooltip="Which of Wan 2.2 A14B's experts it goes on. both: on each, unless the file's name says "
                    "high or low noise, which then decides. Other models have one transformer: both.",
                ),
            ],
            outputs=[ModelSocket.Output(display_name="model", tooltip="A copy of the model with the LoRA on it.")],
        )

    @classmethod
    def validate_inputs(cls, lora: str, on: str = BOTH) -> bool | str:
        if lora is not None and lora not in files_in("loras"):
            return f"lora: got {lora!r}; a .safetensors file in ComfyUI's folder loras is allowed"
        if on is not None and on not in EXPERTS:
            return f"on: got {on!r}; allowed are {', '.join(EXPERTS)}"
        return True

    @classmethod
    def fingerprint_inputs(cls, lora: str, **others: Any) -> Any:
        status = Path(folder_paths.get_full_path_or_raise("loras", lora)).stat()
        return (status.st_size, status.st_mtime_ns)

    @classmethod
    def execute(cls, model: RushesModel, lora: str, strength: float, on: str = BOTH) -> io.NodeOutput:
        with spoken_plainly():
            return io.NodeOutput(model.with_lora(folder_paths.get_full_path_or_raise("loras", lora), strength, on))
