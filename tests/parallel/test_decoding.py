"""Tests of the threads that make a token together."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rustgpt.layers.cache import Cache
from rustgpt.llm import LLM
from rustgpt.parallel import decoding
from rustgpt.parallel.decoding import ONE_THREAD, SeveralThreads, decoding_threads

from .conftest import GPT2

TEXTS = [[1, 2, 3], [4], [5, 6]]


@pytest.fixture
def large(monkeypatch):
    """Let models of any size be large ones, on a machine of three processors."""
    monkeypatch.setattr(decoding, "LARGE", 0)
    monkeypatch.setattr(decoding, "available_threads", lambda: 3)
    yield
    for n in (2, 3):
        decoding._threads(n, os.getpid())._pool.close()
    decoding._threads.cache_clear()


@pytest.fixture
def threads():
    """Three threads that decode together."""
    made = SeveralThreads(3)
    yield made
    made._pool.close()


def numbers_of(threads, n_heads):
    """Return the parts of the heads that a run gives to its threads."""
    found = []

    def work(shard):
        found.append(None if shard is None else (shard.index, *shard.edges.tolist()))

    threads.run(n_heads, work, None)
    return sorted(found) if None not in found else found


def test_heads_are_divided(threads):
    assert threads.most() == 3
    assert numbers_of(threads, 7) == [(i, 0, 2, 4, 7) for i in range(3)]
    assert numbers_of(threads, 2) == [(i, 0, 1, 2) for i in range(2)]
    assert numbers_of(threads, 1) == [None]
    assert numbers_of(ONE_THREAD, 7) == [None]


def test_a_call_that_finds_the_threads_at_work_does_without(threads):
    inside, done = threading.Event(), threading.Event()

    def work(shard):
        inside.set()
        done.wait()

    other = threading.Thread(target=threads.run, args=(3, work, None))
    other.start()
    inside.wait()
    assert numbers_of(threads, 3) == [None]
    done.set()
    other.join()
    assert len(numbers_of(threads, 3)) == 3


def test_an_error_in_a_thread_is_raised_and_the_threads_serve_again(threads):
    def work(shard):
        if shard.index == 1:
            raise ZeroDivisionError
        shard.barrier.wait()

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            threads.run(3, work, None)
    assert len(numbers_of(threads, 3)) == 3


def test_small_models_and_plain_numpy_have_one_thread(
    small, letters, switch_backend, large, monkeypatch
):
    model = LLM(small(), letters)
    assert decoding_threads(model.n_parameters).most() == 3
    for wanted, n in ((1, 1), (2, 2), (9, 3), (0, 3)):
        assert decoding_threads(model.n_parameters, wanted).most() == n
    monkeypatch.setattr(decoding, "LARGE", model.n_parameters + 1)
    assert decoding_threads(model.n_parameters) is ONE_THREAD
    monkeypatch.setattr(decoding, "LARGE", 0)
    switch_backend("reference")
    assert decoding_threads(model.n_parameters) is ONE_THREAD


@pytest.mark.parametrize("n_heads", [1, 2, 3])
def test_several_threads_make_the_same_tokens(small, letters, large, close, n_heads):
    config = small(n_heads=n_heads, embedding_dim=54, hidden_dim=70, dtype="float64", **GPT2)
    model = LLM(config, letters)
    results = []
    for n in (1, 2, 3):
        model.threads, cache = n, Cache(12, slots=3)
        found = [model.decode_batch(TEXTS, cache)]
        for _ in range(8):
            found.append(model.decode_batch(found[-1].argmax(axis=1)[:, None].tolist(), cache))
        results.append(np.array(found))
    close(results[1], results[0])
    close(results[2], results[0])


def test_many_sessions_over_one_large_model(small, letters, large):
    model = LLM(small(n_heads=3, embedding_dim=54, dtype="float64"), letters)

    def text(first):
        cache, tokens = Cache(12), [first]
        for _ in range(10):
            tokens.append(int(model.decode(tokens[-1:], cache).argmax()))
        return tokens

    expected = [text(first) for first in range(4)]
    with ThreadPoolExecutor(4) as sessions:
        for _ in range(5):
            assert list(sessions.map(text, range(4))) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_threads_of_its_own(small, letters, large):
    model = LLM(small(n_heads=3, embedding_dim=54, dtype="float64"), letters)
    expected = model.decode([1, 2], Cache(12))
    child = os.fork()
    if child == 0:
        found = model.decode([1, 2], Cache(12))
        os._exit(0 if np.allclose(found, expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(("one", "several", "expected"), [(1.0, 3.0, None), (3.0, 1.0, 0)])
def test_the_faster_way_is_taken(threads, monkeypatch, one, several, expected):
    clock, made = [0.0], []

    def work(shard):
        if shard is None or shard.index == 0:
            clock[0] += one if shard is None else several
            made.append(shard if shard is None else shard.index)

    monkeypatch.setattr(decoding.time, "perf_counter", lambda: clock[0])
    for _ in range(200):
        threads.run(3, work, "a kind")
    assert made[:4] == [0, 0, None, expected]  # the first one is not counted
    assert made.count(expected) > 190
    assert {made[i] for i in range(1, 200, decoding.TIMED_EVERY)} == {0}
    assert {made[i] for i in range(2, 200, decoding.TIMED_EVERY)} == {None}
    one, several = several, one  # and it is seen when that changes
    made.clear()
    for _ in range(5 * decoding.TIMED_EVERY):
        threads.run(3, work, "a kind")
    assert made[-1] is (0 if expected is None else None)


def test_calls_of_many_kinds_are_not_remembered_for_ever(threads):
    for kind in range(3 * decoding.KINDS):
        threads.run(3, lambda shard: None, kind)
    assert len(threads._timings) <= decoding.KINDS
