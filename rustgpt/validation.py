"""Owns the validation: how well a model predicts texts that it does not learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rustgpt.text.rows import AnyRow, Row, Rows, ids_of
from rustgpt.training_state import Evaluation, TrainingState

if TYPE_CHECKING:
    from rustgpt.stepper import Stepper
    from rustgpt.text.tokenizer import Tokenizer

TEXTS_AT_ONCE = 64  # between two looks at whether the training was stopped


class Validation:
    """Texts on which a model is evaluated.

    Parameters
    ----------
    rows
        Whole texts.
    tokenizer
        Whose ids they are.
    longest
        How many tokens of a text are read at once.
    """

    def __init__(self, rows: Rows, tokenizer: Tokenizer, longest: int) -> None:
        self.rows = rows.cut(longest)
        self.targets = self.rows.count_targets()
        self.bytes = sum(counted_bytes(row, tokenizer) for row in rows)

    def loss(self, stepper: Stepper, stopped: Callable[[], bool] = lambda: False) -> float | None:
        """Return the mean loss; None if it was stopped before the end."""
        total = 0.0
        at_once = TEXTS_AT_ONCE * stepper.exchange.size
        for first in range(0, len(self.rows), at_once):
            if first and stopped():
                return None
            total += stepper.evaluate(self.rows[first : first + at_once])
        return total / self.targets

    def count(self, loss: float, state: TrainingState) -> Evaluation:
        """Write down an evaluation with this loss; return what it came to."""
        best = state.count_evaluation(loss)
        bits = self.bits_per_byte(loss)
        return Evaluation(state.phase, state.step, loss, bits, state.mean_loss, best)

    def bits_per_byte(self, loss: float) -> float:
        """Return a mean loss as bits a byte of text."""
        return loss * self.targets / math.log(2) / self.bytes if self.bytes else math.nan


def counted_bytes(row: AnyRow, tokenizer: Tokenizer) -> int:
    """Return how many bytes of text the predictions have that count."""
    ids = ids_of(row).tolist()
    counted = row.counted if isinstance(row, Row) and row.counted is not None else None
    if counted is None:
        edges = [(1, len(ids))]
    else:
        changes = np.flatnonzero(np.diff(np.concatenate(([False], counted, [False])).astype(int)))
        edges = [(first + 1, stop + 1) for first, stop in changes.reshape(-1, 2).tolist()]
    return sum(
        len(tokenizer.decode(ids[first:stop], after=ids[:first]).encode("utf-8", "surrogatepass"))
        for first, stop in edges
        if first < stop
    )
