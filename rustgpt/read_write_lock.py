"""Owns a lock that many readers may hold at once, or one writer alone."""

from __future__ import annotations

import threading


class ReadWriteLock:
    """Readers share, in a `with`; a writer waits for those that read, and new ones wait for it.

    It is not reentrant: a thread that reads must not ask for it again. A copy is a lock of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._readers = 0
        self._writers = 0  # that wait or write
        self._writing = False

    def __reduce__(self) -> tuple[type[ReadWriteLock], tuple[()]]:
        return ReadWriteLock, ()

    def __enter__(self) -> None:
        """Hold the lock with other readers, until the end of the `with`."""
        with self._lock:
            if self._writers:
                self._changed.wait_for(lambda: self._writers == 0)
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._writers and self._readers == 0:
                self._changed.notify_all()

    def begin_writing(self) -> None:
        """Hold the lock alone, until `end_writing`."""
        with self._changed:
            self._writers += 1
            try:
                self._changed.wait_for(lambda: self._readers == 0 and not self._writing)
                self._writing = True
            except BaseException:  # Ctrl-C while it waited
                self._writers -= 1
                self._changed.notify_all()
                raise

    def end_writing(self) -> None:
        """Let others have the lock."""
        with self._changed:
            self._writing = False
            self._writers -= 1
            self._changed.notify_all()
