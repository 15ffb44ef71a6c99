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


@pytest.fixture
def busy():
    """Two processes that compute on each of two processors, which the system sees no use to move
    a thread between then."""
    program = "import os, sys\nos.sched_setaffinity(0, [int(sys.argv[1])])\nprint(flush=True)\n"
    program += "while True: pass"
    processors = sorted(os.sched_getaffinity(0))[:2]
    loads = [
        subprocess.Popen([sys.executable, "-c", program, str(p)], stdout=subprocess.PIPE)
        for p in processors * 2
    ]
    for load in loads:
        load.stdout.readline()
    yield processors
    for load in loads:
        load.kill()
        load.communicate()


def wait_for_one_who_comes_late(
    here, there, processor_of, *, lends=True, breaks=False, meetings=1, bound=False, asleep=0
):  # fmt: skip
    """Return where a thread was that came late from `there`, where it might be then, and how many
    seconds after it was there.

    That is after some meetings. It computes until then, and as many as are `asleep` come after it.
    """
    allowed = os.sched_getaffinity(0)
    meeting, places = Barrier(2 + asleep, lends, breaks), []
    ready, done = threading.Event(), threading.Event()

    def meet():
        for _ in range(meetings):
            meeting.wait()

    def come_later():
        meet()
        assert done.wait(60)
        meeting.wait()

    def come_late():
        time.sleep(0.01 * asleep)
        meet()
        os.sched_setaffinity(0, {there})
        if not bound:
            os.sched_setaffinity(0, allowed)
        ready.set()
        began, end = time.monotonic(), time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        seconds = time.monotonic() - began
        place = processor_of(threading.get_native_id())
        places.append((place, os.sched_getaffinity(0), seconds))
        done.set()
        meeting.wait()

    def come():
        os.sched_setaffinity(0, {here})
        meet()
        assert ready.wait(60)
        meeting.wait()

    with ThreadPoolExecutor(2 + asleep) as pool:
        others = [pool.submit(come_later) for _ in range(asleep)]
        others.append(pool.submit(come_late))
        pool.submit(come).result(timeout=60)
        for other in others:
            other.result(timeout=60)
    return places[0]


@needs_processors
@pytest.mark.parametrize(
    ("lends", "situation"),
    [
        (True, {}),
        (True, {"asleep": 1}),
        (True, {"asleep": 2}),
        (True, {"breaks": True}),
        (False, {"breaks": True, "meetings": 2}),
        (True, {"breaks": True, "meetings": 3}),
        (False, {"lends": False}),
    ],
)
def test_who_waits_lends_its_processor(busy, processor_of, lends, situation):
    (here, there), allowed, times = busy, os.sched_getaffinity(0), 15
    found = [
        wait_for_one_who_comes_late(here, there, processor_of, **situation) for _ in range(times)
    ]
    assert all(after == allowed for _, after, _ in found)  # it may go where it likes
    brought = sum(place == here for place, _, _ in found)
    assert 3 * brought > 2 * times if lends else 3 * brought < times


@needs_processors
def test_whom_several_lend_a_processor_may_go_where_it_might(busy):
    allowed, n = os.sched_getaffinity(0), 6
    meetings = [Barrier(2, lends=True) for _ in range(n)]

    def wait(meeting, processor):
        os.sched_setaffinity(0, {processor})
        meeting.wait()
        meeting.wait()

    with ThreadPoolExecutor(n) as pool:
        for _ in range(50):
            waiting = [pool.submit(wait, meetings[i], busy[i % 2]) for i in range(n)]
            for meeting in meetings:
                meeting.wait()
            end = time.thread_time() + 0.01
            while time.thread_time() < end:
                pass
            for meeting in meetings:
                meeting.wait()
            for future in waiting:
                future.result(timeout=60)
            found = os.sched_getaffinity(0)
            os.sched_setaffinity(0, allowed)
            assert found == allowed


@needs_processors
def test_a_thread_that_has_a_processor_stays_there(processor_of):
    here, there = sorted(os.sched_getaffinity(0))[:2]
    stayed = []
    for _ in range(200):
        place, _, seconds = wait_for_one_who_comes_late(here, there, processor_of)
        if seconds < 0.021:  # of which it computed 0.02: nobody else had the processor
            stayed.append(place == there)
        if len(stayed) == 9:
            break
    else:
        pytest.skip("other programs keep the processors busy")
    assert sum(stayed) > 6


@needs_processors
def test_a_thread_that_was_bound_to_a_processor_stays_there(busy, processor_of):
    here, there = busy
    for _ in range(3):
        found = wait_for_one_who_comes_late(here, there, processor_of, bound=True)
        assert found[:2] == (there, {there})


@needs_processors
def test_who_comes_last_leaves_the_processor_to_one_that_waits_there(processor_of):
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    meeting, left = Barrier(2, lends=True), 0

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
