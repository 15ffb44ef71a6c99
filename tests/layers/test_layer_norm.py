"""Tests of the layer-norm layer."""

import numpy as np
import pytest

from rustgpt.gradient_check import gradcheck
from rustgpt.layers.layer_norm import LayerNorm


@pytest.fixture
def layer(backend, scrambled):
    return scrambled(LayerNorm(5, dtype=np.float64))


@pytest.fixture
def x(rng):
    return 3 * rng.standard_normal((8, 5)) + 1


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_gradients_are_right(backend, scrambled, x, epsilon):
    report = gradcheck(scrambled(LayerNorm(5, epsilon, np.float64)), x)
    assert report, report
    assert list(report.errors) == ["x", "weight", "bias"]


def test_gradients_are_right_where_activations_are_small(backend, scrambled, x):
    # RustGPT's are wrong by 0.75 here.
    report = gradcheck(scrambled(LayerNorm(5, 1e-3, np.float64)), 0.05 * x)
    assert report, report


def test_it_starts_as_plain_normalisation(backend, x):
    layer = LayerNorm(5, dtype=np.float64)
    assert list(layer.parameters()) == ["weight", "bias"]
    out = layer.forward(x, np.array([0, 8], np.int32))
    assert out.mean(axis=1) == pytest.approx(np.zeros(8), abs=1e-12)
    assert out.var(axis=1) == pytest.approx(np.ones(8), rel=1e-4)


def test_epsilon_is_used(backend):
    layer = LayerNorm(2, 3.0, np.float64)
    out = layer.forward(np.array([[-1.0, 1.0]]), np.array([0, 1], np.int32))
    assert out.tolist() == [[-0.5, 0.5]]  # 1 / sqrt(1 + 3)


def test_contract(layer, x, accumulates, replicates):
    accumulates(layer, x)
    replicates(layer, x)


def test_memory_is_reused(layer, x, reuses_memory):
    reuses_memory(layer, x)


def test_decode_is_forward(layer, x, decodes):
    decodes(layer, x)


def test_describe(layer):
    assert layer.describe() == "LayerNorm(5)"
