"""Owns what a training sees of a text: its token ids, and where the loss counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Row:
    """A text as token ids, with what is to be learned of it.

    Parameters
    ----------
    ids
        (n + 1,) the tokens; the first n are read, the last n predicted.
    counted
        (n,) whether the prediction of `ids[i + 1]` counts in the loss; None if all do.
    """

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ids)


AnyRow = Row | NDArray[np.int32]  # of an array of ids, every prediction counts


def ids_of(row: AnyRow) -> NDArray[np.int32]:  # -> (n + 1,)
    """Return a row's ids."""
    return row.ids if isinstance(row, Row) else row


def targets_of(row: AnyRow) -> NDArray[np.int32]:  # -> (n,)
    """Return what follows each token that is read, or -1 where that does not count."""
    if isinstance(row, Row) and row.counted is not None:
        return np.where(row.counted, row.ids[1:], np.int32(-1))
    return ids_of(row)[1:]


def count_targets(rows: Iterable[AnyRow]) -> int:
    """Return how many predictions of some rows count in the loss."""
    return sum(
        int(np.count_nonzero(row.counted))
        if isinstance(row, Row) and row.counted is not None
        else max(0, len(row) - 1)
        for row in rows
    )
