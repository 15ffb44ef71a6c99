"""Tests of the lock that keeps readers from seeing half of a change."""

import copy
import gc
import pickle
import threading
import time

import pytest

from rustgpt.errors import TrainingError
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


# One training at a time


class Training:
    """Somebody who trains."""


def test_nobody_else_trains_until_the_end_of_a_training(lock):
    one, other = Training(), Training()
    lock.begin_training(one)
    for by in (one, other):
        with pytest.raises(TrainingError, match="is being trained already"):
            lock.begin_training(by)
    lock.end_training()
    lock.begin_training(other)
    with pytest.raises(TrainingError):
        lock.begin_training(one)


def test_a_training_that_is_no_more_keeps_nobody_out(lock):
    """As when Ctrl-C came just before its end."""
    one, other = Training(), Training()
    lock.begin_training(one)
    del one
    gc.collect()
    lock.begin_training(other)
    with pytest.raises(TrainingError):
        lock.begin_training(Training())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda lock: pickle.loads(pickle.dumps(lock))])
def test_a_copy_may_be_trained_meanwhile(lock, copied):
    one, other = Training(), Training()
    lock.begin_training(one)
    twin = copied(lock)
    twin.begin_training(other)
    twin.end_training()
    with pytest.raises(TrainingError):
        lock.begin_training(other)


def test_of_many_who_begin_at_once_one_does(lock):
    start, begun, refused = threading.Barrier(8, timeout=30), [], []

    def begin():
        by = Training()
        start.wait()
        try:
            lock.begin_training(by)
            begun.append(by)
        except TrainingError:
            refused.append(by)

    threads = [in_thread(begin) for _ in range(8)]
    for thread in threads:
        thread.join(30)
    assert (len(begun), len(refused)) == (1, 7)


def test_readers_read_while_a_training_runs(lock):
    by = Training()
    lock.begin_training(by)
    assert lock.read(lambda: lock.alone.locked()) is False
    with lock.writing():
        assert lock.alone.locked()
    assert lock.read(lambda: lock.alone.locked()) is False
