"""Owns what a training asks of the other processes; in one process there are none to be asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from rustgpt.layers.memory import Array

Result = TypeVar("Result")

# What the ranks meet for. The short ones come with every step: one who misses them hangs.
SHORT_MEETINGS: Final = ("step", "norm", "digest", "evaluate")
MEETINGS: Final = (
    *SHORT_MEETINGS,
    *("begin", "save", "save the best", "sample", "gather", "scatter", "spread", "prepare", "end"),
)


class Exchange:
    """The processes of a training, the *ranks*; this class is the exchange of one alone.

    All ranks make the same calls in the same order. Each begins with a meeting, at which every
    rank tells the others a few numbers, whether it was asked to stop, and whether it has failed.

    Attributes
    ----------
    rank, size : int
        Which process this is, from 0, and how many there are.
    stopped : bool
        Whether the ranks have agreed to end the training that runs.
    broken : bool
        Whether nothing can be exchanged any more, after an error.
    """

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.stopped = self.broken = False

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that writes and prints."""
        return self.rank == 0

    def begin(self) -> None:
        """Forget that a training was asked to stop."""
        self.stopped = False

    def ask_to_stop(self) -> None:
        """Ask for the end of the training that runs; a signal handler may call it."""
        self.stopped = True

    def stops_here(self) -> bool:
        """Whether a step whose gradients are there must not be applied: some ranks did not ask."""
        return self.size > 1 and self.stopped

    def now(self) -> float:
        """Return the time, in seconds, by a clock that is the same for all ranks."""
        return time.perf_counter()

    def took(self, seconds: float) -> None:
        """Tell how long a step took: what takes ten times as long counts as hung."""

    def name(self, rank: int) -> str:
        """Return how a rank is called in messages."""
        return f"rank {rank}"

    def processors(self) -> tuple[int, int]:
        """Return how many processors the ranks on this host may use, and how many it has."""
        return 0, 0

    def leave(self, status: int) -> list[int] | None:
        """Wait until all ranks leave; return their exit statuses, or None if that takes too long.

        One that leaves with an error does not wait for long, one that is done does.
        """
        return [status]

    def abort(self, status: int) -> None:
        """End all ranks at once, as far as MPI can."""

    def threads(self, available: int) -> int:
        """Return this rank's share of the processors that it may use."""
        return available

    def part(self, n: int) -> slice:
        """Return the part of n numbers that is this rank's own."""
        return self.part_of(self.rank, n)

    def part_of(self, rank: int, n: int) -> slice:
        """Return the part of n numbers that is a rank's own."""
        return slice(n * rank // self.size, n * (rank + 1) // self.size)

    def meet(self, what: str, *values: float) -> list[Sequence[float]]:
        """Return the numbers of all ranks, in their order.

        Parameters
        ----------
        what
            One of `MEETINGS`, the same for all.

        Raises
        ------
        TrainingError
            If a rank has failed, is gone, hangs, or is at another meeting.
        """
        return [values]

    def total(self, what: str, value: float) -> float:
        """Return the sum of a number of all ranks, in their order."""
        return float(sum(one[0] for one in self.meet(what, value)))

    def sum_gradients(self, gradients: Array) -> None:  # (P,)
        """Sum the gradients of all ranks, in their order, each rank its own part."""

    def gather_parameters(self, parameters: Array) -> None:  # (P,)
        """Have all parts of the parameters, of which this rank has changed its own."""

    def check_equal(self, what: str, digest: bytes, things: str) -> None:
        """Raise TrainingError unless a digest is the same on all ranks."""

    def from_first(self, what: str, work: Callable[[], Result]) -> Result:
        """Return what work() returns, or raise what it raises, on the first rank, which does it."""
        return work()

    def gathered(self, own: Array, n: int) -> Array | None:
        """Return an array of n numbers of which each rank has its part; None but on the first."""
        return own

    def scattered(self, whole: Array | None, n: int, dtype: Any) -> Array:
        """Return this rank's part of an array of n numbers that the first rank has."""
        assert whole is not None
        return whole

    def spread(self, array: Array) -> None:
        """Copy an array of the first rank to all others."""

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank cannot go on; they then raise TrainingError."""


class Stopped(Exception):
    """Raised by a step that is not made, because a rank was asked to stop."""
