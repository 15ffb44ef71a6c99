"""Tests of the barrier that threads meet at without Python's lock."""

import hashlib
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


# Where threads run, on Linux: the system has a say in it, too, so a single outcome may not tell

A_MEGABYTE = bytes(2**20)

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


def usually(play):
    """Return what comes out more often; it plays until one outcome is seven ahead."""
    ahead = 0
    while abs(ahead) < 7:
        ahead += 1 if play() else -1
    return ahead > 0


def compute(seconds):
    """Compute without Python's lock: whoever waits for that is moved when it gets it."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.sha256(A_MEGABYTE)


@pytest.fixture
def barrier(nobody_waits_for_ever):
    """barrier(n): one whose threads lend their processors."""

    def make(n, lends=True, breaks=False):
        return nobody_waits_for_ever(Barrier(n, lends, breaks))

    return make


def wait_for_one_who_comes_late(
    barrier, processors, processor_of, *, bound=False, meetings=1, asleep=0, **how
):  # fmt: skip
    """Return where a thread was that came late from `there`, how often it was lent a processor, and
    for how many seconds it stood still.

    That is after some meetings. It computes until then, and as many as are `asleep` come after it.
    """
    here, there = processors
    meeting, found = barrier(2 + asleep, **how), []
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
        lent = meeting.lent
        allowed = {there} if bound else {here, there}
        os.sched_setaffinity(0, {there})
        os.sched_setaffinity(0, allowed)
        ready.set()
        began, computed = time.monotonic(), time.thread_time()
        compute(0.02)
        stood = time.monotonic() - began - (time.thread_time() - computed)
        place = processor_of(threading.get_native_id())
        done.set()
        meeting.wait()  # from then on nobody moves it
        assert os.sched_getaffinity(0) == allowed  # it may go where it likes
        found.append((place, meeting.lent - lent, stood))

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
    return found[0]


@needs_processors
@pytest.mark.parametrize(
    "situation",
    [
        {},
        {"meetings": 2},
        {"asleep": 1},
        {"asleep": 2},
        {"breaks": True},
        {"breaks": True, "meetings": 3},
    ],
)
def test_who_waits_lends_its_processor(barrier, busy, processor_of, situation):
    def is_brought():
        place, lent, _ = wait_for_one_who_comes_late(barrier, busy, processor_of, **situation)
        return lent > 0 and place == busy[0]

    assert usually(is_brought)


@needs_processors
@pytest.mark.parametrize("situation", [{"lends": False}, {"breaks": True, "meetings": 2}])
def test_who_waits_keeps_its_processor(barrier, busy, processor_of, situation):
    for _ in range(9):
        assert wait_for_one_who_comes_late(barrier, busy, processor_of, **situation)[1] == 0


@pytest.fixture
def bind():
    """bind(processors): where this thread may run until the test ends."""
    allowed = os.sched_getaffinity(0)

    def change(processors):
        os.sched_setaffinity(0, processors)

    yield change
    os.sched_setaffinity(0, allowed)


@needs_processors
def test_whom_several_lend_a_processor_may_go_where_it_might(barrier, busy, bind):
    allowed, n = set(busy), 6
    meetings = [barrier(2) for _ in range(n)]

    def wait(meeting, processor):
        os.sched_setaffinity(0, {processor})
        meeting.wait()
        meeting.wait()

    with ThreadPoolExecutor(n) as pool:
        for _ in range(50):
            bind(allowed)
            waiting = [pool.submit(wait, meetings[i], busy[i % 2]) for i in range(n)]
            for meeting in meetings:
                meeting.wait()
            compute(0.01)
            for meeting in meetings:
                meeting.wait()
            for future in waiting:
                future.result(timeout=60)
            assert os.sched_getaffinity(0) == allowed


@needs_processors
def test_nobody_is_moved_who_does_what_is_unknown(barrier, busy, bind):
    meeting, allowed, rounds, moved = barrier(2, breaks=True), set(busy), 200, 0

    def help_here():
        os.sched_setaffinity(0, {busy[0]})
        for _ in range(2 * rounds):
            meeting.wait()

    def is_moved():
        bind(allowed)  # which the other one, moving this thread before, may have written over
        end = time.monotonic() + 0.004
        while time.monotonic() < end:
            if os.sched_getaffinity(0) != allowed:
                return True
        return False

    with ThreadPoolExecutor(1) as pool:
        helping = pool.submit(help_here)
        for _ in range(rounds):
            meeting.wait()
            time.sleep(0.002)  # until the other one waits
            bind({busy[0]})  # whom it stands in the way then, and so comes late from the meeting
            bind(allowed)
            meeting.wait()
            moved += is_moved()
        helping.result(timeout=60)
    assert moved == 0


@needs_processors
def test_a_thread_that_has_a_processor_stays_there(barrier, processor_of):
    processors = sorted(os.sched_getaffinity(0))[:2]

    def stays():
        for _ in range(50):
            _, lent, stood = wait_for_one_who_comes_late(barrier, processors, processor_of)
            if stood < 0.0005:  # nobody else had the processor
                return lent == 0
        pytest.skip("other programs keep the processors busy")

    assert usually(stays)


@needs_processors
def test_a_thread_that_was_bound_to_a_processor_stays_there(barrier, busy, processor_of):
    for _ in range(3):
        place, lent, _ = wait_for_one_who_comes_late(barrier, busy, processor_of, bound=True)
        assert (place, lent) == (busy[1], 0)


@needs_processors
@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("lends", [True, False])
def test_who_waited_goes_on_elsewhere_if_its_processor_is_in_use(
    barrier, busy, bind, processor_of, lends, breaks
):
    here, there = busy
    allowed = {here, there}

    def wait_here(meeting, ready):
        os.sched_setaffinity(0, {here})
        os.sched_setaffinity(0, allowed)
        ready.set()
        meeting.wait()
        assert os.sched_getaffinity(0) == allowed  # it may go where it likes
        return processor_of(threading.get_native_id())

    def goes_elsewhere():
        meeting = barrier(2, lends, breaks)  # to which nobody has come before
        ready = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(wait_here, meeting, ready)
            assert ready.wait(60)
            time.sleep(0.01)  # until it waits
            bind({here})
            bind(allowed)
            meeting.wait()
            compute(0.005)
            assert os.sched_getaffinity(0) == allowed
            return waiting.result(timeout=60) == there

    assert usually(goes_elsewhere) == lends


@needs_processors
@pytest.mark.parametrize("breaks", [False, True])
def test_who_was_sent_elsewhere_may_go_where_it_might_when_it_goes_on(barrier, busy, bind, breaks):
    here, allowed, rounds = busy[0], set(busy), 600
    meeting, looked = barrier(2, breaks=breaks), threading.Semaphore(0)
    bind(allowed)

    def wait_here():
        narrow = 0
        os.sched_setaffinity(0, allowed)
        for _ in range(rounds):
            meeting.wait()
            narrow += os.sched_getaffinity(0) != allowed
            os.sched_setaffinity(0, {here})
            os.sched_setaffinity(0, allowed)
            looked.release()
        return narrow

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_here)
        for _ in range(rounds):
            time.sleep(0.001)  # until it waits
            bind({here})
            bind(allowed)
            meeting.wait()
            assert looked.acquire(timeout=60)  # while nobody waits who could bring it here
        assert waiting.result(timeout=60) == 0
