# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Steps that reuse blocks and steps without guidance: what they spare, how far off they are, and that they repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rushes import Engine, Shot
from rushes.model.reuse import ANCHOR, relative_error
from rushes.progress import Denoising
from rushes.shot import ShotError
from rushes.velocity import Predict

SHOT = Shot("a red ball rolls to the right", frames=5, steps=12, guidance=2.0, seed=3)


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    return Engine.load(tiny_model, device="cpu")


def _denoised(engine: Engine, **changes: Any) -> torch.Tensor:
    return engine.denoise(SHOT.replace(**changes))


def test_off_they_change_nothing(engine: Engine) -> None:
    exact = _denoised(engine)
    assert engine.reuse_report() is None
    assert torch.equal(_denoised(engine, reuse=1e-9), exact)
    report = engine.reuse_report()
    assert report is not None and report["reused_steps"] == [] and report["full_steps"] == list(range(12))
    assert torch.equal(_denoised(engine, guided=1.0), exact)


def test_a_larger_threshold_reuses_more_and_is_further_off(engine: Engine) -> None:
    """Against the run in full; every anchor is computed whatever the threshold, and the change stays below it."""
    exact = _denoised(engine)
    errors, counts = [], []
    for threshold in (0.05, 0.2, 1.0):
        errors.append(relative_error(_denoised(engine, reuse=threshold), exact))
        report = engine.reuse_report()
        assert report is not None and report["change"] < threshold
        assert not {step for step in report["reused_steps"] if step % ANCHOR == 0}
        counts.append(len(report["reused_steps"]))
        print(f"\nreuse {threshold}: {counts[-1]} of 12 steps, relative error {errors[-1]:.4f}")
    assert counts == sorted(counts) and counts[-1] > 0
    assert errors == sorted(errors) and errors[-1] > 0


def test_the_same_shot_gives_the_same_bits(engine: Engine, tiny_model: Path) -> None:
    first = _denoised(engine, reuse=0.5, guided=0.5)
    assert torch.equal(_denoised(engine, reuse=0.5, guided=0.5), first)
    assert torch.equal(_denoised(Engine.load(tiny_model, device="cpu"), reuse=0.5, guided=0.5), first)


def test_an_interrupted_run_goes_on_with_the_same_bits(engine: Engine, tiny_model: Path) -> None:
    """From every state that is offered; those are the ones before anchors."""
    shot = SHOT.replace(reuse=1.0, guided=0.7)
    states: list[Denoising] = []
    whole = engine.denoise(shot, on_state=states.append)
    assert [state.step for state in states] == [4, 8, 12]
    for state in states[:-1]:
        other = Engine.load(tiny_model, device="cpu")
        assert torch.equal(other.denoise(shot, resume=state), whole)


def test_late_steps_without_guidance_ask_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch instead of two from the given share on; none guided equals guidance of 1."""
    batches: list[int] = []
    asked = Predict.__call__

    def counted(self: Predict, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        batches.append(len(x))
        return asked(self, x, *rest)

    monkeypatch.setattr(Predict, "__call__", counted)
    exact = _denoised(engine)
    error = relative_error(_denoised(engine, guided=0.5), exact)
    assert batches == [2] * 12 + [2] * 6 + [1] * 6 and error > 0
    assert relative_error(_denoised(engine, guided=0.75), exact) < error
    assert torch.equal(_denoised(engine, guided=0.0), _denoised(engine, guidance=1.0))


def test_skipped_blocks_are_not_computed(engine: Engine) -> None:
    calls: list[int] = []
    transformer = engine.parts["transformer"]
    for i, block in enumerate(transformer.blocks):  # type: ignore[union-attr, arg-type]
        block.register_forward_pre_hook(lambda *_, i=i: calls.append(i))
    _denoised(engine, reuse=1.0)
    report = engine.reuse_report()
    assert report is not None and report["reused_steps"]
    assert calls.count(0) == 12 and calls.count(1) == 12 - len(report["reused_steps"])


@pytest.mark.parametrize("field", ["reuse", "guided"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "much", True, None])
def test_other_shares_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ShotError, match=f"^{field}: got .*; a share from 0 to 1 is allowed"):
        Shot("x", **{field: value})


def test_the_command_line_has_them_and_the_record_keeps_them(rushes: Any, tiny_model: Path) -> None:
    """--from makes the same bits again, unasked."""
    words = ("generate", SHOT.prompt, "--model", str(tiny_model), "--steps", "8", "--reuse", "1", "--guided", "0.5")
    done = rushes(*words, "-o", "a.safetensors", "-o", "a.mp4")
    assert done.returncode == 0 and "of 8 steps reused most blocks" in done.stderr, done.stderr
    assert rushes("generate", "--from", "a.mp4", "-o", "b.safetensors").returncode == 0
    from rushes.media import read_latents

    assert (read_latents("a.safetensors")[0] == read_latents("b.safetensors")[0]).all()
    assert rushes(*words[:-1], "2", "-o", "c.mp4").returncode == 2


@pytest.mark.slow
def test_the_starters_error_is_what_the_table_says(starter: str) -> None:
    """The thresholds of tests/benchmarks/README.md: within what is stated there, on another prompt and seed."""
    engine = Engine.load(starter, device="cpu")
    shot = Shot("a green car drives left across the snow at dusk", frames=17, seed=11)
    exact = engine.denoise(shot)
    for changes, bound in (({"reuse": 0.1}, 0.1), ({"guided": 0.6}, 0.25)):
        error = relative_error(engine.denoise(shot.replace(**changes)), exact)
        report = engine.reuse_report() or {"reused_steps": []}
        print(f"\n{changes}: relative error {error:.4f}, reused {report['reused_steps']}")
        assert error <= bound
