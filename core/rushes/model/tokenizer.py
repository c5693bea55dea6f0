# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Prompt text to token ids: words for the starter, sentencepiece's unigrams for UMT5. One signature for both.

    encode(text) -> (ids, unknown_words)

ids end with EOS_ID and are not padded; unknown_words are what the vocabulary lacks, in the prompt's order.
"""

from __future__ import annotations

import html
import re
import struct
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ftfy

from rushes.shot import ShotError

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import normalizers

EOS_ID = 1
UNKNOWN_ID = 2
FIRST_WORD_ID = 3  # 0 is padding, see text.PAD_ID
MAX_TOKENS = 512
GGUF_PREFIX = "tokenizer.ggml."


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    def encode(self, text: str) -> tuple[list[int], list[str]]: ...


def clean_prompt(text: str) -> str:
    """Broken encodings and HTML entities (escaped twice, even) repaired, spaces collapsed, as Wan does it."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class WordTokenizer:
    """Words of a closed list, for a model trained on such a list.

    words: the vocabulary; word i has id i + 3. Lower case, no spaces, no repeats.
    truncate: cut a text of more than max_tokens; without it such a text raises ShotError.
    Case is ignored. Punctuation is dropped unless the list holds it. A joined word ("push-in", "car's") is
    looked up whole, then without 's, then in parts.
    """

    def __init__(self, words: Sequence[str], max_tokens: int = MAX_TOKENS, truncate: bool = False) -> None:
        self.words = tuple(words)
        self.max_tokens = max_tokens
        self.truncate = truncate
        self._ids: dict[str, int] = {}
        for index, word in enumerate(self.words, FIRST_WORD_ID):
            if word != word.lower() or word.split() != [word]:
                raise ValueError(f"words: got {word!r}; lower-case words without spaces are allowed")
            if self._ids.setdefault(word, index) != index:
                raise ValueError(f"words: {word!r} is there twice; each word once is allowed")

    @property
    def vocab_size(self) -> int:
        """Rows that the text encoder's embedding needs."""
        return len(self.words) + FIRST_WORD_ID

    def encode(self, text: str) -> tuple[list[int], list[str]]:
        """Ids ending with EOS_ID, and each word that the list lacks, once. ShotError for a text too long."""
        pieces = [piece for chunk in clean_prompt(text).lower().split() for piece in self._pieces(chunk)]
        ids = [self._ids.get(piece, UNKNOWN_ID) for piece in pieces]
        unknown = dict.fromkeys(piece for piece in pieces if piece not in self._ids)
        return _finish(ids, self.max_tokens, self.truncate), list(unknown)

    def _pieces(self, chunk: str) -> Iterator[str]:
        """Words and known punctuation marks of a text without spaces."""
        runs = [(is_mark, "".join(run)) for is_mark, run in groupby(chunk, _is_mark)]
        words = [index for index, (is_mark, _) in enumerate(runs) if not is_mark]
        if len(words) > 1:  # joined by inner marks
            joined = slice(words[0], words[-1] + 1)
            whole = "".join(run for _, run in runs[joined])
            known = next((word for word in (whole, whole.removesuffix("'s")) if word in self._ids), None)
            if known is not None:
                runs[joined] = [(False, known)]
        for is_mark, run in runs:
            if is_mark:
                yield from (mark for mark in run if mark in self._ids)
            else:
                yield run


class UnigramTokenizer:
    """Sentencepiece's unigram model, run by the `tokenizers` library.

    Either of two sources. A `tokenizer.json` gives what diffusers and Wan feed the encoder; the sentencepiece
    model inside ComfyUI's text encoder files gives what ComfyUI feeds it. They agree on ordinary text and
    differ on characters outside the vocabulary (bytes against one unknown token) and on a literal "</s>".
    truncate: cut a text of more than max_tokens, as Wan does; without it such a text raises ShotError.
    """

    def __init__(self, backend: tokenizers.Tokenizer, max_tokens: int = MAX_TOKENS, truncate: bool = False) -> None:
        self.max_tokens = max_tokens
        self.truncate = truncate
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()

    @classmethod
    def from_file(cls, path: str | Path, max_tokens: int = MAX_TOKENS, truncate: bool = False) -> UnigramTokenizer:
        """Read a tokenizer.json. Raises ShotError for a missing or foreign file."""
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception for all that it cannot read
            raise ShotError(f"model: {path} cannot be read ({error}); a tokenizer.json is allowed") from error
        if backend.token_to_id("</s>") != EOS_ID:
            raise ShotError(f"model: {path} is not UMT5's; a tokenizer.json whose token 1 is </s> is allowed")
        return cls(backend, max_tokens, truncate)

    @classmethod
    def from_sentencepiece(cls, model: bytes, max_tokens: int = MAX_TOKENS, truncate: bool = False) -> UnigramTokenizer:
        """Read a sentencepiece model, as `bytes(state["spiece_model"].numpy())`. ShotError if it is none."""
        try:
            backend = _unigram_backend(model)
        except (ValueError, TypeError, LookupError) as error:
            reason = str(error) if type(error) is ValueError else "it is broken off or of another kind"
            raise ShotError(f"model: its spiece_model is unusable ({reason}); a unigram model is allowed") from error
        return cls(backend, max_tokens, truncate)

    @classmethod
    def from_gguf(
        cls, notes: Mapping[str, Any], max_tokens: int = MAX_TOKENS, truncate: bool = False
    ) -> UnigramTokenizer:
        """The sentencepiece model as a GGUF file's notes have it, under `tokenizer.ggml.`. ShotError if it is none."""
        try:
            backend = _backend_of_notes({name.removeprefix(GGUF_PREFIX): value for name, value in notes.items()})
        except (ValueError, TypeError, LookupError) as error:
            raise ShotError(
                f"model: its notes on a tokenizer are unusable ({error}); a unigram model is allowed"
            ) from error
        return cls(backend, max_tokens, truncate)

    @property
    def vocab_size(self) -> int:
        """Rows that the text encoder's embedding needs."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> tuple[list[int], list[str]]:
        """Ids ending with EOS_ID, and the texts that have none, once each. ShotError for a text too long."""
        text = clean_prompt(text)
        encoding = self._backend.encode(text, add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        unknown = dict.fromkeys(text[start:end].strip() for token, (start, end) in spans if token == UNKNOWN_ID)
        return _finish(encoding.ids, self.max_tokens, self.truncate), [word for word in unknown if word]


def _finish(ids: list[int], max_tokens: int, truncate: bool) -> list[int]:
    if len(ids) + 1 > max_tokens and not truncate:
        raise ShotError(f"prompt: it has {len(ids) + 1} tokens; up to {max_tokens} are allowed, shorten it")
    return [*ids[: max_tokens - 1], EOS_ID]


def _is_mark(character: str) -> bool:
    """Punctuation and invisible characters; symbols such as emoji are words, so that they are reported."""
    return unicodedata.category(character)[0] in "PC"


# Sentencepiece's file is a protocol buffer (sentencepiece_model.proto): numbers of the fields and kinds read.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK, _UNIGRAM = 3, 35, 1
_CHARACTER_MAP, _DUMMY_PREFIX, _TRIM_SPACES = 2, 3, 4
_NORMAL, _USER_DEFINED, _BYTE = 1, 4, 6


def _unigram_backend(model: bytes) -> tokenizers.Tokenizer:
    """A `tokenizers` pipeline that gives sentencepiece's own ids. ValueError for another kind of model."""
    pieces, trainer, settings = [], {}, {}
    for number, value in _fields(model):
        if number == _PIECES:
            pieces.append(dict(_fields(value)))
        elif number == _TRAINER:
            trainer = dict(_fields(value))
        elif number == _NORMALIZER:
            settings = dict(_fields(value))
    if trainer.get(_MODEL_TYPE, _UNIGRAM) != _UNIGRAM:
        raise ValueError("it is not a unigram model")
    return _backend(
        pieces,
        has_bytes=bool(trainer.get(_BYTE_FALLBACK, False)),
        character_map=settings.get(_CHARACTER_MAP, b""),
        trims=bool(settings.get(_TRIM_SPACES, True)),
        has_prefix=bool(settings.get(_DUMMY_PREFIX, True)),
    )


def _backend_of_notes(notes: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The same from a GGUF file, which has sentencepiece's own numbers for the kinds of pieces."""
    if notes["model"] != "t5":
        raise ValueError(f"they are of {notes['model']!r}")
    rows = zip(notes["tokens"], notes["scores"], notes["token_type"], strict=True)
    pieces = [{_TEXT: text.encode(), _SCORE: score, _KIND: kind} for text, score, kind in rows]
    return _backend(
        pieces,
        has_bytes=any(piece[_KIND] == _BYTE for piece in pieces),
        character_map=bytes(number & 255 for number in notes.get("precompiled_charsmap", ())),
        trims=bool(notes.get("remove_extra_whitespaces", True)),
        has_prefix=bool(notes.get("add_space_prefix", True)),
    )


def _backend(
    pieces: Sequence[Mapping[int, Any]], *, has_bytes: bool, character_map: bytes, trims: bool, has_prefix: bool
) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import Regex, models, normalizers, pre_tokenizers

    if len(pieces) <= FIRST_WORD_ID or pieces[EOS_ID].get(_TEXT) != b"</s>":
        raise ValueError(f"its token {EOS_ID} is not </s>")
    backend = tokenizers.Tokenizer(models.Unigram(_vocabulary(pieces), UNKNOWN_ID, byte_fallback=has_bytes))
    steps: list[normalizers.Normalizer] = []
    if character_map:
        steps.append(normalizers.Precompiled(character_map))
    if trims:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    backend.normalizer = normalizers.Sequence(steps)
    prefix = "always" if has_prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    return backend


def _vocabulary(pieces: Sequence[Mapping[int, Any]]) -> list[tuple[str, float]]:
    """(text, score) per id, so that only what sentencepiece matches in text can be matched.

    Control pieces get an unmatchable text, because sentencepiece never finds them in a prompt. Byte pieces
    keep theirs, which the fallback looks up, at the lowest score: the penalty of unknowns counts from that.
    """
    normal = [piece.get(_SCORE, 0.0) for piece in pieces if piece.get(_KIND, _NORMAL) == _NORMAL]
    if not normal:
        raise ValueError("it has no pieces")
    lowest, highest = min(normal), max(normal)
    vocabulary = []
    for index, piece in enumerate(pieces):
        text, kind = str(piece[_TEXT], "utf-8"), piece.get(_KIND, _NORMAL)
        if kind == _NORMAL:
            vocabulary.append((text, piece.get(_SCORE, 0.0)))
        elif kind == _USER_DEFINED:  # sentencepiece prefers these to any split of the same text
            vocabulary.append((text, len(text) * highest - 0.1))
        else:
            vocabulary.append((text if kind == _BYTE else f"\0{index}", lowest))
    return vocabulary


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protocol buffer: integers, 32-bit floats, else bytes."""
    position = 0

    def integer() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        number, wire = divmod(integer(), 8)
        if wire == 0:
            yield number, integer()
            continue
        size = integer() if wire == 2 else {1: 8, 5: 4}[wire]
        raw = data[position : position + size]
        position += size
        if len(raw) != size:
            raise IndexError
        yield number, struct.unpack("<f", raw)[0] if wire == 5 else raw
