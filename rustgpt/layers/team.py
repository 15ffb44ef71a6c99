"""Owns threads that take one batch through the layers together, when it has too few texts for all.

Each thread has a replica of the model and rows of its own, which it takes through every layer by
itself. Attention alone looks at other rows: there the threads meet, divide the heads among them,
and meet again before each goes on with its rows.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from rustgpt.layers.memory import Array, Buffers, Indices


class SharedBuffers(Buffers):
    """Buffers that several threads may ask for the same array at once."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def get(self, name: str, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> Array:
        with self._lock:
            return super().get(name, shape, dtype)


class Team:
    """What the threads have in common.

    Parameters
    ----------
    n
        How many they are.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.scratch = SharedBuffers()
        self._barrier = threading.Barrier(n)

    def meet(self) -> None:
        """Wait until every thread is here.

        Raises
        ------
        threading.BrokenBarrierError
            If one of them never will be, because it called `leave`.
        """
        self._barrier.wait()

    def leave(self) -> None:
        """Let nobody wait for this thread any more."""
        self._barrier.abort()

    def members(self, offsets: Indices) -> list[Member]:
        """Divide the rows of a batch among the threads."""
        total = int(offsets[-1])
        edges = [total * i // self.n for i in range(self.n + 1)]
        return [Member(self, i, slice(edges[i], edges[i + 1]), total) for i in range(self.n)]


@dataclass(frozen=True)
class Member:
    """One thread's part of a batch.

    Parameters
    ----------
    team
        With whom.
    index
        Which of its threads, from 0.
    rows
        Of the batch, which are this one's.
    total
        N, rows of the whole batch.
    """

    team: Team
    index: int
    rows: slice
    total: int

    def heads(self, n_heads: int) -> tuple[int, int]:
        """Return the first of this thread's heads, and the one after its last."""
        n = self.team.n
        return n_heads * self.index // n, n_heads * (self.index + 1) // n
