# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The tokenizer of a text encoder's file: inside it, as ComfyUI's and GGUF's files have it, or beside it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from rushes.model.checkpoint import strip_prefix
from rushes.model.reading import Header, load_state, read_notes
from rushes.model.tokenizer import GGUF_PREFIX, UnigramTokenizer

SPIECE = "spiece_model"  # sentencepiece's model, as ComfyUI's text encoder files carry it


def has_tokenizer(header: Header) -> bool:
    """Whether a text encoder's file brings its own: ComfyUI's in a tensor, GGUF in its notes."""
    return SPIECE in strip_prefix(header.shapes).values() or f"{GGUF_PREFIX}model" in header.metadata


def read_tokenizer(text: Path, max_tokens: int) -> UnigramTokenizer:
    """The file's own, else the tokenizer.json beside it. Raises ShotError where neither can be read."""
    if text.suffix == ".gguf" and f"{GGUF_PREFIX}model" in (notes := read_notes(text)):
        return UnigramTokenizer.from_gguf(notes, max_tokens)
    state = load_state(text)
    inside = next((name for name, bare in strip_prefix(state).items() if bare == SPIECE), None)
    pieces = state[inside] if inside is not None else None
    if isinstance(pieces, Tensor):
        return UnigramTokenizer.from_sentencepiece(bytes(pieces.numpy()), max_tokens)
    return UnigramTokenizer.from_file(tokenizer_file(text) or text.with_name("tokenizer.json"), max_tokens)


def tokenizer_file(text: Path) -> Path | None:
    """tokenizer.json in the text encoder's folder, or where Wan's and diffusers' folders have it."""
    places = (text.parent, text.parent / "google" / "umt5-xxl", text.parent.parent / "tokenizer")
    return next((path for place in places if (path := place / "tokenizer.json").is_file()), None)
