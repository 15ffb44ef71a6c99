"""Owns the threads of a training: a pool that works together, and where its threads wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial

from rustgpt.backend import backend_name
from rustgpt.reference.arrays import Barrier


def available_threads() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def barrier(n: int) -> Barrier:
    """Return where n threads can meet: compiled, so that it does without Python's lock."""
    if backend_name() != "cython":
        return threading.Barrier(n)
    from rustgpt._ext.barrier import Barrier as Compiled

    found: Barrier = Compiled(n)
    return found


class _Thread:
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


class ThreadPool:
    """Threads that work together, the caller's being number 0; the others start when needed."""

    def __init__(self) -> None:
        self._threads: list[_Thread] = []
        self._barriers: dict[int, Barrier] = {}

    def barrier(self, n: int) -> Barrier:
        """Return where n threads of a `run` wait for each other."""
        if n not in self._barriers:
            self._barriers[n] = barrier(n)
        return self._barriers[n]

    def run(self, n: int, work: Callable[[int], None]) -> None:
        """Let thread i of n call work(i); return when all have.

        What one of them raises is raised here, when no thread works any more.
        """
        meeting, errors = self.barrier(n), list[BaseException]()

        def do(i: int) -> None:
            try:
                work(i)
            except BaseException as error:
                errors.append(error)
                meeting.abort()

        try:
            while len(self._threads) < n - 1:
                self._threads.append(_Thread())
            for i in range(1, n):
                self._threads[i - 1].begin(partial(do, i))
        except BaseException as error:  # a thread that cannot be started
            errors.append(error)
            meeting.abort()
        do(0)
        for thread in self._threads:
            if thread.at_work:  # nobody may be when an error goes up
                thread.end()
        if errors:
            self._barriers.clear()  # nobody waits there again
            raise errors[0]  # the others gave up because of it

    def close(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.stop()
        self._threads.clear()
