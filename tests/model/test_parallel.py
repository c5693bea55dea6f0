# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Several processes make what one makes: real processes on the CPU, over gloo."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rushes.attention import TilePattern, TopK
from rushes.attention.layers import SparseAttention, SparseLayers
from rushes.model.parallel import Team
from rushes.shot import ShotError

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("test_transformer", HERE / "test_transformer.py")
assert _spec is not None and _spec.loader is not None
forms = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("test_transformer", forms)  # dataclasses look their own module up
_spec.loader.exec_module(forms)

PATTERNS: tuple[Any, ...] = (
    None,
    partial(TilePattern, tile=(2, 2, 2), window=(1, 2, 2)),
    partial(TopK, tile=(2, 2, 2), density=0.4),
)
Start = Callable[..., list["subprocess.Popen[str]"]]


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Any:
    """start(size, job, **task): the processes of a team; whatever is left of them is ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(size: int, job: str, **task: Any) -> list[subprocess.Popen[str]]:
        torch.save({"timeout": 60.0} | task, tmp_path / "task.pt")
        script = [sys.executable, str(HERE / "parallel_process.py"), str(tmp_path)]
        started = [
            subprocess.Popen(
                [*script, str(rank), str(size), job],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for rank in range(size)
        ]  # fmt: skip
        processes.extend(started)
        return started

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def finish(processes: list[subprocess.Popen[str]], folder: Path) -> list[Any]:
    """What each found."""
    for process in processes:
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
    return [torch.load(folder / f"found_{rank}.pt", weights_only=False) for rank in range(len(processes))]


def plain(inputs: Any) -> dict[str, Any]:
    return {name: getattr(inputs, name) for name in ("latents", "timestep", "text", "image")} | {
        "control": [tuple(control) for control in inputs.control]
    }


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "form",
    [
        forms.Form(forms.EVERYTHING.ours | {"dim": 60, "heads": 3}),  # 45 tokens and 3 heads: two have 1 and 2 of them
        forms.Form({"dim": 48, "heads": 4}),  # three have 1, 1 and 2
    ],
    ids=["image and control, 3 heads", "text, 4 heads"],
)
def test_a_team_predicts_what_one_process_does(form: Any, size: int, start: Start, tmp_path: Path) -> None:
    """Every conditioning, kind of timestep and pattern, in a batch of two as guidance makes: the difference from one
    process is at most twice that process's own distance from float64, and all processes have the same bits."""
    model = forms.build(form)
    cases, alone, own_error = [], [], 0.0
    for times in forms.TIMES:
        inputs = forms.draw(form, times)
        for pattern in PATTERNS:
            alone.append(forms.predict(model, inputs, pattern=pattern))
            cases.append({"inputs": plain(inputs), "pattern": pattern, "dtype": torch.float32})
        own_error = max(own_error, forms.difference(alone[-len(PATTERNS)], forms.Naive(model)(inputs)))
    assert own_error < 5e-6
    found = finish(start(size, "forward", config=form.config, state=model.state_dict(), cases=cases), tmp_path)
    for i, expected in enumerate(alone):
        assert all(torch.equal(theirs[i], found[0][i]) for theirs in found)
        assert forms.difference(found[0][i], expected) <= 2 * own_error
    patterned = [forms.difference(sparse, dense) for dense, sparse in zip(alone[::3], alone[1::3], strict=True)]
    assert min(patterned) > 100 * own_error  # the patterns did leave something out


def test_a_team_in_bfloat16_loses_no_more_than_one_process(start: Start, tmp_path: Path) -> None:
    """Its distance from float32 is at most a tenth more than that of one process."""
    form = forms.Form({"dim": 96, "heads": 3, "ffn_dim": 192})
    model, inputs = forms.build(form), forms.draw(form)
    expected, half = forms.predict(model, inputs), inputs.to(torch.bfloat16)
    case = {"inputs": plain(half), "pattern": None, "dtype": torch.bfloat16}
    found = finish(start(2, "forward", config=form.config, state=model.state_dict(), cases=[case]), tmp_path)
    alone = forms.predict(model.bfloat16(), half)
    assert found[0][0].dtype == torch.bfloat16
    assert relative(found[0][0], expected) <= 1.1 * relative(alone, expected)


def test_a_team_keeps_the_dense_layers_of_a_sparse_attention(start: Start, tmp_path: Path) -> None:
    """The layers' own choice between tiles and all of it sees whole sequences, as in one process."""
    form = forms.Form({"heads": 2, "layers": 3})
    model, inputs = forms.build(form), forms.draw(form)
    sparse = SparseLayers(SparseAttention(density=0.4, tile=(2, 2, 2), first_layers=1), 3, 4)
    sparse.begin_step(2)
    expected = forms.predict(model, inputs, pattern=PATTERNS[2], attend=sparse.attend)
    case = {"inputs": plain(inputs), "pattern": PATTERNS[2], "attend": sparse.attend, "dtype": torch.float32}
    found = finish(start(2, "forward", config=form.config, state=model.state_dict(), cases=[case]), tmp_path)
    assert forms.difference(found[0][0], expected) < 5e-6
    assert [layer["density"] < 1 for layer in sparse.report()["layers"]] == [False, True, True]


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_lost_process_is_told_and_awaited_no_longer_than_the_timeout(name: str, start: Start, tmp_path: Path) -> None:
    """One of three dies, or answers no more: the two others end with a sentence."""
    form = forms.Form({"dim": 60, "heads": 3})
    case = {"inputs": plain(forms.draw(form)), "pattern": None, "dtype": torch.float32}
    number = getattr(signal, name)
    *others, lost = start(3, "lose", config=form.config, cases=[case], signal=number, timeout=5.0)
    for found in finish(others, tmp_path):
        assert "one of the 3 processes of this shot ended, or did not answer within 5 s" in found
    assert lost.poll() == (-signal.SIGKILL if name == "SIGKILL" else None)


def test_a_cancel_of_one_process_stops_all_before_the_same_block(
    start: Start, tmp_path: Path, tiny_model: Path
) -> None:
    """No process is left waiting for one that has stopped."""
    found = finish(start(2, "cancel", model=str(tiny_model)), tmp_path)
    assert found == ["cancelled after 3 blocks"] * 2


def torchrun(tmp_path: Path, environment: dict[str, str], size: int, *arguments: str) -> Any:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.run(
        [*command, "-m", "rushes", "generate", *arguments],
        cwd=tmp_path, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun wants a store that torch for Windows is built without")
def test_torchrun_makes_one_clip_with_one_voice(
    tmp_path: Path, environment: dict[str, str], tiny_model: Path, rushes: Any
) -> None:
    """With a keyframe and so a time for each frame, and guidance: one output, one summary, the clip of one process."""
    pixels = np.random.default_rng().integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "key.png")
    asked = ("a red ball rolls", "--model", str(tiny_model), "--keyframe", "0=key.png", "--size", "32x48", "--json")
    alone = rushes("generate", *asked, "--device", "cpu", "-o", "alone.safetensors")
    assert alone.returncode == 0, alone.stderr
    done = torchrun(tmp_path, environment, 2, *asked, "--device", "cpu", "-o", "team.safetensors", "-o", "team.mp4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"event": "done"') == 1 and done.stdout.count('"phase": "denoise"') == 3
    one, two = (load_file(tmp_path / f"{name}.safetensors")["latents"] for name in ("alone", "team"))
    assert one.std() > 0.1 and forms.difference(two, one) < 1e-5
    assert (tmp_path / "team.mp4").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun wants a store that torch for Windows is built without")
def test_torchrun_refuses_more_processes_than_heads(
    tmp_path: Path, environment: dict[str, str], tiny_model: Path
) -> None:
    done = torchrun(tmp_path, environment, 3, "a ball", "--model", str(tiny_model), "-o", "shot.safetensors")
    assert done.returncode != 0
    assert "processes: got 3; 1 to 2, the model's attention heads, are allowed" in done.stderr
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_team_refuses_fewer_tokens_than_processes() -> None:
    assert [list(Team(rank, 3).rows(torch.arange(5))) for rank in range(3)] == [[0], [1, 2], [3, 4]]
    with pytest.raises(ShotError, match="processes: got 3; 1 to 2, the tokens of a clip of this size and length"):
        Team(0, 3).rows(torch.arange(2))
