"""Owns how a long text is encoded in chunks whose tokens are remembered."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final

BLOCK: Final = 1 << 16  # characters, about, that are cut into chunks at once: memory stays small
REMEMBERED: Final = 1 << 16  # chunks, before the memory of them begins anew
LONGEST: Final = 64  # characters of a chunk that is remembered

# Characters that are units by themselves, each of them a letter (not a mark) of category Lo.
_IDEOGRAPHS: Final = "\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
_SIGNS: Final = r"!-/:-@\[-`{-~"  # of ASCII: units by themselves too
# Between two chunks there is always an edge of units. One space that stands alone between two
# units belongs to the chunk behind it.
_CHUNK: Final = re.compile(
    r"(?:(?<=\S) )?(?:[A-Za-z0-9]++(?![^\x00-\x7F])"  # what follows might belong to the word
    rf"|[{_SIGNS}]+|[{_IDEOGRAPHS}]|[^\s{_SIGNS}{_IDEOGRAPHS}]+)|\s"
)
# Where pieces of byte-level BPE begin whatever stands before: after other white space than one line
# break, the last of it would be another piece than at the end of a text. And chunks of words.
_EDGE: Final = re.compile(r"(?<=\w)(?= \w)|(?<=\S\n)(?=\w)")
_EDGE_OF_WORDS: Final = re.compile(rf"(?<=\w)(?= \w)|(?<=\n)(?=\w)|(?<=\w)(?=[{_IDEOGRAPHS}])")


def blocks(text: str, edge: re.Pattern[str] = _EDGE) -> Iterator[tuple[int, int]]:
    """Yield start and end of parts of a text that may be encoded one by one."""
    start = 0
    while start < len(text):
        found = edge.search(text, start + BLOCK)
        end = found.start() if found else len(text)
        yield start, end
        start = end


def word_chunks(text: str) -> Iterator[list[str]]:
    """Yield the chunks of a text, a list for each block; together they are the text."""
    for start, end in blocks(text, _EDGE_OF_WORDS):
        yield _CHUNK.findall(text, start, end)


class _Table(dict[str, "tuple[tuple[int, ...], _Table]"]):
    """What chunks become in one state: their tokens, and the table of the state behind them."""

    def __init__(self, state: Hashable) -> None:
        self.state = state


class ChunkMemo:
    """Encodes text chunk by chunk; what a chunk became in the same state is looked up.

    Parameters
    ----------
    encode
        Returns the tokens of a chunk in a state, and the state behind it.
    state
        That at the beginning of a text. There must be few different states.
    """

    def __init__(
        self, encode: Callable[[str, Any], tuple[list[int], Hashable]], state: Hashable
    ) -> None:
        self._encode = encode
        self._first = state
        self._tables: dict[Hashable, _Table] = {}
        self._size = 0

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        ids: list[int] = []
        state = self._first
        for chunks in word_chunks(text):
            if self._size > REMEMBERED:  # whoever encodes meanwhile goes on with the old tables
                self._tables, self._size = {}, 0
            state = self._encode_chunks(chunks, state, ids)
        return ids

    def _encode_chunks(self, chunks: list[str], state: Hashable, ids: list[int]) -> Hashable:
        """Append the tokens of chunks; return the state behind them."""
        tables = self._tables
        table = tables.setdefault(state, _Table(state))
        for chunk in chunks:
            found = table.get(chunk)
            if found is None:
                made, state = self._encode(chunk, table.state)
                found = tuple(made), tables.setdefault(state, _Table(state))
                if len(chunk) <= LONGEST:
                    table[chunk] = found
                    self._size += 1
            ids += found[0]
            table = found[1]
        return table.state
