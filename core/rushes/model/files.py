# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Wan's models as they lie on disk: one transformer or two experts, a text encoder, a VAE, and for some CLIP's tower.

The names in the files may be Wan's own, ComfyUI's (with prefixes) or diffusers'. What a file is, its shapes say; what
it asks for in steps, shift and guidance are the settings that Wan published with models of these shapes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rushes.model import forms
from rushes.model.bundle import Card
from rushes.model.checkpoint import Part, split_parts
from rushes.model.clip import ClipVisionConfig, infer_clip_config
from rushes.model.config import Shapes, TransformerConfig, VAEConfig, infer_transformer_config, infer_vae_config
from rushes.model.experts import check_experts
from rushes.model.forms import Form
from rushes.model.loading import Modules, check_shapes, load_modules
from rushes.model.operations import Operations
from rushes.model.packed import kept_small, packed_layers
from rushes.model.quantised import open_weights
from rushes.model.reading import Header, Weight
from rushes.model.spelling import SPIECE, has_tokenizer, read_tokenizer, tokenizer_file
from rushes.model.text import EMBEDDING, TIED_EMBEDDING, TextConfig, infer_text_config
from rushes.model.tokenizer import Tokenizer
from rushes.shot import ShotError

MAX_PIXELS = 2048 * 2048
ROPE_FRAMES = 1024  # latent frames that Wan's position table has

_MODELS = "models/diffusion_models"
FOLDERS = {  # where ComfyUI, and so most artists, keep each part
    "transformer": _MODELS, "transformer_low": _MODELS, "transformer_high": _MODELS, "text": "models/text_encoders",
    "vae": "models/vae", "clip": "models/clip_vision",
}  # fmt: skip
_USUAL = {
    "transformer": "a Wan transformer such as wan2.1_t2v_1.3B_fp16.safetensors",
    "transformer_low": "the low-noise expert such as wan2.2_t2v_low_noise_14B_fp16.safetensors",
    "text": "UMT5-XXL such as umt5_xxl_fp16.safetensors",
    "vae": "a Wan VAE in fp16, bf16 or fp32 such as wan_2.1_vae.safetensors",
    "clip": "CLIP's ViT-H/14 vision tower in fp16, bf16 or fp32 such as clip_vision_h.safetensors",
}
EXPECTED = {part: f"{usual} (in ComfyUI: {FOLDERS[part]})" for part, usual in _USUAL.items()}
VAE_FILES = {16: "wan_2.1_vae.safetensors", 48: "wan2.2_vae.safetensors"}  # latent channels -> its usual name
HOLDS = {"transformer": "a transformer", "text": "a text encoder", "vae": "a VAE", "clip": "a CLIP vision tower"}

PACKABLE = ("transformer", "transformer_low", "text")  # parts that work with quantised weights

# Tensors that only one kind of transformer has, the special kinds before those that they build on.
KINDS = {
    "control_adapter.conv.weight": "a Fun-Camera model",
    "casual_audio_encoder.encoder.final_linear.weight": "a speech-to-video model",
    "audio_proj.audio_proj_glob_1.layer.bias": "a HuMo model",
    "face_adapter.fuser_blocks.0.k_norm.weight": "a Wan Animate model",
    "ref_conv.weight": "a Fun-Control model",
    "patch_embedding_pose.weight": "a SCAIL model",
    "patch_embedding_mask.weight": "a SCAIL model",
    "patch_embedding_global.weight": "a WanDancer model",
}


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model. solver, schedule, shift: instead of those that Wan published for such a model.

    transformer, text, vae: .safetensors or .pth files; one file may hold several parts. transformer_low: of Wan 2.2
    A14B, whose `transformer` is then the high-noise expert. clip: the vision tower of Wan 2.1 image-to-video.
    solver: "unipc" or "euler". schedule: a name in `sampling.schedules`; Wan's own goes with unipc, ComfyUI's "simple"
    with euler. reference: what these files are found by again, a name on the shelf or a path.
    """

    transformer: Path
    text: Path
    vae: Path
    solver: str | None = None
    shift: float | None = None
    schedule: str | None = None
    clip: Path | None = None
    transformer_low: Path | None = None
    reference: str | None = None

    def __post_init__(self) -> None:
        for name in EXPECTED:
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(path))

    @property
    def name(self) -> str:
        is_named = self.reference is not None and Path(self.reference) != self.transformer
        return Path(str(self.reference)).name if is_named else self.transformer.stem

    @property
    def paths(self) -> dict[str, Path]:
        """Part -> file, of those that are given."""
        return {part: path for part in EXPECTED if (path := getattr(self, part)) is not None}


@dataclass(frozen=True)
class FilesCard(Card):
    """What a set of files is. It knows no closed list of words, and its preview is fitted to its VAE."""

    files: ModelFiles = field(kw_only=True)
    form: Form = field(kw_only=True)
    clip: ClipVisionConfig | None = field(kw_only=True)

    def tokenizer(self) -> Tokenizer:
        """The text file's own, else the tokenizer.json beside it. Raises ShotError where there is none that fits."""
        try:
            found = read_tokenizer(self.files.text, self.transformer.text_len)
        except ShotError as error:
            raise _about("text", error) from error
        if found.vocab_size > self.text.vocab_size:
            raise ShotError(
                f"text: got {self.files.text.name}, which knows {self.text.vocab_size} tokens, with a tokenizer of "
                f"{found.vocab_size}; the tokenizer that belongs to it is expected"
            )
        return found

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.files.paths)

    @property
    def form_name(self) -> str:
        return self.form.name

    @property
    def kind(self) -> str:
        return self.form.kind

    @property
    def takes(self) -> str:
        return self.form.takes

    @property
    def vision(self) -> ClipVisionConfig | None:
        return self.clip

    @property
    def boundary(self) -> float | None:
        return self.form.boundary

    @property
    def trained_sizes(self) -> tuple[tuple[int, int], ...]:
        return self.form.sizes

    @property
    def keeps_keyframes(self) -> bool:
        return self.form.kind != "text"

    def shift(self, size: tuple[int, int]) -> float:
        return self.form.shift(size) if self.files.shift is None else self.files.shift

    def paths(self, path: Path) -> dict[str, Path]:
        return self.files.paths

    def details(self, digests: Mapping[str, str], size: tuple[int, int]) -> dict[str, Any]:
        """The files, and the settings that no shot has."""
        defaults = self.defaults
        files = {part: {"name": path.name, "sha256": digests[part]} for part, path in self.files.paths.items()}
        return {"files": files, "solver": defaults.solver, "schedule": defaults.schedule, "shift": self.shift(size)}


def files_card(files: ModelFiles) -> FilesCard:
    """What the files are, by their shapes alone; no weight is read.

    Raises ShotError for a file that is not the part it is given as, that this version does not run, or that does not go
    with the others.
    """
    headers = {part: _header(part, path) for part, path in files.paths.items()}
    shapes = {part: _shapes(part, files.paths[part], header) for part, header in headers.items()}
    transformer = _transformer(files.transformer, shapes["transformer"], headers["transformer"].metadata)
    form = forms.find_form(transformer, f"{files.name} {files.transformer.stem}", files.transformer_low is not None)
    check_experts(files, form, shapes)
    text, vae = _text(files.text, shapes["text"]), _vae(files.vae, shapes["vae"])
    _check_pairs(files, transformer, text, vae)
    clip = _clip(files, transformer, shapes.get("clip"), headers)
    if not has_tokenizer(headers["text"]) and tokenizer_file(files.text) is None:
        raise ShotError(
            f"text: got {files.text.name}, which has no tokenizer in it and none beside it; a file with a {SPIECE}, as "
            "ComfyUI's umt5_xxl_fp16.safetensors is, or UMT5's tokenizer.json in the same folder, is expected"
        )
    usual = form.defaults
    return FilesCard(
        name=files.name,
        transformer=transformer,
        vae=vae,
        text=text,
        vocabulary=(),
        defaults=dataclasses.replace(
            usual,
            solver=files.solver or usual.solver,
            shift=usual.shift if files.shift is None else files.shift,
            schedule=files.schedule or ("simple" if files.solver == "euler" else usual.schedule),
        ),
        preview=(),
        trained_frames=usual.frames,
        max_frames=vae.frames(ROPE_FRAMES),
        max_pixels=MAX_PIXELS,
        files=files,
        form=form,
        clip=clip,
    )


def read_modules(card: FilesCard, device: torch.device, dtype: torch.dtype, operations: Operations = nn) -> Modules:
    """The models of the files, for inference, each read when it is asked for.

    Raises ShotError, now, for a file that has other tensors; asking for a part does for a file that cannot be mapped.
    """
    paths = card.files.paths

    def read(part: str) -> Mapping[str, Weight]:
        try:
            state = open_weights(paths[part]).load()
        except ShotError as error:
            raise _about(part, error) from error
        found = {ours: state[theirs] for theirs, ours in split_parts(state)[_file_part(part)].items()}
        if EMBEDDING in found:
            found.pop(TIED_EMBEDDING, None)  # the same again
        if operations is not nn or part not in PACKABLE:  # a host wants its layers' weights as they are worked with
            return found
        return {name: kept_small(t, dtype) if isinstance(t, Tensor) else t for name, t in found.items()}

    def refuse(part: str, reason: str) -> ShotError:
        return _refusal(part, paths[part], reason)

    for part, path in paths.items():
        check_shapes(card, part, _shapes(part, path, _header(part, path)), refuse)
        if open_weights(path).is_packed:
            if packed_layers(operations) is None:
                raise refuse(part, "it holds quantised weights, which the layers of this host do not read here")
            read(part)  # maps it, and refuses scales that do not fit
    return load_modules(card, read, refuse, device, dtype, operations)


def _refusal(part: str, path: Path, reason: str) -> ShotError:
    return ShotError(f"{part}: got {path.name}; {reason}; {EXPECTED[part]} is expected")


def _reason(error: ShotError) -> str:
    """What is wrong, of a refusal that `checkpoint` or `config` worded without knowing the argument."""
    return str(error).removeprefix("model: ").partition(";")[0]


def _about(part: str, error: ShotError) -> ShotError:
    """A refusal of what is in a file, with the argument that named the file."""
    return ShotError(str(error).replace("model:", f"{part}:", 1))


def _header(part: str, path: Path) -> Header:
    if path.is_dir():
        raise _refusal(part, path, "it is a folder and not one file")
    try:
        found = open_weights(path)
    except ShotError as error:
        raise _about(part, error) from error
    if found.is_packed and part not in PACKABLE:
        raise _refusal(part, path, f"it holds weights in {' and '.join(found.kinds)}")
    return found.header


def _shapes(part: str, path: Path, header: Header) -> Shapes:
    """Shapes of one part by our names."""
    try:
        parts = split_parts(header.shapes)
    except ShotError as error:
        raise _refusal(part, path, _reason(error)) from error
    if _file_part(part) not in parts:
        raise _refusal(part, path, f"it holds {' and '.join(HOLDS[found] for found in parts)}")
    return {ours: header.shapes[theirs] for theirs, ours in parts[_file_part(part)].items()}


def _file_part(part: str) -> Part:
    """What `checkpoint` calls a part: either expert is a transformer."""
    return "transformer" if part == "transformer_low" else part  # type: ignore[return-value]


def _transformer(path: Path, shapes: Shapes, metadata: Mapping[str, str]) -> TransformerConfig:
    kind = next((kind for name, kind in KINDS.items() if name in shapes), None)
    if kind is not None:
        raise _refusal("transformer", path, f"it is {kind}")
    try:
        config = infer_transformer_config(shapes, heads=_heads(metadata))
    except ShotError as error:
        raise _refusal("transformer", path, _reason(error)) from error
    except ValueError as error:
        raise _refusal("transformer", path, f"its metadata do not go with its shapes ({error})") from error
    if config.in_channels != config.out_channels and not forms.reads_pictures(config):
        raise _refusal("transformer", path, f"it takes control passes ({config.in_channels} input channels)")
    return config


def _heads(metadata: Mapping[str, str]) -> int | None:
    """Attention heads as small models state them, in ComfyUI's or diffusers' word; None for Wan's rule."""
    try:
        config = json.loads(metadata.get("config", "{}"))
        config = config.get("transformer", config)
        heads = config.get("num_heads", config.get("num_attention_heads"))
    except (ValueError, AttributeError):  # another program's note
        return None
    return heads if isinstance(heads, int) and heads > 0 else None


def _text(path: Path, shapes: Shapes) -> TextConfig:
    try:
        config = infer_text_config(shapes)
    except ShotError as error:
        raise _refusal("text", path, _reason(error)) from error
    except ValueError as error:
        raise _refusal("text", path, str(error)) from error
    last = f"encoder.block.{config.layers - 1}.layer.0.SelfAttention.relative_attention_bias.weight"
    if last not in shapes:
        raise _refusal("text", path, "it is a T5 whose layers share their positions")
    return config


def _vae(path: Path, shapes: Shapes) -> VAEConfig:
    try:
        return infer_vae_config(shapes)
    except ShotError as error:
        raise _refusal("vae", path, _reason(error)) from error
    except ValueError as error:
        raise _refusal("vae", path, str(error)) from error


def _clip(
    files: ModelFiles, transformer: TransformerConfig, shapes: Shapes | None, headers: Mapping[str, Header]
) -> ClipVisionConfig | None:
    if transformer.image_dim is None:
        if files.clip is not None:
            raise ShotError(f"clip: got {files.clip.name}; {files.transformer.name} reads no CLIP tokens, leave it out")
        return None
    if files.clip is None or shapes is None:
        raise ShotError(f"clip: none is given, and {files.transformer.name} needs one; {EXPECTED['clip']} is expected")
    try:
        heads = _heads(headers["clip"].metadata)
        config = infer_clip_config(shapes) if heads is None else infer_clip_config(shapes, heads=heads)
    except ShotError as error:
        raise _refusal("clip", files.clip, _reason(error)) from error
    if config.dim != transformer.image_dim:
        raise ShotError(
            f"clip: got {files.clip.name} with {config.dim} values a token, and {files.transformer.name} reads "
            f"{transformer.image_dim}; {EXPECTED['clip']} is expected"
        )
    rows = transformer.image_positions
    if rows and rows != 2 * config.tokens:
        raise ShotError(
            f"clip: got {files.clip.name} with {config.tokens} tokens a picture, and {files.transformer.name} reads "
            f"{rows} of two; {EXPECTED['clip']} is expected"
        )
    return config


def _check_pairs(files: ModelFiles, transformer: TransformerConfig, text: TextConfig, vae: VAEConfig) -> None:
    channels = transformer.out_channels
    if vae.latent_channels != channels:
        usual = VAE_FILES.get(channels)
        raise ShotError(
            f"vae: got {files.vae.name} with {vae.latent_channels} latent channels, and {files.transformer.name} works "
            f"in {channels}; a VAE of {channels}{f' such as {usual}' if usual else ''} (in ComfyUI: {FOLDERS['vae']}) "
            "is expected"
        )
    if text.dim != transformer.text_dim:
        raise ShotError(
            f"text: got {files.text.name} with {text.dim} values a token, and {files.transformer.name} reads "
            f"{transformer.text_dim}; {EXPECTED['text']} is expected"
        )
