"""The compiled word tokenizer: what it refuses; its tokens are tested with `WordTokenizer`."""

import numpy as np
import pytest
from rustgpt._ext.words import words_encode

from rustgpt.text.vocab import Vocab
from rustgpt.text.word_tables import CODE_KINDS, FIRST_STATE, SPACES, Trie, learn_kinds

CODES = np.frombuffer("the sun \n.7".encode("utf-32-le"), np.uint32)
TRIE = Trie.of(Vocab.build({"the": 1}).tokens)


def given(**changes):
    learn_kinds(CODES)
    usual = {
        "codes": CODES, "start": 0, "state": FIRST_STATE, "kinds": CODE_KINDS, "spaces": SPACES,
        "children": TRIE.children, "tokens": TRIE.tokens, "ids": np.zeros(5 * len(CODES), np.int32),
    }  # fmt: skip
    return {**usual, **changes}


def test_what_is_refused():
    for changes, words in (
        ({"start": -1}, "start must be from 0 to 11"),
        ({"start": 12}, "start must be from 0 to 11"),
        ({"state": -1}, "state from 0 to 31"),
        ({"state": 32}, "state from 0 to 31"),
        ({"kinds": CODE_KINDS[:-1]}, "the length 1114112"),
        ({"spaces": SPACES[:-1]}, "the shape"),
        ({"spaces": SPACES[:, :-1].copy()}, "the shape"),
        ({"tokens": TRIE.tokens[:1]}, "the length 2"),
        ({"ids": np.zeros(5 * len(CODES) - 1, np.int32)}, "ids 55 at least"),
        ({"codes": np.array([116, 0x110000], np.uint32)}, "no code point"),
        ({"children": np.zeros((4, 2), np.int64)}, "a free place"),
    ):
        with pytest.raises(ValueError, match=words):
            words_encode(**given(**changes))
    for name in given():
        with pytest.raises(TypeError):
            words_encode(**given(**{name: None}))


def test_a_kind_that_is_not_known_and_a_trie_that_does_not_fit():
    kinds = np.full(0x110000, 255, np.uint8)
    assert words_encode(**given(kinds=kinds, state=9)) == (-1, 9)
    arguments = given(tokens=TRIE.tokens[:2])  # no node of it is there: all is spelled in bytes
    n, _ = words_encode(**arguments)
    assert arguments["ids"][:n].tolist()[:3] == [3 + ord(letter) for letter in "the"]


def test_nothing_to_do():
    empty = given(codes=np.empty(0, np.uint32), ids=np.empty(0, np.int32))
    assert words_encode(**empty) == (0, FIRST_STATE)
    assert words_encode(**given(start=len(CODES), state=5)) == (0, 5)
