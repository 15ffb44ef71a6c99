"""Owns counts of the parts of any amount of text, in memory that is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import compress
from typing import Final, TypeVar

import numpy as np

Part = TypeVar("Part", str, bytes)

MOST: Final = 1 << 20  # different parts
LARGEST: Final = 1 << 24  # characters or bytes of all different parts


def count_parts(blocks: Iterable[list[Part]]) -> Counter[Part]:
    """Return how often each part occurs.

    Whenever there are more than a million different ones (2^20), or they have more than 16 million
    characters (2^24), the rarer half is dropped; of equally rare ones those that were seen later.
    One that returns is counted anew. So what is frequent keeps its count or nearly so, and the same
    texts in the same order give the same counts.

    Parameters
    ----------
    blocks
        The parts, a list for each of the small blocks that the text is read in.
    """
    counts: Counter[Part] = Counter()
    size = 0  # characters of all different parts, or more
    for block in blocks:
        counts.update(block)
        size += sum(map(len, block))
        if len(counts) > MOST or size > LARGEST:
            size = sum(map(len, counts))
            while len(counts) > MOST or size > LARGEST // 2:
                counts = most_frequent(counts, len(counts) // 2)
                size = sum(map(len, counts))
    return counts


def most_frequent(counts: Counter[Part], n: int) -> Counter[Part]:
    """Return the n most frequent parts, in the order in which they were seen first.

    Of equally frequent ones those seen first are taken. Unlike `Counter.most_common`, this takes
    little memory beside the result.
    """
    times = np.fromiter(counts.values(), np.int64, len(counts))
    taken = np.zeros(len(counts), bool)
    taken[np.argsort(-times, kind="stable")[:n]] = True
    return Counter(dict(compress(counts.items(), taken)))
