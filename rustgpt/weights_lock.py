"""Owns how a model's weights are read while a training changes them: only between two steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

Result = TypeVar("Result")
TRIES: Final = 2  # of reading without keeping the writer out


class WeightsLock:
    """Lets one writer at a time change the weights, and any number of readers see no half change.

    A reader reads without a lock and looks afterwards whether anything was written meanwhile; then
    it reads again, and at last with the writer kept out. So readers do not wait for each other,
    and an exception at any point, Ctrl-C too, leaves nothing behind that others would wait for.
    A copy is a lock of its own.

    Attributes
    ----------
    alone
        Held by the writer, and by a reader that must not read twice.
    """

    def __init__(self) -> None:
        self.alone = threading.Lock()
        self._version = 0  # odd while somebody writes

    def __reduce__(self) -> tuple[type[WeightsLock], tuple[()]]:
        return WeightsLock, ()

    def read(self, work: Callable[[], Result]) -> Result:
        """Return work(), which may be called more than once, of weights between two steps."""
        for _ in range(TRIES):
            version = self._version
            if version % 2:
                break
            try:
                result = work()
            except Exception:
                if self._version == version:
                    raise
            else:
                if self._version == version:
                    return result
        with self.alone:
            return work()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep readers and other writers out."""
        with self.alone:
            self._version |= 1
            try:
                yield
            finally:
                self._version = (self._version | 1) + 1
