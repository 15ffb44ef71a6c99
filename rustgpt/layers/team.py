"""Owns how threads work together, as a team.

A team takes one batch through the layers, each thread with a share of it.

Each thread has a replica of the model and rows of its own, which it takes through every layer by
itself. The arrays have the rows of all threads, so that each can make its part of every weight's
gradient over all rows: there is one buffer of gradients, whatever the number of threads. The
threads meet before they make it, and where rows of one text are divided also around attention.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from rustgpt.backend import backend_name
from rustgpt.layers.memory import Array, Buffers, Indices
from rustgpt.reference.share import Barrier, Share


class SharedBuffers(Buffers):
    """Buffers that several threads may ask for the same array at once."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[SharedBuffers], tuple[()]]:
        return SharedBuffers, ()  # a copy of a layer is in no team, and has arrays of its own

    def get(self, name: str, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> Array:
        with self._lock:
            return super().get(name, shape, dtype)


def barrier(n: int) -> Barrier:
    """Return where n threads can meet: compiled, so that it does without Python's lock."""
    if backend_name() != "cython":
        return threading.Barrier(n)
    from rustgpt._ext.barrier import Barrier as Compiled

    found: Barrier = Compiled(n)
    return found


class Team:
    """What the threads have in common.

    Parameters
    ----------
    n
        How many they are.

    Attributes
    ----------
    barrier
        Where they meet.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.scratch = SharedBuffers()
        self.barrier = barrier(n)

    def members(self, edges: Indices, heads: bool) -> list[Member]:
        """Return each thread's part of a batch.

        Parameters
        ----------
        edges
            (n + 1,) where the rows of each begin and end.
        heads
            Whether attention divides its heads, because an edge lies inside a text.
        """
        return [Member(self, Share(i, edges, heads, self.barrier)) for i in range(self.n)]


@dataclass(frozen=True)
class Member:
    """One thread's part of a batch, and with whom it does it.

    Parameters
    ----------
    team
        With whom.
    share
        What it does, as the kernels see it.
    """

    team: Team
    share: Share

    @property
    def rows(self) -> slice:
        """The rows that are this thread's."""
        return self.share.rows

    def scratch(self, layer: int, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return memory of the team's, for what layer number `layer` shows to all threads on the
        way back.

        The others may read it until this thread has met them again, which is in the backward pass
        of the layer below. So neighbours take turns with two sets.
        """
        return self.team.scratch.get(f"{name}{layer % 2}", shape, dtype)
