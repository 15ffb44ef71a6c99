"""Owns the exchange between the processes of a training that MPI has started."""

from __future__ import annotations

import atexit
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import numpy as np

from rustgpt.backend import ops
from rustgpt.errors import RustGPTError, TrainingError
from rustgpt.layers.memory import Array, aligned
from rustgpt.parallel.exchange import MEETINGS, SHORT_MEETINGS, Exchange
from rustgpt.parallel.process import Process, share

Result = TypeVar("Result")
Requests = list[tuple[int, Any]]  # an MPI request, and the rank that it waits for

PIECE: Final = 16_000_000  # bytes of a buffer that go at once
ROOM: Final = 4 * PIECE  # bytes of memory for what comes from all others at once
HUNG_AFTER: Final = 60.0  # seconds, and ten times the longest step
LONG: Final = 3600.0  # seconds that one rank may work while the others wait: reading, saving
SHORT: Final = 5.0  # seconds in which all leave, or are made to
SPIN: Final = 1e-3  # seconds of waiting without sleep
NAP: Final = 1e-3  # seconds of sleep at most
LOOK: Final = 0.1  # seconds from one look for dead processes to the next
HEADER: Final = np.dtype(
    [("meeting", "i4"), ("failed", "i4"), ("asked", "i4"), ("clock", "f8"), ("values", "f8", 4),
     ("text", "S440")]
)  # fmt: skip
MEETING, DATA, LEAVING = 1, 2, 3  # tags


class Ranks(Exchange):
    """The exchange between several processes.

    Nothing but bytes goes through MPI, and this class adds them up: so the same number of ranks
    gives the same bits in every run, whatever the library.

    Parameters
    ----------
    communicator
        Of mpi4py; it is duplicated.

    Attributes
    ----------
    processes : list of Process
        By rank.
    """

    def __init__(self, communicator: Any) -> None:
        super().__init__()
        from mpi4py import MPI

        self._mpi, self._comm = MPI, communicator.Dup()
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        self._others = [rank for rank in range(self.size) if rank != self.rank]
        self.processes: list[Process] = self._comm.allgather(Process.this())
        self._asked = False
        self._clock = 0.0
        self._longest = 0.0  # step, in seconds
        self._table = np.zeros(self.size, HEADER)
        self._room: Array | None = None  # for gradients of others
        self._lost = self._left = False
        self._held: list[Any] = []  # buffers of requests that were given up
        atexit.register(self._at_exit)

    # Meetings

    def begin(self) -> None:
        self._asked = self.stopped = False

    def ask_to_stop(self) -> None:
        self._asked = True

    def now(self) -> float:
        return self._clock

    def took(self, seconds: float) -> None:
        self._longest = max(self._longest, seconds)

    def threads(self, available: int) -> int:
        return max(1, min(available, int(share(self.rank, self.processes))))

    def processors(self) -> tuple[int, int]:
        here = self.processes[self.rank]
        local = {cpu for one in self.processes if one.node == here.node for cpu in one.cpus}
        return len(local), os.cpu_count() or 1

    def meet(self, what: str, *values: float) -> list[Sequence[float]]:
        if self.broken:
            raise TrainingError("the exchange between the processes has ended with an error")
        self._write_header(MEETINGS.index(what), values)
        self._swap_headers(None if what in SHORT_MEETINGS else LONG)
        self._check_meeting(what)
        self.stopped = self.stopped or bool(self._table["asked"].any())
        self._clock = float(self._table["clock"][0])
        found: list[Sequence[float]] = self._table["values"][:, : len(values)].tolist()
        return found

    def _write_header(
        self, meeting: int, values: Sequence[float] = (), failed: bool = False, text: str = ""
    ) -> None:
        padded = (*values, *[0.0] * (4 - len(values)))
        self._table[self.rank] = (
            meeting, failed, self._asked, time.perf_counter(), padded,
            text.encode("utf-8", "replace")[:440],
        )  # fmt: skip

    def _swap_headers(self, patience: float | None) -> None:
        requests: Requests = []
        for other in self._others:
            requests.append((other, self._receive(self._table[other : other + 1], other, MEETING)))
        own = self._table[self.rank : self.rank + 1]
        requests += [(other, self._send(own, other, MEETING)) for other in self._others]
        self._wait(requests, patience)

    def _check_meeting(self, what: str) -> None:
        """Raise TrainingError unless all ranks are well and at the same meeting."""
        failed = np.flatnonzero(self._table["failed"]).tolist()
        if failed:
            self.broken = True
            texts = [self._table["text"][rank].decode("utf-8", "replace") for rank in failed]
            told = [
                f"{self.name(r)} has failed: {text}" for r, text in zip(failed, texts, strict=True)
            ]
            raise TrainingError("; ".join(told))
        meetings = [MEETINGS[number] for number in self._table["meeting"]]
        if set(meetings) != {what}:
            self.broken = True
            found = ", ".join(f"rank {rank}: {one}" for rank, one in enumerate(meetings))
            raise TrainingError(
                f"the ranks are not at the same point ({found}): all must make the same calls, "
                "Trainer.save too, with the same settings and data"
            )

    def name(self, rank: int) -> str:
        return f"rank {rank} ({self.processes[rank]})"

    # Waiting

    def _send(self, array: Array, rank: int, tag: int) -> Any:
        return self._comm.Isend([array.view(np.uint8), self._mpi.BYTE], rank, tag)

    def _receive(self, array: Array, rank: int, tag: int) -> Any:
        return self._comm.Irecv([array.view(np.uint8), self._mpi.BYTE], rank, tag)

    def _wait(self, requests: Requests, patience: float | None = None) -> None:
        """Wait for what was sent and received; TrainingError if a rank is gone, or hangs."""
        if patience is None:
            patience = max(HUNG_AFTER, 10 * self._longest)
        left = [request for _, request in requests]
        began = looked = time.monotonic()
        waited = 0.0  # while this process ran: if all were halted together, no one hangs
        while not self._mpi.Request.Testall(left):
            now = time.monotonic()
            time.sleep(0 if now - began < SPIN else min((now - began) / 20, NAP))
            if now - looked < LOOK:
                continue
            waited, looked = waited + min(now - looked, 10 * LOOK), now
            missing = sorted({rank for rank, request in requests if not request.Test()})
            here = self.processes[self.rank]
            gone = [rank for rank in missing if self.processes[rank].is_gone(here)]
            if missing and (gone or waited > patience):
                self._give_up(requests, gone, missing, waited)

    def _give_up(
        self, requests: Requests, gone: list[int], missing: list[int], waited: float
    ) -> None:
        self._held += requests
        self.broken = self._lost = True
        if gone:
            raise TrainingError(f"{', '.join(map(self.name, gone))} has ended unexpectedly")
        raise TrainingError(
            f"{', '.join(map(self.name, missing))} has not been heard of for {waited:.0f} s and "
            "counts as hung"
        )

    # Buffers

    def _rounds(self, n: int, itemsize: int, at_most: int) -> Iterator[list[slice]]:
        """Yield a piece of the part of each rank, until there are no more."""
        most = max(1, at_most // itemsize)
        parts = [self.part_of(rank, n) for rank in range(self.size)]
        longest = max(part.stop - part.start for part in parts)
        for first in range(0, longest, most):
            begins = [min(part.start + first, part.stop) for part in parts]
            yield [
                slice(begin, min(begin + most, part.stop))
                for begin, part in zip(begins, parts, strict=True)
            ]

    def sum_gradients(self, gradients: Array) -> None:
        at_most = min(PIECE, ROOM // len(self._others))
        for pieces in self._rounds(len(gradients), gradients.itemsize, at_most):
            own = gradients[pieces[self.rank]]
            room = self._room_for(len(self._others), own)
            self._swap([gradients[pieces[other]] for other in self._others], room)
            self._add(own, room)

    def _swap(self, sent: Sequence[Array], received: Sequence[Array]) -> None:
        """Send an array to each of the others, and receive one from each."""
        # All sends come first. A rank that received first could be told of the other's array before
        # it has told of its own; over TCP the two would then go one after the other, not at once.
        requests: Requests = []
        for other, array in zip(self._others, sent, strict=True):
            requests.append((other, self._send(array, other, DATA)))
        for other, array in zip(self._others, received, strict=True):
            requests.append((other, self._receive(array, other, DATA)))
        self._wait(requests)

    def _room_for(self, n: int, own: Array) -> list[Array]:
        """Return n arrays as long as this one."""
        if self._room is None or self._room.dtype != own.dtype or self._room.size < n * own.size:
            self._room = aligned(n * own.size, own.dtype)
        return [self._room[i * own.size : (i + 1) * own.size] for i in range(n)]

    def _add(self, own: Array, others: list[Array]) -> None:
        """Add up what all ranks have, in their order, into `own`."""
        if self.rank < 2:  # of the first two terms, the order does not matter
            for other in others:
                ops.add_into(other, own)
            return
        total = others[0]
        for term in (*others[1 : self.rank], own, *others[self.rank :]):
            ops.add_into(term, total)
        own[...] = total

    def gather_parameters(self, parameters: Array) -> None:
        for pieces in self._rounds(len(parameters), parameters.itemsize, PIECE):
            own = parameters[pieces[self.rank]]
            received = [parameters[pieces[other]] for other in self._others]
            self._swap([own] * len(received), received)

    def gathered(self, own: Array, n: int) -> Array | None:
        self.meet("gather", n)
        part = self.part(n)
        whole = np.zeros(n if self.is_first else 0, own.dtype)
        if self.is_first:
            whole[part] = own
        for pieces in self._rounds(n, own.itemsize, PIECE):
            here = pieces[self.rank]
            if self.is_first:
                come = [(r, self._receive(whole[pieces[r]], r, DATA)) for r in self._others]
                self._wait(come)
            else:
                sent = own[here.start - part.start : here.stop - part.start]
                self._wait([(0, self._send(sent, 0, DATA))])
        return whole if self.is_first else None

    def scattered(self, whole: Array | None, n: int, dtype: Any) -> Array:
        self.meet("scatter", n)
        part = self.part(n)
        own: Array = np.zeros(part.stop - part.start, dtype)
        if whole is not None and self.is_first:
            own[...] = whole[part]
        for pieces in self._rounds(n, own.itemsize, PIECE):
            here = pieces[self.rank]
            if self.is_first:
                assert whole is not None
                self._wait([(r, self._send(whole[pieces[r]], r, DATA)) for r in self._others])
            else:
                place = own[here.start - part.start : here.stop - part.start]
                self._wait([(0, self._receive(place, 0, DATA))])
        return own

    def spread(self, array: Array) -> None:
        self.meet("spread", array.size)
        flat = array.reshape(-1).view(np.uint8)
        for first in range(0, len(flat), PIECE):
            piece = flat[first : first + PIECE]
            if self.is_first:
                self._wait([(other, self._send(piece, other, DATA)) for other in self._others])
            else:
                self._wait([(0, self._receive(piece, 0, DATA))])

    # What the first rank does for all

    def from_first(self, what: str, work: Callable[[], Result]) -> Result:
        result: Any = None
        error: Exception | None = None
        content = np.empty(0, np.uint8)
        if self.is_first:
            try:
                result = work()
            except Exception as raised:
                error = raised
            told = error if isinstance(error, (RustGPTError, OSError)) else _as_plain(error)
            content = np.frombuffer(pickle.dumps((result, told)), np.uint8).copy()
        size = int(self.meet(what, content.size)[0][0])
        if not self.is_first:
            content = np.empty(size, np.uint8)
        self.spread(content)
        if not self.is_first:
            result, error = pickle.loads(content.tobytes())
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def check_equal(self, what: str, digest: bytes, things: str) -> None:
        found = self.meet(what, float(int.from_bytes(digest[:6], "little")))
        others = [rank for rank in self._all() if found[rank] != found[0]]
        if others:
            self.broken = True
            raise TrainingError(
                f"{', '.join(map(self.name, others))} has other {things} than {self.name(0)}"
            )

    def _all(self) -> range:
        return range(self.size)

    # The end

    def fail(self, error: BaseException) -> None:
        if self.broken:
            return
        known = isinstance(error, RustGPTError)
        text = str(error) if known else f"{type(error).__name__}: {error}".rstrip(": ")
        self._write_header(0, failed=True, text=" ".join(text.split()))
        with suppress(TrainingError):
            self._swap_headers(SHORT)
        self.broken = not self._table["failed"].all()  # all have come here: they may go on
        self._lost = False

    def leave(self, status: int) -> list[int] | None:
        if self._left or self._lost:
            return None if self._lost else [status] * self.size
        self._left = True
        statuses = np.full(self.size, status, np.int64)
        own = statuses[self.rank : self.rank + 1].copy()
        requests: Requests = [(other, self._send(own, other, LEAVING)) for other in self._others]
        for other in self._others:
            place = statuses[other : other + 1]
            requests.append((other, self._receive(place, other, LEAVING)))
        try:
            self._wait(requests, SHORT if status else LONG)
        except TrainingError:
            return None
        return statuses.tolist()

    def abort(self, status: int) -> None:
        end = threading.Timer(SHORT, os._exit, (status or 1,))
        end.daemon = True
        end.start()
        self._mpi.COMM_WORLD.Abort(status or 1)

    def _at_exit(self) -> None:
        """Keep nobody waiting for a process that ends after an error."""
        if self.broken and not self._left and self.leave(1) is None:
            self.abort(1)


def _as_plain(error: Exception | None) -> Exception | None:
    """Return an error that every process can read."""
    return error and RuntimeError(f"{type(error).__name__}: {error}")
