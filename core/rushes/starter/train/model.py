# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Training of the starter's transformer and text encoder on latents of the world.

Flow matching with a noise level per latent frame (arXiv:2407.01392, diffusion forcing, in the form of Wan 2.2's TI2V):
some frames are given clean, at time 0, and take no part in the loss. Middle-block features must also tell where the
subject is and how far the camera has moved; the renderer knows both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.model.text import TextEncoder, summarize
from rushes.model.tokenizer import WordTokenizer
from rushes.model.transformer import Block, Transformer
from rushes.starter.captions import caption, vocabulary
from rushes.starter.configs import TEXT_LEN, TRANSFORMER, text_config
from rushes.starter.train.latents import LENGTHS, Latents, read_latents, statistics
from rushes.starter.train.loop import Training
from rushes.starter.train.run import Average, Optimizers, Options, Team
from rushes.starter.train.text import teach_text

MUON_RATE = 0.012
ADAM_RATE = 1.5e-3
SUBJECT_WEIGHT = 5.0
GUIDE_WEIGHT = 0.15
DROP = 0.12  # share of captions left out, for classifier-free guidance
# Shares of what is given: nothing, the first frame, the first k, first and last, last; the rest has a level per frame
GIVEN = (0.60, 0.14, 0.08, 0.08, 0.04, 0.06)


class Starter(nn.Module):
    """What is trained together. `guide` reads the features of the middle block and is dropped afterwards."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.transformer = Transformer(TRANSFORMER)
        self.text = TextEncoder(text_config(words))
        self.guide = nn.Sequential(nn.LayerNorm(TRANSFORMER.dim), nn.Linear(TRANSFORMER.dim, 4 + 3))
        self.features: Tensor | None = None
        self.transformer.blocks[TRANSFORMER.layers // 2 - 1].register_forward_hook(self._keep)
        nn.init.zeros_(self.transformer.head.head.weight)
        nn.init.zeros_(self.transformer.head.head.bias)
        for block in self.transformer.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.cross_attn.o.weight)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.features = output

    def forward(self, latents: Tensor, timestep: Tensor, prompts: list[list[int]]) -> Tensor:
        text = self.text.encode(prompts, TEXT_LEN)
        return self.transformer(latents, timestep, self.transformer.context(text, pooled=summarize(text)))


class Batches:
    """Random batches of one clip length each, from the shards; every process draws its own."""

    def __init__(
        self,
        data: Latents,
        mean: list[float],
        std: list[float],
        seed: int,
        device: str,
        rank: int = 0,
        drop: float = DROP,
    ) -> None:
        """drop: share of captions left out."""
        self._dice = torch.Generator().manual_seed(seed + 7919 * rank)
        # Equal in all processes, or the one would wait for the other
        self._lengths = torch.Generator().manual_seed(seed)
        self._device, self._drop = device, drop
        shift, scale = torch.tensor(mean)[:, None, None, None], torch.tensor(std)[:, None, None, None]
        self._clips = (data.clips.float() - shift) / scale
        self._holds = (data.holds.float() - shift) / scale
        self._cover, self._shifts, self._scenes = data.cover.float(), data.shifts, data.scenes
        self._tokenizer = WordTokenizer(vocabulary(), TEXT_LEN)
        self.empty = self._tokenizer.encode("")[0]

    def draw(self, count: int, levels: Tensor | None = None) -> dict[str, Any]:
        """noisy, velocity [B, C, T, h, w]; timestep [B, T]; weight [B, 1, T, h, w]; cover; shifts; prompts.

        levels: noise levels to choose from, one for a whole clip; None: `_levels`.
        """
        dice = self._dice
        which = 0 if torch.rand((), generator=self._lengths) < 0.5 else 1
        T = LENGTHS[which]
        picks = torch.randint(len(self._scenes), (count,), generator=dice)
        clean = self._clips[picks, :, :T].clone()
        if levels is None:
            sigma = _levels(count, T, dice)
        else:
            sigma = levels[torch.randint(len(levels), (count, 1), generator=dice)].expand(-1, T)
        given = _given(count, T, dice)
        for row in range(count):
            if given[row, -1] and not given[row, :-1].all():
                clean[row, :, -1] = self._holds[picks[row], :, which]
        sigma = sigma.masked_fill(given, 0.0)
        noise = torch.randn(clean.shape, generator=dice)
        s = sigma[:, None, :, None, None]
        cover = self._cover[picks, :T]  # [B, T, h, w]
        weight = (1 + (SUBJECT_WEIGHT - 1) * cover[:, None]) * ~given[:, None, :, None, None]
        batch = {
            "noisy": (1 - s) * clean + s * noise,
            "velocity": noise - clean,
            "timestep": 1000 * sigma,
            "weight": weight / weight.mean().clamp_min(1e-6),
            "cover": cover,
            "shifts": self._shifts[picks, :T],
        }
        return {
            **{name: value.to(self._device) for name, value in batch.items()},
            "prompts": self._prompts(picks),
        }

    def _prompts(self, picks: Tensor) -> list[list[int]]:
        prompts = []
        for pick in picks.tolist():
            dropped = float(torch.rand((), generator=self._dice)) < self._drop
            seed = int(torch.randint(2**31, (1,), generator=self._dice))
            prompts.append(self._tokenizer.encode("" if dropped else caption(self._scenes[pick], seed))[0])
        return prompts


def _levels(count: int, T: int, dice: torch.Generator) -> Tensor:
    """Noise levels [B, T]: logit-normal (arXiv:2403.03206), a few uniform; a few clips have a level per frame.

    High ones, because the channels that hold the picture have three times the latents' spread, and show through noise.
    """
    per_frame = torch.rand(count, 1, generator=dice) < GIVEN[5]
    normal = torch.randn(count, T, generator=dice)
    uniform = torch.rand(count, T, generator=dice)
    level = torch.where(torch.rand(count, 1, generator=dice) < 0.15, uniform, torch.sigmoid(2.0 + 1.3 * normal))
    return torch.where(per_frame, level, level[:, :1].expand(-1, T))


def _given(count: int, T: int, dice: torch.Generator) -> Tensor:
    """Which latent frames are given clean [B, T]: none, the first, the first k, first and last, or the last."""
    given = torch.zeros(count, T, dtype=torch.bool)
    kinds = torch.multinomial(torch.tensor(GIVEN), count, replacement=True, generator=dice).tolist()
    for row, kind in enumerate(kinds):
        if kind in (1, 3):
            given[row, 0] = True
        if kind == 2:
            given[row, : int(torch.randint(2, T - 1, (1,), generator=dice))] = True
        if kind in (3, 4):
            given[row, -1] = True
    return given


def losses(model: Starter, batch: dict) -> dict[str, Tensor]:
    """Weighted velocity error, and the guide's errors."""
    with torch.autocast(batch["noisy"].device.type, dtype=torch.bfloat16):
        velocity = model(batch["noisy"], batch["timestep"], batch["prompts"]).float()
        told = model.guide(model.features).float()  # [B, T H W, 4 + 3]
    flow = ((velocity - batch["velocity"]).square() * batch["weight"]).mean()
    B, T, h, w = batch["cover"].shape
    cells = told[..., :4].view(B, T, h // 2, w // 2, 2, 2).transpose(3, 4).reshape(B, T, h, w)
    where = F.binary_cross_entropy_with_logits(cells, batch["cover"])
    shifts = told[..., 4:].view(B, T, -1, 3).mean(2)
    move = F.smooth_l1_loss(shifts, 5 * batch["shifts"], beta=0.2)
    return {"loss": flow + GUIDE_WEIGHT * (where + move), "flow": flow, "where": where, "move": move}


def train_model(options: Options, team: Team) -> None:
    """Train until the budget is used, resuming from folder/model_state.pt."""
    torch.manual_seed(options.seed)
    words = vocabulary()
    model = Starter(words).to(options.device)
    average = Average(model, horizon=400)
    matrices = [p for p in model.transformer.blocks.parameters() if p.ndim == 2]
    training = Training("model", options, team, model, average, Optimizers(model, matrices, MUON_RATE, ADAM_RATE))
    data = read_latents(options.folder)
    if (state := training.resume()) is not None:
        mean, std, words = state["mean"], state["std"], state["words"]
    else:
        mean, std, variances = statistics(data)
        model.transformer.variances.copy_(torch.tensor(variances))
        teach_text(model.text, model.transformer.pooled_embedding, options.seed, training.log)
        average.model.load_state_dict(model.state_dict())
    batches = Batches(data, mean, std, options.seed + 31 * training.step, options.device, team.rank)

    def next_losses(progress: float) -> dict[str, Tensor]:
        # small batches learn faster at first, larger ones further
        return losses(model, batches.draw(round(options.batch * (1 + 2 * min(1.0, 1.5 * progress)))))

    training.run(next_losses, keep={"mean": mean, "std": std, "words": words})
