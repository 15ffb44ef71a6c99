"""Owns the training loop: phases, epochs, batches, and what is told of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rustgpt.backend import check_bfloat16
from rustgpt.config import TrainConfig
from rustgpt.ends import End
from rustgpt.errors import ConfigError, DataError
from rustgpt.llm import LLM
from rustgpt.optim.optimizer import Optimizer
from rustgpt.optim.schedules import learning_rate
from rustgpt.parallel import shared
from rustgpt.parallel.batches import count_tokens
from rustgpt.parallel.exchange import Exchange, Stopped
from rustgpt.parallel.pool import available_threads
from rustgpt.phase import Phase, check_run
from rustgpt.replay import Replay, some_of
from rustgpt.stepper import Stepper, adam
from rustgpt.text.dialogue import Dialogue
from rustgpt.text.joining import Joining
from rustgpt.text.pieces import Text, checked, hold_out, to_learn
from rustgpt.text.rows import AnyRow, Rows, count_targets
from rustgpt.text.stored import encode_all
from rustgpt.training_record import Recorded
from rustgpt.training_state import Epoch, Evaluation, Step, TrainingState
from rustgpt.validation import Validation


class Trainer(Recorded):
    """Trains a model: two phases over one loop.

    Parameters
    ----------
    model
        Changed in place.
    config
        Rates, epochs, batch size, threads, seed.
    on_epoch, on_step
        Called after each complete epoch, and after each step. The model is then as the step has
        left it, and may be used and saved.
    optimizer
        Makes the optimizer of each phase, from the model and the configuration; Adam by default.
    state
        Of a training that was stopped, with a model as it was then: `fit`, called for the phase in
        which it was stopped, with the same data, goes on from there.
    validation
        Texts (or dialogues, ids, rows) that are not learned but evaluated, every epoch or every
        `config.eval_every` steps; by default `config.validation_share` of each phase's own.
    before_evaluation, on_evaluation
        Called before each evaluation, so that the model can be saved first, and after it.
    exchange
        `rustgpt.parallel.mpi.world()` if `mpiexec` may have started several processes, which then
        train together: all make the same calls, with the same data.

    Attributes
    ----------
    epochs : list of Epoch
        What was trained so far.
    state : TrainingState
        How far the training has come. What changes with the next step is in it: `state.copy()`.
    evaluations : list of Evaluation
        What was evaluated so far.
    held_out_texts : int
        Texts of the last phase that were evaluated and not learned.
    too_small_to_split : bool
        Whether it had too little text for a share to be held out.
    split_texts, skipped_texts : int
        Texts of the last phase that were longer than the context and so cut in pieces, and texts of
        less than two tokens, which teach nothing.
    phases : list of str
        The names of the phases that were begun.
    notes : dict
        Plain values that `save` writes too, such as where the data came from.
    replay : dict of Replay
        What is learned again beside the new texts of a phase, by its name.

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
        validation: Sequence[Text] | None = None,
        before_evaluation: Callable[[], None] | None = None,
        on_evaluation: Callable[[Evaluation], None] | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self.model = model
        self.config = config or TrainConfig()
        self.on_epoch = on_epoch
        self.on_step = on_step
        self.validation = validation
        self.before_evaluation = before_evaluation
        self.on_evaluation = on_evaluation
        self.epochs: list[Epoch] = []
        self.evaluations: list[Evaluation] = []
        self.held_out_texts = 0
        self.too_small_to_split = False
        self.exchange = exchange or Exchange()
        if self.exchange.size > 1 and not self.config.threads:
            threads = self.exchange.threads(available_threads())
            self.config = dataclasses.replace(self.config, threads=threads)
        self.state = TrainingState(self.config.seed) if state is None else state.copy()
        self.split_texts = 0
        self.skipped_texts = 0
        self.phases: list[str] = [] if state is None else [self.state.phase]
        self.notes: dict[str, Any] = {}
        self.replay: dict[str, Replay] = {}
        self._make_optimizer = optimizer
        self._goes_on = state is not None and not state.complete
        if self.state.seed != self.config.seed:
            raise ConfigError(
                f"the training that shall go on had seed {self.state.seed}, not {self.config.seed}"
            )
        if self.config.precision == "bfloat16":
            check_bfloat16(model.config.dtype)

    @property
    def stopped(self) -> bool:
        """Whether the last training, or the one that runs, was asked to stop."""
        return self.exchange.stopped

    @property
    def steps(self) -> int:
        """How many steps were made so far."""
        return self.state.steps

    def pretrain(self, texts: Sequence[str], part: float = 1.0) -> list[Epoch]:
        """Learn statements; return its epochs."""
        config = self.config
        return self.fit(texts, config.pretrain_epochs, config.pretrain_rate, "pre-training", part)

    def instruction_tune(
        self,
        texts: Sequence[str | Dialogue],
        part: float = 1.0,
        statements: Sequence[str] = (),
    ) -> list[Epoch]:
        """Learn dialogues, of which the answers count (see `TrainConfig.loss_on`).

        Texts that are not of the form "User: ... Assistant: ..." are learned as they are.
        The statements of the pre-training are learned again beside them, lest the model forget
        them; see `TrainConfig.tune_replay`.
        """
        config, name = self.config, "instruction tuning"
        again = Replay(some_of(statements) if config.tune_replay else [], config.tune_replay)
        rows = self._encoded(texts, config.loss_on)
        return self._fit(
            rows, config.tune_epochs, config.tune_rate, name, part, config.tune_validation_share,
            config.loss_on, self.replay.get(name, again), config.tune_join,
        )  # fmt: skip

    def stop(self) -> None:
        """Let the training that runs end after its present step; later ones are not concerned.

        It is safe to call from a signal handler.
        """
        self.exchange.ask_to_stop()

    def fit(
        self, texts: Sequence[str], epochs: int, rate: float, phase: str, part: float = 1.0
    ) -> list[Epoch]:
        """Train on texts, with an optimizer that starts afresh.

        Raises
        ------
        DataError
            If there is one text and no list of texts.
        ConfigError, DataError, TrainingError
            As `fit_ids`.
        """
        rows = self._encoded(texts)
        return self._fit(rows, epochs, rate, phase, part, self.config.validation_share)

    def fit_ids(
        self,
        texts: Iterable[Sequence[int] | AnyRow],
        epochs: int,
        rate: float,
        phase: str,
        part: float = 1.0,
    ) -> list[Epoch]:
        """Train on texts that are token ids, with an optimizer that starts afresh.

        Parameters
        ----------
        texts
            Ids; or a `Row` where not every prediction counts.
        epochs
            Passes over them, unless one of the configuration's limits ends the training before.
        rate
            The highest learning rate.
        phase
            Its name.
        part
            Share of `max_steps`, `max_tokens` and `max_time` that this phase has of the training.

        Returns
        -------
        list of Epoch
            The last is not complete if the training ended in it.

        Raises
        ------
        ConfigError
            If a number is out of range, or the layers were changed behind the model's back; or if
            this is not the phase that shall go on.
        DataError
            If no text has two tokens, or no prediction counts.
        TokenizerError
            If an id is not in the vocabulary.
        TrainingError
            If the loss or the gradient is not finite; the step that gave it is not applied, but
            those before it have led there. Or if the model is being trained already.
        """
        rows = Rows.of(checked(text, self.model.tokenizer.vocab_size) for text in texts)
        return self._fit(rows, epochs, rate, phase, part, self.config.validation_share)

    def _fit(
        self,
        texts: Rows,
        epochs: int,
        rate: float,
        name: str,
        part: float,
        share: float,
        loss_on: str = "",
        replay: Replay | None = None,
        join: float = 0.0,
    ) -> list[Epoch]:
        """`fit_ids`, with a share held out; `loss_on` says what counts of dialogues to evaluate."""
        check_run(epochs, rate, part)
        if self._was_complete(name):
            return []
        self.model.check_parameters()
        self.model.weights_lock.check_untrained()
        self.exchange.begin()
        with shared.told(self.exchange):
            rows, held_out = self._rows(texts, share if self.validation is None else 0.0)
            if self.validation is not None:
                held_out = self._encoded(self.validation, loss_on)
            self.held_out_texts = len(held_out)
            tokenizer, longest = self.model.tokenizer, self.model.max_seq_len
            validation = Validation(held_out, tokenizer, longest)
            replay = replay or self.replay.get(name, Replay([], 0))
            old = self._encoded(replay.texts, loss_on).cut(longest)
            phase = Phase(
                rows, old, validation if validation.targets else None, rate,
                End.of(self.config, epochs, part), replay.count(len(rows)) if old else 0,
                Joining(join, tokenizer.end_id, longest) if join else None,
                self.exchange.now,
            )  # fmt: skip
            return self._learn(name, phase)

    def _learn(self, name: str, phase: Phase) -> list[Epoch]:
        config, epochs = dataclasses.replace(self.config, threads=0), phase.end.epochs
        optimizer = self._make_optimizer(self.model, self.config)
        most = phase.most_texts(config)
        with Stepper(self.model, self.config, optimizer, most, self.exchange) as stepper:
            same = config, name, phase.rate, epochs, len(phase.rows), phase.drawn
            shared.begin(self.exchange, self.model, same)
            self._begin(name, optimizer, phase)
            return self._epochs(phase, stepper)

    def _epochs(self, phase: Phase, stepper: Stepper) -> list[Epoch]:
        """Make the epochs of a phase, or those that are left, until the training is stopped."""
        done: list[Epoch] = []
        phase.begin(self.state)
        while not self.state.complete and not self.stopped:
            epoch = self._epoch(phase, stepper)
            if epoch is None:
                break
            done.append(epoch)
            self.epochs.append(epoch)
            if self.on_epoch and epoch.complete:
                self.on_epoch(epoch)
        return done

    def _begin(self, name: str, optimizer: Optimizer, phase: Phase) -> None:
        """Begin a phase, or go on with the one that was stopped."""
        state, epochs = self.state, phase.end.epochs
        if self._goes_on:
            if (name, epochs) != (state.phase, state.epochs):
                raise ConfigError(
                    f"the training that shall go on was stopped in {state.phase} of {state.epochs} "
                    f"epochs, not in {name} of {epochs}"
                )
            phase.plan(self.state, self.config)
            if state.position > len(phase.steps):
                raise ConfigError(
                    f"the training that shall go on was stopped after step {state.position} of an "
                    f"epoch, but one of these texts and this batch size has {len(phase.steps)}"
                )
            n, whole = self.model.n_parameters, not hasattr(optimizer, "keep")
            optimizer.take_up(shared.share(self.exchange, state.optimizer, n, whole))
            self._goes_on = False
        else:
            state.begin_phase(name, epochs)
            self.phases.append(name)
        state.optimizer = optimizer.state()

    def _epoch(self, phase: Phase, stepper: Stepper) -> Epoch | None:
        """Go through the data once, or until the training ends; None if at once."""
        state = self.state
        phase.plan(self.state, self.config)
        began, step, read = time.perf_counter(), state.step, state.read
        phase.is_over(state)
        self._evaluate(phase, stepper)  # if it was stopped before it could
        while state.position < len(phase.steps) and not (self.stopped or phase.is_over(state)):
            try:
                self._step(phase, stepper)
            except Stopped:
                break
            self._evaluate(phase, stepper)
        self._evaluate(phase, stepper)  # if the time was over after the last step
        complete = state.position == len(phase.steps)
        pending = phase.validation and phase.is_due(state, self.config.eval_every)
        if (state.step == step and not complete) or (self.stopped and complete and pending):
            return None  # who goes on evaluates first, and the epoch has its evaluation
        evaluated = self.evaluations[-1:] if state.evaluated == state.step else []
        pace = (state.read - read) / max(time.perf_counter() - began, 1e-9)
        epoch = phase.epoch(state, pace, complete, evaluated[0] if evaluated else None)
        if complete:
            state.epoch += 1
            state.begin_epoch()
        return epoch

    def _step(self, phase: Phase, stepper: Stepper) -> None:
        state, config = self.state, self.config
        batch = phase.batch(state)
        rate = learning_rate(
            state.step, phase.total_steps(state), phase.rate, config.schedule,
            config.warmup_steps, config.final_rate,
        )  # fmt: skip
        where = f"{state.phase}, step {state.step + 1}"
        loss, norm = stepper.step(batch, rate, where, state.steps)
        counted, read = count_targets(batch), count_tokens(batch)
        state.count(loss, counted, norm, read)
        state.optimizer = stepper.optimizer.state()
        phase.is_over(state)
        if self.on_step:
            self.on_step(phase.step(state, loss / max(1, counted), norm, rate, read))

    def _evaluate(self, phase: Phase, stepper: Stepper) -> None:
        """Evaluate the model, if it is time and was not done."""
        state, over = self.state, phase.is_last(self.state)
        due = phase.is_due(state, self.config.eval_every)
        if phase.validation is None or not due or (self.stopped and not over):
            return
        if self.before_evaluation:
            ended, state.ended = state.ended, False  # who saves now has yet to evaluate
            self.before_evaluation()
            state.ended = ended
        loss = phase.validation.loss(stepper, lambda: self.stopped and not over)
        if loss is None:
            return
        evaluation = phase.validation.count(loss, state)
        if self.config.patience and state.waited >= self.config.patience:
            state.ended = True
        self.evaluations.append(evaluation)
        if self.on_evaluation:
            self.on_evaluation(evaluation)

    def _rows(self, whole: Rows, share: float) -> tuple[Rows, Rows]:
        """Return the texts, cut so that each fits the context; and whole ones to validate on.

        A row has one token more than the context: the last is predicted, not read.
        """
        longest = self.model.max_seq_len
        held_out = Rows.of([])
        self.too_small_to_split = False
        if share:
            whole, held_out = hold_out(whole, share, self.config.seed)
            self.too_small_to_split = not held_out
        self.split_texts = self.skipped_texts = 0
        for edges in whole.parts():
            lengths = edges[:, 1] - edges[:, 0]  # (n,)
            self.split_texts += int((lengths > longest + 1).sum())
            self.skipped_texts += int((lengths < 2).sum())
        return to_learn(whole, longest), held_out

    def _encoded(self, texts: Sequence[Text], loss_on: str = "") -> Rows:
        """Return whole texts as token ids."""
        if isinstance(texts, (str, bytes)):
            raise DataError("the texts to learn must be a list of strings, not one string")
        return encode_all(texts, self.model.text_format, loss_on)
