"""Tests of threads that take one batch through the layers together."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rustgpt.layers.layer import Layer
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


def together(model, n, ids, targets, offsets, scale):
    """Return the loss and the gradients that n replicas come to."""
    members = Team(n).members(offsets)
    models = [model.replica() for _ in range(n)]

    def work(i):
        models[i].join(members[i])
        rows = members[i].rows
        return models[i].loss_and_gradients(ids[rows], targets[rows], offsets, scale)

    with ThreadPoolExecutor(n) as pool:
        loss = sum(pool.map(work, range(n)))
    return loss, sum(replica.gradients for replica in models)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [(80,), (7, 0, 66), (5,)])
def test_a_team_finds_the_gradients_that_one_finds_alone(model, rng, n, lengths):
    given = batch(rng, model, lengths)
    model.gradients.fill(0)
    loss = model.loss_and_gradients(*given, 0.1)
    loss_together, gradients = together(model, n, *given, 0.1)
    assert loss_together == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(gradients, model.gradients, rtol=1e-9, atol=1e-13)


def test_a_member_that_left_the_team_is_alone_again(model, rng):
    given = batch(rng, model, (9,))
    model.gradients.fill(0)
    model.loss_and_gradients(*given, 1.0)
    expected = model.gradients.copy()
    model.join(Team(1).members(given[2])[0])
    model.loss_and_gradients(*given, 1.0)
    model.join(None)
    model.gradients.fill(0)
    model.loss_and_gradients(*given, 1.0)
    np.testing.assert_array_equal(model.gradients, expected)


def test_rows_and_heads_are_divided_without_rest():
    members = Team(3).members(np.array([0, 4, 11], np.int32))
    assert [m.rows for m in members] == [slice(0, 3), slice(3, 7), slice(7, 11)]
    assert [m.total for m in members] == [11, 11, 11]
    assert [m.heads(4) for m in members] == [(0, 1), (1, 2), (2, 4)]
    assert [m.heads(2) for m in members] == [(0, 0), (0, 1), (1, 2)]


def test_nobody_waits_for_one_that_left():
    team = Team(2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(team.meet)
        team.leave()
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


def test_a_layer_of_ones_own_is_not_divided_unless_it_says_so(letters, small):
    class Twice(Layer):
        def forward(self, x, offsets):
            return 2 * x

        def backward(self, dout):
            return 2 * dout

    config = small()
    layers = build_layers(config, letters.vocab_size)
    assert LLM(config, letters, layers).divides_rows()
    layers.insert(1, Twice())
    assert not LLM(config, letters, layers).divides_rows()
