"""Tests of the feed-forward layer."""

import numpy as np
import pytest

from rustgpt.layers.feed_forward import FeedForward


@pytest.fixture(params=["relu", "gelu"])
def layer(request, backend, rng, scrambled):
    return scrambled(FeedForward(4, 7, rng, request.param, np.float64))


@pytest.fixture
def x(rng):
    return rng.standard_normal((8, 4))


def test_gradients_are_right(layer, x, right_gradients):
    right_gradients(layer, x, ["x", "weight1", "bias1", "weight2", "bias2"])


def test_written_out(backend, rng, context):
    layer = FeedForward(2, 2, rng, "relu", np.float64)
    layer.weight1[...] = [[1, -1], [2, 1]]
    layer.bias1[...] = [1, 0]
    layer.weight2[...] = [[1, 0], [3, 10]]
    layer.bias2[...] = [0, 5]
    # hidden = (1 + 2 + 1, -1 + 1) = (4, 0); and (-3 + 0 + 1, 3 + 0) = (-2, 3), cut to (0, 3)
    out = layer.forward(np.array([[1.0, 1.0], [-3.0, 0.0]]), context(layer, 2))
    assert out.tolist() == [[4, 5], [9, 35]]


def test_parameters_start_as_he_and_others_say(rng):
    layer = FeedForward(200, 300, rng)
    assert list(layer.parameters()) == ["weight1", "bias1", "weight2", "bias2"]
    assert layer.weight1.shape == (200, 300)
    assert layer.weight2.shape == (300, 200)
    assert layer.weight1.dtype == np.float32
    assert layer.weight1.std() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert layer.weight2.std() == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert not layer.bias1.any()
    assert not layer.bias2.any()


def test_contract(layer, x, contract):
    contract(layer, x)


def test_describe(layer):
    assert layer.describe() == f"FeedForward(4 -> 7 -> 4, {layer.activation})"
