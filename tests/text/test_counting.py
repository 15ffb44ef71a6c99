"""Counts of parts of text: exact while they are few, bounded when they are many."""

import random
from collections import Counter

import pytest

from rustgpt.text import counting
from rustgpt.text.char_tokenizer import CharTokenizer
from rustgpt.text.counting import count_parts, most_frequent
from rustgpt.text.word_tokenizer import WordTokenizer


def test_exact_while_they_are_few():
    blocks = [["a", "b", "a"], [], ["b", "c", "a"]]
    assert count_parts(blocks) == Counter(a=3, b=2, c=1)
    assert count_parts([[b"a"], [b"a"]]) == {b"a": 2}
    assert count_parts([]) == {}


def test_the_most_frequent_and_of_equal_ones_those_seen_first():
    counts = Counter({"x": 1, "a": 5, "y": 1, "b": 7, "z": 1})
    for n, names in ((0, ""), (1, "b"), (2, "ab"), (3, "xab"), (4, "xayb"), (9, "xaybz")):
        assert [*most_frequent(counts, n)] == [*names]
    assert most_frequent(counts, 2) == {"a": 5, "b": 7}


def test_many_are_bounded_and_what_is_frequent_keeps_its_count(monkeypatch):
    monkeypatch.setattr(counting, "MOST", 100)
    draw = random.Random(0)
    largest = 0

    def blocks():
        for i in range(500):
            block = [f"rare{i}-{j}" for j in range(20)] + ["the"] * 5 + ["of"] * 3
            draw.shuffle(block)
            yield block

    kept = counting.most_frequent

    def watched(counts, n):
        nonlocal largest
        largest = max(largest, len(counts))
        return kept(counts, n)

    monkeypatch.setattr(counting, "most_frequent", watched)
    counts = count_parts(blocks())
    assert counts["the"] == 2500
    assert counts["of"] == 1500
    assert len(counts) <= 100
    assert 100 < largest < 150
    draw = random.Random(0)
    assert [*count_parts(blocks()).items()] == [*counts.items()]


def test_long_parts_are_bounded_too(monkeypatch):
    monkeypatch.setattr(counting, "LARGEST", 1000)
    counts = count_parts([f"{i:090}", "the"] for i in range(100))
    assert counts["the"] == 100
    assert sum(map(len, counts)) <= 1100
    assert count_parts([["x" * 5000]]) == {}


@pytest.mark.parametrize("kind", [WordTokenizer, CharTokenizer])
def test_tokenizers_of_more_words_than_are_counted(monkeypatch, kind):
    monkeypatch.setattr(counting, "MOST", 200)
    texts = [f"the sun and a moon{i} {chr(0x4E00 + i)} " + "the sun " * 9 for i in range(500)]
    tokenizer = kind.train(iter(texts), 1000)
    assert tokenizer.to_json() == kind.train(texts, 1000).to_json()
    if kind is WordTokenizer:
        assert {"the", "sun", "and"} <= set(tokenizer.vocab.tokens)
        assert tokenizer.vocab_size < 259 + 2 * 62 + 500
    text = texts[7] + "moonlight"
    assert tokenizer.decode(tokenizer.encode(text)) == text
