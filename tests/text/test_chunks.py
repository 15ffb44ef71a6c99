"""A text cut into chunks has the units of the whole, and the tokens."""

import random

import pytest
from hypothesis import given, settings

from rustgpt.text import chunks
from rustgpt.text.tokenizer import WordTokenizer
from rustgpt.text.units import GLUED, SPACE, Spacing, cut
from rustgpt.text.vocab import FIRST_BYTE, JOIN, SPACE_MARK

from .any_text import ANY_TEXT, HARD_TEXTS, PARTS

TOKENIZER = WordTokenizer.train(
    ["The sun, and it's warm: naïve café über e\u0301.", '山が "C++" 7,5', "going doing"]
)


def encode(text: str) -> list[int]:
    """Encode a text in one piece."""
    known, spacing, ids = TOKENIZER.vocab.ids, Spacing(), []
    for spaced, unit, first, last in cut(text):
        spelled = [known[unit]] if unit in known else TOKENIZER._spell(unit)
        if FIRST_BYTE <= spelled[0] < FIRST_BYTE + 256:
            first = GLUED
        if spaced != spacing.space_before(first):
            ids.append(known[SPACE_MARK if spaced else JOIN])
            spacing.advance(SPACE)
        spacing.advance(last)
        ids += spelled
    return ids


@settings(max_examples=500, deadline=None)
@given(ANY_TEXT)
def test_tokens_are_those_of_the_whole(text):
    assert TOKENIZER.encode(text) == encode(text)
    assert TOKENIZER.encode(text) == encode(text)  # now remembered


@pytest.mark.slow
def test_tokens_of_hard_texts():
    for text in HARD_TEXTS:
        assert TOKENIZER.encode(text) == encode(text)
    every = [*map(chr, range(0x110000))]
    for between in ("", "a", " ", "\u0301"):
        text = between.join(every[:: 1 if between == "a" else 7])
        assert TOKENIZER.encode(text) == encode(text)


@pytest.mark.parametrize("block", [1, 7, 50])
def test_blocks_and_forgetting_change_nothing(monkeypatch, block):
    monkeypatch.setattr(chunks, "BLOCK", block)
    monkeypatch.setattr(chunks, "REMEMBERED", 20)
    draw = random.Random(block)
    for _ in range(300):
        text = "".join(draw.choices(PARTS, k=40))
        found = [*chunks.word_chunks(text)]
        assert "".join(map("".join, found)) == text
        assert TOKENIZER.encode(text) == encode(text)
    assert TOKENIZER._memo._size < 20 + 300


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(chunks, "BLOCK", 100)
    monkeypatch.setattr(chunks, "REMEMBERED", 50)
    tokenizer = WordTokenizer.train(["The sun"])
    tokenizer.encode(" ".join(map(str, range(10_000))))
    assert 0 < tokenizer._memo._size < 150
    assert sum(map(len, tokenizer._memo._tables.values())) == tokenizer._memo._size
    long = "x" * (chunks.LONGEST + 1)
    tokenizer.encode(long)
    assert not any(long in table for table in tokenizer._memo._tables.values())


@given(ANY_TEXT)
@settings(deadline=None)
def test_training_counts_the_units_of_the_whole(text):
    units = {unit for _, unit, _, _ in cut(text)} - {" "}
    known = set(WordTokenizer.train([text.replace("</s>", "")]).vocab.tokens)
    if "</s>" not in text:
        assert {u for u in units if len(u) <= 32 and u.isascii() and u.isprintable()} <= known
