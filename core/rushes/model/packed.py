# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Weights that stay as small as their file has them, and the layers that open them for each use.

A layer's weight is opened into the type of its input, used and forgotten: a model of 14 GB of Q8_0 takes 14 GB and one
open layer, and so does one of bfloat16 that works in float32. Everything but the weights of Linear and Embedding is
opened once, when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rushes.model.blocks import FORMATS
from rushes.model.products import linear

FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}
_HALF_NAMES = {dtype: kind for kind, dtype in HALVES.items()}
# Opened at a time: on the processor what lies between the bytes and the answer stays in the cache, so many at most; a
# card wants few large calls, and has room for them
OPEN_VALUES, OPEN_VALUES_ON_CARDS = 2**20, 2**25


@dataclass(frozen=True, eq=False)
class Packed:
    """One weight as its file has it.

    kind: a key of FP8, HALVES or `blocks.FORMATS`. data: uint8 [rows, bytes of a row], as many rows as a matrix's
    shape has. scale: float32 [1] or [rows], which fp8 numbers are multiplied by; None for 1.
    """

    kind: str
    data: Tensor
    shape: tuple[int, ...]
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        if self.data.dtype is not torch.uint8 or self.data.ndim != 2:
            raise ValueError(f"data: got {self.data.dtype} {list(self.data.shape)}; uint8 [rows, bytes] is allowed")
        each, size = values_and_bytes(self.kind)
        if self.data.numel() // size * each != prod(self.shape) or self.data.shape[1] % size:
            raise ValueError(f"shape: got {list(self.shape)} for {self.data.numel()} bytes of {self.kind}")

    def to(self, device: torch.device | str) -> Packed:
        scale = None if self.scale is None else self.scale.to(device)
        return replace(self, data=self.data.to(device), scale=scale)

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The weight itself, in its shape. Computed in float32, then rounded once."""
        if self.kind in HALVES:
            return self.rows(slice(None), dtype).view(self.shape)
        out = torch.empty(
            len(self.data), prod(self.shape) // max(1, len(self.data)), dtype=dtype, device=self.data.device
        )
        most = OPEN_VALUES if self.data.device.type == "cpu" else OPEN_VALUES_ON_CARDS
        step = max(1, most // max(1, out.shape[1]))
        for start in range(0, len(out), step):
            out[start : start + step] = self.rows(slice(start, start + step), dtype)
        return out.view(self.shape)

    def rows(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """[n, values of a row] of some rows. index: a slice, or int64 [n]."""
        raw = self.data[index]
        if self.kind in HALVES:
            return raw.view(HALVES[self.kind]).to(dtype)
        if self.kind not in FP8:
            _, size, decode = FORMATS[self.kind]
            return decode(raw.reshape(-1, size)).view(len(raw), -1).to(dtype)
        numbers = float_of_fp8(raw, self.kind)
        if self.scale is None:
            return numbers.to(dtype)
        scale = self.scale if len(self.scale) == 1 else self.scale[index]
        return numbers.mul_(scale[:, None]).to(dtype)


def values_and_bytes(kind: str) -> tuple[int, int]:
    """How many weights are in how many bytes."""
    if kind in FORMATS:
        return FORMATS[kind].values, FORMATS[kind].size
    return 1, 1 if kind in FP8 else 2


def kept_small(weight: Tensor, dtype: torch.dtype) -> Tensor | Packed:
    """A matrix of a smaller type than the work's, to be opened for each use; anything else as it is."""
    kind = _HALF_NAMES.get(weight.dtype)
    if kind is None or weight.ndim != 2 or not weight.numel() or weight.itemsize >= dtype.itemsize:
        return weight
    return Packed(kind, weight.contiguous().view(torch.uint8), tuple(weight.shape))


def float_of_fp8(raw: Tensor, kind: str) -> Tensor:
    """fp8 numbers, given as bytes, in float32, exactly.

    Off CUDA by moving their bits to where float16 has them: on the processor torch converts one number after the other,
    in four times the time, and not every device knows fp8. float16's exponent counts from 15, e4m3's from 7: hence 2^8.
    """
    if raw.is_cuda:
        return raw.view(FP8[kind]).float()
    if kind == "F8_E5M2":
        return (raw.to(torch.int16) << 8).view(torch.float16).float()
    wide = raw.view(torch.int8).to(torch.int16)  # the sign fills the upper byte
    half = wide.bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16)
    found = half.float().mul_(2**8)
    has_nan = raw.numel() and (raw.max() == 0xFF or raw.view(torch.int8).max() == 0x7F)  # looked for on bytes: quick
    return found.masked_fill_((raw & 0x7F) == 0x7F, torch.nan) if has_nan else found


class _PackedLayer(nn.Module):
    """Holds a packed weight as buffers, which move with the module and are no entries of its state."""

    data: Tensor
    scale: Tensor | None

    def __init__(self, weight: Packed) -> None:
        super().__init__()
        self.kind, self.shape = weight.kind, weight.shape
        self.register_buffer("data", weight.data, persistent=False)
        self.register_buffer("scale", weight.scale, persistent=False)

    @property
    def packed(self) -> Packed:
        return Packed(self.kind, self.data, self.shape, self.scale)

    def extra_repr(self) -> str:
        return f"{self.kind}, {list(self.shape)}"


class PackedLinear(_PackedLayer):
    """torch's Linear with a packed weight, to which thin matrices or a difference may be added."""

    up: Tensor | None
    down: Tensor | None
    diff: Tensor | None

    def __init__(self, weight: Packed, bias: nn.Parameter | None) -> None:
        super().__init__(weight)
        self.bias = bias
        self.multiplies_fp8 = False
        for name in ("up", "down", "diff"):
            self.register_buffer(name, None, persistent=False)

    def adapt(self, up: Tensor | None, down: Tensor | None, diff: Tensor | None) -> None:
        """Work as if up [out, rank] @ down [rank, in] and diff [out, in] were added to the weight; None: nothing."""
        self.up, self.down, self.diff = up, down, diff

    def forward(self, x: Tensor) -> Tensor:
        return self.opened(x)(x)

    def opened(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        """The layer for inputs of this one's type and place, with its weight open for as long as this is kept."""
        bias, packed = self.bias_for(like), self.packed.to(like.device)
        if self.multiplies_fp8 and self.diff is None:
            product = partial(multiply_fp8, weight=packed, bias=bias)
        else:
            weight = packed.unpack(like.dtype)
            if self.diff is not None:
                weight += self.diff.to(like)
            product = partial(linear, weight=weight, bias=bias)
        if self.up is None or self.down is None:
            return product
        up, down = self.up.to(like), self.down.to(like)
        return lambda x: product(x) + linear(linear(x, down), up)

    def bias_for(self, like: Tensor) -> Tensor | None:
        """The bias in this input's type and place."""
        return None if self.bias is None else self.bias.to(like)


def fp8_obstacle(device: torch.device) -> str | None:
    """Why a device does not multiply fp8 numbers; None where it does. The processor does, for tests, without a gain."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        known = (major, minor) >= (8, 9)
        return None if known else f"this card (sm_{major}{minor}) multiplies no fp8; sm_89 and newer do"
    return None if device.type == "cpu" else f"{device.type} multiplies no fp8; cuda does"


def multiply_fp8(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
    """x [..., in] times an e4m3 weight [out, in] with one scale, in fp8: x is rounded to it with one scale of its own.

    Errs by about 4 % of the answer's deviation for one layer. Not run on a card yet.
    """
    rows = x.reshape(-1, x.shape[-1])
    most = torch.finfo(torch.float8_e4m3fn).max
    scale = (rows.abs().amax().float() / most).clamp_min(1e-12)
    small = (rows.float() / scale).clamp(-most, most).to(torch.float8_e4m3fn)
    own = torch.ones((), device=x.device) if weight.scale is None else weight.scale.reshape(())
    kind = x.dtype if x.dtype in HALVES.values() else torch.bfloat16
    out = torch._scaled_mm(small, weight.data.view(torch.float8_e4m3fn).t(), scale_a=scale, scale_b=own, out_dtype=kind)
    out = out.view(*x.shape[:-1], -1).to(x.dtype)
    return out if bias is None else out + bias


def use_fp8_products(module: nn.Module) -> int:
    """Have the layers that can multiply in fp8 do so; how many. A scale for each row, or an odd size, keeps one out."""
    found = 0
    for layer in module.modules():
        if isinstance(layer, PackedLinear) and layer.kind == "F8_E4M3" and all(side % 16 == 0 for side in layer.shape):
            layer.multiplies_fp8 = layer.scale is None or layer.scale.numel() == 1
            found += layer.multiplies_fp8
    return found


class PackedEmbedding(_PackedLayer):
    """torch's Embedding with a packed table, of which only the rows asked for are opened. dtype: of the answer."""

    def __init__(self, weight: Packed, dtype: torch.dtype) -> None:
        super().__init__(weight)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.packed.rows(ids.flatten().to(self.data.device), self.dtype)
        return rows.view(*ids.shape, -1).to(ids.device)


class PackedLayers(Protocol):
    """A namespace of the layers that hold packed weights: this module, or a host's `Operations` that have them."""

    PackedLinear: type[PackedLinear]
    PackedEmbedding: type[PackedEmbedding]


def packed_layers(operations: Any) -> PackedLayers | None:
    """Those that go with a model's `Operations`; None for a host's that hold no packed weights."""
    if operations is nn:
        return _Own
    return operations if hasattr(operations, "PackedLinear") and hasattr(operations, "PackedEmbedding") else None


class _Own:
    PackedLinear, PackedEmbedding = PackedLinear, PackedEmbedding


def pack(module: nn.Module, name: str, weight: Packed, dtype: torch.dtype, layers: PackedLayers = _Own) -> bool:
    """Put a packed weight into the layer that the name of its tensor says; False where it must be opened instead.

    Every name under which the module holds that layer then leads to the new one. dtype: of an embedding's answer.
    layers: what it is made of.
    """
    path, _, last = name.rpartition(".")
    layer = module.get_submodule(path)
    if last != "weight" or not isinstance(layer, (nn.Linear, nn.Embedding)):
        return False
    if isinstance(layer, nn.Linear):
        new: nn.Module = layers.PackedLinear(weight, layer.bias)
    else:
        new = layers.PackedEmbedding(weight, dtype)
    for parent in list(module.modules()):
        for key, child in list(parent.named_children()):
            if child is layer:
                setattr(parent, key, new)
    return True
