"""Tests of the RMS-norm layer."""

import numpy as np
import pytest

from rustgpt.layers.rms_norm import RMSNorm


@pytest.fixture
def layer(backend, scrambled):
    return scrambled(RMSNorm(5, dtype=np.float64))


@pytest.fixture
def x(rng):
    return 3 * rng.standard_normal((8, 5)) + 1


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
@pytest.mark.parametrize("size", [1.0, 0.05])
def test_gradients_are_right(backend, scrambled, x, right_gradients, epsilon, size):
    layer = scrambled(RMSNorm(5, epsilon, np.float64))
    right_gradients(layer, size * x, ["x", "weight"])


def test_it_starts_as_plain_normalisation(backend, x, context):
    layer = RMSNorm(5, dtype=np.float64)
    assert list(layer.parameters()) == ["weight"]
    out = layer.forward(x, context(layer, 8))
    assert (out**2).mean(axis=1) == pytest.approx(np.ones(8), rel=1e-4)
    np.testing.assert_allclose(out / x, (out / x)[:, :1] * np.ones(5))  # no mean is taken away


def test_epsilon_is_used(backend, context):
    layer = RMSNorm(2, 3.0, np.float64)
    out = layer.forward(np.array([[-1.0, 1.0]]), context(layer, 1))
    assert out.tolist() == [[-0.5, 0.5]]  # 1 / sqrt(1 + 3)


def test_contract(layer, x, contract):
    contract(layer, x)


def test_describe(layer):
    assert layer.describe() == "RMSNorm(5)"
