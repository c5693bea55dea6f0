# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The text encoder is read only where it must be, and kept only where there is room; two experts never share it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rushes import Engine, Shot
from rushes.model import embeddings
from rushes.model.embeddings import TextCache

Make = Callable[..., Any]
SHOT = Shot("a red ball", negative="the ball", size=(64, 32), frames=5, steps=2, guidance=4.0, seed=2)
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, turned on."""
    monkeypatch.setenv("RUSHES_TEXT_CACHE", str(tmp_path / "texts"))
    return tmp_path / "texts"


def test_a_prompt_that_was_read_before_needs_no_encoder(tiny_wan: Make, folder: Path) -> None:
    """The second engine makes the same bits from what the first one kept; a new prompt reads the encoder again."""
    files = tiny_wan().files
    first = Engine.load(files, device="cpu")
    made = first.denoise(SHOT)
    assert "text" in first._modules.loaded and len(list(folder.iterdir())) == 2
    second = Engine.load(files, device="cpu")
    assert torch.equal(second.denoise(SHOT), made)
    assert second._modules.loaded == {"transformer"}
    second.denoise(SHOT.replace(prompt="a ball"))
    assert "text" in second._modules.loaded and len(list(folder.iterdir())) == 3
    assert torch.equal(second.denoise(SHOT), made)


def test_other_weights_types_and_hosts_have_other_features(tiny_wan: Make, folder: Path) -> None:
    """Nothing of one encoder, or of another type's rounding, is taken for another's; a host's are not kept at all."""
    wan = tiny_wan()
    Engine.load(wan.files, device="cpu").denoise(SHOT)
    Engine.load(wan.files, device="cpu", dtype=torch.bfloat16).denoise(SHOT)
    assert len(list(folder.iterdir())) == 4
    Engine.load(tiny_wan(text_width=32).files, device="cpu").denoise(SHOT)
    assert len(list(folder.iterdir())) == 6
    Engine.load(wan.files, device="cpu", prepare=lambda part, memory: None).denoise(SHOT.replace(prompt="to the right"))
    assert len(list(folder.iterdir())) == 6


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_entry_is_made_anew(tiny_wan: Make, folder: Path, damage: bytes | None) -> None:
    """Cut short, of something else, or in the place of a folder that takes nothing."""
    files = tiny_wan().files
    made = Engine.load(files, device="cpu").denoise(SHOT)
    for path in list(folder.iterdir()):
        path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    assert torch.equal(Engine.load(files, device="cpu").denoise(SHOT), made)
    assert all(path.stat().st_size > 100 for path in folder.iterdir())


def test_a_cache_that_cannot_be_written_is_no_error(
    tiny_wan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RUSHES_TEXT_CACHE", str(tmp_path / "file" / "below"))
    made = Engine.load(tiny_wan().files, device="cpu").denoise(SHOT)
    assert torch.isfinite(made).all()


def test_the_cache_has_an_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used longest ago goes; entries are as long as their prompts, and come back with the rows asked for."""
    features = torch.randn(1, 12, 40)
    features[:, 5:] = 0
    cache = TextCache(folder, "ab", CPU, torch.float32)
    monkeypatch.setattr(embeddings, "MAX_BYTES", 3500)
    for first in range(3):
        cache.keep([first, 2, 3, 4, 1], features)
    assert cache.find([0, 2, 3, 4, 1], 12) is not None  # used again
    cache.keep([3, 2, 3, 4, 1], features)
    kept = [cache.find([first, 2, 3, 4, 1], 12) for first in range(4)]
    assert [found is not None for found in kept] == [True, False, True, True]
    assert kept[0] is not None and torch.equal(kept[0], features)
    assert cache.find([0, 2, 3, 4, 1], 3) is None and cache.find([], 12) is None
    assert TextCache(folder, "ab", CPU, torch.bfloat16).find([0, 2, 3, 4, 1], 12) is None


def test_it_lies_in_the_users_cache_unless_it_is_off(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embeddings.text_cache_folder() is None
    monkeypatch.delenv("RUSHES_TEXT_CACHE")
    assert embeddings.text_cache_folder() == nobody / "cache" / "rushes" / "text"


@pytest.mark.parametrize(("room", "stays"), [(10**15, True), (10**6, False), (None, True)])
def test_the_encoder_goes_where_memory_is_short(
    tiny_wan: Make, monkeypatch: pytest.MonkeyPatch, room: int | None, stays: bool
) -> None:
    """Before the transformer is read; with room for both it stays for the next shot, with the same bits."""
    monkeypatch.setattr("rushes.model.placement.device_bytes", lambda device: room)
    engine = Engine.load(tiny_wan().files, device="cpu")
    made = engine.denoise(SHOT)
    assert ("text" in engine._modules.loaded) == stays
    assert torch.equal(engine.denoise(SHOT), made)


MEASURE = """
import sys
import torch
from rushes import Engine, Shot
from rushes.model.files import ModelFiles

torch.set_num_threads(1)
paths = sys.argv[1:]
engine = Engine.load(ModelFiles(*paths[:3], transformer_low=paths[3]), device="cpu")
engine._modules.vae

def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kilobytes("VmRSS")
engine.denoise(Shot("a red ball", negative="", size=(32, 32), frames=1, steps=4, guidance=1.0, seed=2))
print(kilobytes("VmHWM") - before, ",".join(sorted(engine._modules.loaded)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak of a process's memory")
def test_two_experts_take_the_memory_of_one(tiny_wan: Make, environment: dict[str, str]) -> None:
    """Measured in a process of its own: two of some 250 MB in float32, read from files in bfloat16."""
    from safetensors.torch import load_file, save_file

    names = ("mid_high_noise", "mid_low_noise")
    wan = tiny_wan(names=names, heads=8, dim=1024, ffn_dim=4096, layers=4)
    for path in (wan.files.transformer, wan.files.transformer_low):
        save_file(
            {name: t.bfloat16() for name, t in load_file(path).items()}, path, {"config": '{"num_attention_heads": 8}'}
        )
    size = sum(t.numel() * 4 for t in wan.states["transformer"].values()) / 1024
    paths = [wan.files.transformer, wan.files.text, wan.files.vae, wan.files.transformer_low]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    peak, loaded = done.stdout.split()
    print(f"\none expert: {size / 1024:.0f} MB; peak over what was there before: {int(peak) / 1024:.0f} MB")
    assert loaded == "text,transformer_low,vae"
    assert size > 200 * 1024 and int(peak) < 1.8 * size  # one, and the file it comes from
