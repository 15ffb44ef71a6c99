"""Owns how texts are joined in one row, so that a model learns to answer in the midst of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rustgpt.text.rows import AnyRow, Row, ids_of


@dataclass(frozen=True)
class Joining:
    """Puts some texts of a step behind another, as the turns of a chat follow each other.

    It costs nothing: of two texts in one row as many tokens are read as of two in two rows.

    Parameters
    ----------
    share
        Of the texts that go behind the one before them, if it has room.
    end_id
        The token that ends a text; only what begins with it too can follow in the same row.
    longest
        The most tokens of a row that are read.
    """

    share: float
    end_id: int
    longest: int

    def __call__(self, rows: Sequence[AnyRow], *seed: int) -> list[AnyRow]:
        """Return the rows, some joined; the seed says which."""
        chosen = np.random.default_rng(seed).random(len(rows)) < self.share
        found: list[AnyRow] = []
        for row, behind in zip(rows, chosen, strict=True):
            if behind and found and self._fit(found[-1], row):
                ids = np.concatenate([ids_of(found[-1]), ids_of(row)[1:]])
                found[-1] = Row(ids, np.concatenate([_counted(found[-1]), _counted(row)]))
            else:
                found.append(row)
        return found

    def _fit(self, first: AnyRow, second: AnyRow) -> bool:
        ends = ids_of(first)[-1] == ids_of(second)[0] == self.end_id
        return bool(ends) and len(first) + len(second) - 2 <= self.longest


def _counted(row: AnyRow) -> NDArray[np.bool_]:  # -> (n,)
    """Return which predictions of a row count."""
    if isinstance(row, Row) and row.counted is not None:
        return row.counted
    return np.ones(len(row) - 1, np.bool_)
