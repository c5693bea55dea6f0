# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Attention: our kernel, dense or by tiles, in the layers of any model of ComfyUI; and its report.

ComfyUI lets a model carry a replacement of its attention in transformer_options, one for all layers. What this one is
told about a call there is thin, so a wrapper around the model notes latent and step of each evaluation first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io, ui

from rushes.attention import Cancelled
from rushes.attention.hosted import Call, HostedAttention, HostedSettings, Pass, untraced

from .host import Interrupt
from .sockets import CATEGORY

KEY = "rushes_attention"  # of the attachment and the wrappers on a model, and of the pass in transformer_options
OVERRIDE = "optimized_attention_override"
REPLACED = "rushes_replaced"  # attribute of an override of ours: the one that was there before
PLACES = {"as the model has them": None, "after the video": "after", "before the video": "before"}
PRECISIONS = {"as the model": None, "fp32": "fp32", "bf16": "bf16", "int8": "int8"}

# Where models put the tokens that are not the video's, by the class that defines it. Of one that is not named here a
# call with such tokens stays dense, and the log says so.
KNOWN_PLACES = {
    "WanModel": "frames",
    "HunyuanVideo": "after",
    "AsymmDiTJoint": "after",
    "Flux": "before",
    "Chroma": "before",
    "QwenImageTransformer2DModel": "before",
}
# Keywords of a call that Rushes knows; one that it does not know and that says something keeps the call from it.
KNOWN_KEYWORDS = {"transformer_options", "_inside_attn_wrapper", "scale", "low_precision_attention", "enable_gqa"}


class RushesAttention(io.ComfyNode):
    """MODEL to MODEL; the weights are shared with the model that came in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesAttention",
            display_name="Rushes Attention",
            category=CATEGORY,
            description="Computes a model's attention with the Rushes kernel: all of it, or of a video's own attention "
            "only the tiles that count. What the kernel cannot do goes to the attention that was there, and the log "
            "says why.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="Any model: of video, with a latent of frames, height and width, or of images."
                ),
                io.Combo.Input(
                    "mode",
                    options=["dense", "window", "density"],
                    default="dense",
                    tooltip="dense: the same picture, faster. window: each tile sees the tiles around it. density: "
                    "each tile sees the tiles that fit it best, a given share of all.",
                ),
                io.Float.Input(
                    "density",
                    default=0.25,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Mode density: share of the scores that each tile computes, 0.01 to 1. Text is kept, and "
                    "counts.",
                ),
                *_sizes("window", 3, 99, "Mode window: tiles that each tile sees along {}, itself included."),
                io.Boolean.Input(
                    "wrap",
                    default=False,
                    tooltip="Mode window: at the edge of picture and clip go on at the other side, as for loops and "
                    "panoramas. Otherwise the window is moved inside.",
                ),
                *_sizes("tile", 4, 64, "Tokens of a tile along {}. For images: 1 in time."),
                *_dense_parts(),
                io.Combo.Input(
                    "other_tokens",
                    options=list(PLACES),
                    default="as the model has them",
                    tooltip="Where text stands that goes through attention together with the video. It stays dense.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="as the model",
                    tooltip="What is multiplied. Of a float32 model, bf16 has a relative error of 0.003 and int8 of "
                    "0.01. Both need a processor with AMX.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For a sampler.")],
        )

    @classmethod
    def execute(cls, model: Any, mode: str, **chosen: Any) -> io.NodeOutput:
        settings = HostedSettings(
            mode=mode,  # type: ignore[arg-type]
            tile=_triple("tile", chosen),
            window=_triple("window", chosen),
            density=chosen["density"],
            wrap=chosen["wrap"],
            first_steps=chosen["dense_first_steps"],
            last_steps=chosen["dense_last_steps"],
            first_layers=chosen["dense_first_layers"],
            last_layers=chosen["dense_last_layers"],
            place=PLACES[chosen["other_tokens"]],  # type: ignore[arg-type]
            precision=PRECISIONS[chosen["precision"]],  # type: ignore[arg-type]
        )
        return io.NodeOutput(patched(model, settings))


class RushesAttentionReport(io.ComfyNode):
    """What became of a model's attention calls in the latest sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesAttentionReport",
            display_name="Rushes Attention Report",
            category=CATEGORY,
            description="Says what Rushes Attention did in the latest sampling: calls by backend, density, time in "
            "seconds, and what was handed on and why.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that was sampled with, from Rushes Attention."),
                io.Latent.Input(
                    "latent", tooltip="The sampler's output, which passes through: the report waits for it."
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="What came in."),
                io.String.Output(display_name="report", tooltip="Lines of text; times in seconds."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, latent: Any) -> io.NodeOutput:
        hosted = model.get_attachment(KEY)
        text = hosted.report() if hosted is not None else "This model does not come from Rushes Attention."
        return io.NodeOutput(latent, text, ui=ui.PreviewText(text))


def patched(model: Any, settings: HostedSettings) -> Any:
    """A clone of a ModelPatcher whose attention goes through Rushes; `get_attachment(KEY)` of it has the counts.

    An override that is there already gets what is handed on. One of ours is replaced.
    """
    made = model.clone()
    hosted = HostedAttention(settings, cancel=Interrupt())
    options = made.model_options["transformer_options"]
    there = options.get(OVERRIDE)
    there = getattr(there, REPLACED, there)
    options[OVERRIDE] = _override(hosted, there)
    made.set_attachments(KEY, hosted)
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, _around_sampling), (WrappersMP.APPLY_MODEL, _around_model)):
        made.remove_wrappers_with_key(kind, KEY)
        made.add_wrapper_with_key(kind, KEY, wrapper(hosted))
    return made


def _override(hosted: HostedAttention, there: Callable[..., Any] | None) -> Callable[..., Any]:
    """What ComfyUI calls in place of the attention function that a layer has asked for.

    A function and no object with the state in it: cloning a model copies its options deeply, but functions not at all.
    """

    def serve(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        def otherwise() -> Any:
            return there(function, *arguments, **keywords) if there is not None else function(*arguments, **keywords)

        interrupt = Interrupt()
        interrupt.check()  # a block of a large model takes long
        options = keywords.get("transformer_options") or {}
        try:
            return hosted.serve(_call(options, *arguments, **keywords), options.get(KEY), otherwise)
        except Cancelled:
            interrupt.check()
            raise

    untraced_serve = untraced(serve)
    setattr(untraced_serve, REPLACED, there)
    return untraced_serve


def _call(
    options: dict[str, Any],
    q: Any,
    k: Any,
    v: Any,
    heads: int,
    mask: Any = None,
    attn_precision: Any = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **others: Any,
) -> Call:
    """A call of ComfyUI's attention functions in the core's words."""
    block = (options.get("block_type"), options.get("block"), options.get("block_index"))
    unknown = [
        name
        for name, value in others.items()
        if name not in KNOWN_KEYWORDS and value is not None and value is not False
    ]
    return Call(
        q,
        k,
        v,
        heads,
        masked=mask is not None,
        by_heads=skip_reshape,
        out_by_heads=skip_output_reshape,
        scale=others.get("scale"),
        exact=others.get("low_precision_attention") is False,
        upcast=attn_precision is not None and "float32" in str(attn_precision),
        layer=block if any(part is not None for part in block) else None,
        refusal=f"{', '.join(unknown)}: the host asks for what Rushes does not know" if unknown else None,
    )


def _around_sampling(hosted: HostedAttention) -> Callable[..., Any]:
    def sample(executor: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        hosted.begin_run()
        return executor(*arguments, **keywords)

    return sample


def _around_model(hosted: HostedAttention) -> Callable[..., Any]:
    """Notes the pass in a copy of transformer_options, which goes down to each call."""

    def apply(
        executor: Any,
        x: Any,
        t: Any,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **others: Any,
    ) -> Any:
        options = dict(transformer_options or {})
        current = _begin_pass(hosted, executor.class_obj.diffusion_model, x, c_crossattn, options, others)
        options[KEY] = current
        out = executor(x, t, c_concat, c_crossattn, control, options, **others)
        hosted.end_pass(current)
        return out

    return apply


def _begin_pass(
    hosted: HostedAttention, network: Any, x: Any, context: Any, options: dict[str, Any], others: dict[str, Any]
) -> Pass:
    sizes = tuple(x.shape[2:])
    if shapes := others.get("latent_shapes"):  # video and audio, packed into one tensor; the video is the first
        sizes = tuple(shapes[0][2:])
    places = [KNOWN_PLACES[kind.__name__] for kind in type(network).__mro__ if kind.__name__ in KNOWN_PLACES]
    return hosted.begin_pass(
        sizes,
        patch=_patch(network),
        place=places[0] if places and "ref_latent" not in others else "",  # type: ignore[arg-type]
        text=None if context is None else context.shape[1],
        sigma=options.get("sigmas"),
        sigmas=options.get("sample_sigmas"),
    )


def _patch(network: Any) -> tuple[int, int, int] | None:
    """Latent cells (t, h, w) of a token, where a network says so."""
    if hasattr(network, "patch_spatial"):
        return (network.patch_temporal, network.patch_spatial, network.patch_spatial)
    if hasattr(network, "patchifier"):
        return (1, 1, 1)
    size = getattr(network, "patch_size", None)
    if size is None:
        return None
    steps = (size, size) if isinstance(size, int) else tuple(size)
    return (1, *steps)[-3:]  # type: ignore[return-value]


def _triple(name: str, chosen: dict[str, Any]) -> tuple[int, int, int]:
    return (chosen[f"{name}_time"], chosen[f"{name}_height"], chosen[f"{name}_width"])


def _sizes(name: str, default: int, most: int, tooltip: str) -> list[Any]:
    return [
        io.Int.Input(f"{name}_{axis}", default=default, min=1, max=most, tooltip=tooltip.format(axis))
        for axis in ("time", "height", "width")
    ]


def _dense_parts() -> list[Any]:
    return [
        io.Int.Input(
            f"dense_{which}_{what}",
            default=default,
            min=0,
            max=10_000,
            tooltip=f"How many of the {which} {what} stay dense in modes window and density.{more}",
        )
        for which, what, default, more in (
            (
                "first",
                "steps",
                2,
                " Each sampler counts its own. They decide what moves where; 20 to 40 % of all is usual.",
            ),
            ("last", "steps", 0, " Each sampler counts its own."),
            ("first", "layers", 0, " Layers with attention of the video to itself."),
            ("last", "layers", 0, " The first pass ever counts them, and is dense."),
        )
    ]
