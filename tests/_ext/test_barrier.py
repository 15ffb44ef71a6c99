"""Tests of the barrier that threads meet at without Python's lock."""

import os
import subprocess
import sys
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


# Where threads run, on Linux

needs_processors = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="there is one processor, or nobody says on which a thread runs",
)


@needs_processors
def test_who_waits_lends_a_processor_to_one_that_has_none():
    allowed = os.sched_getaffinity(0)
    here, there = sorted(allowed)[:2]
    meeting, places = team.barrier(2, lends=True), []

    def come_late():
        time.sleep(0.05)  # also to the first meeting
        meeting.wait()
        os.sched_setaffinity(0, {there})  # where it has a quarter of the time
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        places.append(os.sched_getaffinity(0))
        meeting.wait()

    busy = f"import os\nos.sched_setaffinity(0, [{there}])\nprint(flush=True)\nwhile True: pass"
    loads = [
        subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) for _ in range(3)
    ]
    try:
        for load in loads:
            load.stdout.readline()
        with ThreadPoolExecutor(2) as pool:
            late = pool.submit(come_late)

            def come():
                os.sched_setaffinity(0, {here})
                meeting.wait()
                os.sched_setaffinity(0, allowed)
                meeting.wait()

            pool.submit(come).result(timeout=60)
            late.result(timeout=60)
    finally:
        for load in loads:
            load.kill()
            load.communicate()
    assert places == [allowed]  # it was brought here, and may go where it likes


@needs_processors
def test_who_comes_last_leaves_the_processor_to_one_that_waits_there(processor_of):
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    meeting, left = team.barrier(2, lends=True), 0

    def wait_here(begun):
        os.sched_setaffinity(0, {here})
        begun.set()
        meeting.wait()
        time.sleep(0.01)  # and does not wake the other, which would come here for it

    try:
        for _ in range(9):
            begun = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(wait_here, begun)
                begun.wait(60)
                time.sleep(0.01)  # until it does
                os.sched_setaffinity(0, {here})
                os.sched_setaffinity(0, allowed)
                meeting.wait()
                left += processor_of(threading.get_native_id()) != here
                waiting.result(timeout=60)
            assert os.sched_getaffinity(0) == allowed
    finally:
        os.sched_setaffinity(0, allowed)
    assert left > 6
