# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Latents that took long are on disk before they are decoded: a decoder that fails costs no denoising."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rushes.commands.reporting import Reporter
from rushes.folders import user_folder

WORTH = 30.0  # seconds of denoising from which on they are kept


@contextmanager
def latents_kept(latents: Any, record: Mapping[str, Any], seconds: float, reporter: Reporter) -> Iterator[None]:
    """Keep latents that took so many seconds until the block has ended; where it fails, say where they are."""
    from rushes.media import write_latents

    if seconds < WORTH:
        yield
        return
    path = user_folder("data") / "latents" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_latents(path, latents, record)
    except OSError as error:
        reporter.warning(f"the latents could not be kept in {path} ({error.strerror or error})")
        yield
        return
    try:
        yield
    except BaseException:
        reporter.warning(f"the latents are kept: rushes decode {path} -o OUT goes on without denoising; then delete it")
        raise
    path.unlink(missing_ok=True)
