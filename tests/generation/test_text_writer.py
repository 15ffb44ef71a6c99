"""Tests of text that comes out while it is made."""

import numpy as np
import pytest

from rustgpt.generation.text_writer import TextWriter
from rustgpt.text.bpe_tokenizer import BpeTokenizer
from rustgpt.text.char_tokenizer import ByteTokenizer, CharTokenizer
from rustgpt.text.word_tokenizer import WordTokenizer

WORDS = [
    "The", "sun", " ", "  ", "\n", "rises", ".", "é", "雨下得很大", "我", "。", "🙂", "1.5", '"',
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "User:", "don't", "\t",
    "e\u0301", "\uffff", "~",
]  # fmt: skip


class Given:
    """A stream that gives out pieces as they are."""

    def push(self, piece):
        return piece

    def finish(self):
        return ""


def written(pieces, stop=(), strip=False):
    writer = TextWriter(Given(), stop, strip)
    found = []
    for piece in pieces:
        found.append(writer.push(piece))
        if writer.stopped:
            break
    return [*found, writer.finish()]


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["ab", "cd"], [], ["ab", "cd", ""]),
        (["ab", "cd"], ["x"], ["ab", "cd", ""]),
        (["ab", "cd"], ["bc"], ["a", "", ""]),
        (["ab", "xd"], ["bc"], ["a", "bxd", ""]),
        (["ab"], ["bc"], ["a", "b"]),  # what was held back comes at the end
        (["a", "a", "a", "b"], ["aab"], ["", "", "a", "", ""]),
        (["abab", "ac"], ["abac"], ["ab", "", ""]),
        (["xabcy"], ["abc", "b"], ["xa", ""]),  # what is complete first
        (["xab", "cy"], ["abc", "b"], ["xa", ""]),
        (["one\n", "\ntwo"], ["\n\n"], ["one", "", ""]),
        (["stop"], ["stop"], ["", ""]),
        (["雨下"], ["下得"], ["雨", "下"]),
    ],
)
def test_stop_strings(pieces, stop, expected):
    assert written(pieces, stop) == expected


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([" a", " ", "b", " \n", "c", "\n"], ["a", "", " b", "", " \nc", "", ""]),
        ([" ", "\n", "a "], ["", "", "a", ""]),
        ([" ", " "], ["", "", ""]),
    ],
)
def test_white_space_at_both_ends_may_be_left_out(pieces, expected):
    assert written(pieces, strip=True) == expected
    assert "".join(expected) == "".join(pieces).strip()


def any_text(rng):
    words = rng.choice(WORDS, rng.integers(0, 12))
    return "".join(words) if rng.random() < 0.5 else " ".join(words)


LEARNED = ["The sun rises. 雨下得很大。 User: don't 1.5 🙂 é"]
TOKENIZERS = {
    "word": lambda: WordTokenizer.train(LEARNED),
    "char": lambda: CharTokenizer.train(LEARNED),
    "byte": ByteTokenizer,
    "bpe": lambda: BpeTokenizer.train(LEARNED, 300),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_streamed_text_is_the_whole_text(name):
    """On 10,000 texts: their own tokens, and any tokens; with stop strings and without."""
    tokenizer, rng = TOKENIZERS[name](), np.random.default_rng(5)
    for i in range(2_500):
        prompt = tokenizer.encode(any_text(rng))
        ids = tokenizer.encode(text := any_text(rng))
        if i % 2:
            ids = rng.integers(0, tokenizer.vocab_size, rng.integers(0, 30)).tolist()
        whole = tokenizer.decode(ids, after=prompt)
        if i % 2 == 0 and not prompt:
            assert whole == text
        stop = rng.choice([*WORDS[:4], "。", "🙂", "s. ", "下得"], rng.integers(0, 3)).tolist()
        strip = bool(rng.integers(2))
        writer = TextWriter(tokenizer.stream(after=prompt), stop, strip)
        pieces = []
        for token in ids:
            pieces.append(writer.push(token))
            if writer.stopped:
                break
        pieces.append(writer.finish())
        ends = [(whole.index(s) + len(s), whole.index(s)) for s in stop if s in whole]
        expected = whole[: min(ends)[1]] if ends else whole
        assert "".join(pieces) == (expected.strip() if strip else expected)
        assert writer.stopped == bool(ends)
        if i % 2 == 0:
            assert "�" not in "".join(pieces)
