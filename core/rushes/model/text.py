# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Text encoder: the UMT5 encoder, from XXL (Wan) down to the starter's few layers.

Chung et al. 2023, "UniMax"; Raffel et al. 2020, "Exploring the Limits of Transfer Learning" (T5).
Module names are those of transformers' `UMT5EncoderModel`, so that its files load without renaming.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.model.config import Shapes, count_indices, required_shape
from rushes.model.operations import Operations
from rushes.shot import ShotError

PAD_ID = 0
EMBEDDING = "shared.weight"
TIED_EMBEDDING = "encoder.embed_tokens.weight"


@dataclass(frozen=True)
class TextConfig:
    """Shape of one text encoder. heads * head_dim need not equal dim.

    buckets, max_distance: half of the buckets serve each direction; distances from max_distance on share one.
    """

    vocab_size: int
    dim: int
    heads: int
    layers: int
    ffn_dim: int
    head_dim: int = 64
    buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "heads", "layers", "ffn_dim", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; 1 or more is allowed")
        if self.buckets < 4 or self.buckets % 4:
            raise ValueError(f"buckets: got {self.buckets}; a multiple of 4 is allowed")
        if self.max_distance <= self.buckets // 4:
            raise ValueError(f"max_distance: got {self.max_distance}; above {self.buckets // 4} is allowed")


UMT5_XXL = TextConfig(vocab_size=256_384, dim=4096, heads=64, layers=24, ffn_dim=10_240)


class TextEncoder(nn.Module):
    """Token ids to one row of features per token.

    Training needs no special mode: there is no dropout, and nothing is changed in place.
    """

    def __init__(self, config: TextConfig, operations: Operations = nn) -> None:
        super().__init__()
        self.config = config
        self.shared = operations.Embedding(config.vocab_size, config.dim)
        self.encoder = Stack(config, self.shared, operations)
        self.register_load_state_dict_pre_hook(_complete_tied_embedding)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh weights as T5 draws them: unit embeddings, else a deviation of 1/sqrt(fan in)."""
        nn.init.normal_(self.shared.weight)
        for module in self.modules():
            if isinstance(module, (SelfAttention, FeedForward, RMSNorm)):
                module.reset_parameters()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [B, L, dim]; rows where the mask is False are zero and no other row sees them.

        ids: [B, L] int64, 0 ... vocab_size - 1.
        mask: [B, L] bool, True for a real token; None means all but padding, `ids != 0`.
        """
        if ids.ndim != 2:
            raise ValueError(f"ids: got shape {tuple(ids.shape)}; [batch, tokens] is allowed")
        mask = ids != PAD_ID if mask is None else mask.bool()
        return self.encoder(ids, mask)

    def encode(self, prompts: Sequence[Sequence[int]], rows: int, device: torch.device | str | None = None) -> Tensor:
        """Features [B, rows, dim] of prompts of any lengths, zero below each prompt's last token.

        Only as many rows as the longest prompt has are computed: padding is masked, so the rest cannot change
        them. device: where to work; where the weights are when None. Raises ShotError for a prompt of more than `rows`
        tokens.
        """
        longest = max(map(len, prompts), default=0)
        if longest > rows:
            raise ShotError(f"prompt: it has {longest} tokens; up to {rows} are allowed, shorten it")
        if not longest:
            raise ValueError("prompts: got no token; a prompt has at least the one that ends it")
        device = device or self.encoder.final_layer_norm.weight.device
        ids = torch.full((len(prompts), longest), PAD_ID, dtype=torch.long)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
            mask[row, : len(prompt)] = True
        features = self(ids.to(device), mask.to(device))  # [B, longest, dim]
        return F.pad(features, (0, 0, 0, rows - longest))  # [B, rows, dim]


def summarize(features: Tensor) -> Tensor:
    """One token [B, 1, dim] for a whole sentence: the mean of its rows in features [B, rows, dim], padding left out."""
    real = (features != 0).any(-1, keepdim=True)  # [B, rows, 1]
    return features.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)


class Stack(nn.Module):
    """All layers. `embed_tokens` is the encoder's own embedding under its second name."""

    def __init__(self, config: TextConfig, embedding: nn.Embedding, operations: Operations) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding
        self.block = nn.ModuleList(Block(config, operations) for _ in range(config.layers))
        self.final_layer_norm = RMSNorm(config.dim, config.eps)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed_tokens(ids)  # [B, L, dim]
        buckets = relative_buckets(ids.shape[1], self.config.buckets, self.config.max_distance).to(ids.device)
        for block in self.block:
            x = block(x, buckets, mask)
        return self.final_layer_norm(x).masked_fill(~mask[:, :, None], 0)


class Block(nn.Module):
    """Self-attention, then the gated feed-forward part; both normalise first and add to the stream."""

    def __init__(self, config: TextConfig, operations: Operations) -> None:
        super().__init__()
        self.layer = nn.ModuleList((AttentionLayer(config, operations), FeedForwardLayer(config, operations)))

    def forward(self, x: Tensor, buckets: Tensor, mask: Tensor) -> Tensor:
        attend, feed_forward = self.layer
        return feed_forward(attend(x, buckets, mask))


class AttentionLayer(nn.Module):
    def __init__(self, config: TextConfig, operations: Operations) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, operations)
        self.layer_norm = RMSNorm(config.dim, config.eps)

    def forward(self, x: Tensor, buckets: Tensor, mask: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), buckets, mask)


class FeedForwardLayer(nn.Module):
    def __init__(self, config: TextConfig, operations: Operations) -> None:
        super().__init__()
        self.DenseReluDense = FeedForward(config, operations)
        self.layer_norm = RMSNorm(config.dim, config.eps)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class SelfAttention(nn.Module):
    """Attention in both directions with a learned bias per distance and head, of its own in every layer."""

    def __init__(self, config: TextConfig, operations: Operations) -> None:
        super().__init__()
        self.config = config
        inner = config.heads * config.head_dim
        self.q = operations.Linear(config.dim, inner, bias=False)
        self.k = operations.Linear(config.dim, inner, bias=False)
        self.v = operations.Linear(config.dim, inner, bias=False)
        self.o = operations.Linear(inner, config.dim, bias=False)
        self.relative_attention_bias = operations.Embedding(config.buckets, config.heads)

    def reset_parameters(self) -> None:
        dim, inner = self.config.dim, self.config.heads * self.config.head_dim
        # the scores are not divided by sqrt(head_dim), so the queries start smaller by that factor
        nn.init.normal_(self.q.weight, std=(dim * self.config.head_dim) ** -0.5)
        nn.init.normal_(self.k.weight, std=dim**-0.5)
        nn.init.normal_(self.v.weight, std=dim**-0.5)
        nn.init.normal_(self.o.weight, std=inner**-0.5)
        nn.init.normal_(self.relative_attention_bias.weight, std=dim**-0.5)

    def forward(self, x: Tensor, buckets: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self._split(project(x)) for project in (self.q, self.k, self.v))  # [B, H, L, head_dim]
        bias = self.relative_attention_bias(buckets).permute(2, 0, 1).to(q.dtype)  # [H, L, L]
        # the lowest finite number, not -inf: a row of padding alone must not turn into NaN
        bias = torch.where(mask[:, None, None, :], bias, torch.finfo(q.dtype).min)  # [B, H, L, L]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)  # [B, H, L, head_dim]
        return self.o(out.transpose(1, 2).flatten(2))  # [B, L, dim]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)  # [B, H, L, head_dim]


class FeedForward(nn.Module):
    """wo(gelu(wi_0 x) * wi_1 x), Shazeer 2020, "GLU Variants", with the tanh form of GELU."""

    def __init__(self, config: TextConfig, operations: Operations) -> None:
        super().__init__()
        self.config = config
        self.wi_0 = operations.Linear(config.dim, config.ffn_dim, bias=False)
        self.wi_1 = operations.Linear(config.dim, config.ffn_dim, bias=False)
        self.wo = operations.Linear(config.ffn_dim, config.dim, bias=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.wi_0.weight, std=self.config.dim**-0.5)
        nn.init.normal_(self.wi_1.weight, std=self.config.dim**-0.5)
        nn.init.normal_(self.wo.weight, std=self.config.ffn_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the division in float32 at least. No mean, no bias."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x.device) * x.to(self.weight.dtype)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """Bucket [length, length] int64 of each (query, key): exact near by, logarithmic up to max_distance.

    The upper half of the buckets is for keys after the query. Always computed on the CPU in float32: another
    device's logarithm may round 16, 32 or 64 (exact bucket edges) to the other side.
    """
    position = torch.arange(length, device="cpu")
    offset = position[None, :] - position[:, None]  # [L, L] key - query
    half = buckets // 2
    exact = half // 2
    distance = offset.abs()
    octaves = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (octaves * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(offset > 0, half, 0) + torch.where(distance < exact, distance, far)


def infer_text_config(shapes: Shapes) -> TextConfig:
    """The configuration that a state dict's shapes (transformers names) imply.

    max_distance is not in the shapes: UMT5's 128. Raises ShotError if the shapes are not UMT5's.
    """
    what = "UMT5 text encoder"
    first = "encoder.block.0.layer."
    name = TIED_EMBEDDING if EMBEDDING not in shapes and TIED_EMBEDDING in shapes else EMBEDDING
    vocab_size, dim = required_shape(shapes, name, what, 2)
    buckets, heads = required_shape(shapes, f"{first}0.SelfAttention.relative_attention_bias.weight", what, 2)
    return TextConfig(
        vocab_size=vocab_size,
        dim=dim,
        heads=heads,
        head_dim=required_shape(shapes, f"{first}0.SelfAttention.q.weight", what, 2)[0] // heads,
        layers=count_indices(shapes, "encoder.block."),
        ffn_dim=required_shape(shapes, f"{first}1.DenseReluDense.wi_0.weight", what, 2)[0],
        buckets=buckets,
    )


def _complete_tied_embedding(module: TextEncoder, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Files hold the shared embedding under one of its two names, or under both; loading needs both."""
    ours, theirs = prefix + EMBEDDING, prefix + TIED_EMBEDDING
    if not hasattr(module.shared, "weight"):  # it is packed, and comes with its layer
        return
    if ours in state:
        state.setdefault(theirs, state[ours])
    elif theirs in state:
        state[ours] = state[theirs]
