"""What all tokenizers share."""

import numpy as np
import pytest

from rustgpt.errors import ConfigError, DataError, TokenizerError
from rustgpt.text.tokens import BYTES, PieceTokenizer, check_limit, split_texts, token_ids

PIECES = [b"", b"ab", "é".encode()[:1], "é".encode()[1:] + b"x", *BYTES]


class Pieces(PieceTokenizer):
    def __init__(self):
        super().__init__(PIECES, {0: "<end>"}, 0)


def test_pieces_that_cut_a_character():
    tokenizer = Pieces()
    assert tokenizer.decode([1, 2, 3, 1]) == "abéxab"
    stream = tokenizer.stream()
    assert [stream.push(i) for i in (1, 2, 1, 2, 0, 3)] == ["ab", "", "\ufffdab", "", "", "éx"]
    assert tokenizer.decode([1, 2]) == "ab\ufffd"
    assert tokenizer.decode([3], after=[1, 2]) == "éx"
    assert tokenizer.decode([0, 1, 0], skip_special=False) == "<end>ab<end>"
    assert [tokenizer.name(i) for i in (0, 1, 2, 3)] == ["<end>", "ab", "<0xC3>", "<0xA9><0x78>"]
    for wrong in (None, 5):
        with pytest.raises(TokenizerError, match="must be a list"):
            tokenizer.decode(wrong)


def test_texts_are_split_at_their_ends():
    assert [*split_texts(["a </s> b", "c</s>"])] == ["a", "b", "c", ""]
    for wrong in ("text", [1]):
        with pytest.raises(DataError):
            [*split_texts(wrong)]


def test_limits():
    check_limit(None, 5)
    check_limit(5, 5)
    for wrong in (4, True, "9", 9.0):
        with pytest.raises(ConfigError, match="from 5 on"):
            check_limit(wrong, 5)


def test_ids_in_an_array():
    found = token_ids([0, 4], 5)
    assert (found.tolist(), found.dtype) == ([0, 4], np.int32)
    assert token_ids([], 5).shape == (0,)
    for wrong in ([5], [-1], [0.5], [[1]], [True], ["1"], [2**70]):
        with pytest.raises(TokenizerError, match="token id"):
            token_ids(wrong, 5)
