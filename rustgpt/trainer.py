"""Owns the training loop: phases, epochs, batches, and what is told of them."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rustgpt.backend import check_bfloat16, single_threaded_blas
from rustgpt.config import TrainConfig
from rustgpt.errors import ConfigError, DataError
from rustgpt.layers.memory import Indices
from rustgpt.llm import LLM
from rustgpt.optim.schedules import learning_rate
from rustgpt.text.tokenizer import token_ids
from rustgpt.workers import Workers


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
    """

    phase: str
    number: int
    total: int
    loss: float
    gradient_norm: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Step:
    """What one step of the optimizer came to.

    Parameters
    ----------
    phase
        "pre-training" or "instruction tuning".
    number, total
        Of the step in this phase, from 1, and how many there will be.
    loss
        Mean cross-entropy a token before the step, in nats.
    gradient_norm
        Before clipping.
    """

    phase: str
    number: int
    total: int
    loss: float
    gradient_norm: float


class Trainer:
    """Trains a model: two phases over one loop.

    Parameters
    ----------
    model
        Changed in place.
    config
        Rates, epochs, batch size, threads, seed.
    on_epoch, on_step
        Called after each epoch, to show progress, and after each step. The model is then as the
        step has left it, and may be used and saved.

    Attributes
    ----------
    epochs : list of Epoch
        What was trained so far.
    steps : int
        How many steps were made so far.
    split_texts, skipped_texts : int
        Texts of the last phase that were longer than the context and so cut in pieces, and texts of
        less than two tokens, which teach nothing.
    stopped : bool
        Whether the last training, or the one that runs, was asked to stop.

    Raises
    ------
    ConfigError
        If the precision is bfloat16 and the kernels in use, or the model, do not have it.
    """

    def __init__(
        self,
        model: LLM,
        config: TrainConfig | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        self.model = model
        self.config = config or TrainConfig()
        self.on_epoch = on_epoch
        self.on_step = on_step
        self.epochs: list[Epoch] = []
        self.steps = 0
        self.split_texts = 0
        self.skipped_texts = 0
        self.stopped = False
        if self.config.precision == "bfloat16":
            check_bfloat16(model.config.dtype)

    def pretrain(self, texts: Sequence[str]) -> list[Epoch]:
        """Learn statements; return its epochs."""
        config = self.config
        return self.fit(texts, config.pretrain_epochs, config.pretrain_rate, "pre-training")

    def instruction_tune(self, texts: Sequence[str]) -> list[Epoch]:
        """Learn dialogues; return its epochs."""
        config = self.config
        return self.fit(texts, config.tune_epochs, config.tune_rate, "instruction tuning")

    def stop(self) -> None:
        """Let the training that runs end after its present step; later ones are not concerned.

        It is safe to call from a signal handler.
        """
        self.stopped = True

    def fit(self, texts: Sequence[str], epochs: int, rate: float, phase: str) -> list[Epoch]:
        """Train on texts, with an optimizer that starts afresh.

        Raises
        ------
        DataError
            If there is one text and no list of texts.
        ConfigError, DataError, TrainingError
            As `fit_ids`.
        """
        if isinstance(texts, (str, bytes)):
            raise DataError("the texts to learn must be a list of strings, not one string")
        encode = self.model.tokenizer.encode
        return self.fit_ids((encode(text, True) for text in texts), epochs, rate, phase)

    def fit_ids(
        self, texts: Iterable[Sequence[int] | Indices], epochs: int, rate: float, phase: str
    ) -> list[Epoch]:
        """Train on texts that are token ids, with an optimizer that starts afresh.

        Raises
        ------
        ConfigError
            If `epochs` or `rate` is out of range, or the layers were changed behind the model's
            back.
        DataError
            If no text has two tokens.
        TokenizerError
            If an id is not in the vocabulary.
        TrainingError
            If the loss or the gradient is not finite; the step that gave it is not applied, but
            those before it have led there. Or if the model is being trained already.
        """
        _check_run(epochs, rate)
        self.model.check_parameters()
        run = _Run()
        self.model.begin_training(run)
        try:
            self.stopped = False
            return self._run(self._rows(texts), epochs, rate, phase)
        finally:
            self.model.end_training()

    def _run(self, rows: list[Indices], epochs: int, rate: float, phase: str) -> list[Epoch]:
        done: list[Epoch] = []
        config = self.config
        rng = np.random.default_rng((config.seed, len(self.epochs)))
        steps = math.ceil(len(rows) / config.batch_size) * epochs
        with single_threaded_blas(), Workers(self.model, config, len(rows)) as workers:
            began, step = time.perf_counter(), 0
            for number in range(1, epochs + 1):
                epoch_began, loss, tokens, largest = time.perf_counter(), 0.0, 0, 0.0
                for batch in _batches(rows, config.batch_size, rng):
                    if self.stopped:
                        return done
                    now = learning_rate(
                        step, steps, rate, config.schedule, config.warmup_steps, config.final_rate
                    )
                    batch_loss, norm = workers.step(batch, now, f"{phase}, step {step + 1}")
                    loss, largest = loss + batch_loss, max(largest, norm)
                    batch_tokens = sum(len(row) - 1 for row in batch)
                    tokens += batch_tokens
                    step += 1
                    self.steps += 1
                    if self.on_step:
                        mean = batch_loss / batch_tokens
                        self.on_step(Step(phase, step, steps, mean, norm))
                ended = time.perf_counter()
                left = (ended - began) / number * (epochs - number)
                pace = tokens / max(ended - epoch_began, 1e-9)
                done.append(Epoch(phase, number, epochs, loss / tokens, largest, pace, left))
                self.epochs.append(done[-1])
                if self.on_epoch:
                    self.on_epoch(done[-1])
        return done

    def _rows(self, texts: Iterable[Sequence[int] | Indices]) -> list[Indices]:
        """Return the texts' ids, cut so that each fits the context and its next token."""
        longest, vocab_size = self.model.max_seq_len, self.model.tokenizer.vocab_size
        self.split_texts = self.skipped_texts = 0
        rows = []
        for text in texts:
            ids = token_ids(text, vocab_size)
            self.split_texts += len(ids) > longest + 1
            self.skipped_texts += len(ids) < 2
            # The last token of a piece is the first of the next: every token but the first is
            # predicted once.
            rows += [ids[i : i + longest + 1] for i in range(0, len(ids) - 1, longest)]
        if not rows:
            raise DataError("there is nothing to train on: no text has two tokens; add some text")
        return rows


class _Run:
    """A training that runs."""


def _check_run(epochs: Any, rate: Any) -> None:
    """Raise ConfigError unless epochs is a whole number, and rate a finite one, from 0 on."""
    whole = isinstance(epochs, (int, np.integer)) and not isinstance(epochs, bool)
    if not whole or epochs < 0:
        raise ConfigError(f"epochs must be a whole number from 0 on, got {epochs!r:.60}")
    number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not number or not 0 <= rate < math.inf:
        raise ConfigError(f"the learning rate must be a number from 0 on, got {rate!r:.60}")


def _batches(
    rows: list[Indices], batch_size: int, rng: np.random.Generator
) -> Iterator[list[Indices]]:
    """Yield the rows in a new order, batch_size at a time."""
    order = rng.permutation(len(rows))
    for first in range(0, len(rows), batch_size):
        yield [rows[i] for i in order[first : first + batch_size]]
