# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The command line as its users meet it: a process, its exit status, its two streams, and the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rushes import cli

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PROMPT = "a red ball rolls to the right"
POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")


def _tree(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, hidden files and empty folders included, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"a folder"
        for path in folder.rglob("*")
    }


def _refused(rushes: Run, folder: Path, *arguments: str, words: str) -> None:
    """Exit 2, one line on stderr with `words`, silence on stdout, and a disk as it was."""
    before = _tree(folder)
    done = rushes(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("rushes: "), done.stderr
    assert words in done.stderr, done.stderr
    assert _tree(folder) == before


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
    arguments: list[str], words: str, rushes: Run, tmp_path: Path, tiny_model: Path
) -> None:
    """Exit 2, argument and value named, nothing on disk."""
    (tmp_path / "a-file").write_text("not a folder")
    (tmp_path / "existing.mov").write_text("somebody's work")
    command = ["generate", PROMPT, "-o", "shot.mp4", "--model", str(tiny_model), *arguments]
    _refused(rushes, tmp_path, *command, words=words)


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
    arguments: list[str], words: str, rushes: Run, tmp_path: Path
) -> None:
    """The same for what is missing, unknown or misspelt."""
    _refused(rushes, tmp_path, *arguments, words=words)


def test_a_prompt_too_long_for_the_model_is_refused(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """Never cut off silently."""
    command = ["generate", "a red ball " * 20, "-o", "a.mp4", "--model", str(tiny_model)]
    _refused(rushes, tmp_path, *command, words="prompt")


def test_corrupt_weights_are_refused(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """Cut short, of another kind, or without a card."""
    from safetensors.numpy import save_file

    whole = tiny_model.read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "text.safetensors").write_text("these are not weights, whatever the name says")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    for name in ("short", "text", "empty", "foreign"):
        command = ["generate", PROMPT, "-o", "a.mp4", "--model", f"{name}.safetensors"]
        _refused(rushes, tmp_path, *command, words=f"{name}.safetensors")


@POSIX_ONLY
def test_an_unwritable_folder_is_refused(rushes: Run, tmp_path: Path) -> None:
    """Before any work."""
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the case of a file in a folder's place runs above")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    _refused(rushes, tmp_path, "generate", PROMPT, "-o", "closed/a.mp4", words="not writable")


@POSIX_ONLY
def test_a_prompt_in_another_encoding_is_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    """Bytes that are not UTF-8 could be written into no file."""
    command = [sys.executable, "-m", "rushes", "generate", b"Stra\xdfe", "-o", "a.mp4"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 2 and b"prompt: got bytes that are not UTF-8" in done.stderr
    assert not _tree(tmp_path)


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


def test_the_process_refuses_as_the_function_does(rushes_process: Run, tmp_path: Path, tiny_model: Path) -> None:
    """The installed command itself: exit status, one line, nothing on disk; early and late refusals."""
    command = ["generate", PROMPT, "-o", "a.mp4", "--model", str(tiny_model)]
    _refused(rushes_process, tmp_path, *command, "--seed", "-1", words="seed: got -1")
    _refused(rushes_process, tmp_path, *command, "--frames", "6", words="frames: got 6")


def test_a_failure_is_an_event_too(rushes: Run, tmp_path: Path) -> None:
    """With --json a host reads the same sentence from stdout."""
    done = rushes("generate", PROMPT, "-o", "a.gif", "--json")
    (event,) = _events(done)
    assert done.returncode == 2 and event["event"] == "failed" and event["exit"] == 2
    assert done.stderr == f"rushes: {event['message']}\n"


def test_every_output_comes_from_one_command(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """A line for each on stdout, silence on a stderr that is no terminal, and only the files asked for."""
    outputs = ["shot.mp4", "shot.mov", "plates/a.####.exr", "stills/b.%03d.png", "cut.otio", "c.safetensors"]
    pairs = [word for output in outputs for word in ("-o", output)]
    done = _made(rushes, "generate", PROMPT, *pairs, "--model", str(tiny_model), "--seed", "7", "--fps", "23.976")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{name}: 5 frames, 16x16 at 23.976 fps, seed 7" for name in outputs]
    plates = {f"plates/a.{frame}.exr" for frame in range(1001, 1006)}
    stills = {f"stills/b.{frame}.png" for frame in range(1001, 1006)}
    files = plates | stills | {"shot.mp4", "shot.mov", "cut.otio", "c.safetensors"}
    assert set(_tree(tmp_path)) == files | {"plates", "stills"}
    for name in [*sorted(files - plates - stills), "plates/a.1003.exr", "stills/b.1001.png", "plates/a.####.exr"]:
        record = json.loads(_made(rushes, "inspect", name, "--json").stdout)
        assert record["shot"]["prompt"] == PROMPT and record["shot"]["fps"] == "24000/1001", name


def test_a_shot_made_again_has_the_same_bits(
    rushes: Run, rushes_process: Run, tmp_path: Path, tiny_model: Path
) -> None:
    """--from needs nothing but the file, in another process."""
    options = ["--seed", "3", "--negative", "the left", "--guidance", "3.5", "--steps", "4", "--frames", "9"]
    name = "Straße 夕焼け"
    _made(
        rushes,
        "generate",
        PROMPT,
        "--model",
        str(tiny_model),
        *options,
        "-o",
        f"{name}.safetensors",
        "-o",
        "p.#.exr",
    )
    _made(rushes_process, "generate", "--from", "p.1004.exr", "-o", "elsewhere/again.safetensors")
    files = _tree(tmp_path)
    assert files["elsewhere/again.safetensors"] == files[f"{name}.safetensors"]


def test_options_beside_from_change_the_shot(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """What is given replaces what the file says; the rest stays."""
    _made(rushes, "generate", PROMPT, "--model", str(tiny_model), "--seed", "3", "-o", "a.mp4")
    _made(rushes, "generate", "the ball", "--from", "a.mp4", "--size", "32x16", "-o", "b.mp4")
    before, after = (json.loads(_made(rushes, "inspect", name, "--json").stdout) for name in ("a.mp4", "b.mp4"))
    changed = {key for key, value in before["shot"].items() if after["shot"][key] != value}
    assert changed == {"prompt", "size"}
    assert after["shot"]["prompt"] == "the ball" and after["shot"]["size"] == [32, 16]


def test_another_set_of_weights_is_told(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """One line on stderr: the bits may differ. With --model the change is wanted, and nothing is said."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    model = tmp_path / "model.safetensors"
    model.write_bytes(tiny_model.read_bytes())
    _made(rushes, "generate", PROMPT, "--model", "model.safetensors", "-o", "a.mp4", "-o", "a.safetensors")
    with safe_open(model, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["transformer.head.head.bias"] = tensors["transformer.head.head.bias"] + 1
    save_file(tensors, model, metadata)
    for command in (
        ["generate", "--from", "a.mp4", "-o", "b.mp4"],
        ["decode", "a.safetensors", "-o", "c.mp4"],
    ):
        done = _made(rushes, *command)
        assert len(done.stderr.splitlines()) == 1 and "the bits may differ" in done.stderr
        quiet = _made(rushes, *command, "--model", "model.safetensors", "--overwrite")
        assert quiet.stderr == ""


def test_decoding_later_gives_the_same_pictures(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """Plates from latents.safetensors equal those written at once, bit for bit."""
    import OpenImageIO

    _made(rushes, "generate", PROMPT, "--model", str(tiny_model), "-o", "a.safetensors", "-o", "now.%04d.exr")
    _made(rushes, "decode", "a.safetensors", "-o", "later.%04d.exr", "-o", "later.mp4")
    for frame in range(1001, 1006):
        now, later = (
            OpenImageIO.ImageBuf(str(tmp_path / f"{name}.{frame}.exr")).get_pixels() for name in ("now", "later")
        )
        assert now.shape == (16, 16, 3) and np.array_equal(now, later)
        assert np.ptp(now) > 0, "a flat picture would prove nothing"


def test_latents_alone_are_not_decoded(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """Decoding costs time that nobody asked for."""
    done = _made(rushes, "generate", PROMPT, "--model", str(tiny_model), "-o", "a.safetensors", "--json")
    assert {event.get("phase") for event in _events(done)} == {None, "text", "denoise"}


def test_events_tell_the_whole_story(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """Progress in order, unknown words on the way, then one `done` with the files and the record."""
    done = _made(
        rushes,
        "generate",
        "a Zebra, a red ball",
        "--model",
        str(tiny_model),
        "-o",
        "a.mp4",
        "-o",
        "b.%d.png",
        "--json",
    )
    events = _events(done)
    assert [event["event"] for event in events].count("done") == 1 and events[-1]["event"] == "done"
    steps = [event["step"] for event in events if event.get("phase") == "denoise"]
    assert steps == [1, 2, 3]
    (decoded,) = [event for event in events if event.get("phase") == "decode" and event["step"] == event["steps"]]
    assert decoded["steps"] == 5 and decoded["seconds_per_step"] > 0
    last = events[-1]
    assert last["outputs"] == ["a.mp4", "b.%d.png"] and len(last["files"]) == 6
    assert all(Path(tmp_path, file).is_file() for file in last["files"])
    assert last["record"]["unknown_words"] == ["zebra"]
    assert last["record"] == json.loads(_made(rushes, "inspect", "a.mp4", "--json").stdout)
    assert [event["words"] for event in events if event["event"] == "warning"] == [["zebra"]]
    assert done.stderr == "rushes: warning: the tiny does not know: zebra\n"


def test_a_prompt_of_any_script_is_kept(rushes: Run, rushes_process: Run, tmp_path: Path, tiny_model: Path) -> None:
    """On a terminal that cannot show it as well."""
    prompt = "a red ball — ein größerer Löwe 🎬"
    command = ["generate", prompt, "--model", str(tiny_model), "-o", "a.mp4"]
    done = rushes_process(*command, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "does not know" in done.stderr
    assert json.loads(_made(rushes, "inspect", "a.mp4", "--json").stdout)["shot"]["prompt"] == prompt
    assert f"prompt         {prompt}\n" in _made(rushes, "inspect", "a.mp4").stdout


def test_fit_takes_the_nearest(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """Size and frames that the model allows, and the summary says which."""
    fitted = ["--fit", "--size", "30x20", "--frames", "8"]
    done = _made(rushes, "generate", PROMPT, "--model", str(tiny_model), *fitted, "-o", "a.mp4")
    assert done.stdout.startswith("a.mp4: 9 frames, 32x16 ")


def test_overwrite_replaces(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """Only when asked to."""
    (tmp_path / "a.mp4").write_text("old")
    _made(rushes, "generate", PROMPT, "--model", str(tiny_model), "-o", "a.mp4", "--overwrite")
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"


def test_a_keyframe_is_part_of_the_shot(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """By absolute path and digest; a changed picture is refused instead of quietly making another shot."""
    from PIL import Image

    for name, colour in (("first.png", "red"), ("last.png", "blue")):
        Image.new("RGB", (40, 20), colour).save(tmp_path / name)
    keyframes = ["--keyframe", "0=first.png", "--keyframe", "-1=last.png"]
    _made(
        rushes,
        "generate",
        PROMPT,
        "--model",
        str(tiny_model),
        "--frames",
        "9",
        *keyframes,
        "-o",
        "a.safetensors",
    )
    shot = json.loads(_made(rushes, "inspect", "a.safetensors", "--json").stdout)["shot"]
    assert [Path(keyframe["image"]) for keyframe in shot["keyframes"]] == [
        tmp_path / "first.png",
        tmp_path / "last.png",
    ]
    _made(rushes, "generate", "--from", "a.safetensors", "-o", "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    Image.new("RGB", (40, 20), "green").save(tmp_path / "last.png")
    _refused(
        rushes,
        tmp_path,
        "generate",
        "--from",
        "a.safetensors",
        "-o",
        "c.safetensors",
        words="not the picture",
    )


def _start(arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that takes Ctrl-C even where the test run itself was started with SIGINT ignored."""
    return subprocess.Popen(
        [sys.executable, "-m", "rushes", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@POSIX_ONLY
@pytest.mark.parametrize("phase", ["denoise", "decode"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_leaves_nothing(
    number: int, status: int, phase: str, tmp_path: Path, tiny_model: Path, environment: dict[str, str]
) -> None:
    """One line, the shell's usual status, no half-written file, not even a hidden one."""
    size = ["--size", "128x128", "--frames", "401"] if phase == "decode" else ["--steps", "1000"]
    command = [
        "generate",
        PROMPT,
        "--model",
        str(tiny_model),
        *size,
        "--json",
        "-o",
        "a.mp4",
        "-o",
        "p.%04d.exr",
    ]
    if phase == "decode":
        command += ["--steps", "1"]
    process = _start(command, tmp_path, environment)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("phase") == phase:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    stopped = [line for line in err.splitlines() if "warning" not in line]
    assert len(stopped) == 1 and stopped[0].startswith("rushes: stopped by")
    assert json.loads(out.splitlines()[-1]) == {"event": "failed", "exit": status, "message": stopped[0][8:]}
    assert not _tree(tmp_path)


@POSIX_ONLY
def test_a_terminal_gets_a_bar_and_a_pipe_does_not(
    tmp_path: Path, tiny_model: Path, environment: dict[str, str]
) -> None:
    """The bar is on stderr and shows phase, step and time; stdout has only the summary."""
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "rushes", "generate", PROMPT, "--model", str(tiny_model), "-o", "a.mp4"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**environment, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
    )
    os.close(follower)
    shown = b""
    try:
        while block := os.read(leader, 65536):
            shown += block
    except OSError:
        pass  # Linux reports the other end's closing as an error
    out, _ = process.communicate(timeout=60)
    os.close(leader)
    assert process.returncode == 0
    assert out == "a.mp4: 5 frames, 16x16 at 12 fps, seed 0\n"
    assert b"denoising" in shown and b"3/3" in shown and b"s/step" in shown and b"left" in shown


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


def test_the_starter_is_listed(rushes: Run, starter: str) -> None:
    """With its defaults."""
    assert _made(rushes, "models").stdout.startswith("starter: ")
    (facts,) = json.loads(_made(rushes, "models", "--json").stdout)
    assert facts["name"] == "starter" and facts["bytes"] < 48_000_000 and len(facts["words"]) > 50


def test_the_starter_makes_the_readme_shot(rushes: Run, starter: str, tmp_path: Path) -> None:
    """The line of README, with every word known."""
    prompt = "a red ball rolls to the right across a desert at sunset, slow push in"
    done = _made(rushes, "generate", prompt, "-o", "shot.mp4", "-o", "plate.%04d.exr", "--steps", "4")
    assert "does not know" not in done.stderr
    files = set(_tree(tmp_path))
    frames = json.loads(_made(rushes, "inspect", "shot.mp4", "--json").stdout)["shot"]["frames"]
    assert files == {"shot.mp4"} | {f"plate.{1001 + frame}.exr" for frame in range(frames)}


def test_the_starter_names_unknown_words(rushes: Run, starter: str, tmp_path: Path) -> None:
    """On stderr and in the record."""
    done = _made(rushes, "generate", "a red xylophone", "-o", "a.safetensors", "--steps", "1")
    assert "the starter does not know: xylophone" in done.stderr
    assert json.loads(_made(rushes, "inspect", "a.safetensors", "--json").stdout)["unknown_words"] == ["xylophone"]
