# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""LoRAs: small files that change a transformer, as trainers write them, put on it and taken off again.

A LoRA holds, for some layers, two thin matrices whose product is added to the weight (Hu et al. 2021), times
alpha / rank, times the strength that the artist gives; or a whole difference of a weight, a bias or a modulation.
Plain weights are merged with it, in float32; a packed weight stays as it is, and its layer adds the product instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rushes.model.checkpoint import transformer_names_to_diffusers
from rushes.model.config import Shapes
from rushes.model.packed import Packed, PackedLinear
from rushes.model.reading import Weight, load_state
from rushes.shot import ShotError

# Ends of the names in a file -> what is there; longer ones before those that they end with
_ENDS = {
    ".lora_A.default.weight": "down", ".lora_A.weight": "down", ".lora_down.weight": "down",
    ".lora_B.default.weight": "up", ".lora_B.weight": "up", ".lora_up.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".alpha": "alpha", ".diff": "diff", ".diff_b": "diff_b", ".diff_m": "diff_m",
}  # fmt: skip
# Relatives of LoRA that change weights in another way
_OTHERS = {
    ".dora_scale": "a DoRA", ".lokr_": "a LoKr", ".hada_": "a LoHa", ".lora_mid": "a LoRA in Tucker's form",
    ".oft_": "an OFT", ".glora": "a GLoRA", ".set_weight": "replaced weights", ".reshape_weight": "reshaped weights",
}  # fmt: skip
# What reads the latents: an image-to-video model has more channels there than the text-to-video model that a LoRA was
# made for, and is the same otherwise; so this part alone may be left out.
PATCHES = "patch_embedding.weight"
# Distillations to few steps, by the names of their published files
_FEW_STEPS = re.compile(r"lightx2v|lightning|(?<![a-z0-9])4[-_ ]?steps?(?![a-z])", re.IGNORECASE)


class Change(NamedTuple):
    """What is added to one tensor: up @ down * scale, and diff. up: [out, rank]; down: [rank, in]."""

    up: Tensor | None = None
    down: Tensor | None = None
    scale: float = 1.0
    diff: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Lora:
    """One file. changes: by our names of tensors. unknown: names in the file that the model has no place for."""

    path: Path
    changes: Mapping[str, Change]
    unknown: tuple[str, ...]


def is_few_steps(path: str | Path) -> bool:
    """Whether a LoRA is, by its name, a distillation to four steps without guidance."""
    return _FEW_STEPS.search(Path(path).stem) is not None


def trainer_names(names: Iterable[str]) -> dict[str, str]:
    """How trainers name a weight -> its name in our transformer: the original names, and diffusers', in each style."""
    found: dict[str, str] = {}
    names = list(names)
    theirs = transformer_names_to_diffusers(names)
    for key in names:
        for name in dict.fromkeys((key, theirs[key])):
            if not name.endswith(".weight"):
                found[f"diffusion_model.{name}"] = key  # a bare parameter, such as a modulation
                continue
            stem = name.removesuffix(".weight")
            flat = stem.replace(".", "_")
            dotted = (f"diffusion_model.{stem}", f"transformer.{stem}", f"base_model.model.{stem}", stem)
            found |= dict.fromkeys((*dotted, f"lora_unet_{flat}", f"lora_transformer_{flat}", f"lycoris_{flat}"), key)
    return found


def read_lora(path: Path, shapes: Shapes, model: str) -> Lora:
    """A LoRA for a transformer. shapes: of its tensors by our names; model: its name, for the message.

    Raises ShotError for a file that is missing or damaged, of another kind, or of another model.
    """
    try:
        state = load_state(path)
    except ShotError as error:
        raise ShotError(str(error).replace("model:", "lora:", 1)) from error
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, weight in state.items():
        if other := next((what for word, what in _OTHERS.items() if word in name), None):
            raise _refusal(path, f"it is {other} ({name!r})", model)
        end = next((end for end in _ENDS if name.endswith(end)), None)
        if end is None or not isinstance(weight, Tensor):
            unknown.append(name)
        else:
            parts.setdefault(name.removesuffix(end), {})[_ENDS[end]] = weight
    known = trainer_names(shapes)
    changes: dict[str, Change] = {}
    for stem, given in parts.items():
        found, is_whole = _changes(path, stem, given, known, shapes, model)
        unknown += [] if is_whole else [stem]
        changes |= found
    if not changes:
        some = min(state, default="nothing")
        raise _refusal(path, f"it changes nothing in {model} (it holds {some!r})", model)
    return Lora(path, changes, tuple(unknown))


def _changes(
    path: Path, stem: str, given: Mapping[str, Tensor], known: Mapping[str, str], shapes: Shapes, model: str
) -> tuple[dict[str, Change], bool]:
    """What the entries under one stem change, by our names, and whether the model has a place for all of them."""
    found: dict[str, Change] = {}
    target, left = known.get(stem), set(given) - {"alpha"}
    if target is not None and given.keys() & {"down", "up", "diff"}:
        change = _weight_change(path, stem, given)
        if (got := _misfit(change, shapes[target])) is None:
            found[target] = change
            left -= {"down", "up", "diff"}
        elif not target.endswith(PATCHES):
            raise _wrong_shape(path, target, got, shapes, model)
    for end, last in (("diff_b", ".bias"), ("diff_m", ".modulation")):
        name = (target or "").removesuffix(".weight") + last if end == "diff_b" else known.get(f"{stem}{last}", "")
        if end in given and name in shapes:
            found[name] = Change(diff=given[end])
            left.discard(end)
            if (got := _misfit(found[name], shapes[name])) is not None:
                raise _wrong_shape(path, name, got, shapes, model)
    return found, not left


def _weight_change(path: Path, stem: str, given: Mapping[str, Tensor]) -> Change:
    down, up = given.get("down"), given.get("up")
    if (down is None) != (up is None):
        raise ShotError(f"lora: {path.name} has one half of {stem!r} without the other; download it again")
    if down is None or up is None:
        return Change(diff=given["diff"])
    down, up = down.flatten(1), up.flatten(1)  # those of a convolution have its dimensions
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
        raise ShotError(
            f"lora: {path.name} has halves {list(up.shape)} and {list(down.shape)} of {stem!r}, which do not fit; "
            "download it again"
        )
    alpha = float(given["alpha"]) if "alpha" in given and given["alpha"].numel() == 1 else float(down.shape[0])
    return Change(up, down, alpha / down.shape[0], given.get("diff"))


def _misfit(change: Change, shape: Sequence[int]) -> list[int] | None:
    """The shape that a change is for, where that is not `shape`; None where it is."""
    if change.diff is not None and tuple(change.diff.shape) != tuple(shape):
        return list(change.diff.shape)
    if change.up is None or change.down is None:
        return None
    got = [change.up.shape[0], change.down.shape[1]]
    return None if got == [shape[0], prod(shape[1:])] else got


def _wrong_shape(path: Path, name: str, got: Sequence[int], shapes: Shapes, model: str) -> ShotError:
    return _refusal(path, f"it changes {name!r} of {list(got)}, which is {list(shapes[name])} in {model}", model)


def _refusal(path: Path, reason: str, model: str) -> ShotError:
    return ShotError(f"lora: got {path.name}; {reason}; a LoRA for {model} is allowed")


def changes_of(loras: Sequence[tuple[Lora, float]]) -> dict[str, list[tuple[Change, float]]]:
    """What LoRAs change together, each with its strength: by our names of tensors."""
    found: dict[str, list[tuple[Change, float]]] = {}
    for lora, strength in loras:
        for name, change in lora.changes.items():
            found.setdefault(name, []).append((change, strength))
    return found


def packed_names(module: nn.Module) -> frozenset[str]:
    """The weights of a module that are packed, by our names."""
    return frozenset(f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, PackedLinear))


def adapt_packed(module: nn.Module, loras: Sequence[tuple[Lora, float]]) -> None:
    """Have these LoRAs, and no others, on a module's packed weights. Plain ones are left: a host's patches change them.

    What a layer adds lies where its weight does.
    """
    changes, dtype = changes_of(loras), next(module.parameters()).dtype
    for name, layer in module.named_modules():
        if isinstance(layer, PackedLinear):
            layer.adapt(*_joined(changes.get(f"{name}.weight", []), dtype, layer.data.device))


class Adapted:
    """A transformer and the LoRAs that are on it now."""

    def __init__(self, module: nn.Module, read: Callable[[], Mapping[str, Weight]]) -> None:
        """read: the module's weights by our names, from its file, mapped; taken when a changed one is needed anew."""
        self._module, self._read = module, read
        self._now: tuple[tuple[Lora, float], ...] = ()
        self._changed: set[str] = set()

    def use(self, loras: Sequence[tuple[Lora, float]]) -> None:
        """Have these LoRAs, with these strengths, on the transformer, and no others. The weights are not read again."""
        wanted = tuple((lora, strength) for lora, strength in loras if strength)
        if wanted == self._now:
            return
        changes = changes_of(wanted)
        originals = self._read() if self._changed else {}
        for name in sorted(self._changed | changes.keys()):
            self._set(name, changes.get(name, []), originals.get(name) if name in self._changed else None)
        self._now, self._changed = wanted, set(changes)

    def _set(self, name: str, changes: Sequence[tuple[Change, float]], original: Weight | None) -> None:
        """One tensor with changes. original: where the tensor has been changed before."""
        path, _, last = name.rpartition(".")
        layer = self._module.get_submodule(path)
        if isinstance(layer, PackedLinear) and last == "weight":
            layer.adapt(*_joined(changes, self._dtype(), layer.data.device))
            return
        now = layer.get_parameter(last)
        if original is None:
            base = now.detach()
        elif isinstance(original, Packed):
            base = original.to(now.device).unpack(now.dtype)
        else:
            base = original.to(now.device, now.dtype)
        setattr(layer, last, nn.Parameter(_merged(base, changes), requires_grad=False))

    def _dtype(self) -> torch.dtype:
        return next(self._module.parameters()).dtype


def _merged(base: Tensor, changes: Sequence[tuple[Change, float]]) -> Tensor:
    if not changes:
        return base
    total = base.float()
    for change, strength in changes:
        if change.up is not None and change.down is not None:
            up, down = (half.to(base.device, torch.float32) for half in (change.up, change.down))
            total = total + (strength * change.scale) * (up @ down).view(base.shape)
        if change.diff is not None:
            total = total + strength * change.diff.to(base.device, torch.float32)
    return total.to(base.dtype)


def _joined(
    changes: Sequence[tuple[Change, float]], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """All changes of one layer as one pair of matrices, up [out, sum of ranks] and down, and one difference."""
    pairs = [
        (c.up.to(device).float() * (s * c.scale), c.down.to(device).float())
        for c, s in changes
        if c.up is not None and c.down is not None
    ]
    diffs = [s * c.diff.to(device).float() for c, s in changes if c.diff is not None]
    up = torch.cat([up for up, _ in pairs], dim=1).to(dtype) if pairs else None
    down = torch.cat([down for _, down in pairs]).to(dtype) if pairs else None
    diff = torch.stack(diffs).sum(0).to(dtype) if diffs else None
    return up, down, diff
