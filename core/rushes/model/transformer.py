# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Wan's video diffusion transformer (arXiv:2503.20314, section 4.2): one class for every form of Wan 2.1 and 2.2.

Module names are those of the original checkpoints, so their state dicts load as they are. Traps kept on purpose: norm3
belongs to cross-attention and norm2 to the feed-forward; q and k are normalised over the whole width before heads are
split; cross-attention has no gate and no mask, so zero-padded text rows count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.attention import TilePattern, TopK, attention
from rushes.model.config import TransformerConfig
from rushes.model.norms import LayerNorm, RMSNorm, gated, layer_norm, modulated
from rushes.model.operations import Operations
from rushes.model.parallel import Team
from rushes.model.products import by_rows
from rushes.model.reuse import Reuse
from rushes.model.rope import rope_table, rotate

Rope = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]
Pattern = TilePattern | TopK
Grid = tuple[int, int, int]
# (layer, pattern, q, k, v) -> out, all [batch, heads, length, head_dim], tokens in the pattern's order
Attend = Callable[[int, Pattern, Tensor, Tensor, Tensor], Tensor]


class Layout(NamedTuple):
    """How the tokens lie from the first block to the last. In tile order, no layer pays for the tiles."""

    rope: Rope
    pattern: Pattern | None = None  # what self-attention keeps; None: all of it, and tokens in the grid's order
    frames: Tensor | None = None  # [L], the latent frame of each token, where they are not in the frames' order
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None  # instead of our attention() over the pattern
    team: Team | None = None  # the processes that share the tokens; all above but the pattern is of this one's own
    tokens: int = 0  # of the whole grid


class Control(NamedTuple):
    """One VACE context: latents [B, vace_in_channels, T, H, W] and its strength."""

    latents: Tensor
    strength: float = 1.0


@dataclass
class Context:
    """Embedded text and image tokens. With `cache`, each cross-attention keeps its keys and values over all steps."""

    text: Tensor  # [B, text_len, dim]
    image: Tensor | None = None  # [B, image tokens, dim]
    pooled: Tensor | None = None  # [B, 1, dim]
    cache: dict[nn.Module, list[KeyValue]] | None = None

    def join(self, other: Context) -> Context:
        """One context for both batches, this one first, with a cache of its own. Both have the same parts."""

        def both(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            return None if mine is None or theirs is None else torch.cat((mine, theirs))

        return Context(
            torch.cat((self.text, other.text)),
            both(self.image, other.image),
            both(self.pooled, other.pooled),
            None if self.cache is None else {},
        )


class Attention(nn.Module):
    """Projections, q/k norm and attention; the parts that self- and cross-attention share."""

    def __init__(self, dim: int, heads: int, eps: float, operations: Operations) -> None:
        super().__init__()
        self.heads = heads
        self.q = operations.Linear(dim, dim)
        self.k = operations.Linear(dim, dim)
        self.v = operations.Linear(dim, dim)
        self.o = operations.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # [B, L, heads, head_dim]


class SelfAttention(Attention):
    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        v = self.split(self.v(x)).transpose(1, 2)  # [B, heads, L, head_dim]
        q = rotate(self.split(self.norm_q(self.q(x))), layout.rope).to(v.dtype).transpose(1, 2)
        k = rotate(self.split(self.norm_k(self.k(x))), layout.rope).to(v.dtype).transpose(1, 2)
        attend = layout.attend or partial(attention, pattern=layout.pattern)
        out = attend(q, k, v) if layout.team is None else layout.team.attend(q, k, v, layout.tokens, attend)
        return self.o(out.transpose(1, 2).flatten(2))


class CrossAttention(Attention):
    """Attention to the text, plus, in Wan 2.1 image-to-video, to image tokens with keys and values of their own."""

    def __init__(self, dim: int, heads: int, eps: float, operations: Operations, has_image: bool) -> None:
        super().__init__(dim, heads, eps, operations)
        if has_image:
            self.k_img = operations.Linear(dim, dim)
            self.v_img = operations.Linear(dim, dim)
            self.norm_k_img = RMSNorm(dim, eps)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        pairs = self._keys_values(context)
        q = self.split(self.norm_q(self.q(x)).to(pairs[0][0].dtype)).transpose(1, 2)  # [B, heads, L, head_dim]
        out = sum(attention(q, k, v) for k, v in pairs)
        assert isinstance(out, Tensor)
        return self.o(out.transpose(1, 2).flatten(2))

    def _keys_values(self, context: Context) -> list[KeyValue]:
        if context.cache is not None and self in context.cache:
            return context.cache[self]
        found = [(self.norm_k(self.k(context.text)), self.v(context.text))]
        if context.image is not None:
            found.append((self.norm_k_img(self.k_img(context.image)), self.v_img(context.image)))
        pairs = [
            (
                self.split(k.to(v.dtype)).transpose(1, 2),
                self.split(v).transpose(1, 2),
            )  # [B, heads, tokens, head_dim]
            for k, v in found
        ]
        if context.cache is not None:
            context.cache[self] = pairs
        return pairs


class Block(nn.Module):
    def __init__(self, config: TransformerConfig, operations: Operations = nn) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.eps = eps
        self.modulation = nn.Parameter(nn.init.normal_(torch.empty(1, 6, dim), std=dim**-0.5))
        self.self_attn = SelfAttention(dim, config.heads, eps, operations)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.cross_attn = CrossAttention(dim, config.heads, eps, operations, config.image_dim is not None)
        self.ffn = nn.Sequential(
            operations.Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), operations.Linear(config.ffn_dim, dim)
        )

    def forward(self, x: Tensor, time: Tensor, layout: Layout, context: Context) -> Tensor:
        """x [B, L, dim]; time [B, n, 6, dim], n = 1, latent frames or L. The six: shift, scale, gate, twice."""
        six = self.modulation.to(time.device)[:, None] + time.float()
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = six.unbind(2)
        frames = layout.frames
        x = gated(x, self.self_attn(modulated(x, shift, scale, self.eps, frames), layout), gate, frames)
        x = x + self.cross_attn(layer_norm(x, self.eps, self.norm3), context)
        update = by_rows(self.ffn, modulated(x, ffn_shift, ffn_scale, self.eps, frames))
        return gated(x, update, ffn_gate, frames)


class VaceBlock(Block):
    """A block of the control branch; the first one joins the control tokens to the video's."""

    def __init__(self, config: TransformerConfig, operations: Operations, first: bool) -> None:
        super().__init__(config, operations)
        if first:
            self.before_proj = operations.Linear(config.dim, config.dim)
        self.after_proj = operations.Linear(config.dim, config.dim)


class Head(nn.Module):
    def __init__(self, config: TransformerConfig, operations: Operations) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(nn.init.normal_(torch.empty(1, 2, config.dim), std=config.dim**-0.5))
        self.head = operations.Linear(config.dim, config.patch_size**2 * config.out_channels)

    def forward(self, x: Tensor, time: Tensor, layout: Layout) -> Tensor:
        two = self.modulation.to(time.device)[:, None] + time.float()[:, :, None]
        shift, scale = two.unbind(2)  # order: shift, scale
        return self.head(modulated(x, shift, scale, self.eps, layout.frames))


class ImageEmbedding(nn.Module):
    """CLIP tokens to the model's width; first-and-last-frame models add learned positions to both pictures' tokens."""

    def __init__(self, config: TransformerConfig, operations: Operations) -> None:
        super().__init__()
        assert config.image_dim is not None
        width = config.image_dim
        self.proj = nn.Sequential(
            LayerNorm(width),
            operations.Linear(width, width),
            nn.GELU(),
            operations.Linear(width, config.dim),
            LayerNorm(config.dim),
        )
        if config.image_positions:
            self.emb_pos = nn.Parameter(torch.zeros(1, config.image_positions, width))

    def forward(self, tokens: Tensor) -> Tensor:
        if hasattr(self, "emb_pos"):
            positions = self.emb_pos.to(tokens.device)
            tokens = tokens.reshape(-1, positions.shape[1], tokens.shape[-1]) + positions
        return self.proj(tokens)


class Transformer(nn.Module):
    """Velocity of noisy latents. See `forward`."""

    variances: Tensor

    def __init__(self, config: TransformerConfig, operations: Operations = nn) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, (1, config.patch_size, config.patch_size)
        Linear, Conv3d = operations.Linear, operations.Conv3d
        self.patch_embedding = Conv3d(config.in_channels, dim, patch, stride=patch)
        self.text_embedding = nn.Sequential(Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), Linear(dim, dim))
        self.time_embedding = nn.Sequential(Linear(config.freq_dim, dim), nn.SiLU(), Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config, operations) for _ in range(config.layers))
        self.head = Head(config, operations)
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config, operations)
        if config.pooled_dim:
            self.pooled_embedding = nn.Sequential(
                LayerNorm(config.pooled_dim), Linear(config.pooled_dim, dim), nn.GELU(), Linear(dim, dim)
            )
        if config.preconditioned:
            self.register_buffer("variances", torch.ones(config.out_channels))
        if config.vace_layers:
            self.vace_patch_embedding = Conv3d(config.vace_in_channels, dim, patch, stride=patch)
            self.vace_blocks = nn.ModuleList(
                VaceBlock(config, operations, first=i == 0) for i in range(len(config.vace_layers))
            )

    @property
    def dtype(self) -> torch.dtype:
        """What the work is done in: that of weights of our own, since a host may keep the layers' in another."""
        return self.head.modulation.dtype

    def context(
        self, text: Tensor, image: Tensor | None = None, cache: bool = False, pooled: Tensor | None = None
    ) -> Context:
        """Embed once for all steps: text [B, <= text_len, text_dim] (zero-padded here), CLIP tokens [B, n, image_dim],
        pooled text [B, 1, pooled_dim]. cache: keep keys and values over the steps.
        """
        if text.shape[1] > self.config.text_len:
            raise ValueError(
                f"text: got {text.shape[1]} tokens; at most {self.config.text_len}, the model's text_len, are allowed"
            )
        text = F.pad(text, (0, 0, 0, self.config.text_len - text.shape[1]))
        embedded = self.img_emb(image) if image is not None else None
        pooled = self.pooled_embedding(pooled) if pooled is not None else None
        return Context(self.text_embedding(text), embedded, pooled, {} if cache else None)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Context,
        control: Sequence[Control] = (),
        on_block: Callable[[int], None] | None = None,
        pattern: Callable[[Grid], Pattern | None] | None = None,
        attend: Attend | None = None,
        team: Team | None = None,
        reuse: Reuse | None = None,
    ) -> Tensor:
        """Velocity [B, out_channels, T, H, W] of latents [B, in_channels, T, H, W], H and W multiples of the patch.

        timestep: [B], or [B, T] one per latent frame, or [B, tokens]; 0 (clean) ... 1000 (noise).
        control: VACE contexts. on_block: called with the block's number before each block; it may raise to cancel.
        pattern: makes, for the grid of tokens (T, H, W), what self-attention keeps; all of it without. attend: computes
        the self-attention of a layer over the pattern, a control layer's by the number of the one that it feeds.
        team: processes that share the tokens and all make this call; each gets the whole answer. reuse: what an earlier
        step may spare this one.
        """
        x, grid = self._tokens(self.patch_embedding, latents)
        tokens = x.shape[1]
        kept = pattern(grid) if pattern is not None else None
        order = torch.from_numpy(kept.order()).to(x.device) if kept is not None else None
        if team is not None:
            order = team.rows(torch.arange(tokens, device=x.device) if order is None else order)
        time, time_blocks = self._time(timestep, context.pooled, x.dtype)
        layout = self._layout(grid, kept, order, x.device, of_frames=1 < time.shape[1] < tokens, team=team)
        if order is not None:
            x = x[:, order]
            if time.shape[1] == tokens:  # a timestep for each token
                time, time_blocks = time[:, order], time_blocks[:, order]
        layouts = [layout] * len(self.blocks)
        if attend is not None and kept is not None:
            layouts = [layout._replace(attend=partial(attend, i, kept)) for i in range(len(self.blocks))]
        hints = self._hints(control, x, order, time_blocks, layouts, context, on_block)
        first = x
        for i, block in enumerate(self.blocks):
            if on_block is not None:
                on_block(i)
            x = block(x, time_blocks, layouts[i], context)
            for hint in hints.get(i, ()):
                x = x + hint
            if i == 0 and reuse is not None:
                if (rest := reuse.ask(x - first)) is not None:
                    x = x + rest
                    break
                first = x
        else:
            if reuse is not None:
                reuse.keep(x - first)
        x = self.head(x, time, layout)
        x = x if team is None else team.gather(x, tokens)
        x = self._unpatchify(x if kept is None else x[:, torch.from_numpy(kept.inverse()).to(x.device)], grid)
        return precondition(x, latents, timestep, self.variances) if self.config.preconditioned else x

    def _layout(
        self,
        grid: Grid,
        pattern: Pattern | None,
        order: Tensor | None,
        device: torch.device,
        of_frames: bool,
        team: Team | None,
    ) -> Layout:
        cosines, sines = rope_table(grid, self.config.rope_dims, device)
        if order is None:
            return Layout((cosines, sines))
        frames = order // (grid[1] * grid[2]) if of_frames else None
        return Layout((cosines[order], sines[order]), pattern, frames, team=team, tokens=len(cosines))

    def _tokens(self, embedding: nn.Conv3d, latents: Tensor) -> tuple[Tensor, Grid]:
        x = embedding(latents.to(self.dtype))  # [B, dim, T, H, W]
        T, H, W = x.shape[2:]
        # Contiguous, or every sum of every block would keep the layout of the convolution, channels outermost.
        return x.flatten(2).transpose(1, 2).contiguous(), (T, H, W)  # [B, L, dim]

    def _time(self, timestep: Tensor, pooled: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Embedding [B, n, dim] for the head and [B, n, 6, dim] for the blocks."""
        if timestep.ndim == 1:
            timestep = timestep[:, None]  # [B, 1]
        half = self.config.freq_dim // 2
        rates = 10_000.0 ** -(torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
        angles = timestep.double()[..., None] * rates
        wave = torch.cat((angles.cos(), angles.sin()), dim=-1)  # [B, n, freq_dim]
        time = self.time_embedding(wave.to(self.dtype))
        if pooled is not None:
            time = time + pooled
        return time.to(dtype), self.time_projection(time).unflatten(-1, (6, -1)).to(dtype)

    def _hints(
        self,
        control: Sequence[Control],
        x: Tensor,
        order: Tensor | None,
        time: Tensor,
        layouts: Sequence[Layout],
        context: Context,
        on_block: Callable[[int], None] | None,
    ) -> dict[int, list[Tensor]]:
        """What each VACE block adds after its main block; all of them see the video as it was embedded."""
        hints: dict[int, list[Tensor]] = {}
        for latents, strength in control:
            c, _ = self._tokens(self.vace_patch_embedding, latents)
            c = c if order is None else c[:, order]
            for i, (layer, block) in enumerate(zip(self.config.vace_layers, self.vace_blocks, strict=True)):
                assert isinstance(block, VaceBlock)
                if on_block is not None:
                    on_block(layer)
                if i == 0:
                    c = block.before_proj(c) + x
                c = block(c, time, layouts[layer], context)
                hints.setdefault(layer, []).append(block.after_proj(c) * strength)
        return hints

    def _unpatchify(self, x: Tensor, grid: Grid) -> Tensor:
        T, H, W = grid
        p = self.config.patch_size
        x = x.reshape(x.shape[0], T, H, W, p, p, -1).permute(0, 6, 1, 2, 4, 3, 5)  # [B, C, T, H, p, W, p]
        return x.reshape(x.shape[0], -1, T, H * p, W * p)


def precondition(x: Tensor, latents: Tensor, timestep: Tensor, variances: Tensor) -> Tensor:
    """Velocity [B, C, T, H, W] in float32: the best linear guess from the noisy latents, and x times what that leaves.

    Karras et al. 2022 (arXiv:2206.00364, section 5), for flow matching, channel by channel: of latents (1 - s) a + s n
    with Var(a) = d, the velocity n - a has the slope Cov / Var = (s - (1 - s) d) / r on them, r = s^2 + (1 - s)^2 d,
    and d / r of its variance remains. A channel of fine detail, nearly all noise, then asks little of the model.

    timestep: [B], or [B, T]. variances: [C], above 0, of clean latents in model space.
    """
    s = timestep.float().view(timestep.shape[0], 1, -1, 1, 1) / 1000  # [B, 1, 1 or T, 1, 1]
    d = variances.to(x.device, torch.float32)[:, None, None, None]  # [C, 1, 1, 1]
    r = s.square() + (1 - s).square() * d
    return (s - (1 - s) * d) / r * latents.float() + (d / r).sqrt() * x.float()
