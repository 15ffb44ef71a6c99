"""Tests of the threads that work together."""

import threading
import time

import pytest

from rustgpt.parallel.pool import ThreadPool


@pytest.fixture
def pool(backend):
    """A pool, which is closed at the end."""
    made = ThreadPool()
    yield made
    made.close()


def idents(pool, n):
    """Return which threads make a run, by their numbers in it."""
    found = [0] * n

    def work(i):
        found[i] = threading.get_ident()

    pool.run(n, work)
    return found


def alive():
    """Return the threads of all pools."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("rustgpt")]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_each_thread_is_given_its_number_once(pool, n):
    for _ in range(20):
        numbers = []
        pool.run(n, numbers.append)
        assert sorted(numbers) == list(range(n))


def test_the_callers_thread_is_number_0_and_the_others_stay(pool):
    assert alive() == []
    assert idents(pool, 1) == [threading.get_ident()]
    assert alive() == []  # nobody is started who is not needed
    three = idents(pool, 3)
    assert three[0] == threading.get_ident()
    assert set(three[1:]) == {thread.ident for thread in alive()}
    assert len(set(three)) == 3
    assert idents(pool, 2) == three[:2]
    five = idents(pool, 5)
    assert five[:3] == three
    assert len(set(five)) == 5


def test_a_run_ends_when_all_have(pool):
    ended = []

    def work(i):
        time.sleep(0.05 * i)
        ended.append(i)

    pool.run(3, work)
    assert sorted(ended) == [0, 1, 2]


def test_all_are_at_work_at_once(pool):
    meeting, passed = pool.barrier(3), []
    assert pool.barrier(3) is meeting

    def work(i):
        meeting.wait()
        passed.append(i)

    pool.run(3, work)
    assert sorted(passed) == [0, 1, 2]


def test_after_close_the_threads_have_ended(pool):
    idents(pool, 4)
    assert len(alive()) == 3
    pool.close()
    assert alive() == []
    pool.close()
    assert len(set(idents(pool, 2))) == 2  # and a run starts new ones


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("who", [0, 1, 2])
def test_an_error_reaches_the_caller_and_nobody_waits_for_ever(pool, who, error):
    broken = []

    def work(i):
        if i == who:
            raise error("no more")
        try:
            meeting.wait()
        except threading.BrokenBarrierError:
            broken.append(i)
            raise

    meeting = pool.barrier(3)
    with pytest.raises(error, match="no more"):
        pool.run(3, work)
    assert sorted(broken) == [i for i in range(3) if i != who]
    assert pool.barrier(3) is not meeting  # where nobody could meet again
    assert len(set(idents(pool, 3))) == 3
    assert len(alive()) == 2


@pytest.mark.parametrize("who", [0, 1])
def test_when_an_error_goes_up_nobody_is_at_work(pool, who):
    ended = []

    def work(i):
        if i == who:
            raise MemoryError
        time.sleep(0.2)
        ended.append(i)

    with pytest.raises(MemoryError):
        pool.run(2, work)
    assert ended == [1 - who]


def test_a_thread_that_cannot_be_started_is_an_error(pool, monkeypatch):
    start, calls = threading.Thread.start, []

    def fail(thread):
        calls.append(thread)
        if len(calls) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        meeting = pool.barrier(3)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.run(3, lambda _: meeting.wait())
    assert len(set(idents(pool, 3))) == 3


def test_threads_that_only_exist_do_not_keep_the_program(pool):
    idents(pool, 3)
    assert [thread.daemon for thread in alive()] == [True, True]


def test_two_pools_are_apart(pool):
    other = ThreadPool()
    try:
        assert not {*idents(pool, 3)[1:]} & {*idents(other, 3)[1:]}
        other.close()
        assert len(set(idents(pool, 3))) == 3
    finally:
        other.close()
