"""Tests of how many threads a step has, and whether they divide its rows."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from rustgpt.config import TrainConfig
from rustgpt.layers.layer import Layer
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.llm import LLM, build_layers
from rustgpt.parallel.data_parallel import (
    SHARED_FROM,
    TOKENS_AT_LEAST,
    DataParallel,
    shares_gradients,
    thread_count,
)
from rustgpt.parallel.pool import available_threads


@pytest.fixture(autouse=True)
def cython(switch_backend):
    """The compiled kernels, which alone divide rows."""
    switch_backend("cython")


@pytest.mark.parametrize(("parameters", "found"), [(809_856, False), (10_770_816, True)])
def test_threads_share_gradients_where_they_are_tens_of_megabytes(parameters, found):
    assert (SHARED_FROM, TOKENS_AT_LEAST) == (2**23, 64)  # as it is for users
    model = SimpleNamespace(n_parameters=parameters, layers=[])
    assert shares_gradients(TrainConfig(threads=2), model, texts=8) is found


def test_fewer_texts_than_threads_are_divided(model_of):
    config = TrainConfig(threads=3)
    assert [shares_gradients(config, model_of(), texts) for texts in (1, 2, 3, 4)] == [
        True, True, False, False,
    ]  # fmt: skip


def test_plain_numpy_shares_nothing(model_of, limits, switch_backend):
    limits(tokens=1, shared_from=0)
    model = model_of()
    assert shares_gradients(TrainConfig(threads=2), model, 1)
    switch_backend("reference")
    assert not shares_gradients(TrainConfig(threads=2), model, 1)
    assert thread_count(TrainConfig(threads=4, batch_size=3), model) == 3


class Twice(Layer):
    """A layer of one's own."""

    def forward(self, x, ctx):
        return 2 * x

    def backward(self, dout, ctx):
        return 2 * dout


class OwnNorm(LayerNorm):
    """A change to a layer that divides rows, which does not say that it does too."""

    def forward(self, x, ctx):
        return 2 * super().forward(x, ctx)

    def backward(self, dout, ctx):
        return super().backward(2 * dout, ctx)


@pytest.mark.parametrize("own", [Twice, lambda: OwnNorm(6)])
def test_rows_go_undivided_through_a_layer_of_ones_own(letters, small, limits, own):
    limits(tokens=1, shared_from=0)
    layers = build_layers(small(), letters.vocab_size)
    config = TrainConfig(threads=3, batch_size=2)
    model = LLM(small(), letters, layers)
    assert shares_gradients(config, model, 2)
    assert thread_count(config, model) == 3
    layers = build_layers(small(), letters.vocab_size)
    layers.insert(1, own())
    model = LLM(small(), letters, layers)
    assert not shares_gradients(config, model, 2)
    assert thread_count(config, model) == 2


def test_threads_need_tokens_and_texts_that_can_be_divided(model_of):
    def count(batch, longest, threads=8):
        config = TrainConfig(batch_size=batch, threads=threads)
        return thread_count(config, model_of(max_seq_len=longest))

    assert [count(1, 63), count(1, 64), count(1, 200), count(1, 5000)] == [1, 1, 3, 8]
    assert [count(2, 5000), count(16, 8), count(16, 16), count(16, 512)] == [8, 2, 4, 8]
    config = TrainConfig(batch_size=16, threads=8)
    assert thread_count(config, model_of(max_seq_len=512), texts=1) == 8
    by_parts = model_of(max_seq_len=5000)
    by_parts.layers[1].by_parts = True
    assert thread_count(TrainConfig(batch_size=2, threads=8), by_parts) == 2


def test_without_a_number_there_is_a_thread_for_each_processor(model_of, monkeypatch):
    assert available_threads() >= 1
    monkeypatch.setattr("rustgpt.parallel.data_parallel.available_threads", lambda: 5)
    model = model_of(max_seq_len=512)
    assert thread_count(TrainConfig(threads=0), model) == 5
    assert thread_count(TrainConfig(threads=4), model) == 4


@pytest.mark.parametrize(("batch_size", "texts"), [(6, 1), (1, None)])
def test_few_texts_a_step_are_divided_whatever_the_size_of_a_batch(
    model_of, limits, batch_size, texts
):
    limits(tokens=1, shared_from=10**9)
    config = TrainConfig(threads=3, batch_size=batch_size)
    with DataParallel(model_of(), config, texts) as parallel:
        assert parallel.shared
        assert parallel.threads == 3


def test_more_steps_than_one_need_not_be_told(model_of):
    config = TrainConfig(threads=3, batch_size=1)
    with DataParallel(model_of(max_seq_len=200), config, texts=60) as parallel:
        assert parallel.shared
        assert parallel.threads == 3


@pytest.mark.parametrize("shared_from", [0, 10**9])
def test_few_tokens_are_one_threads(model_of, batch, limits, monkeypatch, shared_from):
    """They start no other thread, which the system might refuse, and have one thread's bits."""

    def fail(thread):
        raise RuntimeError("can't start new thread")

    limits(shared_from=shared_from)
    model, found = model_of(max_seq_len=40, dtype="float32"), []
    monkeypatch.setattr(threading.Thread, "start", fail)
    for threads in (1, 5):
        with DataParallel(model, TrainConfig(threads=threads, batch_size=6)) as parallel:
            assert parallel.threads == min(threads, 3)  # 6 texts may have 240 tokens
            found.append((parallel.differentiate(batch, 0.1), parallel.gradients.tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("shared_from", [0, 10**9])
@pytest.mark.parametrize(("tokens", "threads"), [(46, 1), (45, 1), (22, 2), (15, 3), (1, 4)])
def test_each_batch_has_as_many_threads_as_its_tokens_are_worth(
    model_of, batch, limits, monkeypatch, shared_from, tokens, threads
):
    limits(tokens=tokens, shared_from=shared_from)
    seen, original = set(), LLM.loss_and_gradients

    def spy(*given):
        seen.add(threading.get_ident())
        return original(*given)

    monkeypatch.setattr(LLM, "loss_and_gradients", spy)
    config = TrainConfig(threads=4, batch_size=60)
    with DataParallel(model_of(), config) as parallel:
        parallel.differentiate(batch, 0.1)  # of 45 tokens
        assert len(seen) == threads
        seen.clear()
        parallel.differentiate([row[:2] for row in batch[:1]], 0.1)
        assert len(seen) == 1
        updated = []
        parallel.update(lambda part, squares: updated.append(part))
        assert updated == [slice(0, len(parallel.gradients))]
    assert np.isfinite(parallel.gradients).all()


@pytest.mark.parametrize(("texts", "threads"), [(1, 1), (2, 2), (6, 4)])
def test_threads_that_take_whole_texts_are_no_more_than_these(
    model_of, batch, limits, texts, threads
):
    limits(tokens=1, shared_from=10**9)
    updated = []
    with DataParallel(model_of(), TrainConfig(threads=4, batch_size=6)) as parallel:
        parallel.differentiate(batch[:texts], 0.1)
        parallel.update(lambda part, squares: updated.append(part))
    assert len(updated) == threads
