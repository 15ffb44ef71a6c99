"""Owns tables in which the compiled encoders look up a pair of numbers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.int64]
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


def pair_table(left: Any, right: Any, values: Any, near: bool = False) -> Table:
    """Return the table that `rustgpt/_ext/pairs.pxd` describes: of pairs that differ, (size, 2).

    Parameters
    ----------
    left, right
        (n,) numbers from 0 to 2^31 - 1.
    values
        (n,) numbers from 0 to 2^63 - 1.
    near
        Whether pairs whose left numbers are near, from 2 on, lie near each other: few each.
    """
    left, right, values = (np.asarray(numbers, np.int64) for numbers in (left, right, values))
    keys = left << 32 | right  # (n,)
    bits = max(1, (len(keys) * 3 // 2).bit_length())  # a third to two thirds are taken
    table = np.full((1 << bits, 2), -1, np.int64)
    places = (keys.view(np.uint64) * _GOLDEN >> np.uint64(64 - bits)).astype(np.int64)
    if near:
        places = np.where(left < 2, places, 2 * left + (right & 15) & len(table) - 1)
    rest = np.arange(len(keys))
    while len(rest):  # all that are left try their place, and then the next
        place = places[rest]
        free = rest[table[place, 0] < 0]
        table[places[free], 0] = keys[free]  # of several, the last one gets it
        rest = rest[table[place, 0] != keys[rest]]
        places[rest] = places[rest] + 1 & len(table) - 1
    table[places, 1] = values
    return table
