# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The loop that the training of VAE and transformer share: step, log, test, save, and go on from the last state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Generic

import torch
from torch import Tensor

from rushes.starter.train.run import (
    Average,
    Clock,
    Log,
    Means,
    Model,
    Optimizers,
    Options,
    Team,
    load_state,
    rate,
    save_state,
)  # fmt: skip

STATE_EVERY = 300.0  # seconds between state files
LOG_EVERY = 20.0
TEST_EVERY = 240.0


class Training(Generic[Model]):
    """One model in training, with its clock, log and state file folder/NAME_state.pt."""

    def __init__(
        self, name: str, options: Options, team: Team, model: Model, average: Average[Model], optimizer: Optimizers
    ) -> None:
        self.model, self.average, self.optimizer = model, average, optimizer
        self.team, self.step, self._device = team, 0, options.device
        self.clock = Clock(options.minutes * 60, now=time.thread_time if options.device == "cpu" else time.monotonic)
        self.log = Log(options.folder / f"{name}_log.txt", team, self.clock)
        self._path = options.folder / f"{name}_state.pt"

    def resume(self) -> dict[str, Any] | None:
        """Take up the last state and return it whole; None at the start of a run."""
        state = load_state(self._path, self._device)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.average.model.load_state_dict(state["average"])
            self.optimizer.load(state["optimizer"])
            self.average.steps, self.step, self.clock.elapsed = state["step"], state["step"], state["elapsed"]
        return state

    def run(
        self,
        losses: Callable[[float], Mapping[str, Tensor]],
        keep: Mapping[str, Any] | None = None,
        test: Callable[[bool], Mapping[str, float]] | None = None,
    ) -> None:
        """Until the budget is used. losses(progress): of one fresh batch, their sum to minimise under "loss".

        keep: what else belongs in the state. test(last): figures of the averaged model, now and then and at the end.
        """
        means = Means()
        saved = logged = tested = time.monotonic()
        self.clock.skip()
        while (progress := self.team.lead(self.clock.progress)) < 1:
            means.add(**self._step(losses(progress), progress))
            now = time.monotonic()
            if now - logged > LOG_EVERY:
                self.log(step=self.step, **means.take())
                logged = now
            if test is not None and self.team.leads and now - tested > TEST_EVERY:
                self.log(step=self.step, **test(False))
                tested = time.monotonic()
                self.clock.skip()
            if self.team.leads and now - saved > STATE_EVERY:
                self._save(keep or {})
                saved = time.monotonic()
                self.clock.skip()
        if self.team.leads:
            if test is not None:
                self.log(step=self.step, **test(True))
            self._save(keep or {})

    def _step(self, parts: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
        parts["loss"].backward()
        self.team.average_gradients(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step(rate(progress))
        self.average.update(self.model)
        self.step += 1
        self.clock.tick()
        return {name: value.detach() for name, value in parts.items()}

    def _save(self, keep: Mapping[str, Any]) -> None:
        save_state(
            self._path,
            {
                "model": self.model.state_dict(), "average": self.average.model.state_dict(),
                "optimizer": self.optimizer.state(), "step": self.step, "elapsed": self.clock.elapsed, **keep,
            },
        )  # fmt: skip
