"""Owns the threads that make a token together, each some columns of every product.

To make a token reads all parameters once. While a cache holds them, one thread reads them as fast
as it multiplies, and others would cost more than they give; of a model that no cache holds the
memory is the limit, which several processors read faster than one. Between two calls the threads
sleep; within one they meet four times in a block, and wait awake for who is late by less than
0.1 ms. One pool serves all models: a call that finds it at work does without.

On a busy machine a thread waits for another that has no processor. So both ways are timed now and
then, and the faster one is taken. A token's logits have the same bits either way.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from rustgpt.backend import backend_name
from rustgpt.parallel.pool import ThreadPool, available_threads
from rustgpt.reference.arrays import Shard

if TYPE_CHECKING:
    from rustgpt.layers.decoder import Threads

# Parameters of a model that no cache holds.
LARGE: Final = 2**23
# A few read as much of the memory as all.
THREADS_AT_MOST: Final = 4


# Of so many calls the first two are made to time both ways.
TIMED_EVERY: Final = 64
KINDS: Final = 256  # of which timings are kept


class OneThread:
    """The caller's."""

    def run(self, n_heads: int, work: Callable[[Shard | None], None], kind: Hashable) -> None:
        """Call `work` for all heads."""
        work(None)

    def most(self) -> int:
        return 1


class SeveralThreads:
    """A pool that serves one call at a time.

    Parameters
    ----------
    n
        How many threads there are, the caller's among them.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._pool = ThreadPool()
        self._lock = threading.Lock()
        self._timings: dict[Hashable, _Timings] = {}

    def most(self) -> int:
        return self._n

    def run(self, n_heads: int, work: Callable[[Shard | None], None], kind: Hashable) -> None:
        """Call `work` in each thread, with its part of the heads; or once, where that is faster.

        `kind` says which calls take equally long.
        """
        n = min(self._n, n_heads)
        if n == 1 or not self._lock.acquire(blocking=False):
            work(None)
            return
        try:
            several = self._timings.setdefault(kind, _Timings())
            if several.is_faster():
                with several.timed(True):
                    self._divide(n, n_heads, work)
            else:
                with several.timed(False):
                    work(None)
            if len(self._timings) > KINDS:
                self._timings.clear()
        finally:
            self._lock.release()

    def _divide(self, n: int, n_heads: int, work: Callable[[Shard | None], None]) -> None:
        edges = np.array([n_heads * i // n for i in range(n + 1)], np.int32)
        barrier = self._pool.barrier(n)
        shards = [Shard(i, edges, True, barrier) for i in range(n)]
        self._pool.run(n, lambda i: work(shards[i]))


class _Timings:
    """How long calls take on one thread and on several."""

    def __init__(self) -> None:
        self._calls = -1  # the first one, which starts the threads, does not count
        self._seconds = [math.inf, math.inf]  # smoothed

    def is_faster(self) -> bool:
        """Return whether the next call shall be made by several threads."""
        turn = self._calls % TIMED_EVERY
        if self._calls < 0 or turn < 2:
            return turn != 1
        return self._seconds[True] <= self._seconds[False]

    @contextmanager
    def timed(self, several: bool) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds, before = time.perf_counter() - began, self._seconds[several]
        if self._calls >= 0:
            self._seconds[several] = seconds if before == math.inf else (seconds + before) / 2
        self._calls += 1


ONE_THREAD: Final = OneThread()


def decoding_threads(n_parameters: int, wanted: int = 0) -> Threads:
    """Return the threads that make the tokens of a model.

    Parameters
    ----------
    n_parameters
        Of the model.
    wanted
        How many threads at most; 0 is as many as help.
    """
    if n_parameters < LARGE or backend_name() != "cython":
        return ONE_THREAD
    n = min(wanted or THREADS_AT_MOST, available_threads())
    return ONE_THREAD if n == 1 else _threads(n, os.getpid())


@functools.lru_cache
def _threads(n: int, process: int) -> SeveralThreads:
    """Return the threads of a process: one that is forked has none of those before."""
    return SeveralThreads(n)
