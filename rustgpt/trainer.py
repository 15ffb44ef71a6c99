"""Owns the training loop: phases, epochs, batches, and what is told of them."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rustgpt.backend import check_bfloat16
from rustgpt.config import TrainConfig
from rustgpt.errors import ConfigError, DataError, check_integer
from rustgpt.layers.memory import Indices
from rustgpt.llm import LLM
from rustgpt.optim.optimizer import Optimizer
from rustgpt.optim.schedules import learning_rate
from rustgpt.parallel.batches import count_tokens
from rustgpt.stepper import Stepper, adam
from rustgpt.text.tokenizer import token_ids
from rustgpt.training_state import Epoch, Step, TrainingState


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
    optimizer
        Makes the optimizer of each phase, from the model and the configuration; Adam by default.
    state
        Of a training that was stopped, with a model as it was then: `fit`, called for the phase in
        which it was stopped, with the same data, goes on from there.

    Attributes
    ----------
    epochs : list of Epoch
        What was trained so far.
    state : TrainingState
        How far the training has come. What changes with the next step is in it: `state.copy()`.
    split_texts, skipped_texts : int
        Texts of the last phase that were longer than the context and so cut in pieces, and texts of
        less than two tokens, which teach nothing.
    stopped : bool
        Whether the last training, or the one that runs, was asked to stop.

    Raises
    ------
    ConfigError
        If the precision is bfloat16 and the kernels in use, or the model, do not have it; or if
        `state` is that of a training with another seed.
    """

    def __init__(
        self,
        model: LLM,
        config: TrainConfig | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
        on_step: Callable[[Step], None] | None = None,
        optimizer: Callable[[LLM, TrainConfig], Optimizer] = adam,
        state: TrainingState | None = None,
    ) -> None:
        self.model = model
        self.config = config or TrainConfig()
        self.on_epoch = on_epoch
        self.on_step = on_step
        self.epochs: list[Epoch] = []
        self.state = TrainingState(self.config.seed) if state is None else state.copy()
        self.split_texts = 0
        self.skipped_texts = 0
        self.stopped = False
        self._make_optimizer = optimizer
        self._goes_on = state is not None and not state.complete
        if self.state.seed != self.config.seed:
            raise ConfigError(
                f"the training that shall go on had seed {self.state.seed}, not {self.config.seed}"
            )
        if self.config.precision == "bfloat16":
            check_bfloat16(model.config.dtype)

    @property
    def steps(self) -> int:
        """How many steps were made so far."""
        return self.state.steps

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

        Returns
        -------
        list of Epoch
            The last is not complete if the training was stopped in it.

        Raises
        ------
        ConfigError
            If `epochs` or `rate` is out of range, or the layers were changed behind the model's
            back; or if this is not the phase that shall go on.
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
        self.model.weights_lock.check_untrained()
        self.stopped = False
        rows = self._rows(texts)
        optimizer = self._make_optimizer(self.model, self.config)
        with Stepper(self.model, self.config, optimizer, len(rows)) as stepper:
            self._begin(phase, epochs, optimizer, math.ceil(len(rows) / self.config.batch_size))
            done: list[Epoch] = []
            began, first = time.perf_counter(), self.state.epoch
            while not self.state.complete and not self.stopped:
                epoch = self._epoch(rows, rate, stepper, began, first)
                if epoch is None:
                    break
                done.append(epoch)
                self.epochs.append(epoch)
                if self.on_epoch and epoch.complete:
                    self.on_epoch(epoch)
        return done

    def _begin(self, phase: str, epochs: int, optimizer: Optimizer, steps: int) -> None:
        """Begin a phase, or go on with the one that was stopped; an epoch has so many steps."""
        state = self.state
        if self._goes_on:
            if (phase, epochs) != (state.phase, state.epochs):
                raise ConfigError(
                    f"the training that shall go on was stopped in {state.phase} of {state.epochs} "
                    f"epochs, not in {phase} of {epochs}"
                )
            if state.position > steps:
                raise ConfigError(
                    f"the training that shall go on was stopped after step {state.position} of an "
                    f"epoch, but one of these texts and this batch size has {steps}"
                )
            optimizer.take_up(state.optimizer)
            self._goes_on = False
        else:
            state.begin_phase(phase, epochs)
        state.optimizer = optimizer.state()

    def _epoch(
        self, rows: list[Indices], rate: float, stepper: Stepper, began: float, first: int
    ) -> Epoch | None:
        """Go through the data once, or until the training is stopped; None if at once.

        Parameters
        ----------
        began, first
            When the training began, and with which epoch.
        """
        state, size = self.state, self.config.batch_size
        order = data_order(len(rows), state.seed, state.phase_number, state.epoch)
        steps = math.ceil(len(rows) / size)  # of an epoch
        epoch_began, seen = time.perf_counter(), state.tokens
        while state.position < steps and not self.stopped:
            here = order[state.position * size : (state.position + 1) * size]
            self._step([rows[i] for i in here], rate, stepper, steps * state.epochs)
        if state.tokens == seen and state.position < steps:
            return None
        ended, complete, number = time.perf_counter(), state.position == steps, state.epoch + 1
        pace = (state.tokens - seen) / max(ended - epoch_began, 1e-9)
        left = (ended - began) / (number - first) * (state.epochs - number)
        loss, norm = state.loss / state.tokens, state.largest_norm
        epoch = Epoch(state.phase, number, state.epochs, loss, norm, pace, left, complete)
        if complete:
            state.epoch = number
            state.begin_epoch()
        return epoch

    def _step(self, batch: list[Indices], rate: float, stepper: Stepper, steps: int) -> None:
        state, config, tokens = self.state, self.config, count_tokens(batch)
        now = learning_rate(
            state.step, steps, rate, config.schedule, config.warmup_steps, config.final_rate
        )
        where = f"{state.phase}, step {state.step + 1}"
        loss, norm = stepper.step(batch, now, where, state.steps)
        state.count(loss, tokens, norm)
        state.optimizer = stepper.optimizer.state()
        if self.on_step:
            self.on_step(Step(state.phase, state.step, steps, loss / tokens, norm))

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


def data_order(n: int, seed: int, phase: int, epoch: int) -> Any:  # -> (n,)
    """Return the order in which an epoch of a phase, both from 0, goes through n rows."""
    return np.random.default_rng((seed, phase, epoch)).permutation(n)


def _check_run(epochs: Any, rate: Any) -> None:
    """Raise ConfigError unless epochs is a whole number, and rate a finite one, from 0 on."""
    check_integer("epochs", epochs)
    number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not number or not 0 <= rate < math.inf:
        raise ConfigError(f"the learning rate must be a number from 0 on, got {rate!r:.60}")
