"""Tests of the embedding layer."""

import numpy as np
import pytest

from rustgpt.layers.cache import Cache
from rustgpt.layers.embeddings import Embeddings


@pytest.fixture
def layer(backend, rng, scrambled):
    return scrambled(Embeddings(11, 9, 5, rng, np.float64))


@pytest.fixture
def ids(rng):
    return rng.integers(0, 11, 8, dtype=np.int32)


def test_gradients_are_right(layer, ids, right_gradients):
    right_gradients(layer, ids, ["tokens", "places"])


def test_every_text_begins_at_position_zero(layer, context):
    ids = np.array([7, 7, 7, 7, 3, 3, 7, 7], np.int32)
    out = layer.forward(ids, context(layer, 3, 0, 1, 4))
    positions = [0, 1, 2, 0, 0, 1, 2, 3]
    for n in range(8):
        np.testing.assert_array_equal(out[n], layer.tokens[ids[n]] + layer.places[positions[n]])


def test_a_text_in_a_cache_goes_on_at_its_position(layer, context):
    cache = Cache(9, slots=3)
    cache.lengths[:] = (2, 0, 6)
    ids = np.array([7, 7, 3, 3], np.int32)
    out = layer.forward(ids, context(layer, 3, 1, cache=cache, slots=np.array([2, 0], np.int32)))
    for n, position in enumerate([6, 7, 8, 2]):
        np.testing.assert_array_equal(out[n], layer.tokens[ids[n]] + layer.places[position])


def test_parameters_start_small(rng):
    layer = Embeddings(300, 200, 50, rng)
    assert list(layer.parameters()) == ["tokens", "places"]
    assert layer.tokens.shape == (300, 50)
    assert layer.places.shape == (200, 50)
    assert layer.tokens.dtype == np.float32
    assert layer.tokens.std() == pytest.approx(0.02, rel=0.05)
    assert layer.places.std() == pytest.approx(0.02, rel=0.05)


def test_without_positions_a_row_is_its_tokens(backend, rng, ids, context, contract):
    layer = Embeddings(11, 0, 5, rng, np.float64)
    assert list(layer.parameters()) == ["tokens"]
    assert layer.places is None
    np.testing.assert_array_equal(layer.forward(ids, context(layer, 3, 5)), layer.tokens[ids])
    contract(layer, ids)
    assert layer.describe() == "Embeddings(11 tokens -> 5)"


def test_contract(layer, ids, contract):
    contract(layer, ids)


def test_describe(layer):
    assert layer.describe() == "Embeddings(11 tokens + 9 positions -> 5)"
