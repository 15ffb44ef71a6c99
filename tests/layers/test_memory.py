"""Tests of the layers' arrays."""

import tracemalloc

import numpy as np
import pytest

from rustgpt.layers.memory import CACHE_LINE, PAGE, Buffers, aligned, is_reused


def test_buffers_grow_for_the_largest_shape_and_are_reused():
    buffers, float32 = Buffers(), np.dtype(np.float32)
    first = buffers.get("a", (2, 3), float32)
    assert first.shape == (2, 3)
    assert first.dtype == np.float32
    assert buffers.get("a", (2, 3), float32) is first
    assert np.shares_memory(buffers.get("a", (3, 1), float32), first)
    large = buffers.get("a", (5, 5), float32)
    assert large.shape == (5, 5)
    assert large.flags.c_contiguous
    again = buffers.get("a", (2, 3), float32)
    assert np.shares_memory(again, large)
    assert not np.shares_memory(again, first)
    assert not np.shares_memory(buffers.get("b", (5, 5), float32), large)


def test_buffers_do_not_remember_every_shape():
    # Training meets a new number of rows in nearly every batch.
    buffers, float32 = Buffers(), np.dtype(np.float32)
    buffers.get("a", (9_000, 2), float32)
    tracemalloc.start()
    try:
        for n in range(1, 5_000):
            buffers.get("a", (n, 2), float32)
        growth, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert growth < 300_000


def test_buffers_give_empty_arrays():
    assert Buffers().get("a", (0, 7), np.dtype(np.float64)).shape == (0, 7)


def test_arrays_begin_at_the_edge_of_a_cache_line():
    for size in (1, 7, 1000):
        array = aligned(size, np.dtype(np.float64))
        assert array.shape == (size,)
        assert not array.any()
        assert array.ctypes.data % CACHE_LINE == 0


def test_no_two_of_many_arrays_begin_at_the_same_line_of_a_page():
    # Otherwise Adam, which goes through four of them at once, takes three times as long.
    arrays = [aligned(10**6, np.dtype(np.float32)) for _ in range(PAGE // CACHE_LINE)]
    assert len({array.ctypes.data % PAGE for array in arrays}) == len(arrays)


@pytest.mark.parametrize("shape", [(5, 7), (0, 3), ()])
def test_what_is_reused_can_be_told_from_what_is_not(shape):
    array = Buffers().get("x", shape, np.dtype(np.float32))
    assert type(array) is np.ndarray
    for view in (array, array.ravel(), array[...], array.reshape(-1)[:2]):
        assert is_reused(view)
    for other in (array.copy(), np.zeros(shape), aligned(4, np.dtype(float)), 5, None, "x"):
        assert not is_reused(other)
