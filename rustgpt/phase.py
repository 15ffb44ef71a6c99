"""Owns a phase of a training while it runs: its rows, its plan of an epoch, its clock."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rustgpt.layers.memory import Indices
from rustgpt.parallel.batches import steps_of
from rustgpt.replay import old_rows
from rustgpt.text.rows import AnyRow
from rustgpt.training_state import Epoch, Step

if TYPE_CHECKING:
    from rustgpt.config import TrainConfig
    from rustgpt.ends import End
    from rustgpt.training_state import Evaluation, TrainingState
    from rustgpt.validation import Validation


@dataclass
class Phase:
    """What a phase has while it runs.

    Parameters
    ----------
    rows
        To learn, each fitting the context.
    validation
        What is evaluated; None for nothing.
    rate
        The highest learning rate.
    end
        When the phase is over.
    old, drawn
        How many rows, the last ones, were learned before; and how many of these an epoch has.

    Attributes
    ----------
    steps : list
        Which rows each step of the present epoch has.
    """

    rows: list[AnyRow]
    validation: Validation | None
    rate: float
    end: End
    old: int = 0
    drawn: int = 0
    steps: list[Indices] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lengths = np.array([len(row) - 1 for row in self.rows], np.int32)
        self._began = time.perf_counter()
        self._first_step = self._first_read = 0
        self._first_second = 0.0

    def plan(self, state: TrainingState, config: TrainConfig) -> None:
        """Put the rows of the present epoch in order, and divide them into steps."""
        place = state.seed, state.phase_number, state.epoch
        new = len(self.rows) - self.old
        order = data_order(new + self.drawn, *place)
        if self.drawn:
            rows = new + old_rows(self.old, self.drawn, *place)
            order = np.concatenate([np.arange(new), rows])[order]
        self.steps = steps_of(order, self._lengths, config.batch_size, config.batch_tokens)

    def most_texts(self, config: TrainConfig) -> int:
        """Return the most texts that a step may have."""
        if not config.batch_tokens:
            return len(self.rows)
        ends = np.cumsum(np.sort(self._lengths))  # the shortest ones first
        return max(1, int(np.searchsorted(ends, config.batch_tokens, side="right")))

    def begin(self, state: TrainingState) -> None:
        """Begin, or go on, from now: the clock runs."""
        self._began, self._first_second = time.perf_counter(), state.seconds
        self._first_step, self._first_read = state.step, state.read

    def is_over(self, state: TrainingState) -> bool:
        """Return whether the phase ends now, in the midst of an epoch or not; write it down."""
        if self.end.seconds < math.inf:
            state.seconds = self._first_second + time.perf_counter() - self._began
        state.ended = state.ended or self.end.reached(state)
        return state.ended

    def is_last(self, state: TrainingState) -> bool:
        """Return whether the step before was the last of the phase."""
        complete = state.position == len(self.steps)
        return state.ended or (complete and state.epoch + 1 >= state.epochs)

    def is_due(self, state: TrainingState, every: int) -> bool:
        """Return whether an evaluation every so many steps (0: an epoch) is due and not done."""
        ends = state.step % every == 0 if every else state.position in (0, len(self.steps))
        return (ends or self.is_last(state)) and state.evaluated < state.step

    def total_steps(self, state: TrainingState) -> float:
        """Return how many steps the phase will have had, as far as can be told now."""
        return self.end.total_steps(state, len(self.steps))

    def total_epochs(self, state: TrainingState) -> int:
        """Return how many epochs the phase will have had, the last perhaps in part."""
        over = state.epoch + state.position / len(self.steps)
        total = over * self.total_steps(state) / max(1, state.step)
        return min(self.end.epochs, math.ceil(total - 1e-9))

    def pace(self, state: TrainingState) -> tuple[float, float]:
        """Return the tokens that were read in a second, and the seconds that are left."""
        taken = max(time.perf_counter() - self._began, 1e-9)
        left = self.total_steps(state) - state.step
        return (
            (state.read - self._first_read) / taken,
            taken * left / max(1, state.step - self._first_step),
        )

    # What is told

    def step(self, state: TrainingState, loss: float, norm: float, rate: float, read: int) -> Step:
        """Return what the step before came to."""
        return Step(
            state.phase, state.step, math.ceil(self.total_steps(state)), loss, norm, rate, read,
            state.epoch + 1, self.total_epochs(state), *self.pace(state),
        )  # fmt: skip

    def epoch(
        self, state: TrainingState, pace: float, complete: bool, evaluation: Evaluation | None
    ) -> Epoch:
        """Return what the present epoch came to."""
        return Epoch(
            state.phase, state.epoch + 1, self.total_epochs(state), state.mean_loss,
            state.largest_norm, pace, self.pace(state)[1], complete, evaluation,
        )  # fmt: skip


def data_order(n: int, seed: int, phase: int, epoch: int) -> Any:  # -> (n,)
    """Return the order in which an epoch of a phase, both from 0, goes through n rows."""
    return np.random.default_rng((seed, phase, epoch)).permutation(n)
