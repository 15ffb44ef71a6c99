"""Owns a phase of a training while it runs: its rows, its plan of an epoch, its clock."""

from __future__ import annotations

import dataclasses
import math
import numbers
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from rustgpt.data_order import DataOrder, Order, Steps, steps_of_texts, steps_of_tokens
from rustgpt.errors import ConfigError, check_integer
from rustgpt.replay import MixedOrder, old_rows
from rustgpt.text.rows import AnyRow, Rows
from rustgpt.training_state import Epoch, Step

if TYPE_CHECKING:
    from rustgpt.config import TrainConfig
    from rustgpt.ends import End
    from rustgpt.text.joining import Joining
    from rustgpt.training_state import Evaluation, TrainingState
    from rustgpt.validation import Validation

MOST_STEPS: Final = 1 << 16  # among which the largest one is looked for


@dataclass
class Phase:
    """What a phase has while it runs.

    Parameters
    ----------
    rows, old
        To learn, each fitting the context; and, with the numbers that follow, those that were
        learned before.
    validation
        What is evaluated; None for nothing.
    rate
        The highest learning rate.
    end
        When the phase is over.
    drawn
        How many of the old rows an epoch has.
    joining
        Puts some texts behind others; None for nothing.
    now
        The clock, in seconds.

    Attributes
    ----------
    steps : Steps
        Which rows each step of the present epoch has.
    """

    rows: Rows
    old: Rows
    validation: Validation | None
    rate: float
    end: End
    drawn: int = 0
    joining: Joining | None = None
    now: Callable[[], float] = time.perf_counter
    steps: Steps = field(default_factory=lambda: steps_of_texts(DataOrder(0, 0, 0, 0), 1))

    def __post_init__(self) -> None:
        self._began = self.now()
        self._first_step = self._first_read = 0
        self._first_second = 0.0

    def plan(self, state: TrainingState, config: TrainConfig) -> None:
        """Put the rows of the present epoch in order, and divide them into steps."""
        place = state.seed, state.phase_number, state.epoch
        new = len(self.rows)
        order: Order = DataOrder(new + self.drawn, *place)
        if self.drawn:
            order = MixedOrder(order, new, old_rows(len(self.old), self.drawn, *place))
        if config.batch_tokens:
            self.steps = steps_of_tokens(order, self._lengths, config.batch_tokens)
        else:
            self.steps = steps_of_texts(order, config.batch_size)

    def batch(self, state: TrainingState) -> list[AnyRow]:
        """Return the rows of the step that is next."""
        new = len(self.rows)
        which = self.steps[state.position].tolist()
        rows = [self.rows[i] if i < new else self.old[i - new] for i in which]
        if self.joining:
            return self.joining(rows, state.seed, state.phase_number, state.epoch, state.position)
        return rows

    def largest(self, state: TrainingState, config: TrainConfig) -> list[AnyRow]:
        """Return the rows of that step of a phase, or of its first ones, which reads most tokens.

        What was planned is then another epoch.
        """
        most, found, left = -1, list[AnyRow](), MOST_STEPS
        for epoch in range(state.epochs):
            self.plan(dataclasses.replace(state, epoch=epoch), config)
            left = min(left, math.ceil(self.total_steps(state)))
            for position in range(min(left, len(self.steps))):
                tokens = int(self._lengths(self.steps[position]).sum())
                if tokens > most:
                    place = dataclasses.replace(state, epoch=epoch, position=position)
                    most, found = tokens, self.batch(place)
            left -= len(self.steps)
            if left <= 0:
                break
        return found

    def _lengths(self, which: NDArray[Any]) -> NDArray[np.int64]:  # (n,) -> (n,)
        """Return how many tokens are read of each of these rows."""
        new = len(self.rows)
        found = np.empty(len(which), np.int64)
        found[which < new] = self.rows.lengths(which[which < new])
        found[which >= new] = self.old.lengths(which[which >= new] - new)
        return found

    def most_texts(self, config: TrainConfig) -> int:
        """Return the most texts that a step may have: as many of the shortest as fit."""
        if not config.batch_tokens:
            return len(self.rows) + len(self.old)
        counts = np.zeros(max(self.rows.longest(), self.old.longest()), np.int64)  # of each length
        for edges in chain(self.rows.parts(), self.old.parts()):
            counts += np.bincount(edges[:, 1] - edges[:, 0] - 1, minlength=len(counts))
        most, room = 0, config.batch_tokens
        for length, count in enumerate(counts.tolist()):
            fit = min(count, room // length) if length else count
            most, room = most + fit, room - fit * length
            if fit < count:
                break
        return max(1, most)

    def begin(self, state: TrainingState) -> None:
        """Begin, or go on, from now: the clock runs."""
        self._began, self._first_second = self.now(), state.seconds
        self._first_step, self._first_read = state.step, state.read

    def is_over(self, state: TrainingState) -> bool:
        """Return whether the phase ends now, in the midst of an epoch or not; write it down."""
        if self.end.seconds < math.inf:
            state.seconds = self._first_second + self.now() - self._began
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
        taken = max(self.now() - self._began, 1e-9)
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


def check_run(epochs: Any, rate: Any, part: Any) -> None:
    """Raise ConfigError unless each number is in its range."""
    check_integer("epochs", epochs)
    if not _is_number(rate) or not 0 <= rate < math.inf:
        raise ConfigError(f"the learning rate must be a number from 0 on, got {rate!r:.60}")
    if not _is_number(part) or not 0 < part <= 1:
        raise ConfigError(f"the part must be a number above 0 and at most 1, got {part!r:.60}")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
