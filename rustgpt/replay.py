"""Owns replay: some of what a model has learned before, mixed into what it learns now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rustgpt.data_order import Indices, Order
from rustgpt.errors import ConfigError
from rustgpt.text.stored import StoredTexts

MOST: Final = 5000  # texts of which the beginnings are learned again
LONGEST: Final = 1000  # characters of such a beginning


@dataclass(frozen=True)
class Replay:
    """Old texts that are learned again beside new ones, so that they are not forgotten.

    Parameters
    ----------
    texts
        What the model has learned before.
    share
        Of the texts of an epoch that are old: from 0 to below 1.

    Raises
    ------
    ConfigError
        If the share is out of range.
    """

    texts: Sequence[Any]
    share: float

    def __post_init__(self) -> None:
        number = isinstance(self.share, (int, float)) and not isinstance(self.share, bool)
        if not number or not 0 <= self.share < 1:
            raise ConfigError(
                f"the share of old texts must be a number from 0 to below 1, got {self.share!r:.60}"
            )

    def count(self, new: int) -> int:
        """Return how many old texts an epoch with so many new ones has."""
        return math.ceil(new * self.share / (1 - self.share) - 1e-9)  # 0.8 means 40 for 10


def some_of(texts: Sequence[Any]) -> list[Any]:
    """Return what is to be learned again of texts: their beginnings, of very many evenly chosen."""
    if isinstance(texts, StoredTexts):  # of which there are more than fit the memory
        texts = texts.beginning()
    every = math.ceil(len(texts) / MOST) or 1
    return [text[:LONGEST] for text in texts[::every]]


class MixedOrder:
    """The order of an epoch in which some old rows stand among the new ones.

    Parameters
    ----------
    order
        Of all rows of the epoch, the new ones before the old.
    new
        How many new rows there are.
    old
        (D,) which old rows the epoch has; their numbers follow those of the new ones.
    """

    def __init__(self, order: Order, new: int, old: Indices) -> None:
        self._order, self._new, self._old = order, new, old

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: slice) -> Indices:
        which = self._order[index]
        old = self._new + self._old[np.maximum(which - self._new, 0)]
        return np.where(which < self._new, which, old)


def old_rows(n: int, drawn: int, seed: int, phase: int, epoch: int) -> Indices:  # -> (drawn,)
    """Return which of n old rows an epoch of a phase, both from 0, takes.

    They come in rounds, each with all of them, and each epoch takes the next ones.
    """
    if not n or not drawn:
        return np.empty(0, np.int64)
    first, end = epoch * drawn, (epoch + 1) * drawn
    rounds = range(first // n, (end - 1) // n + 1)
    orders = [np.random.default_rng((seed, phase, turn, n)).permutation(n) for turn in rounds]
    begin = first - rounds.start * n
    rows: Indices = np.concatenate(orders)[begin : begin + drawn]
    return rows
