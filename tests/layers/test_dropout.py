"""Tests of dropout in the layers: what it is told of a step, and the masks of a pass."""

import numpy as np
import pytest

from rustgpt.errors import ConfigError
from rustgpt.gradient_check import gradcheck
from rustgpt.layers.cache import Cache
from rustgpt.layers.context import Context
from rustgpt.layers.dropout import Dropout
from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.layer import Layer
from rustgpt.layers.transformer import TransformerBlock

OFFSETS = np.array([0, 3, 3, 8], np.int32)
STEP = Dropout(0.4, seed=3, step=5)
BLOCKS = {
    "post": {},
    "post, bare": {"attention_projection": False},
    "GPT-2": {"norm": "pre", "activation": "gelu", "attention_bias": True},
    "pre, bare": {"norm": "pre", "attention_projection": False},
}


class Dropped(Layer):
    """A layer of one's own: out = dropout(x), twice."""

    dim = 6

    def forward(self, x, ctx):
        return ctx.dropped(self, ctx.dropped(self, x))

    def backward(self, dout, ctx):
        return ctx.dropped_back(self, ctx.dropped_back(self, dout))


@pytest.fixture(params=["embeddings", "own", *BLOCKS])
def layer(request, backend, rng, scrambled, small):
    """A layer with dropout, in float64."""
    if request.param == "embeddings":
        return scrambled(Embeddings(11, 9, 6, rng, np.float64))
    if request.param == "own":
        return Dropped(np.float64)
    return scrambled(TransformerBlock(small(dtype="float64", **BLOCKS[request.param]), rng))


@pytest.fixture
def x(layer, rng):
    if isinstance(layer, Embeddings):
        return rng.integers(0, 11, 8, dtype=np.int32)
    return rng.standard_normal((8, 6))


def run(layer, x, offsets=OFFSETS, **rest):
    """Return the output, and the input's gradient."""
    gradients = Gradients([layer])
    gradients.begin()
    ctx = Context(offsets, np.float64, gradients=gradients, **rest)
    out = ctx.forward([layer], x).copy()
    return out, ctx.backward([layer], np.sin(out)).copy()


# Which numbers


@pytest.mark.parametrize("wrong", [{"rate": 1.0}, {"rate": -0.1}, {"rate": np.nan}, {"rate": "1"},
    {"rate": None}, {"rate": 0.1, "seed": -1}, {"rate": 0.1, "seed": 1.5},
    {"rate": 0.1, "step": -1}, {"rate": 0.1, "step": None}])  # fmt: skip
def test_what_is_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match="must be"):
        Dropout(**wrong)


def test_every_seed_step_and_place_has_a_key_of_its_own():
    keys = {
        Dropout(0.1, seed, step).key(place)
        for seed in (0, 1, 2, 2**63 - 1) for step in range(50) for place in range(50)
    }  # fmt: skip
    assert len(keys) == 4 * 50 * 50
    assert all(0 <= key < 2**64 for key in keys)
    assert Dropout(0.1, 1, 2).key(3) == Dropout(0.5, 1, 2).key(3)


@pytest.mark.parametrize("other", [Dropout(0.4, 3, 6), Dropout(0.4, 4, 5), Dropout(0.5, 3, 5)])
def test_each_step_and_seed_has_masks_of_its_own(layer, x, other):
    first, again = run(layer, x, dropout=STEP), run(layer, x, dropout=STEP)
    for found, expected in zip(again, first, strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, unexpected in zip(run(layer, x, dropout=other), first, strict=True):
        assert np.abs(found - unexpected).max() > 1e-3


def test_without_a_rate_there_is_no_dropout(layer, x):
    expected, found = run(layer, x), run(layer, x, dropout=Dropout(0.0))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_are_numbered_in_the_batch_of_the_whole_step(layer, x):
    """The last text alone, and as one of three."""
    numbers = np.arange(8, dtype=np.int32)
    whole = run(layer, x, dropout=STEP)
    same = run(layer, x, dropout=STEP, row_numbers=numbers)
    last = run(layer, x[3:], np.array([0, 5], np.int32), dropout=STEP, row_numbers=numbers[3:])
    first = run(layer, x[3:], np.array([0, 5], np.int32), dropout=STEP)
    for i in range(2):
        np.testing.assert_array_equal(same[i], whole[i])
        np.testing.assert_allclose(last[i], whole[i][3:], rtol=1e-9)
        assert np.abs(first[i] - last[i]).max() > 1e-3


# Gradients


@pytest.mark.slow
def test_gradients_are_right(layer, x):
    report = gradcheck(layer, x, dropout=STEP)
    assert report, report
    report = gradcheck(layer, x)
    assert report, report


@pytest.mark.parametrize("variant", BLOCKS)
def test_by_parts_the_masks_are_the_same(backend, rng, small, scrambled, close, recorder, variant):
    layer = scrambled(TransformerBlock(small(dtype="float64", **BLOCKS[variant]), rng))
    x = rng.standard_normal((8, 6))
    whole = run(layer, x, dropout=STEP)
    observed = run(layer, x, dropout=STEP, observer=recorder)
    layer.by_parts = True
    for parts in (observed, run(layer, x, dropout=STEP)):
        for found, expected in zip(parts, whole, strict=True):
            close(found, expected, 20)
    report = gradcheck(layer, x, dropout=STEP)
    assert report, report


def test_a_layer_that_comes_twice_has_other_masks(backend, rng):
    """Two places in the model, though the layer is the same."""
    layer, x = Dropped(np.float64), np.ones((8, 64))
    ctx = Context(OFFSETS, np.float64, dropout=Dropout(0.5))
    once = ctx.forward([layer], x).copy()
    assert set(np.unique(once)) == {0, 4}
    assert 0.15 < (once > 0).mean() < 0.35  # two masks, each with half of the numbers


def test_what_is_dropped_gets_no_gradient(backend):
    """Of embeddings: a number that is zero in the sum teaches its token and its place nothing."""
    layer = Embeddings(8, 8, 6, None, np.float64)
    layer.tokens, layer.places = np.ones((8, 6)), np.ones((8, 6))
    gradients = Gradients([layer])
    gradients.begin()
    ctx = Context(np.array([0, 8], np.int32), np.float64, gradients=gradients, dropout=STEP)
    out = ctx.forward([layer], np.arange(8, dtype=np.int32)).copy()
    ctx.backward([layer], np.ones((8, 6)))
    assert 0 < (out == 0).sum() < out.size
    for table in (layer.tokens, layer.places):
        np.testing.assert_allclose(gradients.of(table), out / 2)


def test_a_pass_with_a_cache_has_no_dropout():
    with pytest.raises(ConfigError, match="a pass with a cache has no dropout"):
        Context(np.array([0, 1], np.int32), cache=Cache(3), dropout=STEP)
    assert Context(np.array([0, 1], np.int32), cache=Cache(3), dropout=Dropout(0.0)).masks(1) == {}
