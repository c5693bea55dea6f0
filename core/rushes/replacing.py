# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Files that appear whole or not at all, in the place of an older one, whatever room writes them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HIDDEN_LENGTH = 60  # characters of a name that its temporary name repeats
FOR_ALL = 0o644  # a mode for what safetensors has written, whose files only their owner reads otherwise


@contextmanager
def replacing(path: Path, mode: int | None = None) -> Iterator[Path]:
    """A name beside `path` to write to, which takes its place at the end; after an exception nothing is left.

    mode: of the file then; None for that which its writer has given it.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
        if mode is not None:
            temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """A hidden name that nobody else uses; of a long name only the start, as file systems have a limit."""
    return f"{hidden_start(name)}{os.getpid()}-{secrets.token_hex(4)}"


def hidden_start(name: str) -> str:
    """How every temporary name of a name begins."""
    return f".{name[:HIDDEN_LENGTH]}.rushes-"
