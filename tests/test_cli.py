# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The command line as its users meet it: a process, its exit status, its two streams, and the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rushes import cli

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Tree = Callable[[], "dict[str, bytes]"]
Refused = Callable[..., None]
PROMPT = "a red ball rolls to the right"
POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")


@pytest.fixture
def refused(tree: Tree) -> Refused:
    """Exit 2, one line on stderr with `words`, silence on stdout, and a disk as it was."""

    def check(rushes: Run, *arguments: str, words: str) -> None:
        before = tree()
        done = rushes(*arguments)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("rushes: "), done.stderr
        assert words in done.stderr, done.stderr
        assert tree() == before

    return check


def _made(rushes: Run, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = rushes(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def _short(value: list[str] | str) -> str:
    """A test's name: the arguments alone."""
    return "" if isinstance(value, str) else " ".join(value)[:40]


def _events(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


# What follows `generate PROMPT -o shot.mp4 --model <tiny>`, and words of the refusal.
REFUSED_OPTIONS = [
    (["--size", "20x16"], "size: got 20x16"),  # no multiple
    (["--size", "16"], "size: got '16'"),
    (["--size", "4096x4096"], "size: got 4096x4096"),  # above what the model takes
    (["--size", "4x4"], "size: the width is 4"),
    (["--frames", "6"], "frames: got 6; tiny takes 4n+1, the neighbours are 5 and 9 (--fit"),
    (["--frames", "0"], "frames: got 0"),
    (["--frames", "5.0"], "frames: got '5.0'"),
    (["--frames", "100000"], "frames: got 100000"),
    (["--fps", "0"], "fps: got 0"),
    (["--fps", "film"], "fps: got 'film'"),
    (["--seed", "-1"], "seed: got -1"),
    (["--seed", "9223372036854775808"], "seed: got 9223372036854775808"),
    (["--seed", "one"], "seed: got 'one'"),
    (["--steps", "0"], "steps: got 0"),
    (["--steps", "many"], "steps: got 'many'"),
    (["--guidance", "-1"], "guidance: got -1"),
    (["--guidance", "nan"], "guidance: got nan"),
    (["--negative", "ball " * 60], "negative"),  # more tokens than the model reads
    (["--keyframe", "first.png"], "keyframe: got 'first.png'"),
    (["--keyframe", "=first.png"], "keyframe: got '=first.png'"),
    (["--keyframe", "0="], "keyframe: got '0='"),
    (["--keyframe", "one=first.png"], "keyframe: got 'one=first.png'"),
    (["--keyframe", "0=missing.png"], "missing.png cannot be read"),
    (["--keyframe", "-1=missing.png"], "missing.png cannot be read"),  # not taken for an option
    (["--colorspace", "ACEScg"], "--colorspace"),  # a movie has none to choose
    (["-o", "plate.%04d.exr", "--colorspace", "Kodachrome"], "'Kodachrome'"),
    (["--depth", "float"], "--depth: got 'float' without a plate"),
    (["-o", "plate.%04d.exr", "--depth", "double"], "--depth: got 'double'; allowed are half, float"),
    (["--compression", "zip"], "--compression: got 'zip' without a plate"),
    (
        ["-o", "plate.%04d.exr", "--compression", "lzw"],
        "--compression: got 'lzw'; allowed are zip, zips, dwaa, piz, none",
    ),
    (["-o", "still.gif"], "'.gif'"),
    (["-o", "plates"], "no suffix"),
    (["-o", "still.exr", "--frames", "5"], "5 frames"),
    (["-o", "./shot.mp4"], "the same output"),
    (["-o", "cut.%04d.%04d.exr"], "2 frame patterns"),
    (["-o", "a-file/shot.mov"], "not a folder"),
    (["-o", "existing.mov"], "already exists"),
    (["--device", "abacus"], "device: got 'abacus'"),
    (["--device", "cuda:99"], "device: got 'cuda:99'"),
    (["--colour", "red"], "--colour: there is no such option"),
    (["--steps"], "--steps: got no value"),
    (["and", "more", "words"], "prompt: got 4 separate words"),  # the quotes forgotten
    (["--from", "nothing.mp4"], "nothing.mp4: there is no such file"),
    (["--from", "existing.mov"], "existing.mov"),  # not a movie
    (["--from", "a-file"], "a-file"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED_OPTIONS, ids=_short)
def test_bad_input_gets_one_line_and_leaves_no_trace(
    arguments: list[str], words: str, rushes: Run, tmp_path: Path, tiny_model: Path, refused: Refused
) -> None:
    """Exit 2, argument and value named, nothing on disk."""
    (tmp_path / "a-file").write_text("not a folder")
    (tmp_path / "existing.mov").write_text("somebody's work")
    command = ["generate", PROMPT, "-o", "shot.mp4", "--model", str(tiny_model), *arguments]
    refused(rushes, *command, words=words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "-o", "a.mp4"], "prompt: it is missing"),
        (["generate", "", "-o", "a.mp4"], "prompt: it is empty"),
        (["generate", " \n ", "-o", "a.mp4"], "prompt: it is empty"),
        (["generate", "x" * 10_001, "-o", "a.mp4"], "prompt: it has 10001 characters"),
        (["generate", PROMPT], "-o: no output is given"),
        (["generate", PROMPT, "-o", "a.mp4", "--model", "gigantic"], "model: got 'gigantic'"),
        (["generate", PROMPT, "-o", "a.mp4", "--model", "no/such.safetensors"], "no/such.safetensors"),
        (["gen"], "command: got 'gen'; generate, decode,"),
        (["--frob"], "--frob: there is no such option"),
        (["inspect"], "FILE: it is missing"),
        (["inspect", "nothing.exr"], "nothing.exr: there is no such file"),
        (["decode", "nothing.safetensors", "-o", "a.mp4"], "nothing.safetensors: there is no such file"),
        (["decode", "nothing.safetensors"], "-o: no output is given"),
        (["models", "show", "gigantic"], "model: got 'gigantic'"),
        (["doctor", "me"], "unexpected extra argument (me)"),
    ],
    ids=_short,
)
def test_a_bad_command_gets_one_line_and_leaves_no_trace(
    arguments: list[str], words: str, rushes: Run, refused: Refused
) -> None:
    """The same for what is missing, unknown or misspelt."""
    refused(rushes, *arguments, words=words)


def test_a_prompt_too_long_for_the_model_is_refused(rushes: Run, tiny_model: Path, refused: Refused) -> None:
    """Never cut off silently."""
    command = ["generate", "a red ball " * 20, "-o", "a.mp4", "--model", str(tiny_model)]
    refused(rushes, *command, words="prompt")


def test_corrupt_weights_are_refused(rushes: Run, tmp_path: Path, tiny_model: Path, refused: Refused) -> None:
    """Cut short, of another kind, or without a card."""
    from safetensors.numpy import save_file

    whole = tiny_model.read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "text.safetensors").write_text("these are not weights, whatever the name says")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    for name in ("short", "text", "empty", "foreign"):
        command = ["generate", PROMPT, "-o", "a.mp4", "--model", f"{name}.safetensors"]
        refused(rushes, *command, words=f"{name}.safetensors")


@POSIX_ONLY
def test_an_unwritable_folder_is_refused(rushes: Run, tmp_path: Path, refused: Refused) -> None:
    """Before any work."""
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the case of a file in a folder's place runs above")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    refused(rushes, "generate", PROMPT, "-o", "closed/a.mp4", words="not writable")


@POSIX_ONLY
def test_a_prompt_in_another_encoding_is_refused(tmp_path: Path, environment: dict[str, str], tree: Tree) -> None:
    """Bytes that are not UTF-8 could be written into no file."""
    command = [sys.executable, "-m", "rushes", "generate", b"Stra\xdfe", "-o", "a.mp4"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 2 and b"prompt: got bytes that are not UTF-8" in done.stderr
    assert not tree()


def test_refusals_do_not_wait_for_torch(tmp_path: Path, environment: dict[str, str]) -> None:
    """What can be known without the model is said before it is loaded."""
    program = """
import sys
from rushes.cli import main
for arguments in (
    ["--seed", "-1"], ["--size", "x"], ["-o", "a.gif"], ["-o", "a"], ["--keyframe", "0=a"],
    ["--device", "abacus"], ["--from", "nothing.mp4"], ["--colorspace", "ACEScg"],
):
    assert main(["generate", "a ball", "-o", "a.mp4", *arguments]) == 2, arguments
assert main(["inspect", "nothing.exr"]) == 2 and main(["generate"]) == 2
assert "torch" not in sys.modules
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_process_refuses_as_the_function_does(rushes_process: Run, tiny_model: Path, refused: Refused) -> None:
    """The installed command itself: exit status, one line, nothing on disk; early and late refusals."""
    command = ["generate", PROMPT, "-o", "a.mp4", "--model", str(tiny_model)]
    refused(rushes_process, *command, "--seed", "-1", words="seed: got -1")
    refused(rushes_process, *command, "--frames", "6", words="frames: got 6")


def test_a_failure_is_an_event_too(rushes: Run, tmp_path: Path) -> None:
    """With --json a host reads the same sentence from stdout."""
    done = rushes("generate", PROMPT, "-o", "a.gif", "--json")
    (event,) = _events(done)
    assert done.returncode == 2 and event["event"] == "failed" and event["exit"] == 2
    assert done.stderr == f"rushes: {event['message']}\n"


def test_an_unexpected_error_is_one_line_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1; --traceback, wherever it stands, shows the rest."""

    def broken() -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr("rushes.doctor.examine", broken)
    assert cli.main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert err == "rushes: RuntimeError: out of luck (add --traceback for the whole story)\n"
    assert cli.main(["doctor", "--traceback"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "in broken" in err and err.endswith("rushes: RuntimeError: out of luck\n")


def test_help_costs_nothing(rushes: Run) -> None:
    """Without a command too; each command is listed with a line."""
    plain, asked = rushes(), rushes("--help")
    assert plain.returncode == asked.returncode == 0 and plain.stdout == asked.stdout
    for name in ("generate", "decode", "inspect", "models", "doctor", "train"):
        assert f"  {name} " in plain.stdout
        assert rushes(name, "--help").returncode == 0


def test_models_tell_what_they_take(rushes: Run, tiny_model: Path) -> None:
    """Sizes, frames, words and digest, as text and as JSON."""
    text = _made(rushes, "models", "show", str(tiny_model)).stdout
    facts = json.loads(_made(rushes, "models", "show", str(tiny_model), "--json").stdout)
    assert facts["frames"] == 5 and facts["size"] == [16, 16] and "ball" in facts["words"]
    assert facts["sha256"] in text and "4n+1" in text and "multiples of 16" in text
