"""Owns how far a training has come: what is told of it, and what it needs to go on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rustgpt.errors import ConfigError
from rustgpt.layers.memory import Array


@dataclass(frozen=True)
class Evaluation:
    """What a validation came to.

    Parameters
    ----------
    phase, step
        After which step of which phase.
    loss
        Mean cross-entropy a token, in nats.
    bits_per_byte
        The same a byte of text, in bits: comparable whatever the tokenizer; NaN if what was
        predicted has no bytes.
    training_loss
        Mean of the present epoch so far.
    best
        Whether the loss is the lowest of the phase.
    """

    phase: str
    step: int
    loss: float
    bits_per_byte: float
    training_loss: float
    best: bool

    @property
    def perplexity(self) -> float:
        """Among how many equally likely tokens the model is as unsure."""
        return perplexity(self.loss)


def perplexity(loss: float) -> float:
    """Return e to the power of a loss."""
    return math.exp(loss) if loss < 700 else math.inf


@dataclass(frozen=True)
class Epoch:
    """What one pass over the data came to.

    Parameters
    ----------
    phase
        "pre-training" or "instruction tuning".
    number, total
        Of the epoch, from 1, and how many there will be.
    loss
        Mean cross-entropy a token, in nats.
    gradient_norm
        The largest of the epoch, before clipping.
    tokens_per_second
        Of this epoch.
    seconds_left
        Of this phase, at the pace so far.
    complete
        Whether all of the data was seen; False if the training was stopped in mid-epoch.
    validation
        The evaluation at its end, if there was one.
    """

    phase: str
    number: int
    total: int
    loss: float
    gradient_norm: float
    tokens_per_second: float
    seconds_left: float
    complete: bool = True
    validation: Evaluation | None = None


@dataclass(frozen=True)
class Step:
    """What one step of the optimizer came to.

    Parameters
    ----------
    phase
        "pre-training" or "instruction tuning".
    number, total
        Of the step in this phase, from 1, and how many there will be, as far as can be told.
    loss
        Mean cross-entropy a token before the step, in nats; 0 where no token counts.
    gradient_norm
        Before clipping.
    rate
        The learning rate.
    tokens
        How many were read in it.
    epoch, epochs
        In which pass over the data it is, from 1, and how many there will be.
    tokens_per_second, seconds_left
        Of this phase so far, and at this pace.
    """

    phase: str
    number: int
    total: int
    loss: float
    gradient_norm: float
    rate: float = 0.0
    tokens: int = 0
    epoch: int = 1
    epochs: int = 1
    tokens_per_second: float = field(default=0.0, compare=False)
    seconds_left: float = field(default=0.0, compare=False)


@dataclass
class TrainingState:
    """How far a training has come, so that it can be written down and go on from there.

    The order of the data follows from `seed`, `phase_number` and `epoch`, so no state of a random
    generator need be kept.

    Parameters
    ----------
    seed
        Of the order of the data.
    phase, phase_number
        The present or last phase, and how many there were before it.
    epochs
        How many passes over the data the phase has.
    epoch, position
        Passes that are complete, and steps of the present one.
    step, steps
        Steps of this phase so far, and of all phases.
    read, seconds
        Tokens that were read in this phase, and how long it took: counted where time ends it.
    ended
        Whether the phase is over before its last pass is.
    loss, tokens, largest_norm
        Of the present pass so far: the sum of the losses, of how many tokens that count, and the
        largest norm of a gradient.
    evaluated, best_step, best_loss, waited
        The step of this phase after which it was last evaluated, and with the lowest loss (0 for
        none); this loss; how many evaluations there were since.
    optimizer
        What the optimizer's `state` has returned.
    """

    seed: int = 0
    phase: str = ""
    phase_number: int = -1
    epochs: int = 0
    epoch: int = 0
    position: int = 0
    step: int = 0
    steps: int = 0
    read: int = 0
    seconds: float = 0.0
    ended: bool = False
    loss: float = 0.0
    tokens: int = 0
    largest_norm: float = 0.0
    evaluated: int = 0
    best_step: int = 0
    best_loss: float = 0.0
    waited: int = 0
    optimizer: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the phase has come to its end."""
        return self.ended or self.epoch >= self.epochs

    @property
    def phases_done(self) -> int:
        """How many phases have come to their end."""
        return self.phase_number + self.complete

    def begin_phase(self, phase: str, epochs: int) -> None:
        """Begin the next phase."""
        self.phase, self.phase_number, self.epochs = phase, self.phase_number + 1, epochs
        self.epoch = self.step = self.read = 0
        self.seconds, self.ended = 0.0, False
        self.evaluated = self.best_step = self.waited = 0
        self.best_loss = 0.0
        self.optimizer = {}
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Begin a pass over the data."""
        self.position, self.loss, self.tokens, self.largest_norm = 0, 0.0, 0, 0.0

    def count(self, loss: float, tokens: int, norm: float, read: int) -> None:
        """Count a step."""
        self.position, self.step, self.steps = self.position + 1, self.step + 1, self.steps + 1
        self.loss, self.tokens = self.loss + loss, self.tokens + tokens
        self.largest_norm = max(self.largest_norm, norm)
        self.read += read

    def count_evaluation(self, loss: float) -> bool:
        """Count an evaluation; return whether its loss is the lowest of the phase."""
        best = math.isfinite(loss) and (not self.best_step or loss < self.best_loss)
        if best:
            self.best_step, self.best_loss = self.step, loss
        self.evaluated, self.waited = self.step, 0 if best else self.waited + 1
        return best

    @property
    def mean_loss(self) -> float:
        """Of the present pass so far; 0 where no token has counted."""
        return self.loss / max(1, self.tokens)

    def copy(self) -> TrainingState:
        """Return the state as it is now, with arrays of its own."""
        kept = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in self.optimizer.items()}
        return dataclasses.replace(self, optimizer=kept)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the plain values, and the arrays by name, as a file can hold them."""
        values = dataclasses.asdict(dataclasses.replace(self, optimizer={}))
        arrays = {k: v for k, v in self.optimizer.items() if isinstance(v, np.ndarray)}
        plain = {k: v for k, v in self.optimizer.items() if k not in arrays}
        values["optimizer"] = {
            k: v.item() if isinstance(v, np.generic) else v for k, v in plain.items()
        }
        return values, arrays

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> TrainingState:
        """Return the state that `to_parts` has returned.

        Raises
        ------
        ConfigError
            If a value is missing, unknown or of another type.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if values.keys() != fields.keys():
            wrong = ", ".join(sorted(values.keys() ^ fields.keys()))
            raise ConfigError(f"this is not the state of a training: missing or unknown: {wrong}")
        empty = cls()
        for name, value in values.items():
            kind = type(getattr(empty, name))
            fits = isinstance(value, (int, float) if kind is float else kind)
            if not fits or isinstance(value, bool) != (kind is bool):
                raise ConfigError(
                    f"{name} of a training's state must be of type {kind.__name__}, got "
                    f"{value!r:.60}"
                )
            lowest = -1 if name == "phase_number" else 0
            if kind in (int, float) and not lowest <= value < math.inf:
                raise ConfigError(
                    f"{name} of a training's state must be finite and at least {lowest}, got "
                    f"{value}"
                )
        return cls(**{**values, "optimizer": {**values["optimizer"], **arrays}})
