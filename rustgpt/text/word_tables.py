"""Owns what the compiled word tokenizer looks up: kinds of characters, expected spaces, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rustgpt.text.pairs import Table, pair_table
from rustgpt.text.units import KINDS, NEWLINE, default_space, kinds_of
from rustgpt.text.vocab import FIXED, PIECE

FIRST_STATE: Final = 2 * KINDS.index(NEWLINE)  # of `Spacing`, at the beginning of a text
_UNKNOWN: Final = 255
# The kind of each code point, or 255 where none of a text has been met yet.
CODE_KINDS: Final = np.full(0x110000, _UNKNOWN, np.uint8)
SPACES: Final = np.array([[default_space(a, b) for b in KINDS] for a in KINDS], np.uint8)


def learn_kinds(codes: NDArray[np.uint32]) -> None:
    """Note the kinds of those code points of a text that have none yet."""
    new = np.unique(codes)
    new = new[CODE_KINDS[new] == _UNKNOWN]
    CODE_KINDS[new] = [KINDS.index(kind) for kind in kinds_of("".join(map(chr, new.tolist())))]


class Trie(NamedTuple):
    """The tokens that text is spelled with, as a tree whose branches are characters.

    Node 0 is where a word begins, node 1 where a piece does that continues it.

    Attributes
    ----------
    children
        Of a node and a character, the node behind it; see `pair_table`.
    tokens
        (nodes,) the token that ends at each node, or -1.
    """

    children: Table
    tokens: NDArray[np.int32]

    @classmethod
    def of(cls, tokens: Sequence[str]) -> Trie:
        """Return the trie of a vocabulary's tokens but for the fixed ones, level by level."""
        order = sorted(range(len(FIXED), len(tokens)), key=tokens.__getitem__)
        texts = [tokens[i].removeprefix(PIECE) for i in order]
        lengths = np.array([*map(len, texts)], np.int64)  # (n,)
        begins = np.cumsum(lengths) - lengths  # (n,)
        codes = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4").astype(np.int64)
        # The node that each token has come to, one character after the other.
        node = np.array([tokens[i].startswith(PIECE) for i in order], np.int64)
        branches, firsts = [np.empty(0, np.int64)], [np.arange(-2, 0)]
        n_nodes = 2
        for at in range(lengths.max(initial=0)):
            going = np.flatnonzero(lengths > at)
            branch = node[going] << 32 | codes[begins[going] + at]
            new, first, of = np.unique(branch, return_index=True, return_inverse=True)
            node[going] = n_nodes + of
            branches.append(new)
            firsts.append(going[first])
            n_nodes += len(new)
        # Numbered anew, so that the nodes of one word follow each other.
        number = np.empty(n_nodes, np.int64)
        number[np.argsort(np.concatenate(firsts), kind="stable")] = np.arange(n_nodes)
        ends = np.full(n_nodes, -1, np.int32)
        ends[number[node]] = order
        keys = np.concatenate(branches)
        table = pair_table(number[keys >> 32], keys & 0xFFFFFFFF, number[2:], near=True)
        return cls(table, ends)
