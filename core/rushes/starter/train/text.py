# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""First lesson of the starter's text encoder: what a caption says, before any picture.

Captions cost nothing to make, pictures do. A sentence's summary must tell the classes of its scene (time, setting,
kind, colour, motion, camera); after a minute it does, and the transformer, which trains the encoder further, starts
with a text that it can read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.model.text import TextEncoder, summarize
from rushes.model.tokenizer import WordTokenizer
from rushes.starter.captions import caption, vocabulary
from rushes.starter.configs import TEXT_LEN
from rushes.starter.scene import ATTRIBUTES, Scene
from rushes.starter.train.run import Log, rate
from rushes.starter.world import sample_scenes

SCENES = 12_000
STEPS = 700
BATCH = 192
LEARNING_RATE = 2e-3
TOLD = ("time", "setting", "kind", "color", "motion", "camera")


def teach_text(encoder: TextEncoder, reader: nn.Sequential, seed: int, log: Log) -> None:
    """Train the encoder on captions alone, and set the reader's first layer to what was learnt; both in place.

    reader: the transformer's projection of the summary (norm, linear, GELU, linear). The log tells the share of right
    answers per attribute; they cannot all be right, since captions leave clauses out. The same seed gives the same
    weights in every process.
    """
    dice = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(SCENES, seed=seed + 77)
    labels = {name: torch.tensor([ATTRIBUTES[name].index(getattr(s, name)) for s in scenes]) for name in TOLD}
    tokenizer = WordTokenizer(vocabulary(), TEXT_LEN)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = nn.ModuleDict({name: nn.Linear(encoder.config.dim, len(ATTRIBUTES[name])) for name in TOLD})
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate(step / STEPS)
        picks = torch.randint(len(scenes), (BATCH,), generator=dice)
        prompts = [tokenizer.encode(_caption(scenes[i], dice))[0] for i in picks.tolist()]
        told = _told(encoder, heads, prompts)
        loss = torch.stack([F.cross_entropy(told[name], labels[name][picks]) for name in TOLD]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            right = {name: float((told[name].argmax(-1) == labels[name][picks]).float().mean()) for name in TOLD}
            log(text_step=step + 1, loss=float(loss.detach()), **right)
    prompts = [tokenizer.encode(_caption(scene, dice))[0] for scene in scenes[:2048]]
    _aim(reader, heads, encoder, prompts)


@torch.no_grad()
def _aim(reader: nn.Sequential, heads: nn.ModuleDict, encoder: TextEncoder, prompts: list[list[int]]) -> None:
    """Let the reader's first linear layer ask the questions that the heads asked, each answer with mean 0 and spread 1.

    Summaries share a large common part (0.97 against 0.26 that varies, after the norm). A reader with random weights
    would hand that part on, and the transformer would see nearly the same token for every sentence.
    """
    linear = reader[1]
    assert isinstance(linear, nn.Linear)
    answers = torch.cat(list(_told(encoder, heads, prompts).values()), dim=1)  # [prompts, questions]
    spread, mean = torch.std_mean(answers, dim=0)
    weight = torch.cat([head.weight for head in heads.values()])  # type: ignore[misc]
    bias = torch.cat([head.bias for head in heads.values()])  # type: ignore[misc]
    linear.weight.zero_()
    linear.bias.zero_()
    linear.weight[: len(weight)] = weight / spread[:, None]
    linear.bias[: len(weight)] = (bias - mean) / spread


def _caption(scene: Scene, dice: torch.Generator) -> str:
    return caption(scene, int(torch.randint(2**31, (1,), generator=dice)))


def _told(encoder: TextEncoder, heads: nn.ModuleDict, prompts: list[list[int]]) -> dict[str, Tensor]:
    summary = summarize(encoder.encode(prompts, TEXT_LEN))[:, 0]  # [B, dim]
    normed = F.layer_norm(summary, summary.shape[-1:])  # as the transformer's own first layer for this token
    return {name: heads[name](normed) for name in TOLD}
