# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Fixtures of the sampling tests."""

from __future__ import annotations

import os
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def diffusers() -> ModuleType:
    """The foreign implementation. Missing, it skips; with RUSHES_REQUIRE_PARITY=1 it fails instead."""
    if os.environ.get("RUSHES_REQUIRE_PARITY") == "1":
        import diffusers

        return diffusers
    return pytest.importorskip("diffusers")
