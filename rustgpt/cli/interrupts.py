"""Owns Ctrl-C, SIGTERM and a closed terminal while a model is trained: it stops and is saved."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_FIRST: Final = b"\nrustgpt: stopping after this step, then saving the model\n"
_SECOND: Final = b"\nrustgpt: still stopping; a third time quits at once, without the model\n"


class Interrupts:
    """While it is entered, a first signal asks the training to stop and a third quits at once.

    Nothing is raised, so that no signal can tear a step or the saving apart. Afterwards signals do
    again what they did before.

    Parameters
    ----------
    stop
        Is called once, by the first signal.

    Attributes
    ----------
    status
        The exit status that the signal asks for (130, 143 or 129); 0 if there was none.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self.status = 0
        self._stop = stop
        self._count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # others may not
            for number in _SIGNALS:
                # What is ignored, as in a job that a script put in the background, stays so.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        self._count += 1
        if self._count == 3:
            os._exit(128 + number)
        if self._count == 1:
            self.status = 128 + number
            self._stop()
        if sys.stderr is not None:  # otherwise 2 may be any file
            # Not `print`: the signal may have come in the midst of one.
            with contextlib.suppress(OSError):
                os.write(2, _FIRST if self._count == 1 else _SECOND)
