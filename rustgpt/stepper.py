"""Owns one step of training: gradients, exchange between processes, norm, clipping, update."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from rustgpt.backend import single_threaded_blas
from rustgpt.config import TrainConfig
from rustgpt.errors import DataError, TrainingError
from rustgpt.layers.dropout import Dropout
from rustgpt.llm import LLM
from rustgpt.optim.adam import Adam, matrices, stretches
from rustgpt.optim.clipping import clip_factor
from rustgpt.optim.optimizer import Optimizer
from rustgpt.parallel.batches import count_tokens, share
from rustgpt.parallel.data_parallel import DataParallel, texts_of_a_step
from rustgpt.parallel.exchange import Exchange, Stopped
from rustgpt.text.rows import AnyRow, count_targets

COMPARED_EVERY: Final = 100  # steps, the parameters of several processes


def adam(model: LLM, config: TrainConfig) -> Adam:
    """Return the optimizer that a training has unless it is given another."""
    named = model.named_parameters()
    return Adam(
        model.parameters, config.beta1, config.beta2, config.epsilon, config.weight_decay,
        stretches(named, matrices(named)),
    )  # fmt: skip


class Stepper:
    """Makes steps that train a model; enter it with `with`.

    Nobody else can train the model meanwhile, every BLAS has one thread, and the model's
    parameters change between two steps only, as far as others see.

    Parameters
    ----------
    model
        Changed in place.
    config
        Threads, precision, batch size, dropout and the norm to which gradients are clipped.
    optimizer
        Has the model's flat `parameters`; Adam by default.
    texts
        The most of a step, if that is not `config.batch_size`.
    exchange
        With the other processes that train the same model, all with the same batches: each has a
        share of the texts, and updates a part of the parameters.
    """

    def __init__(
        self,
        model: LLM,
        config: TrainConfig,
        optimizer: Optimizer | None = None,
        texts: int | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.exchange = exchange or Exchange()
        self.optimizer = adam(model, config) if optimizer is None else optimizer
        if self.exchange.size > 1:
            texts = -(-texts_of_a_step(config, texts) // self.exchange.size)
        self.parallel = DataParallel(model, config, texts)
        self.parallel.part = self.exchange.part(model.n_parameters)
        self._made = 0  # steps
        if self.exchange.size > 1 and hasattr(self.optimizer, "keep"):
            self.optimizer.keep(self.parallel.part)
        self._entered = ExitStack()

    def __enter__(self) -> Stepper:
        with ExitStack() as entered:
            self.model.weights_lock.begin_training(self)
            entered.callback(self.model.weights_lock.end_training)
            entered.enter_context(single_threaded_blas())
            entered.enter_context(self.parallel)
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def _dropout(self, number: int) -> Dropout | None:
        rate = self.config.dropout
        return Dropout(rate, self.config.seed, number) if rate else None

    def step(
        self, batch: Sequence[AnyRow], rate: float, where: str = "this step", number: int = 0
    ) -> tuple[float, float]:
        """Make one step.

        Parameters
        ----------
        batch
            Texts as token ids, each of 2 to the context and one more; or as rows. Where no
            prediction counts, nothing is changed.
        rate
            Learning rate.
        where
            The step, for the error's message.
        number
            Of the step in the whole training, from 0: with the seed it says what dropout leaves
            out.

        Returns
        -------
        tuple of float
            The sum of the losses (in nats) that count, and the L2 norm of the gradient of their
            mean.

        Raises
        ------
        DataError
            If there is no text of two tokens.
        TrainingError
            If one of the two is not finite; then nothing is changed. Or if another process has
            failed.
        Stopped
            If another process was asked to stop; then nothing is changed.
        """
        began = time.perf_counter()
        rows = list(batch)
        if not count_tokens(rows):
            raise DataError("a step needs a text of at least two tokens")
        counted = count_targets(rows)
        if not counted:
            return 0.0, 0.0
        own = self._own(rows)
        loss = self.parallel.differentiate(own, 1.0 / counted, self._dropout(number))
        loss = self._exchange(loss, own, counted, began)
        norm = self._update(loss, rate)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"training diverged at {where}: the loss is {loss / counted:g}, the gradient's "
                f"norm {norm:g}; this step was not applied, but those before it have led here, so "
                "the model as it is now is of no use: try a smaller learning rate"
            )
        self._made += 1
        if self.exchange.size > 1:
            self.exchange.took(time.perf_counter() - began)
            if self._made % COMPARED_EVERY == 0:
                self.check_equal()
        return loss, norm

    def _own(self, rows: list[AnyRow]) -> list[Any]:
        """Return the texts of a batch that this process learns."""
        exchange = self.exchange
        return share(rows, exchange.rank, exchange.size) if exchange.size > 1 else rows

    def _exchange(self, loss: float, own: list[Any], counted: int, began: float) -> float:
        """Sum the gradients of all processes; return the sum of their losses."""
        exchange = self.exchange
        if exchange.size == 1:
            return loss
        exchange.took(time.perf_counter() - began)
        found = exchange.meet("step", loss, count_targets(text.row for text in own))
        if exchange.stopped:
            raise Stopped
        if sum(tokens for _, tokens in found) != counted:
            raise TrainingError(
                "the processes have not the same texts: each must be given the same data"
            )
        exchange.sum_gradients(self.parallel.gradients)
        return sum(one for one, _ in found)

    def _update(self, loss: float, rate: float) -> float:
        """Update the parameters, unless loss or norm is not finite; return the gradients' norm."""
        before = self.optimizer.state()
        self.optimizer.begin_step()

        def update(part: slice, squares: float) -> None:
            norm, factor = clip_factor(squares, self.config.max_grad_norm)
            if math.isfinite(loss) and math.isfinite(norm):
                self.optimizer.update(self.parallel.gradients, rate, factor, part)

        with self.model.weights_lock.writing():
            norm = math.sqrt(self.parallel.update(update, self._total_squares))
            if math.isfinite(loss) and math.isfinite(norm):
                self.exchange.gather_parameters(self.model.parameters)
                return norm
        self.optimizer.take_up(before)
        return norm

    def _total_squares(self, own: float) -> float:
        return self.exchange.total("norm", own) if self.exchange.size > 1 else own

    def check_equal(self) -> None:
        """Raise TrainingError unless all processes have the same parameters."""
        digest = hashlib.sha256(self.model.parameters.data).digest()
        self.exchange.check_equal("digest", digest, "parameters")

    def evaluate(self, rows: Sequence[AnyRow]) -> float:
        """Return the sum of the losses (in nats) that count in some texts, without a step."""
        return self.exchange.total("evaluate", self.parallel.evaluate(self._own(list(rows))))
