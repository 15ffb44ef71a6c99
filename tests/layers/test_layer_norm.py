"""Tests of the layer-norm layer."""

import numpy as np
import pytest

from rustgpt.layers.layer_norm import LayerNorm


@pytest.fixture
def layer(backend, scrambled):
    return scrambled(LayerNorm(5, dtype=np.float64))


@pytest.fixture
def x(rng):
    return 3 * rng.standard_normal((8, 5)) + 1


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_gradients_are_right(backend, scrambled, x, right_gradients, epsilon):
    layer = scrambled(LayerNorm(5, epsilon, np.float64))
    right_gradients(layer, x, ["x", "weight", "bias"])


def test_gradients_are_right_where_activations_are_small(backend, scrambled, x, right_gradients):
    # RustGPT's are wrong by 0.75 here.
    layer = scrambled(LayerNorm(5, 1e-3, np.float64))
    right_gradients(layer, 0.05 * x, ["x", "weight", "bias"])


def test_it_starts_as_plain_normalisation(backend, x, context):
    layer = LayerNorm(5, dtype=np.float64)
    assert list(layer.parameters()) == ["weight", "bias"]
    out = layer.forward(x, context(layer, 8))
    assert out.mean(axis=1) == pytest.approx(np.zeros(8), abs=1e-12)
    assert out.var(axis=1) == pytest.approx(np.ones(8), rel=1e-4)


def test_epsilon_is_used(backend, context):
    layer = LayerNorm(2, 3.0, np.float64)
    out = layer.forward(np.array([[-1.0, 1.0]]), context(layer, 1))
    assert out.tolist() == [[-0.5, 0.5]]  # 1 / sqrt(1 + 3)


def test_contract(layer, x, contract):
    contract(layer, x)


def test_describe(layer):
    assert layer.describe() == "LayerNorm(5)"
