"""Tests of the feed-forward layer."""

import numpy as np
import pytest

from rustgpt.layers.feed_forward import FeedForward


@pytest.fixture(params=["relu", "gelu", "swiglu", "swiglu without bias"])
def layer(request, backend, rng, scrambled):
    activation, _, rest = request.param.partition(" ")
    return scrambled(FeedForward(4, 7, rng, activation, np.float64, not rest))


@pytest.fixture
def x(rng):
    return rng.standard_normal((8, 4))


def test_gradients_are_right(layer, x, right_gradients):
    right_gradients(layer, x, ["x", *layer.parameters()])


def test_written_out(backend, rng, context):
    layer = FeedForward(2, 2, rng, "relu", np.float64)
    layer.weight1[...] = [[1, -1], [2, 1]]
    layer.bias1[...] = [1, 0]
    layer.weight2[...] = [[1, 0], [3, 10]]
    layer.bias2[...] = [0, 5]
    # hidden = (1 + 2 + 1, -1 + 1) = (4, 0); and (-3 + 0 + 1, 3 + 0) = (-2, 3), cut to (0, 3)
    out = layer.forward(np.array([[1.0, 1.0], [-3.0, 0.0]]), context(layer, 2))
    assert out.tolist() == [[4, 5], [9, 35]]


def test_swiglu_written_out(backend, rng, context):
    layer = FeedForward(2, 1, rng, "swiglu", np.float64, False)
    layer.weight1[...] = [[1, 3], [0, 4]]  # the gate is the first number, up 3 and 4 of them
    layer.weight2[...] = [[1, 10]]
    out = layer.forward(np.array([[2.0, -1.0]]), context(layer, 1))
    silu = 2 / (1 + np.exp(-2))
    np.testing.assert_allclose(out, [[silu * 2, silu * 20]], rtol=1e-12)


def test_swiglu_has_twice_the_columns_and_a_bias_only_if_wanted(rng):
    shapes = {"weight1": (4, 14), "bias1": (14,), "weight2": (7, 4), "bias2": (4,)}
    for bias in (True, False):
        layer = FeedForward(4, 7, rng, "swiglu", bias=bias)
        found = {name: value.shape for name, value in layer.parameters().items()}
        assert found == {k: v for k, v in shapes.items() if bias or "bias" not in k}


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
