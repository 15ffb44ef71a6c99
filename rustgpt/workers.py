"""Owns one step of training: the threads that make it together, and how a batch is divided."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain

import numpy as np

from rustgpt.backend import ops
from rustgpt.config import TrainConfig
from rustgpt.errors import TrainingError
from rustgpt.layers.memory import Indices
from rustgpt.layers.team import Member, Team, barrier
from rustgpt.llm import LLM
from rustgpt.optim.adam import Adam
from rustgpt.optim.clipping import clip_factor

# Rows go through the model in pieces of at least so many tokens, in all threads together; but in
# each of at least so many. Smaller ones would slow the matrix products; larger ones leave the cache
# and need more memory for what is kept.
TOKENS_A_PIECE = 512
TOKENS_OF_A_THREAD = 256

# A thread with fewer tokens spends more time on reading the parameters than on the arithmetic.
TOKENS_AT_LEAST = 64

# Parameters from which on threads share one buffer of gradients, so that a thread more costs its
# activations alone. Smaller models' threads have buffers of their own, which the caches hold: to
# add them up is cheaper than to read the rows of others out of other cores' caches.
SHARED_FROM = 2**23

# A thread may have so many times its equal part of the rows; otherwise texts are divided.
UNEVEN = 1.1


def available_threads() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def shares_gradients(config: TrainConfig, model: LLM, texts: int) -> bool:
    """Return whether the threads of a training with so many texts a step work in a team."""
    threads = config.threads or available_threads()
    return (model.n_parameters >= SHARED_FROM or texts < threads) and model.works_in_team()


def worker_count(config: TrainConfig, model: LLM, texts: int | None = None) -> int:
    """Return how many threads a training has at most.

    Parameters
    ----------
    texts
        Of a step, if there are fewer than `config.batch_size`.
    """
    texts = min(config.batch_size, texts or config.batch_size)
    most = max(1, texts * model.max_seq_len // TOKENS_AT_LEAST)
    if not shares_gradients(config, model, texts):
        most = min(most, texts)  # each takes whole texts
    return min(config.threads or available_threads(), most)


def _shares(batch: list[Indices], n: int) -> list[list[Indices]]:
    """Divide texts among n threads, the longest first to whoever has least."""
    shares: list[list[Indices]] = [[] for _ in range(n)]
    loads = [0] * n
    for row in sorted(batch, key=len, reverse=True):
        least = loads.index(min(loads))
        shares[least].append(row)
        loads[least] += len(row) - 1
    return shares


def _tokens(rows: list[Indices]) -> int:
    """Return how many tokens of some texts have one that follows."""
    return sum(len(row) - 1 for row in rows)


def _pieces(rows: list[Indices], at_least: int) -> Iterator[list[Indices]]:
    """Yield texts in order, in pieces of about the same number of tokens."""
    tokens = _tokens(rows)
    limit = tokens / max(1, tokens // at_least)
    piece: list[Indices] = []
    taken, full = 0, limit
    for row in rows:
        piece.append(row)
        taken += len(row) - 1
        if taken >= full:
            yield piece
            piece, full = [], taken + limit
    if piece:
        yield piece


@dataclass(frozen=True)
class _Piece:
    """Texts that go through the model at once: (N,) tokens, those that follow, (B + 1,) edges."""

    ids: Indices
    targets: Indices
    offsets: Indices
    member: Member | None = None


def _joined(rows: list[Indices]) -> _Piece:
    ids, targets = [row[:-1] for row in rows], [row[1:] for row in rows]
    offsets = np.array([0, *accumulate(map(len, ids))], np.int32)  # (B + 1,)
    if len(rows) == 1:  # of which a copy would take long, if a step is short
        return _Piece(ids[0], targets[0], offsets)
    return _Piece(np.concatenate(ids), np.concatenate(targets), offsets)


def _divided(rows: list[Indices], team: Team) -> list[_Piece]:
    """Divide the rows of some texts among a team, by whole texts if that comes out even."""
    n, tokens = team.n, _tokens(rows)
    shares = _shares(rows, n)
    edges = np.zeros(n + 1, np.int32)
    np.cumsum([_tokens(share) for share in shares], out=edges[1:])
    uneven = bool(n * np.diff(edges).max() > UNEVEN * tokens)
    if uneven:
        edges = np.array([tokens * i // n for i in range(n + 1)], np.int32)
    piece = _joined(rows if uneven else list(chain(*shares)))
    members = team.members(edges, heads=uneven)
    return [_Piece(piece.ids, piece.targets, piece.offsets, member) for member in members]


class _Helper:
    """A thread that does one piece of work after the other, and sleeps in between."""

    def __init__(self) -> None:
        self.at_work = False
        self._barrier = barrier(2)  # where work begins and where it ends
        self._work: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name="rustgpt", daemon=True)
        self._thread.start()

    def begin(self, work: Callable[[], None]) -> None:
        """Let the thread call `work`, which must not raise, until `end` waits for it."""
        self._work = work
        self._meet(at_work=True)

    def end(self) -> None:
        self._meet(at_work=False)

    def stop(self) -> None:
        if self.at_work:
            self.end()
        self._work = None
        self._barrier.wait()
        self._thread.join()

    def _meet(self, at_work: bool) -> None:
        # Nothing comes between these two, not even Ctrl-C.
        self.at_work = at_work
        self._barrier.wait()

    def _run(self) -> None:
        while True:
            self._barrier.wait()
            if self._work is None:
                return
            self._work()
            self._barrier.wait()


class Workers:
    """A few threads, each with a replica of the model, that make one step together.

    In a team they share one batch and one buffer of gradients; see `rustgpt.layers.team`.
    Otherwise each takes texts of its own and has gradients of its own, which are summed in a fixed
    order. Then each updates one part of the parameters. So they meet a few times a step, and the
    same seed and number of threads give the same bits.

    A step of too few tokens to be divided is one thread's.
    """

    def __init__(self, model: LLM, config: TrainConfig, texts: int | None = None) -> None:
        texts = min(config.batch_size, texts or config.batch_size)  # of a step
        self.threads = worker_count(config, model, texts)
        self.in_team = shares_gradients(config, model, texts)
        gradients = model.gradients if self.in_team else None
        self.models = [model] + [model.replica(gradients) for _ in range(self.threads - 1)]
        self.bfloat16 = config.precision == "bfloat16"
        self.max_norm = config.max_grad_norm
        self.adam = Adam(
            model.parameters, config.beta1, config.beta2, config.epsilon, config.weight_decay,
            matrices(model),
        )  # fmt: skip
        self._teams: dict[int, Team] = {}
        self._helpers: list[_Helper] = []

    def __enter__(self) -> Workers:
        for model in self.models:
            model.use_bfloat16(self.bfloat16)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for helper in self._helpers:
                helper.stop()
        finally:
            self.models[0].use_bfloat16(False)

    def step(self, batch: list[Indices], rate: float, where: str) -> tuple[float, float]:
        """Make one step; return the sum of the losses, and the norm of their mean's gradient."""
        tokens = _tokens(batch)
        n = max(1, min(self.threads, tokens // TOKENS_AT_LEAST))
        if not self.in_team:
            n = min(n, len(batch))
        team, scale = self._team(n), 1.0 / tokens
        work = self._divide(batch, team)
        losses, squares = [0.0] * n, [0.0] * n
        self.adam.begin_step()

        def differentiate(i: int) -> None:
            losses[i] = self._differentiate(i, team, work[i], scale)
            team.barrier.wait()
            squares[i] = self._sum_gradients(i, n)

        def update(i: int) -> None:
            self.adam.update(self.models[0].gradients, rate, factor, self._part(i, n))

        self._each(differentiate, team)
        loss, (norm, factor) = sum(losses), clip_factor(sum(squares), self.max_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"training diverged at {where}: the loss is {loss * scale:g}, the gradient's norm "
                f"{norm:g}; this step was not applied, but those before it have led here, so the "
                "model as it is now is of no use: try a smaller learning rate"
            )
        with self.models[0].weights_lock.writing():
            self._each(update, team)
        return loss, norm

    def _team(self, n: int) -> Team:
        if n not in self._teams:
            self._teams[n] = Team(n)
        return self._teams[n]

    def _each(self, work: Callable[[int], None], team: Team) -> None:
        """Let each of a team's threads i do work(i), this thread being number 0."""

        def do(i: int) -> None:
            try:
                work(i)
            except BaseException as error:
                errors.append(error)
                team.barrier.abort()

        errors: list[BaseException] = []
        try:
            while len(self._helpers) < team.n - 1:
                self._helpers.append(_Helper())
            for i in range(1, team.n):
                self._helpers[i - 1].begin(partial(do, i))
        except BaseException as error:  # a thread that cannot be started
            errors.append(error)
            team.barrier.abort()
        do(0)
        for helper in self._helpers:
            if helper.at_work:  # nobody may be when an error goes up
                helper.end()
        if errors:
            self._teams.clear()  # nobody meets there again
            raise errors[0]  # the others gave up because of it

    def _divide(self, batch: list[Indices], team: Team) -> list[list[_Piece]]:
        """Return each thread's pieces of a batch."""
        each = max(TOKENS_A_PIECE // team.n, TOKENS_OF_A_THREAD)
        if self.in_team and team.n > 1:
            pieces = [_divided(rows, team) for rows in _pieces(batch, team.n * each)]
            return [[piece[i] for piece in pieces] for i in range(team.n)]
        shares = _shares(batch, team.n)
        return [[_joined(rows) for rows in _pieces(share, each)] for share in shares]

    def _differentiate(self, i: int, team: Team, pieces: list[_Piece], scale: float) -> float:
        """Fill in worker i's gradients, or its part of the team's; return the sum of the losses."""
        model, loss = self.models[i], 0.0
        model.join(pieces[0].member if pieces else None)
        model.begin_gradients()
        try:
            for number, piece in enumerate(pieces):
                model.join(piece.member)
                if number > 0 and piece.member:
                    team.barrier.wait()  # what the threads showed each other is written over now
                loss += model.loss_and_gradients(piece.ids, piece.targets, piece.offsets, scale)
        finally:
            model.join(None)
        return loss

    def _part(self, i: int, n: int) -> slice:
        """Return the part of the flat buffers that thread i of n sums and updates."""
        P = self.models[0].n_parameters
        return slice(P * i // n, P * (i + 1) // n)

    def _sum_gradients(self, i: int, n: int) -> float:
        """Add up part i of n workers' gradients; return its sum of squares."""
        part = self._part(i, n)
        total = self.models[0].gradients[part]
        if self.in_team or n == 1:
            return float(ops.sum_of_squares(total))
        for model in self.models[1:n]:
            squares = ops.add_into(model.gradients[part], total)
        return float(squares)


def matrices(model: LLM) -> tuple[slice, ...]:
    """Return where in the flat buffer the matrices are: what weight decay applies to."""
    found, taken = [], 0
    for value in model.named_parameters().values():
        if value.ndim >= 2:
            found.append(slice(taken, taken + value.size))
        taken += value.size
    return tuple(found)
