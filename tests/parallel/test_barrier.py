"""Tests of the barrier that threads meet at without Python's lock."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rustgpt._ext.barrier import Barrier

from rustgpt.parallel import pool


@pytest.fixture(autouse=True)
def compiled(switch_backend):
    """The compiled kernels, whose barrier it is."""
    switch_backend("cython")


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_nobody_passes_before_all_are_here(n):
    meeting, rounds = pool.barrier(n), 300
    assert type(meeting) is Barrier
    been = [0] * n  # how often each has come

    def come(i):
        for number in range(1, rounds + 1):
            been[i] = number
            meeting.wait()
            # One that is through may have come to the next meeting already, but not further.
            assert set(been) <= {number, number + 1}

    with ThreadPoolExecutor(n) as threads:
        list(threads.map(come, range(n)))
    assert been == [rounds] * n


def test_who_waits_leaves_the_others_pythons_lock():
    meeting = pool.barrier(2)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(meeting.wait)
        while not waiting.running():
            time.sleep(0.001)
        assert sum(range(1000)) == 499500
        assert not waiting.done()
        meeting.wait()
        assert waiting.result(timeout=30) is None


@pytest.mark.parametrize("waiting", [0, 1, 3])
def test_after_abort_nobody_waits_any_more(waiting):
    meeting = pool.barrier(4)
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(meeting.wait) for _ in range(waiting)]
        time.sleep(0.05)
        meeting.abort()
        meeting.abort()
        for future in found:
            with pytest.raises(threading.BrokenBarrierError):
                future.result(timeout=30)
    with pytest.raises(threading.BrokenBarrierError):
        meeting.wait()


def test_alone_one_need_not_wait_until_it_is_over():
    meeting = pool.barrier(1)
    meeting.wait()
    meeting.abort()
    with pytest.raises(threading.BrokenBarrierError):
        meeting.wait()


@pytest.mark.parametrize("n", [0, -1, 2**20, -(2**62)])
def test_a_number_of_threads_that_cannot_be(n):
    with pytest.raises(ValueError, match=f"n must be 1 to 1048575, got {n}"):
        Barrier(n)


def test_many_are_made_and_forgotten():
    made = [Barrier(5) for _ in range(2000)]
    for one in made:
        one.abort()
    del made, one
    meeting = Barrier(1)
    meeting.wait()
    assert type(meeting) is Barrier


def test_plain_numpy_waits_in_python(switch_backend):
    switch_backend("reference")
    meeting = pool.barrier(2)
    assert isinstance(meeting, threading.Barrier)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(meeting.wait)
        meeting.wait()
        assert waiting.result(timeout=30) in (0, 1)
