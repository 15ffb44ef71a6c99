"""The tables of the compiled word tokenizer."""

import numpy as np

from rustgpt.text.units import KINDS, default_space
from rustgpt.text.vocab import FIXED, Vocab
from rustgpt.text.word_tables import SPACES, Trie


def tokens_of(trie: Trie) -> dict[str, int]:
    """Return every token that a trie holds."""
    found, ways = {}, {0: "", 1: "##"}
    branches = sorted(trie.children[trie.children[:, 0] >= 0].tolist(), key=lambda row: row[1])
    for key, node in branches:
        ways[node] = ways[key >> 32] + chr(key & 0xFFFFFFFF)
        if trie.tokens[node] >= 0:
            found[ways[node]] = int(trie.tokens[node])
    assert len(ways) == len(trie.tokens)
    return found


def test_a_trie_holds_every_token_but_the_fixed_ones():
    words = ["sun", "sunny", "山", "\U0001f44d", "s", "\n", "über"]
    vocab = Vocab.build(dict.fromkeys(words, 1))
    expected = {token: i for i, token in enumerate(vocab.tokens) if i >= len(FIXED)}
    assert tokens_of(Trie.of(vocab.tokens)) == expected
    assert tokens_of(Trie.of(FIXED)) == {}


def test_kinds_and_spaces():
    assert len({*KINDS}) == 16
    assert np.array_equal(SPACES, [[default_space(a, b) for b in KINDS] for a in KINDS])
