# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What stands before and after each layer of the transformer: norms, modulation by time, gates. All in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32; the answer stays float32, so that what follows rounds only once."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # one pass, where a mean of squares takes two
        return wide * torch.rsqrt(length.square() / x.shape[-1] + self.eps) * self.weight.to(x.device, torch.float32)


class LayerNorm(nn.LayerNorm):
    """torch's, with weights that follow the input: a host may leave them where they rest."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.device), self.bias.to(x.device), self.eps)


def layer_norm(x: Tensor, eps: float, affine: nn.LayerNorm) -> Tensor:
    """Layer norm in float32, whatever the type of x."""
    weight, bias = (t.to(x.device, torch.float32) for t in (affine.weight, affine.bias))
    normed = F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps)
    return normed.to(working_dtype(x))


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float, frames: Tensor | None = None) -> Tensor:
    """Adaptive layer norm: LN(x) (1 + scale) + shift, with shift and scale [B, n, dim] shared by L / n tokens each, or,
    with frames [L], chosen for each token."""
    B, L, D = x.shape
    if frames is not None:
        shift, scale = shift[:, frames], scale[:, frames]  # [B, L, dim]
    normed = F.layer_norm(x.float(), (D,), eps=eps).view(B, shift.shape[1], -1, D)
    return torch.addcmul(shift[:, :, None], normed, 1 + scale[:, :, None]).view(B, L, D).to(working_dtype(x))


def gated(x: Tensor, update: Tensor, gate: Tensor, frames: Tensor | None = None) -> Tensor:
    """x + gate update, summed in float32; the gate [B, n, dim] is shared or chosen as in `modulated`."""
    B, L, D = x.shape
    gate = gate if frames is None else gate[:, frames]
    groups = (B, gate.shape[1], -1, D)
    total = torch.addcmul(x.float().view(groups), update.float().view(groups), gate[:, :, None])
    return total.view(B, L, D).to(x.dtype)


def working_dtype(x: Tensor) -> torch.dtype:
    """What the matrices will work in: autocast's type where it is on, lest q, k and v each convert their input."""
    kind = x.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # not on "meta", for one
    return torch.get_autocast_dtype(kind) if is_on else x.dtype
