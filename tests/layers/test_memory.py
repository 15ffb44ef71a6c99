"""Tests of the layers' arrays."""

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rustgpt.layers.memory import CACHE_LINE, PAGE, Buffers, Workspace, aligned

FLOAT32 = np.dtype(np.float32)


def test_buffers_grow_for_the_largest_shape_and_are_reused():
    buffers = Buffers(FLOAT32)
    first = buffers.get(1, (2, 3))
    assert first.shape == (2, 3)
    assert first.dtype == np.float32
    assert buffers.get(1, (2, 3)) is first
    assert np.shares_memory(buffers.get(1, (3, 1)), first)
    large = buffers.get(1, (5, 5))
    assert large.shape == (5, 5)
    assert large.flags.c_contiguous
    again = buffers.get(1, (2, 3))
    assert np.shares_memory(again, large)
    assert not np.shares_memory(again, first)
    assert not np.shares_memory(buffers.get(2, (5, 5)), large)


def test_buffers_keep_what_was_last_written_to_a_number():
    buffers = Buffers(FLOAT32)
    buffers.get(1, (2, 3))[...] = np.arange(6).reshape(2, 3)
    buffers.get(2, (4,))[...] = 9
    assert buffers.get(1, (4,)).tolist() == [0, 1, 2, 3]


def test_buffers_do_not_remember_every_shape():
    # Training meets a new number of rows in nearly every batch.
    buffers = Buffers(FLOAT32)
    buffers.get(1, (9_000, 2))
    tracemalloc.start()
    try:
        for n in range(1, 5_000):
            buffers.get(1, (n, 2))
        growth, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert growth < 300_000


def test_buffers_give_empty_arrays():
    assert Buffers(np.dtype(np.float64)).get(1, (0, 7)).shape == (0, 7)


def test_threads_that_ask_for_the_same_at_once_get_the_same_memory():
    n = 8
    start = threading.Barrier(n, timeout=60)

    def ask(buffers):
        start.wait()
        return buffers.get(1, (7, 3))

    with ThreadPoolExecutor(n) as pool:
        for _ in range(50):
            arrays = [*pool.map(ask, [Buffers(FLOAT32)] * n)]
            assert {array.shape for array in arrays} == {(7, 3)}
            assert len({array.ctypes.data for array in arrays}) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_workspace_is_of_one_type(dtype):
    workspace = Workspace(dtype)
    stores = [workspace.temporary, workspace.activations, *workspace.alternating]
    arrays = [store.get(1, (4,)) for store in stores]
    assert [array.dtype for array in (workspace, *arrays)] == [np.dtype(dtype)] * 5
    for i, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[:i])


def test_a_shared_workspace_has_temporary_arrays_of_its_own():
    one = Workspace()
    two = Workspace(shared=one)
    assert two.activations.get(1, (4,)) is one.activations.get(1, (4,))
    for i in range(2):
        assert two.alternating[i].get(1, (4,)) is one.alternating[i].get(1, (4,))
    assert not np.shares_memory(two.temporary.get(1, (4,)), one.temporary.get(1, (4,)))


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
