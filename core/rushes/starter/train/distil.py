# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Few steps: a student that goes in one step, without guidance, where the trained model goes in several with it.

Progressive distillation (arXiv:2202.00512) with the guidance distilled in (arXiv:2210.03142), both at once: from real
clips noised to a level of the student's schedule, the teacher moves to the schedule's next level by midpoint steps of
guided velocity, and the student learns the straight line between the two ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rushes.sampling.schedules import schedule
from rushes.shot import ShotError
from rushes.starter.train.latents import read_latents
from rushes.starter.train.loop import Training
from rushes.starter.train.model import Batches, Starter
from rushes.starter.train.pack import DEFAULTS, MODEL, STUDENT
from rushes.starter.train.run import Average, Optimizers, Options, Team, load_state

FINE = 8  # student's steps in which one midpoint step of the teacher is fine enough
MUON_RATE = 0.004
ADAM_RATE = 5e-4


def train_student(options: Options, team: Team, steps: int) -> None:
    """Train a student of folder/model_state.pt until the budget is used, resuming from folder/distil_state.pt.

    steps: those that the student shall need. Raises ShotError before there is a teacher, and for a state of
    another number of steps.
    """
    torch.manual_seed(options.seed + 1)
    levels = torch.tensor(schedule(DEFAULTS.schedule, steps, DEFAULTS.shift).sigmas)
    trained = load_state(options.folder / MODEL, options.device)
    if trained is None:
        raise ShotError(f"folder: {options.folder} holds no {MODEL}; run `rushes train model` first")
    teacher, student = (Starter(trained["words"]).to(options.device) for _ in range(2))
    for model in (teacher, student):
        model.load_state_dict(trained["average"])
    teacher.requires_grad_(False)
    average = Average(student, horizon=200)
    matrices = [p for p in student.transformer.blocks.parameters() if p.ndim == 2]
    training = Training("distil", options, team, student, average, Optimizers(student, matrices, MUON_RATE, ADAM_RATE))
    state = training.resume()
    if state is not None and state["steps"] != steps:
        raise ShotError(f"steps: got {steps}; {state['steps']}, as {options.folder / STUDENT} has it, is allowed")
    data = read_latents(options.folder)
    seed = options.seed + 31 * training.step + 17
    batches = Batches(data, trained["mean"], trained["std"], seed, options.device, team.rank, drop=0.0)

    def next_losses(progress: float) -> dict[str, Tensor]:
        batch = batches.draw(options.batch, levels[:-1])
        return _losses(student, batch, target(teacher, batch, levels, batches.empty))

    training.run(next_losses, keep={name: trained[name] for name in ("mean", "std", "words")} | {"steps": steps})


@torch.no_grad()
def target(teacher: Starter, batch: dict[str, Any], levels: Tensor, empty: list[int]) -> Tensor:
    """The mean velocity [B, C, T, h, w] of the teacher's way from each clip's level to the schedule's next one.

    levels: n + 1 falling noise levels; batch["timestep"] [B, T] are 1000 times one of the first n, or 0 where a frame
    is given; empty: tokens of an empty prompt.
    """
    start = batch["timestep"] / 1000  # [B, T]
    level = start.amax(1)  # [B]
    levels = levels.to(level)
    index = (levels[None, :-1] - level[:, None]).abs().argmin(1)
    end = levels[index + 1][:, None].expand_as(start).where(start > 0, 0.0)
    x, parts = batch["noisy"], max(1, FINE // (len(levels) - 1))
    for part in range(parts):
        here, there = (start.lerp(end, (part + side) / parts) for side in (0, 1))
        middle = (here + there) / 2
        half = x + _spread(middle - here) * _guided(teacher, x, here, batch["prompts"], empty)
        x = x + _spread(there - here) * _guided(teacher, half, middle, batch["prompts"], empty)
    return (x - batch["noisy"]) / _spread(end - start).where(_spread(start) > 0, 1.0)


def _guided(teacher: Starter, x: Tensor, sigma: Tensor, prompts: list[list[int]], empty: list[int]) -> Tensor:
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        both = teacher(torch.cat((x, x)), 1000 * torch.cat((sigma, sigma)), prompts + [empty] * len(prompts))
    with_prompt, without = both.float().chunk(2)
    return without + DEFAULTS.guidance * (with_prompt - without)


def _spread(sigma: Tensor) -> Tensor:
    return sigma[:, None, :, None, None]  # [B, 1, T, 1, 1]


def _losses(student: Starter, batch: dict[str, Any], velocity: Tensor) -> dict[str, Tensor]:
    with torch.autocast(velocity.device.type, dtype=torch.bfloat16):
        made = student(batch["noisy"], batch["timestep"], batch["prompts"]).float()
    return {"loss": ((made - velocity).square() * batch["weight"]).mean()}
