"""Owns the training loop: batches, workers over a batch, one optimizer step after another."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rustgpt.backend import check_bfloat16, ops, single_threaded_blas
from rustgpt.config import TrainConfig
from rustgpt.errors import DataError, TrainingError
from rustgpt.layers.memory import Indices
from rustgpt.layers.team import Team
from rustgpt.llm import LLM
from rustgpt.optim.adam import Adam
from rustgpt.optim.clipping import clip_factor
from rustgpt.optim.schedules import learning_rate


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


class Trainer:
    """Trains a model: two phases over one loop.

    Parameters
    ----------
    model
        Changed in place.
    config
        Rates, epochs, batch size, threads, seed.
    on_epoch
        Called after each epoch, to show progress.

    Attributes
    ----------
    epochs : list of Epoch
        What was trained so far.
    split_texts, skipped_texts : int
        Texts of the last phase that were longer than the context and so cut in pieces, and texts of
        less than two tokens, which teach nothing.
    stopped : bool
        Whether `stop` was called.

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
    ) -> None:
        self.model = model
        self.config = config or TrainConfig()
        self.on_epoch = on_epoch
        self.epochs: list[Epoch] = []
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
        """Let the training end after the step that runs now; safe to call from a signal handler."""
        self.stopped = True

    def fit(self, texts: Sequence[str], epochs: int, rate: float, phase: str) -> list[Epoch]:
        """Train on texts, with an optimizer that starts afresh.

        Raises
        ------
        DataError
            If no text has two tokens.
        TrainingError
            If the loss or the gradient is not finite; the step that gave it is not applied.
        """
        rows = self._rows(texts)
        done: list[Epoch] = []
        config = self.config
        rng = np.random.default_rng((config.seed, len(self.epochs)))
        steps = math.ceil(len(rows) / config.batch_size) * epochs
        with single_threaded_blas(), _Workers(self.model, config) as workers:
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
                    tokens += sum(len(row) - 1 for row in batch)
                    step += 1
                ended = time.perf_counter()
                left = (ended - began) / number * (epochs - number)
                pace = tokens / max(ended - epoch_began, 1e-9)
                done.append(Epoch(phase, number, epochs, loss / tokens, largest, pace, left))
                self.epochs.append(done[-1])
                if self.on_epoch:
                    self.on_epoch(done[-1])
        return done

    def _rows(self, texts: Sequence[str]) -> list[Indices]:
        """Return the texts as token ids, cut so that each fits the context and its next token."""
        longest = self.model.max_seq_len
        self.split_texts = self.skipped_texts = 0
        rows = []
        for text in texts:
            ids = np.array(self.model.tokenizer.encode(text, allow_special=True), np.int32)
            self.split_texts += len(ids) > longest + 1
            self.skipped_texts += len(ids) < 2
            # The last token of a piece is the first of the next: every token but the first is
            # predicted once.
            rows += [ids[i : i + longest + 1] for i in range(0, len(ids) - 1, longest)]
        if not rows:
            raise DataError("there is nothing to train on: no text has two tokens; add some text")
        return rows


def _batches(
    rows: list[Indices], batch_size: int, rng: np.random.Generator
) -> Iterator[list[Indices]]:
    """Yield the rows in a new order, batch_size at a time."""
    order = rng.permutation(len(rows))
    for first in range(0, len(rows), batch_size):
        yield [rows[i] for i in order[first : first + batch_size]]


def _joined(rows: list[Indices]) -> tuple[Indices, Indices, Indices]:
    """Return the tokens of several texts, those that follow, and where each text begins."""
    ids = np.concatenate([row[:-1] for row in rows])  # (N,)
    targets = np.concatenate([row[1:] for row in rows])  # (N,)
    offsets = np.zeros(len(rows) + 1, np.int32)  # (B + 1,)
    np.cumsum([len(row) - 1 for row in rows], out=offsets[1:])
    return ids, targets, offsets


def _shares(batch: list[Indices], n: int) -> list[list[Indices]]:
    """Divide a batch among n workers, the longest text first to whoever has least."""
    shares: list[list[Indices]] = [[] for _ in range(n)]
    loads = [0] * n
    for row in sorted(batch, key=len, reverse=True):
        least = loads.index(min(loads))
        shares[least].append(row)
        loads[least] += len(row) - 1
    return shares


# A worker takes its share through the model in pieces of at least so many tokens. Smaller ones
# would slow the matrix products; larger ones leave the cache and need more memory for what is kept.
TOKENS_A_PIECE = 512


def _pieces(share: list[Indices]) -> Iterator[list[Indices]]:
    """Yield the texts of a share in order, in pieces of about the same number of tokens."""
    tokens = sum(len(row) - 1 for row in share)
    limit = tokens / max(1, tokens // TOKENS_A_PIECE)
    piece: list[Indices] = []
    taken, full = 0, limit
    for row in share:
        piece.append(row)
        taken += len(row) - 1
        if taken >= full:
            yield piece
            piece, full = [], taken + limit
    if piece:
        yield piece


def available_threads() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# A worker with fewer tokens spends more time on reading the parameters than on the arithmetic.
TOKENS_AT_LEAST = 64


def worker_count(config: TrainConfig, max_seq_len: int, divides_rows: bool = True) -> int:
    """Return how many workers a training has at most.

    Parameters
    ----------
    config
        Batch size and threads.
    max_seq_len
        The most tokens of a text.
    divides_rows
        Whether the model's layers let workers divide one text; if not, each needs a text.
    """
    most = max(1, config.batch_size * max_seq_len // TOKENS_AT_LEAST)
    if not divides_rows:
        most = min(most, config.batch_size)
    return min(config.threads or available_threads(), most)


class _Workers:
    """A few threads, each with a replica of the model, that make one step together.

    Each runs whole layers on its share of the batch and then owns one part of the flat buffers: it
    sums that part of all gradients, in a fixed order, and updates that part of the parameters. So
    they meet three times a step, and the same seed and number of threads give the same bits.
    A batch of fewer texts than workers has its rows divided instead; see `rustgpt.layers.team`.
    """

    def __init__(self, model: LLM, config: TrainConfig) -> None:
        self.n = worker_count(config, model.max_seq_len, model.divides_rows())
        self.models = [model] + [model.replica() for _ in range(self.n - 1)]
        self.bfloat16 = config.precision == "bfloat16"
        self.max_norm = config.max_grad_norm
        self.adam = Adam(
            model.parameters, config.beta1, config.beta2, config.epsilon, config.weight_decay,
            matrices(model),
        )  # fmt: skip
        edges = [len(model.parameters) * i // self.n for i in range(self.n + 1)]
        self.parts = [slice(a, b) for a, b in pairwise(edges)]
        self._team: Team | None = None
        self._pool = ThreadPoolExecutor(max(1, self.n - 1), "rustgpt")

    def __enter__(self) -> _Workers:
        for model in self.models:
            model.use_bfloat16(self.bfloat16)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self.models[0].use_bfloat16(False)

    def _each(self, work: Callable[[int], float], n: int) -> list[float]:
        """Let each of n workers i do work(i), this thread being worker 0; return the results."""
        others = [self._pool.submit(work, i) for i in range(1, n)]
        errors: list[BaseException] = []
        try:
            results = [work(0)]
        except BaseException as error:
            errors.append(error)
        wait(others)  # nobody may still be at work on the buffers when an error goes up
        errors += [error for error in (other.exception() for other in others) if error]
        if errors:
            # Of some that gave up because another had failed, that other's error says more.
            raise min(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError))
        return results + [other.result() for other in others]

    def step(self, batch: list[Indices], rate: float, where: str) -> tuple[float, float]:
        """Make one step; return the sum of the losses, and the norm of their mean's gradient."""
        tokens = sum(len(row) - 1 for row in batch)
        n, scale = max(1, min(self.n, tokens // TOKENS_AT_LEAST)), 1.0 / tokens
        if len(batch) < n and self.models[0].divides_rows():
            loss = self._together(batch, n, scale)
        else:
            n = min(n, len(batch))
            shares = _shares(batch, n)
            loss = sum(self._each(lambda i: self._differentiate(i, shares[i], scale), n))
        squares = sum(self._each(lambda i: self._sum_gradients(i, n), self.n))
        norm, factor = clip_factor(squares, self.max_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"training diverged at {where}: the loss is {loss * scale:g}, the gradient's norm "
                f"{norm:g}; nothing of this step was kept; try a smaller learning rate"
            )
        self.adam.begin_step()
        self._each(lambda i: self._update(i, rate, factor), self.n)
        return loss, norm

    def _differentiate(self, i: int, share: list[Indices], scale: float) -> float:
        """Fill worker i's gradients with those of its share; return the sum of the losses."""
        model, loss = self.models[i], 0.0
        model.gradients.fill(0)
        for rows in _pieces(share):
            loss += model.loss_and_gradients(*_joined(rows), scale)
        return loss

    def _together(self, batch: list[Indices], n: int, scale: float) -> float:
        """Let n workers divide the rows of a batch of few texts; return the sum of the losses."""
        ids, targets, offsets = _joined(batch)
        if self._team is None or self._team.n != n:
            self._team = Team(n)
        members = self._team.members(offsets)

        def differentiate(i: int) -> float:
            model, member = self.models[i], members[i]
            rows = member.rows
            model.gradients.fill(0)
            model.join(member)
            try:
                return model.loss_and_gradients(ids[rows], targets[rows], offsets, scale)
            except BaseException:
                member.team.leave()
                raise
            finally:
                model.join(None)

        return sum(self._each(differentiate, n))

    def _sum_gradients(self, i: int, n: int) -> float:
        """Add up part i of the gradients of the first n workers; return its sum of squares."""
        part = self.models[0].gradients[self.parts[i]]
        if n == 1:
            return float(ops.sum_of_squares(part))
        for model in self.models[1:n]:
            squares = ops.add_into(model.gradients[self.parts[i]], part)
        return float(squares)

    def _update(self, i: int, rate: float, factor: float) -> float:
        self.adam.update(self.models[0].gradients, rate, factor, self.parts[i])
        return 0.0


def matrices(model: LLM) -> tuple[slice, ...]:
    """Return where in the flat buffer the matrices are: what weight decay applies to."""
    found, taken = [], 0
    for value in model.named_parameters().values():
        if value.ndim >= 2:
            found.append(slice(taken, taken + value.size))
        taken += value.size
    return tuple(found)
