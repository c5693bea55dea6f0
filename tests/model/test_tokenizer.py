# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Prompt cleaning and the two tokenizers, the unigram one against sentencepiece and transformers."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import pytest

from rushes.model.tokenizer import UnigramTokenizer, WordTokenizer, clean_prompt
from rushes.shot import ShotError

WORDS = ["a", "red", "ball", "car", "rolls", "left", "push-in", "slow", "motion", ",", "it's"]
SENTENCE = (
    "a red ball rolls to the left over wet sand while the camera pans right at sunset and waves crash, "
    "close-up; film grain 35mm f/2.8 (wide) ein Hund läuft über die Straße 一只红色的球 в лесу идёт снег café"
)
SOME_WORDS = SENTENCE.split()


def ids(*words: str) -> list[int]:
    return [WORDS.index(word) + 3 for word in words]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a  red\n\tball ", "a red ball"),
        (
            "caf\u00c3\u00a9 at &amp;lt;night&amp;gt;",
            "café at <night>",
        ),  # UTF-8 read as Latin-1, HTML escaped twice
        ("\u201ccurly\u201d", '"curly"'),
        ("wide\u00a0\u3000shot", "wide shot"),  # no-break and ideographic spaces
        (" \n ", ""),
    ],
)
def test_prompts_are_cleaned_as_wan_cleans_them(text: str, clean: str) -> None:
    """Broken encodings, entities, quotes and spaces."""
    assert clean_prompt(text) == clean


@pytest.mark.parity
def test_cleaning_equals_diffusers() -> None:
    """diffusers' own function, on noise of letters, spaces and entities."""
    wan = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan")
    draw = random.Random(1)
    parts = [
        "ball",
        " ",
        "\n",
        "&amp;",
        "&amp;lt;b&amp;gt;",
        "Ã©",
        "\u00a0",
        "’",
        "🎬",
        "Ｆ",
        "</s>",
        "\u200b",
    ]
    for _ in range(300):
        text = "".join(draw.choices(parts, k=draw.randint(0, 12)))
        assert clean_prompt(text) == wan.prompt_clean(text)


@pytest.mark.parametrize(
    ("text", "expected", "unknown"),
    [
        ("A RED ball", ids("a", "red", "ball"), []),
        (
            "a blue ball, a blue car",
            [*ids("a"), 2, *ids("ball", ",", "a"), 2, *ids("car")],
            ["blue"],
        ),  # said once
        ("“ball!” (rolls).", ids("ball", "rolls"), []),  # unlisted punctuation is dropped
        ("slow-motion push-in", ids("slow", "motion", "push-in"), []),  # parts, or whole if listed
        ("the car's left; it's", [2, *ids("car", "left", "it's")], ["the"]),
        ("ball 🎬 $5", [*ids("ball"), 2, 2], ["🎬", "$5"]),  # symbols are no punctuation
        ("rolls/slides", [*ids("rolls"), 2], ["slides"]),
        ("", [], []),
        ("... !?", [], []),
    ],
)
def test_words_are_looked_up_and_missing_ones_reported(text: str, expected: list[int], unknown: list[str]) -> None:
    """Ids in order, UNKNOWN_ID for a missing word, and the end id."""
    assert WordTokenizer(WORDS).encode(text) == ([*expected, 1], unknown)


def test_every_word_of_the_list_is_found_by_itself() -> None:
    """Hyphens, apostrophes and listed punctuation included; the vocabulary holds three ids more."""
    tokenizer = WordTokenizer(WORDS)
    assert [tokenizer.encode(word) for word in WORDS] == [([number + 3, 1], []) for number in range(len(WORDS))]
    assert tokenizer.vocab_size == len(WORDS) + 3


@pytest.mark.parametrize("words", [["Ball"], ["red ball"], [""], ["ball", "car", "ball"]])
def test_a_list_that_could_not_be_matched_is_refused(words: list[str]) -> None:
    """Capitals, spaces, nothing, and repeats."""
    with pytest.raises(ValueError, match="words: "):
        WordTokenizer(words)


def test_a_long_prompt_is_refused_or_cut_as_asked() -> None:
    """max_tokens counts the end; without truncate nothing is dropped in silence."""
    text = "ball " * 8
    assert len(WordTokenizer(WORDS, max_tokens=9).encode(text)[0]) == 9
    with pytest.raises(ShotError, match="prompt: it has 9 tokens; up to 8"):
        WordTokenizer(WORDS, max_tokens=8).encode(text)
    assert WordTokenizer(WORDS, max_tokens=4, truncate=True).encode(text)[0] == [*ids("ball") * 3, 1]


def field(number: int, value: bytes | float | int) -> bytes:
    """One protocol buffer field, as the format's page describes it."""

    def varint(n: int) -> bytes:
        return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])

    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def sentencepiece_model(pieces: list[tuple[str, float, int]], byte_fallback: bool = False, kind: int = 1) -> bytes:
    """A model file from (text, score, type) triples."""
    parts = [field(1, field(1, text.encode()) + field(2, score) + field(3, type_)) for text, score, type_ in pieces]
    return b"".join(parts) + field(2, field(3, kind) + field(35, int(byte_fallback))) + field(3, field(1, b"identity"))


SPECIAL = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
LETTERS = [(letter, -5.0, 1) for letter in "▁abelr</s>"]
BYTES = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]


def test_the_best_scoring_split_is_taken_from_a_model_in_memory() -> None:
    """Hand-made pieces: one long piece beats letters, two short ones beat a dearer long one."""
    pieces = [*SPECIAL, *LETTERS, ("▁ball", -8.0, 1), ("▁re", -3.0, 1), ("▁reb", -9.5, 1), ("[X]", 0.0, 4)]
    tokenizer = UnigramTokenizer.from_sentencepiece(sentencepiece_model(pieces))
    names = [text for text, _, _ in pieces]

    def split(text: str) -> list[str]:
        return [names[token] for token in tokenizer.encode(text)[0]]

    assert split("ball") == ["▁ball", "</s>"]
    assert split("reb") == ["▁re", "b", "</s>"]
    assert split("ball[X]") == ["▁ball", "[X]", "</s>"]
    assert split("</s>") == ["▁", "<", "/", "s", ">", "</s>"]  # the text </s> is not the end
    assert split("") == ["</s>"]
    assert tokenizer.encode("ball z ball 🎬 z") == (
        [*(names.index(name) for name in ("▁ball", "▁")), 2, names.index("▁ball"), names.index("▁"), 2,
         names.index("▁"), 2, 1], ["z", "🎬"],
    )  # fmt: skip


def test_bytes_stand_for_characters_outside_the_vocabulary() -> None:
    """With byte fallback nothing is unknown."""
    tokenizer = UnigramTokenizer.from_sentencepiece(
        sentencepiece_model([*SPECIAL, *LETTERS, *BYTES], byte_fallback=True)
    )
    first = len(SPECIAL) + len(LETTERS)
    assert tokenizer.encode("🎬") == ([3, *(first + byte for byte in "🎬".encode()), 1], [])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (b"", "token 1 is not </s>"),
        (b"\x0a\xff\xff", "broken off"),
        (b"not a model at all", "unusable"),
        (sentencepiece_model([*SPECIAL, *LETTERS])[:40], "broken off"),
        (sentencepiece_model([*SPECIAL, *LETTERS], kind=2), "not a unigram model"),
        (sentencepiece_model([*SPECIAL[1:], *LETTERS]), "token 1"),
        (sentencepiece_model([*SPECIAL, *BYTES]), "no pieces"),
    ],
)
def test_a_broken_or_foreign_sentencepiece_model_is_refused(model: bytes, words: str) -> None:
    """Cut off, random, another algorithm, another order of the special tokens, empty."""
    with pytest.raises(ShotError, match=words):
        UnigramTokenizer.from_sentencepiece(model)


def train(byte_fallback: bool, size: int) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    draw = random.Random(3)
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(draw.choices(SOME_WORDS, k=12)) for _ in range(600)]),
        model_writer=buffer, vocab_size=size, hard_vocab_limit=False, model_type="unigram", minloglevel=2,
        byte_fallback=byte_fallback, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, user_defined_symbols=["[CUT]"],
    )  # fmt: skip
    return buffer.getvalue()


def prompts(count: int) -> list[str]:
    """Prompts of known and unknown words, and of loose characters in any order."""
    draw = random.Random(4)
    odd = [
        "🎬",
        "</s>",
        "<unk>",
        "[CUT]",
        "x[CUT]y",
        "zzzq",
        "①",
        "日本語",
        "½",
        "ﬁne",
        "Ｆｕｌｌ",
        "\u200b",
        "ﾊﾟ",
    ]
    letters = "abcdefghij  .,;:é½ﬁＦ一球ж🎬✨\u00a0\u3000</s><unk>[CUT]①가각"
    return [
        " ".join(draw.choices(SOME_WORDS + odd, k=draw.randint(0, 9)))
        if number % 2
        else "".join(draw.choices(letters, k=draw.randint(0, 14)))
        for number in range(count)
    ]


@pytest.mark.parity
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_ids_equal_sentencepiece(byte_fallback: bool) -> None:
    """A model trained on the spot; 1500 prompts, half of them noise."""
    model = train(byte_fallback, size=500 if byte_fallback else 250)
    reference = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=model)
    tokenizer = UnigramTokenizer.from_sentencepiece(model)
    for text in prompts(1500):
        assert tokenizer.encode(text)[0] == [*reference.encode(clean_prompt(text)), 1], text


@pytest.mark.parity
def test_ids_of_a_tokenizer_file_equal_transformers(tmp_path: Path) -> None:
    """tokenizer.json as transformers' T5 tokenizer writes it, padding and truncation set in it or not."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "spiece.model").write_bytes(train(byte_fallback=False, size=250))
    reference = transformers.AutoTokenizer.from_pretrained(_as_t5(tmp_path))
    reference("sets padding and truncation", padding="max_length", truncation=True, max_length=5)
    reference.save_pretrained(tmp_path / "saved")
    tokenizer = UnigramTokenizer.from_file(tmp_path / "saved" / "tokenizer.json")
    for text in prompts(600):
        expected = reference(clean_prompt(text), truncation=True, max_length=512).input_ids
        assert tokenizer.encode(text)[0] == expected, text


def _as_t5(folder: Path) -> Path:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    return folder


def test_a_missing_or_foreign_tokenizer_file_is_refused(tmp_path: Path) -> None:
    """The sentence names the file."""
    with pytest.raises(ShotError, match=r"tokenizer\.json"):
        UnigramTokenizer.from_file(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ShotError, match=r"tokenizer\.json"):
        UnigramTokenizer.from_file(tmp_path / "tokenizer.json")
