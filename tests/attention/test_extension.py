# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The compiled module: what it says of the processor, and what is said when it is not there."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import rushes
from rushes.attention import extension
from rushes.attention.extension import load_extension

NAMES = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_bf16", "amx_int8"]
NAMES += ["neon"]


@pytest.fixture
def fresh() -> Iterator[None]:
    """load_extension() without the answer of an earlier call, before and after."""
    load_extension.cache_clear()
    yield
    load_extension.cache_clear()


@pytest.fixture
def kernel() -> object:
    """The compiled module; skips where this install has none (.ci/run refuses a wheel without it)."""
    found = load_extension()
    if found.module is None:
        pytest.skip(found.reason)
    return found.module


def test_it_names_instruction_sets_and_build(kernel: object) -> None:
    """Every name with a plain bool; the version is the package's."""
    features = kernel.cpu_features()  # type: ignore[attr-defined]
    assert list(features) == NAMES and all(type(value) is bool for value in features.values())
    info = kernel.build_info()  # type: ignore[attr-defined]
    assert info["version"] == rushes.__version__
    assert info["compiler"].split()[0] in ("GCC", "Clang", "MSVC")
    assert info["architecture"] in ("x86_64", "x86", "arm64", "arm", "other")


def test_instruction_sets_agree_with_the_operating_system(kernel: object) -> None:
    """Linux tells the same in /proc/cpuinfo, read there by code that is not ours."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo of an x86 processor here")
    flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    features = kernel.cpu_features()  # type: ignore[attr-defined]
    assert {name: features[name] for name in NAMES[:-1]} == {name: name in flags for name in NAMES[:-1]}
    assert not features["neon"]


def test_implied_instruction_sets_hold(kernel: object) -> None:
    """AVX-512 BF16 without AVX-512 F, or both architectures at once, would be a wrong bit read."""
    features = kernel.cpu_features()  # type: ignore[attr-defined]
    assert features["avx512f"] or not features["avx512_bf16"]
    assert features["avx2"] or not features["avx512f"]
    assert not (features["neon"] and any(features[name] for name in NAMES[:-1]))


def test_a_missing_module_is_explained(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pure install says that nothing was built and how to change it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = load_extension()
    assert found.module is None and "not built" in found.reason and "pip install" in found.reason
    assert load_extension() is found, "asked once"


def test_a_broken_module_is_explained(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of another Python or system says what the loader said, and where."""

    def refuse(name: str) -> None:
        raise ImportError("wrong ELF class")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(extension.importlib, "import_module", refuse)
    found = load_extension()
    assert found.module is None
    assert "wrong ELF class" in found.reason and platform.python_version() in found.reason


def test_a_module_of_another_version_is_refused(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left over from another install, it would be given arguments that it does not know."""
    old = SimpleNamespace(build_info=lambda: {"version": "0.0.1"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(extension.importlib, "import_module", lambda name: old)
    found = load_extension()
    assert found.module is None
    assert "version 0.0.1" in found.reason and rushes.__version__ in found.reason
