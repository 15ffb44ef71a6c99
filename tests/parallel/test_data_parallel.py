"""Tests of the gradients of one batch, which several threads compute."""

import threading
import time

import numpy as np
import pytest

from rustgpt.backend import has_bfloat16, ops
from rustgpt.config import TrainConfig
from rustgpt.llm import LLM
from rustgpt.parallel import pool
from rustgpt.parallel.batches import count_tokens
from rustgpt.parallel.data_parallel import DataParallel

pytestmark = pytest.mark.usefixtures("shared")

SCALE = 0.1


def differentiate(model, batch, times=1, **settings):
    """Return the loss and the gradients of a batch, as they are after a number of times."""
    config = TrainConfig(**{"batch_size": len(batch)} | settings)
    with DataParallel(model, config) as parallel:
        for _ in range(times):
            loss = parallel.differentiate(batch, SCALE)
        return loss, parallel.gradients.copy()


def is_main():
    return threading.current_thread() is threading.main_thread()


@pytest.fixture
def divides(switch_backend, shared):
    """Skip unless the threads divide rows."""
    switch_backend("cython")
    if not shared:
        pytest.skip("threads with gradients of their own share nothing in a step")


@pytest.fixture
def passes(monkeypatch):
    """The contexts of all passes, and how many rows each had."""
    original, seen = LLM.loss_and_gradients, []

    def spy(self, ids, targets, scale, ctx):
        seen.append((ctx, len(ids)))
        return original(self, ids, targets, scale, ctx)

    monkeypatch.setattr(LLM, "loss_and_gradients", spy)
    return seen


# What the gradients are


@pytest.mark.parametrize("threads", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("texts", [6, 2, 1])
def test_the_gradients_are_the_sum_of_the_texts(
    backend, model_of, batch, numpy_sum, same_by_name, threads, texts
):
    """More threads than texts, too, and texts of 1 to 14 tokens."""
    model, rows = model_of(), batch[:texts]
    expected_loss, expected = numpy_sum(model, rows, SCALE)
    loss, found = differentiate(model, rows, threads=threads)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_by_name(model, found, expected)


@pytest.mark.parametrize("threads", [2, 3, 6])
@pytest.mark.parametrize("texts", [6, 1])
def test_several_threads_find_the_gradients_of_one(
    backend, model_of, batch, same_by_name, threads, texts
):
    model = model_of()
    expected_loss, expected = differentiate(model, batch[:texts], threads=1)
    loss, found = differentiate(model, batch[:texts], threads=threads)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_by_name(model, found, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_in_float32_rounding_is_all_that_differs(
    backend, model_of, batch, numpy_sum, same_by_name, threads
):
    model = model_of(dtype="float32")
    expected_loss, expected = numpy_sum(model, batch, SCALE)
    loss, found = differentiate(model, batch, threads=threads)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    same_by_name(model, found, expected, 1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_batch_goes_through_the_model_in_pieces(
    backend, model_of, batch, limits, passes, numpy_sum, same_by_name, threads
):
    model = model_of()
    expected_loss, expected = numpy_sum(model, batch, SCALE)
    passes.clear()
    limits(piece=5, each=5)
    loss, found = differentiate(model, batch, threads=threads)
    assert len(passes) >= 2 * threads
    rows = sum(n if ctx.shard is None else n / threads for ctx, n in passes)
    assert rows == pytest.approx(count_tokens(batch))
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_by_name(model, found, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_was_there_before_does_not_matter(
    backend, model_of, batch, numpy_sum, same_by_name, threads
):
    model = model_of()
    with DataParallel(model, TrainConfig(threads=threads, batch_size=6)) as parallel:
        for gradients in parallel._gradients:
            gradients.flat.fill(np.nan)
        for rows in (batch, batch[1:3], batch[:1], batch):
            expected_loss, expected = numpy_sum(model, rows, SCALE)
            loss = parallel.differentiate(rows, SCALE)
            assert loss == pytest.approx(expected_loss, rel=1e-12)
            same_by_name(model, parallel.gradients, expected)


def test_the_same_number_of_threads_gives_the_same_bits(backend, model_of, batch):
    model = model_of(dtype="float32")
    found = [differentiate(model, batch, times, threads=3) for times in (1, 1, 2, 5)]
    assert len({loss for loss, _ in found}) == 1
    assert len({gradients.tobytes() for _, gradients in found}) == 1


def test_what_was_saved_for_larger_batches_does_not_show(model_of, batch):
    """Memory is reused, so the bits must not depend on what was in it."""
    model = model_of(dtype="float32")
    expected = differentiate(model, batch[:3], threads=2, batch_size=6)
    with DataParallel(model, TrainConfig(threads=2, batch_size=6)) as parallel:
        parallel.differentiate(batch, SCALE)
        parallel.differentiate(batch[3:4], SCALE)
        assert parallel.differentiate(batch[:3], SCALE) == expected[0]
        np.testing.assert_array_equal(parallel.gradients, expected[1])


def test_one_buffer_is_all_that_threads_with_shards_have(switch_backend, model_of, shared):
    switch_backend("cython")
    with DataParallel(model_of(), TrainConfig(threads=3, batch_size=9)) as parallel:
        first, *others = parallel._gradients
        assert len(others) == 2
        assert all((other.flat is first.flat) == shared for other in others)
        assert parallel.gradients is first.flat
        assert [one._zeroes for one in others] == [not shared] * 2  # of one buffer, one thread's
        space, *more = parallel._spaces
        assert all((one.activations is space.activations) == shared for one in more)
        assert all(one.temporary is not space.temporary for one in more)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("texts", [6, 1])
def test_plain_numpy_never_divides_rows(
    switch_backend, model_of, batch, passes, threads, texts, shared
):
    switch_backend("reference")
    differentiate(model_of(), batch[:texts], threads=threads)
    assert [ctx.shard for ctx, _ in passes] == [None] * min(threads, texts)
    assert sum(rows for _, rows in passes) == count_tokens(batch[:texts])
    passes.clear()
    switch_backend("cython")
    differentiate(model_of(), batch[:texts], threads=threads)
    assert {ctx.shard is not None for ctx, _ in passes} == {shared or texts < threads}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_pass_is_told_the_precision(backend, model_of, batch, passes, precision):
    if precision == "bfloat16" and not has_bfloat16():
        pytest.skip("these kernels have no bfloat16")
    differentiate(model_of(dtype="float32"), batch, threads=2, precision=precision)
    assert [ctx.bfloat16 for ctx, _ in passes] == [precision == "bfloat16"] * 2


# Threads that meet


def test_no_thread_begins_a_piece_before_all_have_ended_the_last(
    divides, model_of, batch, limits, monkeypatch
):
    """What the threads show each other in one piece is written over in the next."""
    limits(piece=5, each=5)
    model, original = model_of(), LLM.loss_and_gradients
    ended, early = {0: 0, 1: 0}, []

    def slow(self, ids, targets, scale, ctx):
        i = ctx.shard.index
        if ended[1 - i] < ended[i]:
            early.append(ended[i])
        loss = original(self, ids, targets, scale, ctx)
        time.sleep(0.02 * i)
        ended[i] += 1
        return loss

    monkeypatch.setattr(LLM, "loss_and_gradients", slow)
    differentiate(model, batch, threads=2)
    assert ended[0] == ended[1] >= 3
    assert early == []


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "kernel", ["embedding_forward", "block_forward", "block_backward", "embedding_backward"]
)
def test_a_thread_may_be_late_at_any_kernel(
    model_of, batch, limits, monkeypatch, numpy_sum, same_by_name, kernel, late
):
    model = model_of()
    rows = [(batch[2][:6] + i) % 28 for i in range(8)]  # equal, so that no text is divided
    expected_loss, expected = numpy_sum(model, rows, SCALE)
    limits(piece=5, each=5)
    original = getattr(ops, kernel)

    def slow(*given, **more):
        if is_main() is not late:
            time.sleep(0.02)
        return original(*given, **more)

    monkeypatch.setitem(vars(ops), kernel, slow)
    loss, found = differentiate(model, rows, threads=2)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_by_name(model, found, expected)


@pytest.mark.slow
def test_threads_of_a_model_without_blocks_meet_before_the_embeddings(
    model_of, batch, monkeypatch, numpy_sum, same_by_name
):
    class Late(threading.Barrier):
        def wait(self):
            super().wait()
            if not is_main():
                time.sleep(0.1)

    model = model_of(n_layers=0, norm="post", tie_embeddings=True)
    expected_loss, expected = numpy_sum(model, batch, SCALE)
    monkeypatch.setattr(pool, "barrier", Late)
    loss, found = differentiate(model, batch, threads=2)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_by_name(model, found, expected)


# Errors


@pytest.mark.parametrize("texts", [6, 1])
@pytest.mark.parametrize("thread", [0, 1])
def test_an_error_in_one_thread_reaches_the_caller_and_nobody_hangs(
    backend, model_of, batch, monkeypatch, texts, thread
):
    if backend == "reference" and texts == 1:
        pytest.skip("one text is one thread's")
    model, original = model_of(), LLM.loss_and_gradients

    def fail(self, *given):
        if is_main() == (thread == 0):
            raise MemoryError("no more")
        return original(self, *given)

    expected = differentiate(model, batch[:texts], threads=2)
    config = TrainConfig(threads=2, batch_size=texts)
    with DataParallel(model, config) as parallel:
        with monkeypatch.context() as patched:
            patched.setattr(LLM, "loss_and_gradients", fail)
            with pytest.raises(MemoryError, match="no more"):
                parallel.differentiate(batch[:texts], SCALE)
        # It ended a batch, but not the threads.
        assert parallel.differentiate(batch[:texts], SCALE) == expected[0]
        np.testing.assert_array_equal(parallel.gradients, expected[1])
    assert not [t for t in threading.enumerate() if t.name.startswith("rustgpt")]


@pytest.mark.parametrize("kernel", ["block_forward", "linear_cross_entropy", "block_backward"])
def test_an_error_between_two_meetings_ends_the_batch(model_of, batch, monkeypatch, kernel):
    """The other thread waits inside a kernel, or will."""
    original = getattr(ops, kernel)

    def fail(*given, **more):
        if not is_main():
            raise MemoryError("no more")
        return original(*given, **more)

    monkeypatch.setitem(vars(ops), kernel, fail)
    with pytest.raises(MemoryError, match="no more"):
        differentiate(model_of(), batch, threads=2)


def test_a_thread_that_cannot_be_started_is_an_error(model_of, batch, monkeypatch):
    expected = differentiate(model_of(), batch, threads=3)
    start, calls = threading.Thread.start, []

    def fail(thread):
        calls.append(thread)
        if len(calls) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    with DataParallel(model_of(), TrainConfig(threads=3, batch_size=6)) as parallel:
        monkeypatch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            parallel.differentiate(batch, SCALE)
        assert parallel.differentiate(batch, SCALE) == expected[0]


# The update


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_part_is_updated_once_by_one_who_knows_the_norm(backend, model_of, batch, threads):
    model, given = model_of(), []
    with DataParallel(model, TrainConfig(threads=threads, batch_size=6)) as parallel:
        parallel.differentiate(batch, SCALE)
        parallel.gradients[:] = np.arange(model.n_parameters)

        def work(part, squares):
            given.append((part.start, part.stop, squares, threading.get_ident()))

        found = parallel.update(work)
    starts, stops, squares, idents = zip(*sorted(given), strict=True)
    assert len(set(idents)) == threads
    assert (starts[0], stops[-1]) == (0, model.n_parameters)
    assert starts[1:] == stops[:-1]
    assert {*squares, found} == {found}
    assert found == pytest.approx(sum(n * n for n in range(model.n_parameters)), rel=1e-12)


@pytest.mark.parametrize("thread", [0, 1])
def test_an_error_in_an_update_reaches_the_caller(backend, model_of, batch, thread):
    with DataParallel(model_of(), TrainConfig(threads=2, batch_size=6)) as parallel:
        parallel.differentiate(batch, SCALE)

        def work(part, squares):
            if is_main() == (thread == 0):
                raise FloatingPointError("here")

        with pytest.raises(FloatingPointError, match="here"):
            parallel.update(work)
        assert parallel.update(lambda part, squares: None) > 0
