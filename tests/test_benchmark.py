"""Tests of the measurement of a training's speed; none of how fast it is."""

import dataclasses
import sys

import numpy as np
import pytest

from rustgpt import benchmark
from rustgpt.backend import ops
from rustgpt.benchmark import Benchmark, Limits, Vocabulary
from rustgpt.config import ModelConfig, TrainConfig
from rustgpt.errors import ConfigError
from rustgpt.llm import LLM


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """Let the machine's limits be measured on arrays that take no time."""
    monkeypatch.setattr(benchmark, "PRODUCT", 8)
    monkeypatch.setattr(benchmark, "COPY", 2**12)


@pytest.fixture
def model(letters, small):
    return LLM(small(), letters)


def bench(model, batch_size=3, threads=1, steps=4, **more):
    return Benchmark(
        model, TrainConfig(batch_size=batch_size, threads=threads), steps=steps, **more
    )


def test_a_vocabulary_is_a_number():
    model = LLM(ModelConfig(n_layers=1), Vocabulary(7, end_id=-1))
    assert model.tokenizer.vocab_size == 7
    assert len(list(model.stream_ids([1], 5))) == 5


def test_speed(backend, model):
    speed = bench(model, context=5, steps=3).speed()
    assert (speed.steps, speed.threads) == (3, 1)
    assert speed.slow <= speed.tokens_per_second <= speed.fast
    operations = 6 * (model.n_parameters - 28 * 6) + 12 * 2 * 6 * 5
    assert speed.tokens_per_second == pytest.approx(15e3 / speed.milliseconds_a_step)
    assert speed.gflops == pytest.approx(speed.tokens_per_second * operations / 1e9)
    assert speed.share_of_product == pytest.approx(speed.gflops / speed.product_gflops)


def test_an_embedding_table_counts_where_it_is_multiplied(letters, small):
    model = LLM(small(tie_embeddings=True), letters)
    assert bench(model).multiplied == model.n_parameters


def test_a_model_stays_as_it_is(model, letters):
    before = model.parameters.copy()
    measured = bench(model)
    measured.speed()
    measured.profile(by_parts=True)
    np.testing.assert_array_equal(model.parameters, before)
    assert model.tokenizer is letters
    assert not any(layer.by_parts for layer in model.layers[1:-1])


def test_seconds_end_it(model):
    assert bench(model, steps=0, seconds=0.05).speed().steps > 0


def test_limits_are_measured_now_and_then(model, monkeypatch):
    measured = []
    monkeypatch.setattr(benchmark, "BETWEEN", 0.0)
    monkeypatch.setattr(Limits, "_rate", lambda *_: measured.append(None) or float(len(measured)))
    speed = bench(model).speed()
    assert len(measured) == 4 + benchmark.WARM_UP
    assert speed.product_gflops == 3.5


def test_limits(backend):
    limits = Limits(2, "float64", with_copy=True)
    limits.measure()
    one = limits.of_one()
    assert {*one} == {"GFLOP/s", "GB/s"}
    assert all(0 < rate == limits.of_all(unit) / 2 for unit, rate in one.items())


WHOLE = {
    "embedding forward", "block forward", "linear_cross_entropy both", "block backward",
    "embedding backward", "sum_of_squares update", "adam_step update",
}  # fmt: skip
PARTS = {
    f"{kernel} {part}"
    for kernel in ("linear", "attention", "layer_norm", "relu")
    for part in ("forward", "backward")
}


@pytest.mark.parametrize("threads", [1, 2])
def test_profile(backend, model, monkeypatch, threads):
    monkeypatch.setattr("rustgpt.parallel.data_parallel.TOKENS_AT_LEAST", 1)
    kernels = dict(vars(ops))
    measured = bench(model, threads=threads)
    whole, parts = measured.profile(), measured.profile(by_parts=True)
    added = {"add_into update"} if threads == 2 else set()
    assert {f"{line.kernel} {line.part}" for line in whole.lines} == WHOLE | added
    names = {f"{line.kernel} {line.part}" for line in parts.lines}
    assert names == {name for name in WHOLE | PARTS | added if not name.startswith("block")}
    for profile in (whole, parts):
        assert (profile.steps, profile.threads) == (4, threads)
        assert all(line.rate and line.share_of_limit for line in profile.lines)
        assert sum(line.share for line in profile.lines) + profile.share_between == pytest.approx(1)
    calls = {f"{line.kernel} {line.part}": line.calls for line in whole.lines}
    assert calls["block forward"] == 2 * threads  # layers, of each thread
    assert vars(ops) == kernels


def test_a_profile_of_threads_that_divide_rows(switch_backend, model, monkeypatch):
    switch_backend("cython")
    monkeypatch.setattr("rustgpt.parallel.data_parallel.TOKENS_AT_LEAST", 1)
    monkeypatch.setattr("rustgpt.parallel.data_parallel.SHARED_FROM", 0)
    profile = bench(model, threads=2).profile()
    assert {f"{line.kernel} {line.part}" for line in profile.lines} == WHOLE  # nothing is added up
    assert {line.calls for line in profile.lines if line.kernel == "block"} == {4}


def test_an_error_leaves_everything_as_it_was(model, monkeypatch):
    def fail(*_):
        raise MemoryError

    kernels = dict(vars(ops))
    monkeypatch.setattr(Limits, "measure", fail)
    with pytest.raises(MemoryError):
        bench(model).profile(by_parts=True)
    assert vars(ops) == kernels
    assert not any(layer.by_parts for layer in model.layers[1:-1])


def test_a_model_without_blocks(letters, small):
    profile = bench(LLM(small(n_layers=0), letters)).profile(by_parts=True)
    assert {line.kernel for line in profile.lines} >= {"linear_cross_entropy", "adam_step"}


@pytest.mark.parametrize("context", [-1, 13])
def test_a_context_that_the_model_cannot_see(model, context):
    with pytest.raises(ConfigError, match=f"from 1 to the model's max_seq_len 12, got {context}"):
        bench(model, context=context)


def test_as_many_threads_as_the_training_has(switch_backend, model, monkeypatch):
    switch_backend("cython")  # which divides rows
    assert bench(model, batch_size=2, threads=9).threads == 1  # 24 tokens are one thread's
    monkeypatch.setattr("rustgpt.parallel.data_parallel.TOKENS_AT_LEAST", 4)
    assert bench(model, batch_size=2, threads=9).threads == 6
    measured = bench(model, batch_size=1, threads=2)
    assert measured.threads == 2
    assert measured.profile().threads == 2
    assert measured.profile(by_parts=True).threads == 1  # which cannot divide a text
    assert dataclasses.asdict(bench(model).speed())["threads"] == 1


def test_peak_memory(monkeypatch):
    assert benchmark.peak_memory_mb() is None or benchmark.peak_memory_mb() > 10
    monkeypatch.setitem(sys.modules, "resource", None)
    assert benchmark.peak_memory_mb() is None
