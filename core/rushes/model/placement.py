# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Which part of a model lies where while a shot is made, planned from shapes before any weight is read.

On a device whose memory holds everything, everything stays there. Where it does not, the parts come one after the
other: the text encoder leaves before the transformer comes, and that before the decoder; an encoder that is too large
works on the processor, a transformer that is too large visits the device block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

from rushes.model.blocks import FORMATS
from rushes.model.bundle import Card
from rushes.model.checkpoint import split_parts
from rushes.model.files import FilesCard
from rushes.model.loading import Modules, part_shapes, text_dtype
from rushes.model.lora import Lora
from rushes.model.memory import (
    SHORT,
    DecodePlan,
    clip_bytes,
    decode_bytes,
    decode_plan,
    device_bytes,
    encode_bytes,
    text_bytes,
    transformer_bytes,
)
from rushes.model.packed import FP8, use_fp8_products, values_and_bytes
from rushes.model.quantised import open_weights
from rushes.model.rehearsal import decoder_peak, text_peak, transformer_peak
from rushes.model.streaming import PLACES, BlockStream
from rushes.model.text import EMBEDDING, TIED_EMBEDDING
from rushes.shot import Shot

CPU = torch.device("cpu")
ROOMY = 2  # times the count of `memory`, which is 0.7 to 1.7 times what a rehearsal counts
# What glibc keeps of pieces that were freed, beside what is in use: measured were 0.4 to 2 times that, up to 0.6 GB.
KEPT_SHARE, KEPT_MOST = 1.4, 600_000_000
SMALL = 250_000_000  # bytes of weights
BLOCKS = ("blocks.", "vace_blocks.")
HIGH, LOW = "transformer", "transformer_low"
SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


Latent = tuple[int, int, int]  # frames, height and width in cells
Wear = Callable[[str, Sequence[tuple[Lora, float]]], object]  # part, and the LoRAs that it works with


class Need(NamedTuple):
    """What one part needs while it works. work: bytes of what it computes; place: "device", "cpu" or "streamed"."""

    part: str
    weights: int
    work: int
    place: str

    @property
    def on_device(self) -> int:
        return 0 if self.place == "cpu" else self.weights + self.work


@dataclass(frozen=True)
class Plan:
    """needs: in the order of work; of a streamed part, weights are those on the device at once.

    keeps: whether parts stay after their work. budget: bytes of the device that may be used, None for no limit. host:
    bytes in the host's memory beside the device, of weights that wait or work there. decoding: how the VAE decodes.
    """

    device: str
    needs: tuple[Need, ...]
    keeps: bool
    budget: int | None
    host: int
    decoding: DecodePlan
    decode_limit: int | None = None  # bytes that decoding may take

    @property
    def peak(self) -> int:
        """Bytes on the device at most."""
        if not self.keeps:
            return max(need.on_device for need in self.needs)
        waiting, peak = 0, 0
        for need in self.needs:
            waiting += 0 if need.part == LOW else need.weights  # two experts are never there together
            peak = max(peak, waiting + need.work)
        return peak

    @property
    def fits(self) -> bool:
        return self.budget is None or self.peak <= self.budget

    def place(self, part: str) -> str:
        return next((need.place for need in self.needs if need.part == part), "device")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "device": self.device, "peak": self.peak, "host": self.host, "budget": self.budget, "fits": self.fits,
            "keeps": self.keeps, "parts": [need._asdict() for need in self.needs], "tile": self.decoding.tile,
        }  # fmt: skip


def make_plan(card: Card, shot: Shot, dtype: torch.dtype, device: str, budget: int | None) -> Plan:
    """The plan of a resolved shot. device: its type; budget: bytes of it that may be used."""
    assert shot.size is not None and shot.frames is not None
    factor = card.vae.spatial_factor
    height, width = shot.size[1] // factor, shot.size[0] // factor
    latent = (card.vae.latent_frames(shot.frames), height, width)
    references = sum(len(control.references) for control in shot.control)
    noisy = (latent[0] + references, height, width)
    batch = 2 if shot.is_guided else 1
    weights = {part: weights_of(card, part, _dtype_of(part, dtype), is_mapped=device == "cpu") for part in card.parts}
    limit = None if budget is None or device == "cpu" else max(1, budget - weights["vae"])
    decoding = decode_plan(card.vae, *latent, dtype.itemsize, limit)
    find = _counted if sum(weights.values()) < SMALL else _rehearsed
    work = find(card, noisy, latent[0], batch, dtype, min(1, len(shot.control)), decoding)
    work["transformer_low"] = work["transformer"]
    if shot.keyframes or shot.control:
        work["vae"] = max(work["vae"], encode_bytes(card.vae, height, width, dtype.itemsize))
    if card.vision is not None:
        work["clip"] = clip_bytes(card.vision, max(1, len(shot.keyframes)), dtype.itemsize)
    work = {part: size + _opened(card, part, _dtype_of(part, dtype)) for part, size in work.items() if part in weights}
    if device == "cpu":
        work = {part: size + min(int(KEPT_SHARE * size), KEPT_MOST) for part, size in work.items()}
    order = [part for part in ("text", "clip", "transformer", "transformer_low", "vae") if part in card.parts]
    needs = [Need(part, weights[part], work[part], "device") for part in order]
    whole = Plan(device, tuple(needs), True, budget, 0, decoding, limit)
    if budget is None or whole.peak <= budget:
        return whole
    if device == "cpu":  # what is not in use is in its file
        return Plan(device, tuple(needs), False, budget, 0, decoding, limit)
    placed = [_placed(card, need, budget, dtype) for need in needs]
    host = max((weights[need.part] for need in placed if need.place != "device"), default=0)
    return Plan(device, tuple(placed), False, budget, host, decoding, limit)


def _rehearsed(
    card: Card, noisy: Latent, frames: int, batch: int, dtype: torch.dtype, controls: int, decoding: DecodePlan
) -> dict[str, int]:
    """Bytes of work of each part. noisy: (T, h, w) of the latents that are denoised; frames: of those, decoded."""
    return {
        "text": text_peak(card.text, card.transformer.text_len, text_dtype(dtype)),
        "transformer": transformer_peak(card.transformer, noisy, batch, dtype, controls),
        "vae": decoder_peak(card.vae, (frames, *noisy[1:]), decoding, dtype),
    }


def _counted(
    card: Card, noisy: Latent, frames: int, batch: int, dtype: torch.dtype, controls: int, decoding: DecodePlan
) -> dict[str, int]:
    """The same by a quick count, which is some tens of percent off: enough for a small model.

    A rehearsal makes torch load its compiler, a second and 75 MB, in a worker whose host waits for an answer.
    """
    tokens = noisy[0] * (noisy[1] // card.transformer.patch_size) * (noisy[2] // card.transformer.patch_size)
    return {
        "text": text_bytes(card.text, card.transformer.text_len, text_dtype(dtype).itemsize),
        "transformer": transformer_bytes(card.transformer, batch, tokens, dtype.itemsize),
        "vae": decode_bytes(card.vae, decoding, *noisy[1:], dtype.itemsize),
    }


def is_roomy(card: Card, shot: Shot, dtype: torch.dtype, budget: int) -> bool:
    """Whether everything surely fits, by a quick count: a rehearsal loads parts of torch for two seconds."""
    assert shot.size is not None and shot.frames is not None
    factor = card.vae.spatial_factor
    height, width = shot.size[1] // factor, shot.size[0] // factor
    frames = card.vae.latent_frames(shot.frames)
    batch = 2 if shot.is_guided else 1
    work = max(_counted(card, (frames, height, width), frames, batch, dtype, 0, DecodePlan(1, None)).values())
    return ROOMY * work + sum(weights_of(card, part, _dtype_of(part, dtype), False) for part in card.parts) <= budget


def _placed(card: Card, need: Need, budget: int, dtype: torch.dtype) -> Need:
    if need.on_device <= budget:
        return need
    if need.part in ("text", "clip"):
        return need._replace(place="cpu")
    if need.part in (HIGH, LOW):
        return need._replace(weights=_visiting(card, need.part, need.weights, dtype), place="streamed")
    return need


def _visiting(card: Card, part: str, weights: int, dtype: torch.dtype) -> int:
    """Of a streamed transformer, the bytes on the device: what is outside of the blocks, and two of them."""
    shapes = part_shapes(card, part)
    inside = sum(prod(shape) for name, shape in shapes.items() if name.startswith(BLOCKS))
    outside = dtype.itemsize * (sum(map(prod, shapes.values())) - inside)
    blocks = card.transformer.layers + len(card.transformer.vace_layers)
    return outside + PLACES * (weights - outside) // blocks


def _dtype_of(part: str, dtype: torch.dtype) -> torch.dtype:
    return text_dtype(dtype) if part == "text" else dtype


def weights_of(card: Card, part: str, dtype: torch.dtype, is_mapped: bool) -> int:
    """Bytes of a part's weights in memory: matrices of a smaller type as their file has them, all others in `dtype`.

    is_mapped: on the processor what stays as the file has it stays in the file, and of a table of words only a few rows
    are read.
    """
    shapes = {name: shape for name, shape in part_shapes(card, part).items() if name != TIED_EMBEDDING}
    if not isinstance(card, FilesCard):
        return sum(map(prod, shapes.values())) * dtype.itemsize
    total = 0
    for name, (shape, kind) in _stored(card, part).items():
        is_table = name == EMBEDDING and is_mapped and (kind == SAFETENSORS.get(dtype) or _stays(shape, kind, dtype))
        total += 0 if is_table or name == TIED_EMBEDDING else _size(shape, kind, dtype)
    return total


def _stored(card: FilesCard, part: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of a part's tensors, by our names."""
    header = open_weights(card.files.paths[part]).header
    names = split_parts(header.shapes)["transformer" if part == LOW else part]  # type: ignore[index]
    return {ours: (header.shapes[theirs], header.dtypes[theirs]) for theirs, ours in names.items()}


def holds_fp8(card: Card) -> bool:
    """Whether a transformer of the model has matrices in fp8 (e4m3), the type that products are made in."""
    return isinstance(card, FilesCard) and any(
        kind == "F8_E4M3" and len(shape) == 2
        for part in (HIGH, LOW)
        if part in card.parts
        for shape, kind in _stored(card, part).values()
    )


def _stays(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> bool:
    """Whether a tensor is kept as its file has it, and opened for each use."""
    values, size = values_and_bytes(kind) if kind in (*FP8, *FORMATS) else (1, 4 if kind == "F32" else 2)
    return len(shape) == 2 and size < dtype.itemsize * values


def _size(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> int:
    if not _stays(shape, kind, dtype):
        return prod(shape) * dtype.itemsize
    values, size = values_and_bytes(kind)
    return prod(shape) // values * size


def _opened(card: Card, part: str, dtype: torch.dtype) -> int:
    """Bytes of the largest matrix that is opened for a use: one at a time is."""
    if not isinstance(card, FilesCard):
        return 0
    sizes = [
        prod(shape) * dtype.itemsize
        for name, (shape, kind) in _stored(card, part).items()
        if _stays(shape, kind, dtype) and name not in (EMBEDDING, TIED_EMBEDDING)
    ]
    return max(sizes, default=0)


class Placer:
    """Puts the parts of a loaded model where a plan has them, as they come to work."""

    def __init__(self, modules: Modules, device: torch.device, fp8_products: bool = False) -> None:
        self._modules, self._device, self._fp8_products = modules, device, fp8_products
        self._streams: dict[str, tuple[BlockStream, Sequence[tuple[Lora, float]]]] = {}

    def enter(self, part: str, plan: Plan | None, loras: Sequence[tuple[Lora, float]] = ()) -> None:
        """A part is about to work: others leave where the plan keeps none, and it comes where it works.

        plan: None where there is room for everything. Of two experts one is there in any case.
        """
        keeps = plan is None or plan.keeps
        gone = {HIGH: {LOW}, LOW: {HIGH}}.get(part, set()) if keeps else self._modules.loaded - {part}
        for other in gone:
            self.release(other)
        place = plan.place(part) if plan is not None else "device"
        streamed = place == "streamed"
        self._modules.settle(part, self._device if place == "device" else CPU)
        if self._fp8_products and part in (HIGH, LOW):
            use_fp8_products(self._modules[part])
        if streamed:
            self._stream(part, list(loras))
        elif loras or part.startswith("transformer"):
            self._modules.adapt(part, loras)

    def release(self, part: str) -> None:
        if (stream := self._streams.pop(part, None)) is not None:
            stream[0].close()
        self._modules.release(part)

    def _stream(self, part: str, loras: list[tuple[Lora, float]]) -> None:
        stream, worn = self._streams.pop(part, (None, []))
        if stream is not None and worn == loras:
            self._streams[part] = stream, worn
            return
        if stream is not None:
            stream.close()
        self._modules.adapt(part, loras)
        module = self._modules.transformer(part)
        for name, child in module.named_children():
            if not f"{name}.".startswith(BLOCKS):
                child.to(self._device)
        stacks: Mapping[str, nn.Module] = dict(module.named_children())
        blocks = [block for name in ("vace_blocks", "blocks") if name in stacks for block in stacks[name].children()]
        self._streams[part] = BlockStream(blocks, self._device), loras


def budget_of(device: torch.device, memory: int | None) -> int | None:
    """Bytes of a device that a plan may use: those given, or most of what it has; None where nobody knows."""
    if memory is not None:
        return memory
    there = device_bytes(device)
    return None if there is None else int(SHORT * there)
