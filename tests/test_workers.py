"""Tests of one step of training, made by several threads."""

import dataclasses
import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from rustgpt.backend import ops
from rustgpt.config import TrainConfig
from rustgpt.errors import TrainingError
from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.layer import Layer
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.llm import LLM, build_layers
from rustgpt.workers import (
    SHARED_FROM,
    Workers,
    _pieces,
    _shares,
    shares_gradients,
    worker_count,
)

LENGTHS = (9, 3, 14, 1, 7, 11)
RATE = 0.01


@pytest.fixture(params=["own gradients", "shared gradients"], autouse=True)
def shared(request, monkeypatch):
    """Let small models have gradients for each thread, or one buffer for all as large ones do."""
    found = request.param == "shared gradients"
    monkeypatch.setattr("rustgpt.workers.TOKENS_AT_LEAST", 1)
    monkeypatch.setattr("rustgpt.workers.SHARED_FROM", 0 if found else 10**9)
    return found


@pytest.fixture(params=["norms after", "GPT-2"])
def model_of(request, letters, small):
    """model_of(**changes): an untrained model in float64."""
    gpt2 = {
        "norm": "pre", "activation": "gelu", "attention_bias": True, "tie_embeddings": True,
        "output_bias": False,
    }  # fmt: skip

    def make(**changes):
        settings = {"dtype": "float64", "max_seq_len": 16, "seed": 3}
        variant = gpt2 if request.param == "GPT-2" else {}
        return LLM(small(**settings | variant | changes), letters)

    return make


@pytest.fixture
def batch(rng):
    """Texts of 1 to 14 tokens and one that follows."""
    return [rng.integers(0, 28, length + 1).astype(np.int32) for length in LENGTHS]


def steps(model, batch, n=3, **settings):
    """Make n steps; return the loss and the norm of each."""
    config = TrainConfig(
        **{"batch_size": len(batch), "max_grad_norm": 0.5, "epsilon": 1e-3} | settings
    )
    with Workers(model, config) as workers:
        return [workers.step(batch, RATE, "here") for _ in range(n)]


@pytest.mark.parametrize(("parameters", "found"), [(809_856, False), (10_770_816, True)])
def test_threads_share_gradients_where_they_are_tens_of_megabytes(monkeypatch, parameters, found):
    monkeypatch.setattr("rustgpt.workers.SHARED_FROM", SHARED_FROM)  # as it is for users
    model = SimpleNamespace(n_parameters=parameters, works_in_team=lambda: True)
    assert shares_gradients(TrainConfig(threads=2), model, texts=8) is found


@pytest.mark.parametrize("threads", [2, 3, 6])
@pytest.mark.parametrize("texts", [6, 2, 1])
def test_any_number_of_threads_makes_the_same_step(backend, model_of, batch, close, threads, texts):
    alone, together = model_of(), model_of()
    expected = steps(alone, batch[:texts], threads=1)
    found = steps(together, batch[:texts], threads=threads)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    close(together.parameters, alone.parameters, 1e3)


def test_the_gradient_is_that_of_the_mean(model_of, batch):
    model, before = model_of(), model_of()
    before.gradients.fill(0)
    ids, targets = (
        np.concatenate([row[part] for row in batch]) for part in (np.s_[:-1], np.s_[1:])
    )
    loss = before.loss_and_gradients(
        ids, targets, np.cumsum([0, *LENGTHS], dtype=np.int32), 1 / len(ids)
    )
    model.gradients.fill(np.nan)  # what was there before does not matter
    ((found, norm),) = steps(model, batch, 1, threads=2)
    assert found == pytest.approx(loss, rel=1e-12)
    assert norm == pytest.approx(np.linalg.norm(before.gradients), rel=1e-10)
    np.testing.assert_allclose(model.gradients, before.gradients, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_batch_goes_through_the_model_in_pieces(model_of, batch, monkeypatch, close, threads):
    whole, cut, seen = model_of(), model_of(), []
    expected = steps(whole, batch, threads=1)
    monkeypatch.setattr("rustgpt.workers.TOKENS_A_PIECE", 5)
    monkeypatch.setattr("rustgpt.workers.TOKENS_OF_A_THREAD", 5)
    original = LLM.loss_and_gradients

    def spy(self, ids, targets, offsets, scale):
        seen.append(len(ids))
        return original(self, ids, targets, offsets, scale)

    monkeypatch.setattr(LLM, "loss_and_gradients", spy)
    found = steps(cut, batch, threads=threads)
    assert len(seen) > 3 * threads
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    close(cut.parameters, whole.parameters, 1e3)


def test_threads_meet_between_the_pieces_of_a_step(model_of, batch, monkeypatch, shared):
    """What a thread of a team shows the others in one piece is written over in the next."""
    if not shared:
        pytest.skip("threads with gradients of their own share nothing in a step")
    monkeypatch.setattr("rustgpt.workers.TOKENS_A_PIECE", 5)
    monkeypatch.setattr("rustgpt.workers.TOKENS_OF_A_THREAD", 5)
    model, original = model_of(), LLM.loss_and_gradients
    ended, early = {True: 0, False: 0}, []

    def slow(self, *given):
        first = self is model
        if ended[not first] < ended[first]:
            early.append(ended[first])
        loss = original(self, *given)
        time.sleep(0.0 if first else 0.02)
        ended[first] += 1
        return loss

    monkeypatch.setattr(LLM, "loss_and_gradients", slow)
    steps(model, batch, 1, threads=2)
    assert ended[True] == ended[False] >= 3
    assert early == []


def test_the_same_number_of_threads_gives_the_same_bits(model_of, batch):
    models = [model_of(dtype="float32") for _ in range(3)]
    for model in models:
        steps(model, batch, 5, threads=3)
    assert len({model.parameters.tobytes() for model in models}) == 1


def test_shared_gradients_are_one_buffer(model_of, shared):
    config = TrainConfig(threads=3, batch_size=9)
    with Workers(model_of(), config) as workers:
        first, *others = workers.models
        assert len(others) == 2
        assert all((other.gradients is first.gradients) == shared for other in others)


def test_a_step_that_diverged_is_not_applied(model_of, batch):
    model = model_of()
    model.parameters[7] = np.nan
    before = model.parameters.copy()
    with pytest.raises(TrainingError, match="diverged at here: the loss is nan"):
        steps(model, batch, threads=2)
    np.testing.assert_array_equal(model.parameters, before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_infinite_norm_with_a_finite_loss_is_not_applied(
    model_of, batch, monkeypatch, threads, bad
):
    model, original = model_of(), LLM.loss_and_gradients
    before = model.parameters.copy()

    def overflow(self, *given):
        loss = original(self, *given)
        self.gradients[-1] = bad
        return loss

    monkeypatch.setattr(LLM, "loss_and_gradients", overflow)
    with pytest.raises(TrainingError, match=r"the loss is [\d.]+, the gradient's norm (inf|nan)"):
        steps(model, batch, threads=threads)
    np.testing.assert_array_equal(model.parameters, before)


@pytest.mark.parametrize("texts", [6, 1])
@pytest.mark.parametrize("thread", [0, 1])
def test_an_error_in_one_thread_reaches_the_caller_and_nobody_hangs(
    model_of, batch, monkeypatch, texts, thread
):
    model = model_of()
    original = LLM.loss_and_gradients

    def fail(self, *given):
        if (self is model) == (thread == 0):
            raise MemoryError("no more")
        return original(self, *given)

    monkeypatch.setattr(LLM, "loss_and_gradients", fail)
    with pytest.raises(MemoryError, match="no more"):
        steps(model, batch[:texts], threads=2)
    assert not [t for t in threading.enumerate() if t.name.startswith("rustgpt")]
    monkeypatch.setattr(LLM, "loss_and_gradients", original)
    assert len(steps(model, batch[:texts], threads=2)) == 3


def test_an_error_ends_a_step_but_not_the_workers(model_of, batch, monkeypatch):
    model = model_of()
    original = LLM.loss_and_gradients
    with Workers(model, TrainConfig(threads=2, batch_size=6)) as workers:
        monkeypatch.setattr(LLM, "loss_and_gradients", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            workers.step(batch, RATE, "here")
        monkeypatch.setattr(LLM, "loss_and_gradients", original)
        assert np.isfinite(workers.step(batch, RATE, "here")).all()


def test_a_thread_that_cannot_be_started_is_an_error(model_of, batch, monkeypatch):
    with Workers(model_of(), TrainConfig(threads=3, batch_size=6)) as workers:
        start, calls = threading.Thread.start, []

        def fail(thread):
            calls.append(thread)
            if len(calls) == 2:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            workers.step(batch, RATE, "here")
        assert np.isfinite(workers.step(batch, RATE, "here")).all()


def test_between_two_steps_the_model_is_alone(model_of, batch):
    model = model_of()
    ids = batch[2][:-1]
    with Workers(model, TrainConfig(threads=2, batch_size=6)) as workers:
        for texts in (batch, batch[:1]):
            workers.step(texts, RATE, "here")
            found, made = model.logits(ids).copy(), list(model.stream(ids[:5].tolist(), 6))
            twin = model.replica()
            np.testing.assert_array_equal(found, twin.logits(ids))
            assert made == list(twin.stream(ids[:5].tolist(), 6))
    assert all(layer.member is None for layer in model.layers)


def test_blocks_of_different_sizes_do_not_write_over_each_other(
    model_of, batch, monkeypatch, close
):
    def model():
        config, layers = model_of().config, []
        for hidden_dim in (7, 10, 40):
            given = build_layers(dataclasses.replace(config, hidden_dim=hidden_dim), 28)
            layers = [*layers[:-1], given[1], *given[-1:]] if layers else given[:2] + given[-1:]
        return LLM(config, model_of().tokenizer, layers)

    scratch = []
    original = ops.block_forward

    def spy(*given):
        scratch.append((threading.get_ident(), given[-3]))
        return original(*given)

    alone, together = model(), model()
    expected = steps(alone, batch, threads=1)
    monkeypatch.setitem(vars(ops), "block_forward", spy)
    found = steps(together, batch, threads=2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    for (one, mine), (other, theirs) in itertools.product(scratch, scratch):
        assert one == other or not np.shares_memory(mine, theirs)


class Scaled(Embeddings):
    """A change to the embeddings, with a parameter."""

    def __init__(self, *given):
        super().__init__(*given)
        self.parameter("scale", np.ones(self.tokens.shape[1]))

    def forward(self, x, offsets):
        self.looked_up = super().forward(x, offsets)
        return self.looked_up * self.scale

    def backward(self, dout):
        self.dscale += (dout * self.looked_up).sum(axis=0)
        return super().backward(dout * self.scale)


class Biased(OutputProjection):
    """A change to the output projection, which computes its loss as the original does."""


@pytest.mark.parametrize("changed", [Scaled, Biased])
def test_gradients_begin_anew_in_changed_layers(model_of, batch, letters, changed):
    config, V = model_of().config, letters.vocab_size
    layers, rng = build_layers(config, V), np.random.default_rng(0)
    if changed is Scaled:
        layers[0] = Scaled(V, config.max_seq_len, config.embedding_dim, rng, "float64")
    else:
        shape = (config.embedding_dim, V, rng, config.output_bias, config.tie_embeddings)
        layers[-1] = Biased(*shape, "float64")
    model = LLM(config, letters, layers)
    given = batch[0][:-1], batch[0][1:], np.array([0, LENGTHS[0]], np.int32), 1.0
    model.gradients.fill(0)
    model.loss_and_gradients(*given)
    expected = model.gradients.copy()
    for _ in range(2):
        model.begin_gradients()
        model.loss_and_gradients(*given)
        np.testing.assert_allclose(model.gradients, expected, rtol=1e-10, atol=1e-13)


class Twice(Layer):
    """A layer of one's own, with a parameter."""

    def __init__(self):
        super().__init__("float64")
        self.parameter("factor", np.full(1, 2.0))

    def forward(self, x, offsets):
        self.x = x
        return self.factor * x

    def backward(self, dout):
        self.dfactor += (dout * self.x).sum()
        return self.factor * dout


def test_a_layer_of_ones_own_trains_on_several_threads(model_of, batch, letters, close):
    def model():
        config = model_of().config
        layers = build_layers(config, letters.vocab_size)
        layers.insert(2, Twice())
        return LLM(config, letters, layers)

    alone, together = model(), model()
    expected, found = steps(alone, batch, threads=1), steps(together, batch, threads=3)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    close(together.parameters, alone.parameters, 1e3)
    assert together.layers[2].factor[0] != 2


def test_a_block_that_runs_by_parts_trains_on_several_threads(model_of, batch, close):
    alone, together = model_of(), model_of()
    for layer in together.layers[1:3]:
        layer.by_parts = True
    expected, found = steps(alone, batch, threads=1), steps(together, batch, threads=2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    close(together.parameters, alone.parameters, 1e3)


# How a batch is divided


def test_shares_and_pieces_are_measured_in_tokens():
    def lengths(parts):
        return [[len(row) - 1 for row in part] for part in parts]

    rows = [np.zeros(tokens + 1, np.int32) for tokens in (4, 8, 4)]
    assert lengths(_shares(rows, 2)) == [[8], [4, 4]]
    assert lengths(_pieces(rows, 8)) == [[4, 8], [4]]
    assert lengths(_pieces(rows[1:2] * 2, 8)) == [[8], [8]]


@pytest.mark.parametrize(
    ("lengths", "edges", "heads"),
    [
        ((8, 4, 4), [0, 8, 16], False),
        ((4, 4, 8), [0, 8, 16], False),  # the longest text first
        ((11, 5, 4), [0, 11, 20], False),  # uneven by a tenth
        ((12, 4, 4), [0, 10, 20], True),
        ((7,), [0, 3, 7], True),
    ],
)
def test_texts_are_divided_only_if_whole_ones_come_out_uneven(
    model_of, rng, shared, lengths, edges, heads
):
    if not shared:
        return
    rows = [rng.integers(0, 28, n + 1).astype(np.int32) for n in lengths]
    with Workers(model_of(), TrainConfig(threads=2)) as workers:
        ((one,), (two,)) = workers._divide(rows, workers._team(2))
    assert [one.member.share.edges.tolist(), two.member.share.edges.tolist()] == [edges, edges]
    assert (one.member.share.heads, two.member.share.heads) == (heads, heads)
    np.testing.assert_array_equal(one.ids, two.ids)
    assert one.offsets[-1] == sum(lengths) == len(one.targets)


def test_few_tokens_are_not_divided(model_of, batch, monkeypatch):
    monkeypatch.setattr("rustgpt.workers.TOKENS_AT_LEAST", 64)
    models = [model_of(), model_of()]
    for model, threads in zip(models, (1, 3), strict=True):
        steps(model, batch, threads=threads)
    np.testing.assert_array_equal(models[0].gradients, models[1].gradients)


def test_threads_need_tokens_and_texts_that_can_be_divided(model_of, monkeypatch, shared):
    monkeypatch.setattr("rustgpt.workers.TOKENS_AT_LEAST", 64)

    def count(batch, longest, threads=8):
        config = TrainConfig(batch_size=batch, threads=threads)
        return worker_count(config, model_of(max_seq_len=longest))

    assert [count(1, 63), count(1, 64), count(1, 200), count(1, 5000)] == [1, 1, 3, 8]
    assert [count(2, 5000), count(16, 8), count(16, 16), count(16, 512)] == [8, 2, 4, 8]
    config = TrainConfig(batch_size=16, threads=8)
    assert worker_count(config, model_of(max_seq_len=512), texts=1) == 8
    by_parts = model_of(max_seq_len=5000)
    by_parts.layers[1].by_parts = True
    assert worker_count(TrainConfig(batch_size=2, threads=8), by_parts) == 2


def test_a_batch_may_have_fewer_texts_than_the_threads(model_of, batch, close):
    alone, together = model_of(), model_of()
    for model, threads in ((alone, 1), (together, 3)):
        config = TrainConfig(threads=threads, batch_size=6, epsilon=1e-3)
        with Workers(model, config) as workers:
            for texts in (batch, batch[:1], batch[1:3]):
                workers.step(texts, RATE, "here")
    close(together.parameters, alone.parameters, 1e3)


def test_few_texts_in_all_are_shared_whatever_the_size_of_a_batch(model_of, batch):
    with Workers(model_of(), TrainConfig(threads=3, batch_size=6), texts=1) as workers:
        assert workers.in_team
        assert workers.threads == 3


def test_many_steps_of_one_text_each_are_shared(model_of, batch):
    config = TrainConfig(threads=3, batch_size=1)
    with Workers(model_of(max_seq_len=200), config, texts=60) as workers:
        assert workers.in_team
        assert workers.threads == 3


@pytest.mark.parametrize(("together", "each"), [(20, 1), (10, 10)])
def test_a_piece_is_for_all_threads_of_a_team(model_of, batch, shared, monkeypatch, together, each):
    monkeypatch.setattr("rustgpt.workers.TOKENS_A_PIECE", together)
    monkeypatch.setattr("rustgpt.workers.TOKENS_OF_A_THREAD", each)
    with Workers(model_of(), TrainConfig(threads=2, batch_size=6)) as workers:
        work = workers._divide(batch, workers._team(2))
    tokens = [[len(piece.ids) for piece in pieces] for pieces in work]
    if shared:
        assert tokens == [[26, 19]] * 2  # 20 and more for both, where each has half
    else:
        assert tokens == [[14, 8], [20, 3]]  # 10 and more until the last


def test_no_thread_begins_a_piece_before_all_have_ended_the_last(
    model_of, batch, monkeypatch, close, shared
):
    whole, cut = model_of(), model_of()
    batch = [batch[2][:6] + i for i in range(8)]  # equal, so that no text is divided
    batch = [row % 28 for row in batch]
    expected = steps(whole, batch, 1, threads=1)
    monkeypatch.setattr("rustgpt.workers.TOKENS_A_PIECE", 5)
    monkeypatch.setattr("rustgpt.workers.TOKENS_OF_A_THREAD", 5)
    original = ops.embedding_backward

    def late(*given):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)
        return original(*given)

    monkeypatch.setitem(vars(ops), "embedding_backward", late)
    found = steps(cut, batch, 1, threads=2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    close(cut.parameters, whole.parameters, 1e3)


@pytest.mark.parametrize("texts", [6, 1])
def test_when_an_error_goes_up_nobody_is_at_work(model_of, batch, monkeypatch, texts):
    model, ended = model_of(), []

    def work(self, *given):
        if self is model:
            raise MemoryError("no more")
        time.sleep(0.3)
        ended.append(self)
        return 0.0

    monkeypatch.setattr(LLM, "loss_and_gradients", work)
    with Workers(model, TrainConfig(threads=2, batch_size=texts)) as workers:
        with pytest.raises(MemoryError):
            workers.step(batch[:texts], RATE, "here")
        assert len(ended) == 1


def test_threads_of_a_model_without_blocks_meet_before_the_embeddings(model_of, batch, monkeypatch):
    tied = {"n_layers": 0, "norm": "post", "tie_embeddings": True}
    alone, together = model_of(**tied), model_of(**tied)
    expected = steps(alone, batch, 1, threads=1)

    class Late(threading.Barrier):
        def wait(self):
            super().wait()
            if threading.current_thread() is not threading.main_thread():
                time.sleep(0.1)

    monkeypatch.setattr("rustgpt.layers.team.barrier", Late)
    found = steps(together, batch, 1, threads=2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


# A step that is too small to be divided


def test_a_step_that_is_too_small_to_be_divided_is_one_threads(model_of, batch, monkeypatch):
    """It starts no other, which the system might refuse, and has one thread's bits."""

    def fail(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("rustgpt.workers.TOKENS_AT_LEAST", 10**6)
    one, several = model_of(dtype="float32"), model_of(dtype="float32")
    expected = steps(one, batch, threads=1, weight_decay=0.1)
    monkeypatch.setattr(threading.Thread, "start", fail)
    assert steps(several, batch, threads=5, weight_decay=0.1) == expected
    np.testing.assert_array_equal(several.parameters, one.parameters)
