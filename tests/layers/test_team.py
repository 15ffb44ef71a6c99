"""Tests of threads that take one batch through the layers together."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rustgpt.layers.layer import Layer
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.team import SharedBuffers, Team
from rustgpt.llm import LLM, build_layers

VARIANTS = {
    "RustGPT": {"attention_projection": False, "n_heads": 1},
    "GPT-2": {
        "norm": "pre", "activation": "gelu", "attention_bias": True, "tie_embeddings": True,
        "output_bias": False,
    },
}  # fmt: skip


@pytest.fixture(params=VARIANTS)
def model(request, backend, letters, small):
    settings = {"n_layers": 2, "max_seq_len": 80, "dtype": "float64"}
    return LLM(small(**settings | VARIANTS[request.param]), letters)


def batch(rng, model, lengths):
    """Return ids, targets and offsets of random texts."""
    N, V = sum(lengths), model.tokenizer.vocab_size
    ids, targets = (rng.integers(0, V, N).astype(np.int32) for _ in range(2))
    return ids, targets, np.cumsum([0, *lengths], dtype=np.int32)


def together(model, n, ids, targets, offsets, scale, heads):
    """Return the loss that n replicas come to, and their gradients."""
    total = int(offsets[-1])
    edges = np.array([total * i // n for i in range(n + 1)], np.int32)
    if not heads:  # at the last end of a text before
        edges = np.array([offsets[offsets <= edge].max() for edge in edges], np.int32)
    members = Team(n).members(edges, heads)
    # What the gradients held before does not matter.
    gradients = np.full_like(model.gradients, np.nan)
    models = [model.replica(gradients) for _ in range(n)]

    def work(i):
        models[i].join(members[i])
        models[i].begin_gradients()
        return models[i].loss_and_gradients(ids, targets, offsets, scale)

    with ThreadPoolExecutor(n) as pool:
        return sum(pool.map(work, range(n))), gradients


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [(80,), (7, 0, 66), (5,), (20, 3, 19, 0, 8, 20)])
@pytest.mark.parametrize("heads", [True, False])
def test_a_team_finds_the_gradients_that_one_finds_alone(model, rng, n, lengths, heads):
    given = batch(rng, model, lengths)
    model.gradients.fill(0)
    loss = model.loss_and_gradients(*given, 0.1)
    loss_together, gradients = together(model, n, *given, 0.1, heads)
    assert loss_together == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(gradients, model.gradients, rtol=1e-9, atol=1e-13)


def test_logits_of_many_rows_are_divided_into_blocks(model, rng, monkeypatch):
    monkeypatch.setattr("rustgpt.layers.output_projection.ROWS_AT_LEAST", 7)
    monkeypatch.setattr("rustgpt.layers.output_projection.LOGITS_AT_ONCE", 0)
    given = batch(rng, model, (30, 31))
    model.gradients.fill(0)
    loss = model.loss_and_gradients(*given, 0.1)
    loss_together, gradients = together(model, 2, *given, 0.1, False)
    assert loss_together == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(gradients, model.gradients, rtol=1e-9, atol=1e-13)


def test_a_second_batch_adds_to_the_first(model, rng):
    given = batch(rng, model, (30, 31))
    gradients = np.full_like(model.gradients, np.nan)
    models = [model.replica(gradients) for _ in range(2)]
    team = Team(2)
    members = team.members(np.array([0, 30, 61], np.int32), False)

    def work(i):
        models[i].join(members[i])
        models[i].begin_gradients()
        for _ in range(3):
            models[i].loss_and_gradients(*given, 0.1)
            team.barrier.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    model.gradients.fill(0)
    model.loss_and_gradients(*given, 0.3)
    np.testing.assert_allclose(gradients, model.gradients, rtol=1e-9, atol=1e-13)


def test_a_member_that_left_the_team_is_alone_again(model, rng):
    given = batch(rng, model, (9,))
    model.gradients.fill(0)
    model.loss_and_gradients(*given, 1.0)
    expected = model.gradients.copy()
    model.join(Team(1).members(given[2], False)[0])
    model.loss_and_gradients(*given, 1.0)
    model.join(None)
    model.gradients.fill(0)
    model.loss_and_gradients(*given, 1.0)
    np.testing.assert_array_equal(model.gradients, expected)


def test_a_second_thread_needs_no_gradients_of_its_own(model):
    twin = model.replica(model.gradients)
    assert twin.gradients is model.gradients
    for mine, theirs in zip(
        model.named_gradients().values(), twin.named_gradients().values(), strict=True
    ):
        assert mine.ctypes.data == theirs.ctypes.data


def test_nobody_waits_for_one_that_left():
    team = Team(2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(team.barrier.wait)
        team.barrier.abort()
        with pytest.raises(threading.BrokenBarrierError):
            waiting.result(timeout=30)


def test_shared_buffers_give_all_threads_the_same_array():
    buffers = SharedBuffers()
    dtype = np.dtype(np.float32)
    start = threading.Barrier(8)

    def ask(_):
        start.wait()
        return buffers.get("x", (1000, 3), dtype)

    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(ask, range(8)))
    assert all(array is arrays[0] for array in arrays)


class Twice(Layer):
    """A layer of one's own."""

    def forward(self, x, offsets):
        return 2 * x

    def backward(self, dout):
        return 2 * dout


class OwnNorm(LayerNorm):
    """A change to a layer that works in a team, which the team does not know."""


@pytest.mark.parametrize("own", [Twice, lambda: OwnNorm(6)])
def test_a_layer_of_ones_own_does_not_work_in_a_team(letters, small, own):
    config = small()
    layers = build_layers(config, letters.vocab_size)
    assert LLM(config, letters, layers).works_in_team()
    layers.insert(1, own())
    assert not LLM(config, letters, layers).works_in_team()
