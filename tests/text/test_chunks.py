"""Where a text may be cut: into blocks that are encoded one by one, and into chunks of words."""

import random

import pytest
from hypothesis import given, settings

from rustgpt.text import chunks
from rustgpt.text.tokenizer import WordTokenizer
from rustgpt.text.units import cut

from .any_text import ANY_TEXT, PARTS


@pytest.mark.parametrize("block", [1, 7, 50])
def test_chunks_are_the_text_and_edges_of_units(monkeypatch, block):
    monkeypatch.setattr(chunks, "BLOCK", block)
    draw = random.Random(block)
    for _ in range(300):
        text = "".join(draw.choices(PARTS, k=40))
        found = [*chunks.word_chunks(text)]
        assert "".join(map("".join, found)) == text


@given(ANY_TEXT)
@settings(deadline=None)
def test_training_counts_the_units_of_the_whole(text):
    units = {unit for _, unit, _, _ in cut(text)} - {" "}
    known = set(WordTokenizer.train([text.replace("</s>", "")]).vocab.tokens)
    if "</s>" not in text:
        assert {u for u in units if len(u) <= 32 and u.isascii() and u.isprintable()} <= known


def test_a_long_chunk_gives_its_letters_and_units():
    word, signs = "ж" * 40 + "é" * 40, "!?" * 40
    tokens = {*WordTokenizer.train([f"sun {word} {signs} {'x' * 33}"]).vocab.tokens}
    assert {"sun", "ж", "##ж", "é", "##é", "!", "?"} <= tokens
    assert not [token for token in tokens if len(token) > 7 or "xx" in token]
