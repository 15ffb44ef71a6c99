"""Owns how a model's weights are read while a training changes them: only between two steps."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from rustgpt.errors import TrainingError

Result = TypeVar("Result")
TRIES: Final = 2  # of reading without keeping the writer out

_one_by_one = threading.Lock()


def _nobody() -> None:
    """Stand for a weak reference to nothing."""


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
        self._given = 0  # how often they were given out, to be changed where they lie
        self._trained_by: Callable[[], object] = _nobody  # a weak reference

    @property
    def version(self) -> int:
        """Another number whenever somebody has written, or was given the weights and may have."""
        return self._version + self._given

    def give(self) -> None:
        """Note that somebody is given the weights, who may change them where they lie."""
        self._given += 1

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

    def begin_training(self, by: object) -> None:
        """Let nobody else train the model until `end_training`, or the death of `by`.

        Raises
        ------
        TrainingError
            If it is being trained already.
        """
        with _one_by_one:
            self.check_untrained()
            self._trained_by = weakref.ref(by)

    def check_untrained(self) -> None:
        """Raise TrainingError if the model is being trained."""
        if self._trained_by() is not None:
            raise TrainingError(
                "this model is being trained already: wait until that has ended, or train a copy"
            )

    def end_training(self) -> None:
        """Let the next one train the model."""
        self._trained_by = _nobody

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep readers and other writers out."""
        with self.alone:
            self._version |= 1
            try:
                yield
            finally:
                self._version = (self._version | 1) + 1
