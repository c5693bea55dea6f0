# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The core's layers of quantised weights, as ComfyUI's memory manager counts and moves them.

It counts what is in a module's state, moves whole layers, and leaves behind, where memory is short, those that say that
they bring their weights to the input by themselves. Ours do, as bytes, and open them there.
"""

from __future__ import annotations

from typing import Any

import comfy.ops
import torch

from rushes.model import packed


class _Moved(comfy.ops.CastWeightBiasOp):
    """By its base ComfyUI knows that the layer works wherever its weights are."""

    weight = (
        None  # asked for by name in newer releases; nothing patches a packed weight, see `packed.PackedLinear.adapt`
    )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """With the bytes, which are no entries of a state in the core."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, buffer in self.named_buffers(recurse=False):  # type: ignore[attr-defined]
            destination[prefix + name] = buffer if keep_vars else buffer.detach()


class PackedLinear(_Moved, packed.PackedLinear):
    """Its bias is a plain weight, which ComfyUI patches: at once, or in each use where the layer stays behind."""

    def bias_for(self, like: torch.Tensor) -> torch.Tensor | None:
        bias = super().bias_for(like)
        if bias is None or not self.bias_function:
            return bias
        bias = bias.clone()  # what is patched is changed in place
        for patched in self.bias_function:
            bias = patched(bias)
        return bias


class PackedEmbedding(_Moved, packed.PackedEmbedding):
    bias = None  # asked for as `weight` is
