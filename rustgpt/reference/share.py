"""Owns which part of a kernel's work is a thread's, if several do it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Barrier(Protocol):
    """Where threads wait for each other: `threading.Barrier`, or the compiled one."""

    def wait(self) -> object:
        """Return when every thread has called it as often, or raise BrokenBarrierError."""

    def abort(self) -> None:
        """Let nobody wait any more."""


@dataclass(frozen=True)
class Share:
    """One thread's share of a batch.

    The thread takes its rows through the layers, and makes its part of every weight's gradient,
    over the rows of all: so the gradients of all threads are one array, and need no sum.

    Parameters
    ----------
    index
        Which of n threads, from 0.
    edges
        (n + 1,) thread i has the rows edges[i] to edges[i + 1] - 1.
    heads
        Whether attention divides its heads among the threads, since texts go over the edges.
    barrier
        Where the threads meet.
    """

    index: int
    edges: NDArray[np.int32]
    heads: bool
    barrier: Barrier

    @property
    def rows(self) -> slice:
        """The rows that are this thread's."""
        return slice(int(self.edges[self.index]), int(self.edges[self.index + 1]))

    def part_of(self, size: int) -> slice:
        """Return this thread's part of an axis of that size: one of n equal ones."""
        n = len(self.edges) - 1
        return slice(size * self.index // n, size * (self.index + 1) // n)


def whole(N: int) -> Share:
    """Return the share of a thread that does everything for N rows."""
    return Share(0, np.array([0, N], np.int32), False, threading.Barrier(1))
