"""Owns Ctrl-C, SIGTERM and a closed terminal while a model is trained: it stops and is saved."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from rustgpt.parallel.exchange import Exchange

_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# Which `mpiexec` passes on to all processes, where it does not pass on the others.
_OF_SEVERAL: Final = tuple(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name))
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
    exchange
        With other processes that train together; a signal to one of them is one to all.

    Attributes
    ----------
    status
        The exit status that the signal asks for (130, 143 or 129); 0 if there was none. Of several
        processes, what they have agreed on.
    """

    def __init__(self, stop: Callable[[], None], exchange: Exchange | None = None) -> None:
        self.status = self._asked_for = 0
        self._exchange = exchange or Exchange()
        self._stop = stop
        self._count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # others may not
            several = self._exchange.size > 1
            for number in (*_SIGNALS, *(_OF_SEVERAL if several else ())):
                # What is ignored, as in a job that a script put in the background, stays so.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asks_for_end(self) -> bool:
        """Whether this process has had a signal."""
        return bool(self._asked_for)

    def agree(self) -> None:
        """Have the same status in all processes, which all call this."""
        if self._exchange.size > 1:
            found = self._exchange.meet("end", self._asked_for)
            self.status = int(max(one for (one,) in found))

    def _handle(self, number: int, _frame: object) -> None:
        self._count += 1
        if self._count == 3:
            os._exit(128 + number)
        if self._count == 1:
            self._asked_for = 128 + number
            if self._exchange.size == 1:
                self.status = self._asked_for
            self._stop()
        if sys.stderr is not None and self._exchange.is_first:  # otherwise 2 may be any file
            # Not `print`: the signal may have come in the midst of one.
            with contextlib.suppress(OSError):
                os.write(2, _FIRST if self._count == 1 else _SECOND)
