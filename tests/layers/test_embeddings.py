"""Tests of the embedding layer."""

import numpy as np
import pytest

from rustgpt.gradient_check import gradcheck
from rustgpt.layers.embeddings import Embeddings


@pytest.fixture
def layer(backend, rng, scrambled):
    return scrambled(Embeddings(11, 9, 5, rng, np.float64))


@pytest.fixture
def ids(rng):
    return rng.integers(0, 11, 8, dtype=np.int32)


def test_gradients_are_right(layer, ids):
    report = gradcheck(layer, ids)
    assert report, report
    assert list(report.errors) == ["tokens", "places"]


def test_every_text_begins_at_position_zero(layer):
    ids = np.array([7, 7, 7, 7, 3, 3, 7, 7], np.int32)
    out = layer.forward(ids, np.array([0, 3, 3, 4, 8], np.int32))
    positions = [0, 1, 2, 0, 0, 1, 2, 3]
    for n in range(8):
        np.testing.assert_array_equal(out[n], layer.tokens[ids[n]] + layer.places[positions[n]])


def test_parameters_start_small(rng):
    layer = Embeddings(300, 200, 50, rng)
    assert list(layer.parameters()) == ["tokens", "places"]
    assert layer.tokens.shape == (300, 50)
    assert layer.places.shape == (200, 50)
    assert layer.tokens.dtype == np.float32
    assert layer.tokens.std() == pytest.approx(0.02, rel=0.05)
    assert layer.places.std() == pytest.approx(0.02, rel=0.05)


def test_contract(layer, ids, accumulates, replicates):
    accumulates(layer, ids)
    replicates(layer, ids)


def test_memory_is_reused(layer, ids, reuses_memory):
    reuses_memory(layer, ids)


def test_decode_is_forward(layer, ids, decodes):
    decodes(layer, ids)


def test_describe(layer):
    assert layer.describe() == "Embeddings(11 tokens + 9 positions -> 5)"
