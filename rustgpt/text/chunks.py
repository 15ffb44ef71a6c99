"""Owns where a long text may be cut: into blocks, and blocks into chunks of words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

BLOCK: Final = 1 << 16  # characters, about, that are cut into chunks at once: memory stays small
LONGEST: Final = 64  # characters of a chunk that is counted as it is

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
EDGE_OF_WORDS: Final = re.compile(rf"(?<=\w)(?= \w)|(?<=\n)(?=\w)|(?<=\w)(?=[{_IDEOGRAPHS}])")


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
    for start, end in blocks(text, EDGE_OF_WORDS):
        yield _CHUNK.findall(text, start, end)
