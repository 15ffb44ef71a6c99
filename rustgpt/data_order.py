"""Owns in which order an epoch goes through the rows of a training, and what each step has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

BLOCK: Final = 1024  # rows that lie side by side on disk
WINDOW: Final = 64  # blocks of which the rows are shuffled together


class Order(Protocol):
    """The numbers of an epoch's rows, of which any part can be asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> Indices: ...


class DataOrder:
    """The order in which an epoch of a phase goes through n rows.

    Blocks of neighbouring rows are shuffled, and then the rows of `WINDOW` blocks at a time: so
    data that do not fit in memory are read in large parts, and of the order itself no more than a
    window is held. Of up to a window's rows it is any order.

    Parameters
    ----------
    n
        Rows.
    seed, phase, epoch
        What it follows from; the latter two count from 0.
    """

    def __init__(self, n: int, seed: int, phase: int, epoch: int) -> None:
        self._n, self._place = n, (seed, phase, epoch)
        blocks = -(-n // BLOCK)
        if blocks <= WINDOW:
            self._blocks = np.arange(blocks)
        else:
            self._blocks = np.random.default_rng((*self._place, blocks)).permutation(blocks)
        sizes = np.minimum(n - self._blocks * BLOCK, BLOCK)  # (blocks,) the last one has fewer
        ends = np.cumsum(sizes)[WINDOW - 1 :: WINDOW]
        self._ends = np.append(ends, n) if blocks % WINDOW else ends  # (windows,)
        self._held, self._rows = -1, np.empty(0, np.int64)  # a window, and its rows

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: slice) -> Indices:
        first, stop, _ = index.indices(self._n)
        parts = [np.empty(0, np.int64)]
        while first < stop:
            window = int(np.searchsorted(self._ends, first, side="right"))
            begin = int(self._ends[window - 1]) if window else 0
            parts.append(self._window(window)[first - begin : stop - begin])
            first = int(self._ends[window])
        return np.concatenate(parts)

    def _window(self, number: int) -> Indices:
        """Return the rows of a window in their order."""
        if number != self._held:
            blocks = self._blocks[number * WINDOW : (number + 1) * WINDOW]
            rows = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
            rows = rows[rows < self._n]
            key = (*self._place, number) if number else self._place
            self._held, self._rows = number, rows[np.random.default_rng(key).permutation(len(rows))]
        return self._rows


class Steps:
    """Which rows each step of an epoch has.

    Parameters
    ----------
    order
        Of the rows.
    starts
        (S + 1,) where in it each step begins, and the end.
    """

    def __init__(self, order: Order, starts: NDArray[Any]) -> None:
        self._order, self._starts = order, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Indices:
        return self._order[slice(*self._starts[index : index + 2])]


def steps_of_texts(order: Order, texts: int) -> Steps:
    """Divide an epoch into steps of so many texts each; the last may have fewer."""
    return Steps(order, np.append(np.arange(0, len(order), texts), len(order)))


def steps_of_tokens(order: Order, lengths: Callable[[Any], NDArray[Any]], tokens: int) -> Steps:
    """Divide an epoch into steps of at most so many tokens each, but at least one text.

    Parameters
    ----------
    lengths
        Returns how many tokens are read of each row of which it gets the numbers.
    """
    starts = [0]
    taken = 0  # tokens of the step that has begun, in the windows before
    for first in range(0, len(order), BLOCK * WINDOW):
        ends = np.cumsum(lengths(order[first : first + BLOCK * WINDOW]), dtype=np.int64)
        before = 0  # tokens of this window in the steps that have ended
        while True:
            stop = int(np.searchsorted(ends, before + tokens - taken, side="right"))
            if stop == len(ends):
                break
            stop += first + stop == starts[-1]  # a text longer than a step is one
            starts.append(first + stop)
            before, taken = int(ends[stop - 1]) if stop else 0, 0
        taken += int(ends[-1]) - before
    return Steps(order, np.array([*starts, len(order)] if starts[-1] < len(order) else starts))
