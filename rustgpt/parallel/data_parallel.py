"""Owns the gradients of one training step: a few threads that compute them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rustgpt.backend import backend_name, ops
from rustgpt.layers.context import Context
from rustgpt.layers.dropout import Dropout
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.layer import divides_rows
from rustgpt.layers.memory import Array, Workspace
from rustgpt.parallel.batches import Piece, Text, count_tokens, divided, sharded
from rustgpt.parallel.pool import ThreadPool, available_threads
from rustgpt.text.rows import AnyRow

if TYPE_CHECKING:
    from rustgpt.config import TrainConfig
    from rustgpt.llm import LLM

# A thread with fewer tokens spends more time on reading the parameters than on the arithmetic.
TOKENS_AT_LEAST = 64

# Parameters from which on threads share one buffer of gradients, so that a thread more costs its
# activations alone. Smaller models' threads have buffers of their own, which the caches hold: to
# add them up is cheaper than to read the rows of others out of other cores' caches.
SHARED_FROM = 2**23


def texts_of_a_step(config: TrainConfig, texts: int | None = None) -> int:
    """Return how many texts a step has at most, if there are so many of them."""
    if config.batch_tokens:
        return texts or config.batch_tokens
    return min(config.batch_size, texts or config.batch_size)


def shares_gradients(config: TrainConfig, model: LLM, texts: int) -> bool:
    """Return whether the threads of a training with so many texts a step share one buffer."""
    threads = config.threads or available_threads()
    wanted = model.n_parameters >= SHARED_FROM or texts < threads
    return wanted and backend_name() == "cython" and all(map(divides_rows, model.layers))


def thread_count(config: TrainConfig, model: LLM, texts: int | None = None) -> int:
    """Return how many threads a training has at most.

    Parameters
    ----------
    texts
        The most of a step, if that is not `config.batch_size`.
    """
    texts = texts_of_a_step(config, texts)
    most = max(1, texts * model.max_seq_len // TOKENS_AT_LEAST)
    if not shares_gradients(config, model, texts):
        most = min(most, texts)  # each takes whole texts
    return min(config.threads or available_threads(), most)


class DataParallel:
    """Threads that compute the gradients of a batch together; see `rustgpt.parallel`.

    Parameters
    ----------
    model
        Whose gradients.
    config
        Threads, batch size and precision.
    texts
        The most of a step, if that is not `config.batch_size`.

    Attributes
    ----------
    gradients : (P,) array
        Of the last batch, in the order of the model's parameters.
    part : slice
        Of them, which this process updates: all, unless it is one of several.
    """

    def __init__(self, model: LLM, config: TrainConfig, texts: int | None = None) -> None:
        texts = texts_of_a_step(config, texts)
        self.model = model
        self.threads = thread_count(config, model, texts)
        self.shared = shares_gradients(config, model, texts)
        self.bfloat16 = config.precision == "bfloat16"
        dtype = model.config.dtype
        first, space = Gradients(model.layers), Workspace(dtype)
        self._gradients, self._spaces = [first], [space]
        for i in range(1, self.threads):
            flat = first.flat if self.shared else None
            self._gradients.append(Gradients(model.layers, flat, i if self.shared else 0))
            self._spaces.append(Workspace(dtype, space if self.shared else None))
        self.gradients: Array = first.flat
        self._pool = ThreadPool()
        self._threads_now = 1  # that the last batch was divided among
        self.part = slice(0, len(self.gradients))

    def __enter__(self) -> DataParallel:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def differentiate(
        self, batch: Sequence[AnyRow | Text], scale: float, dropout: Dropout | None = None
    ) -> float:
        """Return the sum of a batch's losses; `gradients` is that of `scale` times it.

        Parameters
        ----------
        batch
            Texts as token ids, or as rows of which not every prediction counts; or those of a
            larger batch, each with its number there. There may be none.
        scale
            What each prediction's loss is worth: 1 / those of the whole step that count, whoever
            has them.
        dropout
            Of this step.
        """
        n = max(1, min(self.threads, count_tokens(batch) // TOKENS_AT_LEAST))
        if not self.shared:
            n = max(1, min(n, len(batch)))
        together = self.shared and n > 1
        barrier = self._pool.barrier(n)
        work = sharded(batch, n, barrier) if together else divided(batch, n)
        losses = [0.0] * n

        def differentiate(i: int) -> None:
            losses[i] = self._differentiate(i, work[i], scale, dropout)
            if n > 1:
                barrier.wait()
            if not together:
                self._sum(i, n)

        self._pool.run(n, differentiate)
        self._threads_now = n
        return sum(losses)

    def evaluate(self, rows: Sequence[AnyRow | Text]) -> float:
        """Return the sum of some texts' losses, forward only."""
        n = max(1, min(self.threads, len(rows)))
        work, losses = divided(rows, n), [0.0] * n

        def evaluate(i: int) -> None:
            losses[i] = sum(self.model.loss(p.ids, p.targets, p.offsets) for p in work[i])

        self._pool.run(n, evaluate)
        return sum(losses)

    def update(
        self, work: Callable[[slice, float], None], total: Callable[[float], float] | None = None
    ) -> float:
        """Let each thread of the last batch call work(part, squares); return `squares`.

        Parameters
        ----------
        work
            Updates a part of the flat buffers, knowing the square of the L2 norm of all gradients.
        total
            Returns the sum over all processes, from that of this one.
        """
        n = self._threads_now
        squares, barrier = [0.0] * n, self._pool.barrier(n)

        def do(i: int) -> None:
            part = self._part(i, n, self.part)
            squares[i] = ops.sum_of_squares(self.gradients[part])
            if n > 1:
                barrier.wait()
            if total:
                if i == 0:
                    squares[:] = total(sum(squares)), *[0.0] * (n - 1)
                if n > 1:
                    barrier.wait()
            work(part, sum(squares))

        self._pool.run(n, do)
        return sum(squares)

    def _differentiate(
        self, i: int, pieces: list[Piece], scale: float, dropout: Dropout | None
    ) -> float:
        """Fill in thread i's gradients, or its part of all; return the sum of its losses."""
        gradients, loss = self._gradients[i], 0.0
        gradients.begin()
        for number, piece in enumerate(pieces):
            if number > 0 and piece.shard:
                piece.shard.barrier.wait()  # what the threads saw of each other is written over
            ctx = Context(
                piece.offsets, self.model.config.dtype, gradients=gradients,
                bfloat16=self.bfloat16, shard=piece.shard, dropout=dropout,
                row_numbers=piece.row_numbers if dropout else None, workspace=self._spaces[i],
            )  # fmt: skip
            loss += self.model.loss_and_gradients(piece.ids, piece.targets, scale, ctx)
        gradients.finish()
        return loss

    def _part(self, i: int, n: int, of: slice) -> slice:
        """Return the part of a part of the flat buffers that thread i of n has."""
        size = of.stop - of.start
        return slice(of.start + size * i // n, of.start + size * (i + 1) // n)

    def _sum(self, i: int, n: int) -> None:
        """Add up part i of n threads' gradients, in their order."""
        part = self._part(i, n, slice(0, len(self.gradients)))
        for other in self._gradients[1:n]:
            ops.add_into(other.flat[part], self.gradients[part])
