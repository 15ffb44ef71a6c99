"""Tests of the lock that keeps readers from seeing half of a change."""

import copy
import pickle
import threading
import time

import pytest

from rustgpt.weights_lock import WeightsLock


@pytest.fixture
def lock():
    return WeightsLock()


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_readers_do_not_wait_for_each_other(lock):
    inside = threading.Barrier(3)
    threads = [in_thread(lambda: lock.read(lambda: inside.wait(30))) for _ in range(3)]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_nobody_sees_half_a_change(lock):
    numbers, seen, end = [0, 0], [], threading.Event()

    def read():
        first = numbers[0]
        time.sleep(0)
        return first - numbers[1]

    def keep_reading():
        while not end.is_set():
            seen.append(lock.read(read))

    def write():
        for _ in range(200):
            with lock.writing():
                numbers[0] += 1
                time.sleep(0)
                numbers[1] += 1

    readers, writers = [in_thread(keep_reading) for _ in range(3)], [in_thread(write) for _ in "ab"]
    for thread in writers:
        thread.join(60)
    end.set()
    for thread in readers:
        thread.join(60)
    assert numbers == [400, 400]
    assert len(seen) > 10
    assert set(seen) == {0}


def test_a_reader_that_is_always_late_keeps_the_writer_out_at_last(lock):
    calls = []

    def read():
        calls.append(lock.alone.locked())
        if not lock.alone.locked():
            with lock.writing():  # somebody writes meanwhile
                pass
        return "read"

    assert lock.read(read) == "read"
    assert calls == [False, False, True]


def test_an_error_counts_only_if_nothing_was_written_meanwhile(lock):
    with pytest.raises(ZeroDivisionError):
        lock.read(lambda: 1 / 0)
    calls = []

    def read():
        calls.append(1)
        if len(calls) == 1:
            with lock.writing():
                pass
            raise FloatingPointError  # of half a change
        return "read"

    assert lock.read(read) == "read"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_of_the_writer_all_goes_on(lock, error):
    with pytest.raises(error), lock.writing():
        raise error
    assert lock.read(lambda: lock.alone.locked()) is False
    with lock.writing():
        assert lock.alone.locked()
    lock._version |= 1  # a writer that was torn away even before it could say that it ended
    assert lock.read(lambda: lock.alone.locked()) is True
    with lock.writing():
        pass
    assert lock.read(lambda: lock.alone.locked()) is False


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda lock: pickle.loads(pickle.dumps(lock))])
def test_a_copy_is_a_lock_of_its_own(lock, copied):
    with lock.writing():
        assert copied(lock).read(lambda: "read") == "read"
