# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Digests of weight files: exact, and read once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rushes.model import bundle
from rushes.model.digests import digest

LONG_AGO = time.time_ns() - 10**12


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, nobody: Path) -> list[str]:
    """The names of files that are read whole, in a user's cache of its own."""
    seen: list[str] = []
    real = bundle.digest

    def counted(path: Path) -> str:
        seen.append(path.name)
        return real(path)

    monkeypatch.setattr(bundle, "digest", counted)
    return seen


def write(path: Path, content: bytes, changed: int = LONG_AGO) -> str:
    path.write_bytes(content)
    os.utime(path, ns=(changed, changed))
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path: Path, reads: list[str]) -> None:
    """By its size, its time, or its place on the disk."""
    path = tmp_path / "a.safetensors"
    wanted = write(path, b"abc")
    assert [digest(path) for _ in range(3)] == [wanted] * 3 and reads == ["a.safetensors"]
    assert digest(path) == wanted and len(reads) == 1
    longer = write(path, b"abcd")
    assert digest(path) == longer and len(reads) == 2
    later = write(path, b"abce", LONG_AGO + 1)
    assert digest(path) == later and len(reads) == 3
    other = write(tmp_path / "b", b"xyzw", LONG_AGO + 1)
    os.replace(tmp_path / "b", path)  # the same size and time under the same name
    assert digest(path) == other and len(reads) == 4


def test_a_file_that_was_changed_just_now_is_not_remembered(tmp_path: Path, reads: list[str]) -> None:
    """Written twice within a tick of the clock it would keep its first digest."""
    path = tmp_path / "a.safetensors"
    for content in (b"abc", b"xyz"):
        wanted = write(path, content, time.time_ns())
        assert digest(path) == wanted
    before = len(reads)
    digest(path)
    assert len(reads) == before + 1


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 1}', b"[]", b'{"version": [1, "0"], "known": {"a": 3}}'])
def test_a_damaged_memory_costs_nothing_but_time(tmp_path: Path, nobody: Path, reads: list[str], damage: bytes) -> None:
    path = tmp_path / "a.safetensors"
    wanted = write(path, b"abc")
    assert digest(path) == wanted
    (memory,) = nobody.rglob("digests.json")
    memory.write_bytes(damage)
    assert digest(path) == wanted and digest(path) == wanted
    assert len(reads) == 2 and json.loads(memory.read_text())


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, nobody: Path, reads: list[str]) -> None:
    for folder in ("cache", ".cache", "Library", "rushes"):
        (nobody / folder).write_text("a file in its place")
    path = tmp_path / "a.safetensors"
    wanted = write(path, b"abc")
    assert digest(path) == wanted


def test_files_that_are_gone_are_forgotten(tmp_path: Path, nobody: Path, reads: list[str]) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, name.encode())
        digest(tmp_path / name)
        (memory,) = nobody.rglob("digests.json")
        assert list(json.loads(memory.read_text())["known"]) == [str(tmp_path / name)]
        (tmp_path / name).unlink()


def test_an_index_stands_for_its_shards(tmp_path: Path, reads: list[str]) -> None:
    """A change in any of them, or in the index, is another digest."""
    for name in ("1", "2"):
        save_file({name: torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"1": "1.safetensors", "2": "2.safetensors"}}))
    first = digest(index)
    assert len(first) == 64
    save_file({"2": torch.ones(2)}, tmp_path / "2.safetensors")
    second = digest(index)
    index.write_text(json.dumps({"weight_map": {"1": "1.safetensors", "2": "2.safetensors"}, "metadata": {}}))
    assert len({first, second, digest(index)}) == 3


def test_a_file_that_is_gone_is_an_error_of_the_system(tmp_path: Path, reads: list[str]) -> None:
    with pytest.raises(FileNotFoundError):
        digest(tmp_path / "gone.safetensors")
