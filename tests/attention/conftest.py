# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""A test that takes `isa` and `precision` runs on each instruction set that serves here, not only the chosen one."""

from __future__ import annotations

import pytest

from rushes.attention import kernel
from rushes.attention.extension import load_extension

ENGINES = [
    ("portable", "fp32"), ("avx2", "fp32"), ("avx512", "fp32"), ("avx512_bf16", "bf16"), ("amx_bf16", "bf16"),
]  # fmt: skip


def _serving() -> list[tuple[str, str]]:
    return [(isa, precision) for isa, precision in ENGINES if kernel.backend_name(64, "float32", precision, isa)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"isa", "precision"} <= set(metafunc.fixturenames) and load_extension().module is not None:
        metafunc.parametrize(("isa", "precision"), _serving())


@pytest.fixture
def serving() -> list[tuple[str, str]]:
    """(instruction set, precision), slowest first, of all that serve here."""
    return _serving()
