"""Tests of the barrier that threads meet at without Python's lock."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rustgpt._ext.barrier import Barrier

from rustgpt.layers import team


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_nobody_passes_before_all_are_here(n):
    meeting, rounds = team.barrier(n), 300
    assert type(meeting) is Barrier
    been = [0] * n  # how often each has come

    def come(i):
        for number in range(1, rounds + 1):
            been[i] = number
            meeting.wait()
            # One that is through may have come to the next meeting already, but not further.
            assert set(been) <= {number, number + 1}

    with ThreadPoolExecutor(n) as pool:
        list(pool.map(come, range(n)))
    assert been == [rounds] * n


def test_who_waits_leaves_the_others_pythons_lock():
    meeting = team.barrier(2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(meeting.wait)
        while not waiting.running():
            time.sleep(0.001)
        assert sum(range(1000)) == 499500
        assert not waiting.done()
        meeting.wait()
        assert waiting.result(timeout=30) is None


@pytest.mark.parametrize("waiting", [0, 1, 3])
def test_nobody_waits_any_more(waiting):
    meeting = team.barrier(4)
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(meeting.wait) for _ in range(waiting)]
        time.sleep(0.05)
        meeting.abort()
        meeting.abort()
        for future in found:
            with pytest.raises(threading.BrokenBarrierError):
                future.result(timeout=30)
    with pytest.raises(threading.BrokenBarrierError):
        meeting.wait()


def test_alone_one_need_not_wait_until_it_is_over():
    meeting = team.barrier(1)
    meeting.wait()
    meeting.abort()
    with pytest.raises(threading.BrokenBarrierError):
        meeting.wait()


@pytest.mark.parametrize("n", [0, -1, 2**20, -(2**62)])
def test_a_number_of_threads_that_cannot_be(n):
    with pytest.raises(ValueError, match=f"n must be 1 to 1048575, got {n}"):
        Barrier(n)


def test_many_are_made_and_forgotten():
    for _ in range(2000):
        Barrier(5)
