"""Owns the layers' arrays: memory that is taken once and reused, from the edge of a cache line."""

import itertools
import weakref
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


# The arrays that own the memory of all `Buffers`, by what they are.
_reused: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()


def is_reused(value: object) -> bool:
    """Tell whether an array lies in memory of `Buffers`: what is there need not be copied."""
    return isinstance(value, np.ndarray) and id(_owner(value)) in _reused


def _owner(array: Array) -> Array:
    """Return the array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


# Views that a layer remembers, so that asking again for one costs a look-up only.
VIEWS = 256


class Buffers:
    """Arrays that are allocated once for the largest shape asked for, and then reused."""

    def __init__(self) -> None:
        self._flat: dict[str, Array] = {}
        self._views: dict[tuple[str, tuple[int, ...]], Array] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of this shape; its contents are what was last written under the name."""
        view = self._views.get((name, shape))
        return self._grow(name, shape, dtype) if view is None else view

    def _grow(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        size = int(np.prod(shape))
        if name not in self._flat or self._flat[name].size < size:
            self._views = {key: view for key, view in self._views.items() if key[0] != name}
            self._flat.pop(name, None)  # freed before the larger one is taken
            self._flat[name] = aligned(size, dtype)
            owner = _owner(self._flat[name])
            _reused[id(owner)] = owner
        if len(self._views) >= VIEWS:  # batches have ever new numbers of rows
            self._views.clear()
        view = self._flat[name][:size].reshape(shape)
        self._views[name, shape] = view
        return view
