# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Attention in models of ComfyUI's, sampled by its own nodes. Each case answers with what it saw, as JSON.

python boot.py attention.py PACK RESULT.json
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACK, RESULT = Path(sys.argv[1]), Path(sys.argv[2])

import session  # noqa: E402, I001 - the first of ComfyUI
import comfy.ldm.modules.attention as theirs  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.supported_models  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from comfy_api.torch_helpers import set_torch_compile_wrapper  # noqa: E402

node = session.pack_module(PACK, "attention_node")

LATENT = (1, 16, 5, 24, 28)
GRID = (5, 12, 14)  # 840 tokens, ragged for tiles of 4
STEPS, LAYERS = 4, 4
WINDOW = {"mode": "window", "window_time": 1, "window_height": 3, "window_width": 1}
CASES: dict[str, Callable[[], Any]] = {}


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES[function.__name__] = function
    return function


class Lines(logging.Handler):
    """What went to the log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def attention(model: Any, **chosen: Any) -> Any:
    """The node as a graph runs it, with its own defaults and without dense steps."""
    schema = node.RushesAttention.GET_SCHEMA()
    defaults = {widget.id: widget.default for widget in schema.inputs if widget.id != "model"}
    return node.RushesAttention.execute(model=model, **{**defaults, "dense_first_steps": 0, **chosen}).result[0]


def counts(model: Any) -> dict[str, Any]:
    """The tally of the latest sampling."""
    tally = model.get_attachment(node.KEY).tally
    return {
        "passes": tally.passes,
        "sparse": {backend: row.calls for (backend, _), row in tally.sparse.items()},
        "dense": {why: row.calls for (_, why), row in tally.dense.items()},
        "backends": sorted({backend for backend, _ in [*tally.sparse, *tally.dense]}),
        "handed_on": dict(tally.handed_on),
        "density": [tally.density.least, tally.density.mean, tally.density.most],
        "grids": sorted(tally.grids),
        "seconds": tally.seconds,
        "report": node.RushesAttentionReport.execute(model=model, latent="the latent").result,
    }


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out - expected).norm() / expected.norm())


def window_mask(grid: tuple[int, ...], window: tuple[int, ...], before: int = 0, after: int = 0) -> torch.Tensor:
    """bool [tokens, tokens] of tiles of 4, token by token; what is not the video is kept."""
    tiles = np.array([[n // 4 for n in place] for place in np.ndindex(*grid)])
    kept = np.ones((len(tiles), len(tiles)), dtype=bool)
    for axis, width in enumerate(window):
        count = tiles[:, axis].max() + 1
        first = np.clip(tiles[:, axis] - (min(width, count) - 1) // 2, 0, count - min(width, count))[:, None]
        kept &= (tiles[:, axis] >= first) & (tiles[:, axis] < first + width)
    total = before + len(tiles) + after
    mask = np.ones((total, total), dtype=bool)
    mask[before : before + len(tiles), before : before + len(tiles)] = kept
    return torch.from_numpy(mask)


def masked(model: Any, mask: torch.Tensor) -> Any:
    """The model with torch's attention under a mask where it looks at so many tokens: the reference of a window."""

    def override(function: Any, q: Any, k: Any, v: Any, *arguments: Any, **keywords: Any) -> Any:
        if q.shape[-2] == k.shape[-2] == len(mask):
            keywords["mask"] = mask
        return theirs.attention_pytorch(q, k, v, *arguments, **keywords)

    made = model.clone()
    made.model_options["transformer_options"][node.OVERRIDE] = override
    return made


@case
def dense() -> Any:
    model = attention(wan)
    out = session.sample(model, LATENT)
    return {"error": error(out, plain), **counts(model), "through": node.RushesAttentionReport.execute(wan, 1).result}


@case
def window() -> Any:
    model = attention(wan, **WINDOW)
    out = session.sample(model, LATENT)
    mask = window_mask(GRID, (1, 3, 1))
    expected = session.sample(masked(wan, mask), LATENT)
    return {
        "error": error(out, expected),
        "change": error(out, plain),
        "asked": float(mask.double().mean()),
        **counts(model),
    }


@case
def density() -> Any:
    found = []
    for asked in (0.2, 0.5):
        model = attention(wan, mode="density", density=asked)
        out = session.sample(model, LATENT)
        found.append({"asked": asked, "tile": 64 / 840, "change": error(out, plain), **counts(model)})
    return found


@case
def dense_parts() -> Any:
    parts = {"dense_first_steps": 1, "dense_last_steps": 1, "dense_first_layers": 1, "dense_last_layers": 2}
    model = attention(wan, **WINDOW, **parts)
    session.sample(model, LATENT)
    return counts(model)


@case
def precision() -> Any:
    found = {}
    for name in ("fp32", "bf16", "int8"):
        model = attention(wan, precision=name)
        out = session.sample(model, LATENT)
        found[name] = {"error": error(out, plain), **counts(model)}
    return found


@case
def chained() -> Any:
    """With an override that was there; then the node a second time, which takes the first one's place."""
    seen: list[int] = []

    def there(function: Any, *arguments: Any, **keywords: Any) -> Any:
        seen.append(arguments[0].shape[-2])
        return function(*arguments, **keywords)

    before = wan.clone()
    before.model_options["transformer_options"][node.OVERRIDE] = there
    model = attention(attention(before), **WINDOW, tile_time=5)
    session.sample(model, LATENT)
    served, handed = counts(model), len(seen)
    double = attention(attention(before), precision="bf16")
    options = double.model_options["transformer_options"]
    q = torch.randn(1, 840, 256, dtype=torch.float64)
    out = theirs.optimized_attention(q, q, q, 2, transformer_options=options)
    return {
        **served,
        "handed": handed,
        "after": seen[handed:],
        "equal": torch.equal(out, theirs.optimized_attention(q, q, q, 2)),
        "wrappers": {kind: len(kept[node.KEY]) for kind, kept in model.wrappers.items()},
        "reasons": counts(double)["handed_on"],
        "untouched": [node.OVERRIDE in wan.model_options["transformer_options"], wan.get_attachment(node.KEY)],
    }


@case
def taken_over() -> Any:
    """An override that another node has set after ours."""
    model = attention(wan).clone()
    model.model_options["transformer_options"][node.OVERRIDE] = lambda function, *a, **k: function(*a, **k)
    out = session.sample(model, LATENT)
    return {"equal": torch.equal(out, plain), **counts(model)}


@case
def cloned() -> Any:
    """Counts are one for a model and its clones, and of the latest sampling."""
    model = attention(wan)
    deep = model.clone().clone()
    session.sample(deep, LATENT, steps=2)
    session.sample(deep, LATENT, steps=3)
    return {"same": deep.get_attachment(node.KEY) is model.get_attachment(node.KEY), **counts(model)}


@case
def masks() -> Any:
    """Calls as layers make them, with a mask: the same bits as without the node, the reason in the log once."""
    lines = Lines()
    logging.getLogger().addHandler(lines)
    model = attention(wan)
    options = model.model_options["transformer_options"]
    q, k, v = torch.randn(3, 2, 840, 256)
    mask = torch.rand(840, 840) < 0.5
    pairs = []
    for _ in range(3):
        out = theirs.optimized_attention(q, k, v, 2, mask, transformer_options=options)
        pairs.append(torch.equal(out, theirs.optimized_attention(q, k, v, 2, mask)))
    logging.getLogger().removeHandler(lines)
    return {"equal": pairs, "log": [line for line in lines.lines if "mask" in line], **counts(model)}


@case
def forms() -> Any:
    """The four forms of ComfyUI's calls."""
    model = attention(wan)
    options = model.model_options["transformer_options"]
    found = []
    q, k, v = torch.randn(3, 2, 2, 300, 128)
    for by_heads in (False, True):
        asked = [x if by_heads else x.transpose(1, 2).flatten(2) for x in (q, k, v)]
        for out_by_heads in (False, True):
            form = {"skip_reshape": by_heads, "skip_output_reshape": out_by_heads}
            out = theirs.optimized_attention(*asked, 2, transformer_options=options, **form)
            expected = theirs.attention_pytorch(*asked, 2, **form)
            found.append([list(out.shape) == list(expected.shape), error(out, expected)])
    strange = theirs.optimized_attention(*asked, 2, transformer_options=options, sinks=torch.ones(2), **form)
    return {"forms": found, "strange": error(strange, expected), **counts(model)}


def _network(kind: Any, base: Any, config: dict[str, Any]) -> Any:
    """A MODEL of another family, with random weights."""
    supported = kind(config)
    supported.set_inference_dtype(torch.float32, None)
    made = base(supported, device="cpu")
    generator = torch.Generator().manual_seed(5)
    for weight in made.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.05 + (weight.ndim == 1)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(made.eval(), load_device=cpu, offload_device=cpu)


def _evaluate(model: Any, latent: torch.Tensor, **conditions: Any) -> torch.Tensor:
    """One pass, as a sampler asks for it."""
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers}
    with torch.inference_mode():
        return model.model.apply_model(latent, torch.tensor([0.7]), transformer_options=options, **conditions)


JOINT = {
    "in_channels": 16, "out_channels": 16, "context_in_dim": 64, "hidden_size": 256, "mlp_ratio": 4.0, "num_heads": 2,
    "depth": 2, "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "qkv_bias": True, "guidance_embed": False,
}  # fmt: skip


@case
def text_behind_the_video() -> Any:
    """HunyuanVideo: text and video in one attention."""
    config = JOINT | {
        "image_model": "hunyuan_video", "patch_size": [1, 2, 2], "vec_in_dim": None, "theta": 256, "meanflow": False,
        "byt5": False, "use_cond_type_embedding": False, "vision_in_dim": None,
    }  # fmt: skip
    network = _network(comfy.supported_models.HunyuanVideo, comfy.model_base.HunyuanVideo, config)
    latent, text = torch.randn(LATENT), torch.randn(1, 30, 64)
    model = attention(network, **WINDOW, dense_first_layers=1)
    out = _evaluate(model, latent, c_crossattn=text)
    reference = attention(network, **WINDOW)
    expected = _evaluate(masked(network, window_mask(GRID, (1, 3, 1), after=30)), latent, c_crossattn=text)
    everywhere = _evaluate(reference, latent, c_crossattn=text)
    return {
        "error": error(everywhere, expected),
        "first": error(out, expected),
        "parts": counts(model),
        **counts(reference),
    }


@case
def text_before_the_picture() -> Any:
    """Flux: an image, whose text comes first."""
    config = JOINT | {"image_model": "flux", "patch_size": 2, "vec_in_dim": 64, "theta": 10000}
    network = _network(comfy.supported_models.FluxSchnell, comfy.model_base.Flux, config)
    latent, text, pooled = torch.randn(1, 16, 52, 60), torch.randn(1, 30, 64), torch.randn(1, 64)
    chosen = WINDOW | {"window_width": 3, "tile_time": 1}
    model = attention(network, **chosen)
    out = _evaluate(model, latent, c_crossattn=text, y=pooled)
    reference = masked(network, window_mask((1, 26, 30), (1, 3, 3), before=30))
    return {"error": error(out, _evaluate(reference, latent, c_crossattn=text, y=pooled)), **counts(model)}


@case
def interrupted() -> Any:
    """Stopped inside one call of the kernel, and the model works afterwards."""
    model = attention(wan)
    options = model.model_options["transformer_options"]
    q = torch.randn(1, 24_000, 256)  # seconds of work
    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.perf_counter())
        comfy.model_management.interrupt_current_processing(True)

    threading.Timer(0.5, press).start()
    try:
        theirs.optimized_attention(q, q, q, 2, transformer_options=options)
        end = "finished"
    except comfy.model_management.InterruptProcessingException:
        end = "interrupted"
    seconds = time.perf_counter() - pressed[0]
    left = comfy.model_management.processing_interrupted()
    return {"end": end, "seconds": seconds, "left": left, "error": error(session.sample(model, LATENT), plain)}


@case
def compiled() -> Any:
    """Under torch.compile the layers are compiled around the calls, once for all steps."""
    model = attention(wan, **WINDOW)
    set_torch_compile_wrapper(model, backend="eager")
    graphs = []
    for _ in range(2):
        out = session.sample(model, LATENT)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    expected = session.sample(attention(wan, **WINDOW), LATENT)
    return {"error": error(out, expected), "graphs": graphs, **counts(model)}


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.INFO)
    wan = session.wan(layers=LAYERS)
    plain = session.sample(wan, LATENT, steps=STEPS)
    answers = {}
    for name, function in CASES.items():
        try:
            answers[name] = {"answer": function()}
        except Exception:
            answers[name] = {"error": traceback.format_exc()}
    RESULT.write_text(json.dumps(answers))
