"""Owns when a phase of a training ends, and how many steps it will have by then."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rustgpt.config import TrainConfig
    from rustgpt.training_state import TrainingState


@dataclass(frozen=True)
class End:
    """What ends a phase, whichever comes first.

    Parameters
    ----------
    epochs
        Passes over the data.
    steps, tokens, seconds
        Of the optimizer, that are read, and by the clock; infinite where they end nothing.
    """

    epochs: int
    steps: float = math.inf
    tokens: float = math.inf
    seconds: float = math.inf

    @classmethod
    def of(cls, config: TrainConfig, epochs: int, part: float = 1.0) -> Self:
        """Return the end of a phase that has a part of the whole training's steps and so on."""
        return cls(
            epochs,
            max(1, round(part * config.max_steps)) if config.max_steps else math.inf,
            max(1, round(part * config.max_tokens)) if config.max_tokens else math.inf,
            part * config.max_time if config.max_time else math.inf,
        )

    def reached(self, state: TrainingState) -> bool:
        """Whether a phase is over, be its present epoch complete or not."""
        # Half a step more or less: as near to the time as whole steps allow.
        seconds = state.seconds * (1 + 0.5 / max(1, state.step))
        return state.step >= self.steps or state.read >= self.tokens or seconds >= self.seconds

    def total_steps(self, state: TrainingState, steps_an_epoch: int) -> float:
        """Return how many steps the phase will have had, as far as can be told now."""
        if state.ended:
            return state.step
        # Epochs may differ in steps; as if all had as many as the present one:
        whole, over = self.epochs * steps_an_epoch, state.epoch * steps_an_epoch + state.position
        by_epochs = whole if over == state.step else 1 + state.step * (whole - 1) / max(1, over)
        by_tokens = state.step * self.tokens / state.read if state.read else math.inf
        by_time = state.step * self.seconds / state.seconds if state.seconds else math.inf
        return max(state.step, min(by_epochs, self.steps, by_tokens, by_time))
