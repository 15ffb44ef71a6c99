"""Tests of the lock that many readers hold at once, or one writer."""

import copy
import pickle
import threading
import time

import pytest

from rustgpt.read_write_lock import ReadWriteLock


@pytest.fixture
def lock():
    return ReadWriteLock()


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_readers_share(lock):
    inside = threading.Barrier(3)

    def read():
        with lock:
            inside.wait(30)

    threads = [in_thread(read) for _ in range(3)]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_a_writer_is_alone(lock):
    counter, seen, end = [0, 0], set(), threading.Event()

    def read():
        while not end.is_set():
            with lock:
                seen.add(counter[0] - counter[1])

    def write():
        for _ in range(200):
            lock.begin_writing()
            counter[0] += 1
            time.sleep(0)
            counter[1] += 1
            lock.end_writing()

    readers, writers = [in_thread(read) for _ in range(3)], [in_thread(write) for _ in range(2)]
    for thread in writers:
        thread.join(60)
    end.set()
    for thread in readers:
        thread.join(60)
    assert counter == [400, 400]
    assert seen == {0}


def test_readers_that_come_later_wait_for_a_writer(lock):
    order = []
    with lock:
        writer = in_thread(lambda: (lock.begin_writing(), order.append("w"), lock.end_writing()))
        while lock._writers == 0:
            time.sleep(0.001)

        def read():
            with lock:
                order.append("r")

        reader = in_thread(read)
        time.sleep(0.02)
        assert order == []
    writer.join(30)
    reader.join(30)
    assert order == ["w", "r"]


def test_a_writer_that_gives_up_keeps_nobody_out(lock, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lock._changed, "wait_for", interrupted)
    with lock, pytest.raises(KeyboardInterrupt):
        lock.begin_writing()
    monkeypatch.undo()
    with lock:
        pass
    lock.begin_writing()
    lock.end_writing()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda lock: pickle.loads(pickle.dumps(lock))])
def test_a_copy_is_a_lock_of_its_own(lock, copied):
    with lock:
        twin = copied(lock)
        twin.begin_writing()
        twin.end_writing()
