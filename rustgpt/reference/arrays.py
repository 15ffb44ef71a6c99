"""Owns the types of the kernels' arguments: arrays, and a thread's shard of a batch.

The compiled kernels' errors are explained with them; see `rustgpt.backend`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

WRITTEN = "written to"
Matrix = Annotated[Array, 2]
Vector = Annotated[Array, 1]
OutMatrix = Annotated[Array, 2, WRITTEN]
OutVector = Annotated[Array, 1, WRITTEN]
OutCache = Annotated[Array, 3, WRITTEN]
OutCaches = Annotated[Array, 4, WRITTEN]
Indices = Annotated[NDArray[np.int32], 1]


class Barrier(Protocol):
    """Where threads wait for each other: `threading.Barrier`, or the compiled one."""

    def wait(self) -> object:
        """Return when every thread has called it as often, or raise BrokenBarrierError."""

    def abort(self) -> None:
        """Let nobody wait any more."""


@dataclass(frozen=True)
class Shard:
    """One thread's part of a batch that several threads take through the layers together.

    All arrays have the rows of all threads. A thread computes its own rows, and its part of every
    weight's gradient over the rows of all: so there is one array of gradients, which needs no sum.
    See `rustgpt.parallel`. Where few rows are decoded, threads divide heads and columns instead.

    Parameters
    ----------
    index
        Which of n threads, from 0.
    edges
        (n + 1,) thread i has the rows, or heads, edges[i] to edges[i + 1] - 1.
    heads
        Whether the threads divide attention's heads, because an edge lies inside a text.
    barrier
        Where the threads wait for each other.
    """

    index: int
    edges: NDArray[np.int32]
    heads: bool
    barrier: Barrier

    @property
    def n(self) -> int:
        """How many threads there are."""
        return len(self.edges) - 1

    @property
    def rows(self) -> slice:
        """The rows that are this thread's."""
        return slice(int(self.edges[self.index]), int(self.edges[self.index + 1]))


def check_whole(shard: Shard | None) -> None:
    """Raise ValueError if a thread asks plain NumPy for its part of a batch.

    A model that runs on it gives each thread whole texts.
    """
    if shard is not None:
        raise ValueError("shard must be None: only the compiled kernels divide a batch")
