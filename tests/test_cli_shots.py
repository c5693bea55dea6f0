# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Shots from the command line: what is written and told, that it comes out the same again, and how it stops."""

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
from safetensors import safe_open
from safetensors.numpy import save_file

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Tree = Callable[[], "dict[str, bytes]"]
PROMPT = "a red ball rolls to the right"
POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")


def _made(rushes: Run, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = rushes(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def _events(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


# What follows `generate PROMPT -o shot.mp4 --model <tiny>`, and words of the refusal.
def test_every_output_comes_from_one_command(rushes: Run, tmp_path: Path, tiny_model: Path, tree: Tree) -> None:
    """A line for each on stdout, silence on a stderr that is no terminal, and only the files asked for."""
    outputs = ["shot.mp4", "shot.mov", "plates/a.####.exr", "stills/b.%03d.png", "cut.otio", "c.safetensors"]
    pairs = [word for output in outputs for word in ("-o", output)]
    done = _made(rushes, "generate", PROMPT, *pairs, "--model", str(tiny_model), "--seed", "7", "--fps", "23.976")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{name}: 5 frames, 16x16 at 23.976 fps, seed 7" for name in outputs]
    plates = {f"plates/a.{frame}.exr" for frame in range(1001, 1006)}
    stills = {f"stills/b.{frame}.png" for frame in range(1001, 1006)}
    files = plates | stills | {"shot.mp4", "shot.mov", "cut.otio", "c.safetensors"}
    assert set(tree()) == files | {"plates", "stills", "plates/a.exr.manifest.json"}
    assert (
        _made(rushes, "verify", "plates/a.####.exr").stdout == "plates/a.####.exr: 5 frames, complete and unchanged\n"
    )
    for name in [*sorted(files - plates - stills), "plates/a.1003.exr", "stills/b.1001.png", "plates/a.####.exr"]:
        record = json.loads(_made(rushes, "inspect", name, "--json").stdout)
        assert record["shot"]["prompt"] == PROMPT and record["shot"]["fps"] == "24000/1001", name


def test_a_shot_made_again_has_the_same_bits(
    rushes: Run, rushes_process: Run, tmp_path: Path, tiny_model: Path, tree: Tree
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
    files = tree()
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


def test_depth_and_compression_are_the_plates(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """From both commands; float holds what half rounds away, and a movie beside it does not mind."""
    import OpenImageIO

    plate = ["--depth", "float", "--compression", "piz", "--colorspace", "lin_rec709"]
    _made(rushes, "generate", PROMPT, "--model", str(tiny_model), "-o", "a.safetensors", "-o", "now.%04d.exr", *plate)
    _made(rushes, "decode", "a.safetensors", "-o", "later.%04d.exr", "-o", "later.mp4", *plate)
    _made(rushes, "decode", "a.safetensors", "-o", "half.%04d.exr", "--colorspace", "lin_rec709")
    now, later, half = (OpenImageIO.ImageBuf(str(tmp_path / f"{name}.1003.exr")) for name in ("now", "later", "half"))
    for plate_file in (now, later):
        assert plate_file.spec().format.basetype == OpenImageIO.FLOAT
        assert plate_file.spec().getattribute("compression") == "piz"
    assert half.spec().format.basetype == OpenImageIO.HALF and half.spec().getattribute("compression") == "zip"
    values, rounded = now.get_pixels(), half.get_pixels()
    assert np.array_equal(values, later.get_pixels())
    assert not np.array_equal(values, rounded)
    # halves come from a table of the curve: one in thousands is the other neighbour of a value that lies between two
    steps = np.abs(values.astype(np.float16).view(np.int16) - rounded.astype(np.float16).view(np.int16).astype(int))
    assert steps.max() <= 1 and steps.mean() < 0.002


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
    refused = rushes("generate", "--from", "a.safetensors", "-o", "c.safetensors")
    assert refused.returncode == 2 and "not the picture" in refused.stderr
    assert not (tmp_path / "c.safetensors").exists()


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
    number: int, status: int, phase: str, tmp_path: Path, tiny_model: Path, environment: dict[str, str], tree: Tree
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
    assert not tree()


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


def test_the_starter_is_listed(rushes: Run, starter: str, nobody: Path) -> None:
    """With its defaults, and alone where no other model is found."""
    assert _made(rushes, "models").stdout.startswith("starter: ")
    (row,) = json.loads(_made(rushes, "models", "--json").stdout)
    assert row["name"] == "starter" and row["ready"] and row["bytes"] < 48_000_000 and row["frames"] == 33
    assert len(json.loads(_made(rushes, "models", "show", "starter", "--json").stdout)["words"]) > 50


def test_the_starter_makes_the_readme_shot(rushes: Run, starter: str, tmp_path: Path, tree: Tree) -> None:
    """The line of README, with every word known."""
    prompt = "a red ball rolls to the right across a desert at sunset, slow push in"
    done = _made(rushes, "generate", prompt, "-o", "shot.mp4", "-o", "plate.%04d.exr", "--steps", "4")
    assert "does not know" not in done.stderr
    files = set(tree())
    frames = json.loads(_made(rushes, "inspect", "shot.mp4", "--json").stdout)["shot"]["frames"]
    assert files == {"shot.mp4", "plate.exr.manifest.json"} | {f"plate.{1001 + frame}.exr" for frame in range(frames)}


def test_the_starter_names_unknown_words(rushes: Run, starter: str, tmp_path: Path) -> None:
    """On stderr and in the record."""
    done = _made(rushes, "generate", "a red xylophone", "-o", "a.safetensors", "--steps", "1")
    assert "the starter does not know: xylophone" in done.stderr
    assert json.loads(_made(rushes, "inspect", "a.safetensors", "--json").stdout)["unknown_words"] == ["xylophone"]


def test_what_a_shot_is_worth_is_said_once(rushes: Run, tiny_model: Path) -> None:
    """A length that the model has not seen is made, with one warning about it; a usual one without."""
    command = ["generate", PROMPT, "--model", str(tiny_model), "--steps", "1", "--overwrite", "-o", "a.mp4"]
    done = _made(rushes, *command, "--frames", "37")
    (warning,) = [line for line in done.stderr.splitlines() if "warning" in line]
    assert warning.endswith("frames: tiny was trained on up to 33 frames; expect drift in a clip of 37")
    assert "warning" not in _made(rushes, *command, "--frames", "33").stderr


def test_loras_that_are_not_on_the_model_now_are_named(rushes: Run, tmp_path: Path, tiny_model: Path) -> None:
    """ComfyUI's nodes name them in the record, and put them on in their own way."""
    _made(rushes, "generate", PROMPT, "-o", "a.safetensors", "--model", str(tiny_model))
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        record, latents = json.loads(file.metadata()["rushes"]), file.get_tensor("latents")
    record["model"]["loras"] = [{"name": "style.safetensors", "sha256": "0" * 64, "strength": 0.5}]
    save_file({"latents": latents}, tmp_path / "b.safetensors", {"rushes": json.dumps(record)})
    again = _made(rushes, "generate", "--from", "b.safetensors", "-o", "c.safetensors")
    assert "was made with LoRAs (style.safetensors), which are not on the model now" in again.stderr
    assert "--lora FILE:STRENGTH puts them on" in again.stderr


def _failing() -> Any:
    raise RuntimeError("out of memory")


def test_latents_that_took_long_outlive_a_decoder_that_fails(
    rushes: Run, tmp_path: Path, tiny_model: Path, nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named, `decode` makes the clip of them, and a run that ends well leaves none."""
    from rushes.engine import Engine

    words = ("generate", PROMPT, "--model", str(tiny_model))
    monkeypatch.setattr("rushes.commands.keeping.WORTH", 0.0)
    _made(rushes, *words, "-o", "whole.mp4")
    assert not list(nobody.rglob("*.safetensors"))
    decode = Engine.decode
    monkeypatch.setattr(Engine, "decode", lambda *_, **__: _failing())
    failed = rushes(*words, "-o", "lost.mp4")
    assert failed.returncode == 1 and not (tmp_path / "lost.mp4").exists()
    (kept,) = nobody.rglob("*.safetensors")
    assert f"the latents are kept: rushes decode {kept} -o OUT" in failed.stderr
    monkeypatch.setattr(Engine, "decode", decode)
    _made(rushes, "decode", str(kept), "-o", "later.mp4")
    assert (tmp_path / "later.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    monkeypatch.setattr("rushes.commands.keeping.WORTH", 3600.0)
    kept.unlink()
    _made(rushes, *words, "-o", "quick.mp4")
    assert not list(nobody.rglob("*.safetensors"))
