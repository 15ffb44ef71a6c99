"""Owns the layers' arrays: memory that is taken once and reused, from the edge of a cache line."""

from __future__ import annotations

import itertools
import threading
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # of the model's floating type
Indices = NDArray[np.int32]


# A vector instruction that reads across the edge of a cache line takes twice as long.
CACHE_LINE = 64


# A processor takes a number for one that was just written if their addresses differ by whole pages.
# The system gives large arrays whole pages: Adam, which reads and writes four of them side by side,
# would take three times as long. So each array begins at another of a page's lines.
PAGE = 4096
_lines = itertools.cycle([17 * CACHE_LINE * i % PAGE for i in range(PAGE // CACHE_LINE)])


def aligned(size: int, dtype: np.dtype[Any]) -> Array:
    """Return (size,) zeros that begin at the edge of a cache line, each time another of a page.

    The system gives the memory when it is first written to.
    """
    raw = np.zeros(size * dtype.itemsize + 2 * PAGE, np.uint8)
    first = -raw.ctypes.data % PAGE + next(_lines)
    return raw[first : first + size * dtype.itemsize].view(dtype)


# Views that are remembered, so that asking again for one costs a look-up only.
VIEWS = 1024


class Buffers:
    """Arrays that are allocated once for the largest shape asked for, and then reused."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._lock = threading.Lock()
        self._flat: dict[int, Array] = {}
        self._views: dict[tuple[int, tuple[int, ...]], Array] = {}

    def get(self, number: int, shape: tuple[int, ...]) -> Array:
        """Return an array of this shape; its contents are what was last written to the number.

        Several threads may ask for the same at once.
        """
        view = self._views.get((number, shape))
        if view is None:
            with self._lock:
                view = self._grow(number, shape)
        return view

    def _grow(self, number: int, shape: tuple[int, ...]) -> Array:
        size = prod(shape)
        flat = self._flat.get(number)
        if flat is None or flat.size < size:
            self._views = {key: view for key, view in self._views.items() if key[0] != number}
            flat = None
            self._flat.pop(number, None)  # freed before the larger one is taken
            flat = self._flat[number] = aligned(size, self._dtype)
        if len(self._views) >= VIEWS:  # batches have ever new numbers of rows
            self._views = {}
        view = self._flat[number][:size].reshape(shape)
        self._views[number, shape] = view
        return view

    def fill(self, value: float) -> None:
        """Fill all memory with a number."""
        for flat in self._flat.values():
            flat.fill(value)


class Workspace:
    """The memory of one pass at a time through the layers; see `Context.empty` and `temporary`.

    What is taken first in a pass is what was taken first in the pass before, and so on. So a pass
    like the one before allocates nothing.
    """

    def __init__(self, dtype: Any = np.float32, shared: Workspace | None = None) -> None:
        """With `shared`, take the same memory as that one for what all threads of a batch see."""
        self.dtype = np.dtype(dtype)
        self.temporary = Buffers(self.dtype)
        self.activations: Buffers = shared.activations if shared else Buffers(self.dtype)
        self.alternating: tuple[Buffers, Buffers] = (
            shared.alternating if shared else (Buffers(self.dtype), Buffers(self.dtype))
        )

    def fill(self, value: float) -> None:
        """Fill all memory with a number: what a pass reads, it must have written before."""
        for buffers in (self.temporary, self.activations, *self.alternating):
            buffers.fill(value)
