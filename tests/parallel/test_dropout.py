"""Tests of dropout in the gradients of a batch, however its rows are divided."""

import numpy as np
import pytest

from rustgpt.config import TrainConfig
from rustgpt.layers.context import Context
from rustgpt.layers.dropout import Dropout
from rustgpt.layers.gradients import Gradients
from rustgpt.parallel.data_parallel import DataParallel

pytestmark = pytest.mark.usefixtures("shared")

SCALE, STEP = 0.1, Dropout(0.3, seed=1, step=2)


@pytest.fixture
def expected(switch_backend):
    """expected(model, rows): loss and gradients in one pass of plain NumPy."""

    def differentiate(model, rows):
        switch_backend("reference")
        ids, targets = (np.concatenate([row[p] for row in rows]) for p in (np.s_[:-1], np.s_[1:]))
        offsets = np.cumsum([0, *(len(row) - 1 for row in rows)], dtype=np.int32)
        gradients = Gradients(model.layers)
        gradients.begin()
        ctx = Context(offsets, "float64", gradients=gradients, dropout=STEP)
        loss = model.loss_and_gradients(ids, targets, SCALE, ctx)
        gradients.finish()
        switch_backend("cython")
        return loss, gradients.flat

    return differentiate


def differentiate(model, batch, dropout=STEP, **settings):
    with DataParallel(model, TrainConfig(batch_size=len(batch), **settings)) as parallel:
        loss = parallel.differentiate(batch, SCALE, dropout)
        return loss, parallel.gradients.copy()


@pytest.mark.parametrize("threads", [1, 2, 3, 6])
@pytest.mark.parametrize("texts", [6, 2, 1])
@pytest.mark.parametrize("piece", [5, 512])
def test_the_gradients_are_those_of_one_pass(
    model_of, batch, limits, expected, same_by_name, threads, texts, piece
):
    limits(piece=piece, each=piece)
    model, rows = model_of(), batch[:texts]
    wanted, flat = expected(model, rows)
    loss, found = differentiate(model, rows, threads=threads)
    assert loss == pytest.approx(wanted, rel=1e-12)
    same_by_name(model, found, flat)
    without, _ = differentiate(model, rows, None, threads=threads)
    assert abs(without - loss) > 1e-3


@pytest.mark.parametrize("threads", [1, 2])
def test_the_backends_agree(model_of, batch, switch_backend, same_by_name, threads):
    model, found = model_of(), []
    for name in ("cython", "reference"):
        switch_backend(name)
        found.append(differentiate(model, batch, threads=threads))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    same_by_name(model, found[0][1], found[1][1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_threads_give_the_same_bits(backend, model_of, batch, threads):
    model = model_of(dtype="float32")
    found = [differentiate(model, batch, threads=threads) for _ in range(2)]
    assert found[0][0] == found[1][0]
    assert found[0][1].tobytes() == found[1][1].tobytes()
