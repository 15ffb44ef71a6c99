"""Tests of threads that take one batch through the layers together, each its shard of the rows."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rustgpt.layers.context import Context
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.memory import Workspace
from rustgpt.llm import LLM
from rustgpt.parallel import pool
from rustgpt.reference.arrays import Shard

VARIANTS = {
    "RustGPT": {"attention_projection": False, "n_heads": 1},
    "GPT-2": {
        "norm": "pre", "activation": "gelu", "attention_bias": True, "tie_embeddings": True,
        "output_bias": False,
    },
    "Llama": {
        "norm": "pre", "norm_type": "rms_norm", "positions": "rotary", "activation": "swiglu",
        "feed_forward_bias": False, "n_heads": 3, "n_kv_heads": 1, "output_bias": False,
    },
    "tied, with a bias": {"tie_embeddings": True, "output_bias": True},
}  # fmt: skip


@pytest.fixture(params=VARIANTS)
def model(request, switch_backend, letters, small):
    """A model in float64, on the compiled kernels: the others do not divide rows."""
    switch_backend("cython")
    settings = {"n_layers": 2, "max_seq_len": 80, "dtype": "float64"}
    return LLM(small(**settings | VARIANTS[request.param]), letters)


def batch_of(rng, lengths):
    """Return random texts of so many tokens and one that follows."""
    return [rng.integers(0, 28, length + 1).astype(np.int32) for length in lengths]


def joined(rows):
    """Return ids, targets and offsets of some texts."""
    ids, targets = (np.concatenate([row[part] for row in rows]) for part in (np.s_[:-1], np.s_[1:]))
    return ids, targets, np.cumsum([0, *(len(row) - 1 for row in rows)], dtype=np.int32)


def together(model, n, rows, scale, heads, passes=1, counts=None):
    """Return the loss that n threads come to, and their gradients, of some passes."""
    ids, targets, offsets = joined(rows)
    if counts is not None:
        targets = np.where(counts, targets, np.int32(-1))
    total, meeting = int(offsets[-1]), pool.barrier(n)
    edges = np.array([total * i // n for i in range(n + 1)], np.int32)
    if not heads:  # at the last end of a text before
        edges = np.array([offsets[offsets <= edge].max() for edge in edges], np.int32)
    first, space = Gradients(model.layers), Workspace("float64")
    first.flat.fill(np.nan)  # what the gradients held before does not matter
    gradients = [first, *(Gradients(model.layers, first.flat, i) for i in range(1, n))]
    spaces = [space, *(Workspace("float64", space) for _ in range(1, n))]

    def work(i):
        gradients[i].begin()
        losses = []
        for number in range(passes):
            if number:
                meeting.wait()
            ctx = Context(
                offsets, gradients=gradients[i], workspace=spaces[i],
                shard=Shard(i, edges, heads, meeting),
            )  # fmt: skip
            losses.append(model.loss_and_gradients(ids, targets, scale, ctx))
        gradients[i].finish()
        return sum(losses)

    with ThreadPoolExecutor(n) as threads:
        return sum(threads.map(work, range(n))), first.flat


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("lengths", [(80,), (7, 66), (5,), (20, 3, 19, 1, 8, 20)])
@pytest.mark.parametrize("heads", [True, False])
def test_threads_find_the_gradients_of_plain_numpy(
    model, rng, numpy_sum, same_by_name, n, lengths, heads
):
    rows = batch_of(rng, lengths)
    expected_loss, expected = numpy_sum(model, rows, 0.1)
    loss, gradients = together(model, n, rows, 0.1, heads)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_by_name(model, gradients, expected)


def test_a_shard_may_be_all_rows(model, rng, numpy_sum, same_by_name):
    rows = batch_of(rng, (20, 3))
    expected_loss, expected = numpy_sum(model, rows, 0.1)
    loss, gradients = together(model, 1, rows, 0.1, False)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_by_name(model, gradients, expected)


@pytest.mark.parametrize("heads", [True, False])
def test_a_text_without_a_token_changes_nothing(model, rng, numpy_sum, same_by_name, heads):
    rows = batch_of(rng, (7, 0, 66, 0))
    expected_loss, expected = numpy_sum(model, [rows[0], rows[2]], 0.1)
    loss, gradients = together(model, 3, rows, 0.1, heads)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_by_name(model, gradients, expected)


@pytest.mark.parametrize("n", [2, 3])
def test_logits_of_many_rows_are_divided_into_blocks(
    model, rng, monkeypatch, numpy_sum, same_by_name, n
):
    monkeypatch.setattr("rustgpt.layers.output_projection.ROWS_AT_LEAST", 7)
    monkeypatch.setattr("rustgpt.layers.output_projection.LOGITS_AT_ONCE", 0)
    rows = batch_of(rng, (30, 31))
    expected_loss, expected = numpy_sum(model, rows, 0.1)
    loss, gradients = together(model, n, rows, 0.1, False)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_by_name(model, gradients, expected)


@pytest.mark.parametrize("heads", [True, False])
def test_a_second_pass_adds_to_the_first(model, rng, numpy_sum, same_by_name, heads):
    rows = batch_of(rng, (30, 31))
    expected_loss, expected = numpy_sum(model, rows, 0.3)
    loss, gradients = together(model, 2, rows, 0.1, heads, passes=3)
    assert loss == pytest.approx(3 * expected_loss, rel=1e-12)
    same_by_name(model, gradients, expected)


@pytest.mark.parametrize(
    "counts", [np.arange(61) < 25, np.arange(61) % 7 == 6], ids=["begin", "all"]
)
@pytest.mark.parametrize("n", [2, 3])
def test_threads_of_which_some_have_no_target(model, rng, same_by_name, n, counts):
    rows = batch_of(rng, (30, 31))
    expected_loss, expected = together(model, 1, rows, 0.1, False, counts=counts)
    loss, gradients = together(model, n, rows, 0.1, True, counts=counts)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_by_name(model, gradients, expected)


def test_gradients_in_one_place_take_no_memory_of_their_own(model):
    first = Gradients(model.layers)
    other = Gradients(model.layers, first.flat, 1)
    assert other.flat is first.flat
    for parameter in model.named_parameters().values():
        mine, theirs = first.claim(parameter)[0], other.claim(parameter)[0]
        assert mine.ctypes.data == theirs.ctypes.data
        assert mine.shape == theirs.shape == parameter.shape


def test_only_the_first_thread_writes_zeros(model):
    first = Gradients(model.layers)
    other = Gradients(model.layers, first.flat, 1)
    first.flat.fill(7)
    other.begin()
    other.of(model.layers[0].tokens)
    other.finish()
    assert (first.flat == 7).all()
    first.begin()
    first.finish()
    assert (first.flat == 0).all()


def test_nobody_waits_for_one_that_left(model):
    meeting = pool.barrier(2)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(meeting.wait)
        meeting.abort()
        with pytest.raises(threading.BrokenBarrierError):
            waiting.result(timeout=30)


def test_an_aborted_barrier_ends_a_pass(model, rng):
    """So that no thread waits inside a kernel for one that has failed."""
    ids, targets, offsets = joined(batch_of(rng, (9,)))
    meeting, edges = pool.barrier(2), np.array([0, 4, 9], np.int32)
    gradients = Gradients(model.layers)
    ctx = Context(offsets, "float64", gradients=gradients, shard=Shard(0, edges, True, meeting))
    gradients.begin()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(model.loss_and_gradients, ids, targets, 1.0, ctx)
        meeting.abort()
        with pytest.raises(threading.BrokenBarrierError):
            waiting.result(timeout=30)


def test_plain_numpy_refuses_a_shard(model, rng, switch_backend):
    switch_backend("reference")
    ids, _, offsets = joined(batch_of(rng, (9,)))
    shard = Shard(0, np.array([0, 9], np.int32), False, pool.barrier(1))
    ctx = Context(offsets, "float64", shard=shard)
    with pytest.raises(ValueError, match="shard must be None"):
        ctx.forward(model.layers, ids)
