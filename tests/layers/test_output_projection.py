"""Tests of the output projection, and of the loss that it computes block by block."""

import math

import numpy as np
import pytest

from rustgpt.gradient_check import gradcheck
from rustgpt.layers import output_projection
from rustgpt.layers.output_projection import OutputProjection

V, C = 7, 4


@pytest.fixture(params=["own", "no bias", "tied"])
def layer(request, backend, rng, scrambled):
    tied = request.param == "tied"
    layer = OutputProjection(C, V, rng, request.param != "no bias", tied, np.float64)
    if tied:
        layer.tie(rng.standard_normal((V, C)), np.zeros((V, C)))
    return scrambled(layer)


@pytest.fixture
def x(rng):
    return rng.standard_normal((8, C))


TARGETS = np.array([0, 6, -1, 3, 3, 1, -1, 2], np.int32)


def test_gradients_are_right(layer, x):
    report = gradcheck(layer, x)
    assert report, report
    own = [] if layer.tied else ["weight"]
    assert list(report.errors) == ["x", *own, *(["bias"] if layer.bias is not None else [])]


@pytest.mark.parametrize("rows", [64, 3, 1])
def test_gradients_of_the_loss_are_right(layer, x, same_gradient, monkeypatch, rows):
    monkeypatch.setattr(output_projection, "ROWS_AT_LEAST", rows)
    monkeypatch.setattr(output_projection, "LOGITS_AT_ONCE", 1)

    def objective():
        return 0.3 * layer.losses(x, TARGETS).sum()

    layer.zero_grad()
    layer.dweight.fill(0)
    loss, dx = layer.loss(x, TARGETS, 0.3)
    assert loss == pytest.approx(layer.losses(x, TARGETS).sum())
    dx, dweight = dx.copy(), layer.dweight.copy()
    same_gradient(dx, objective, x)
    same_gradient(dweight, objective, layer.weight)
    if layer.bias is not None:
        same_gradient(layer.dbias.copy(), objective, layer.bias)


def test_loss_is_the_cross_entropy_of_the_logits(layer, x):
    logits = layer.forward(x, np.array([0, 8], np.int32)).copy()
    losses = layer.losses(x, TARGETS)
    for row, target, found in zip(logits, TARGETS, losses, strict=True):
        total = math.log(sum(math.exp(logit) for logit in row))
        assert found == pytest.approx(total - row[target] if target >= 0 else 0)


def test_blocks_give_what_one_piece_gives(layer, x, monkeypatch):
    losses, (loss, dx) = layer.losses(x, TARGETS).copy(), layer.loss(x, TARGETS, 0.3)
    dx = dx.copy()
    monkeypatch.setattr(output_projection, "ROWS_AT_LEAST", 3)
    monkeypatch.setattr(output_projection, "LOGITS_AT_ONCE", 1)
    found, dblocks = layer.loss(x, TARGETS, 0.3)
    assert found == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(dblocks, dx, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(layer.losses(x, TARGETS), losses, rtol=1e-12)


def test_logits_of_a_large_batch_are_never_held_at_once(backend, rng):
    rows, vocabulary = output_projection.ROWS_AT_LEAST, 20_000
    layer = OutputProjection(2, vocabulary, rng)
    x, targets = np.ones((3 * rows, 2), np.float32), np.zeros(3 * rows, np.int32)
    layer.loss(x, targets, 1.0)
    largest = max(flat.size for flat in layer._scratch._flat.values())
    at_once = max(rows, output_projection.LOGITS_AT_ONCE // vocabulary)
    assert largest == at_once * vocabulary < x.shape[0] * vocabulary


def test_the_gradient_of_the_logits_can_be_clipped(layer, x):
    layer.zero_grad()
    layer.dweight.fill(0)
    layer.loss(x, TARGETS, 1.0)
    whole = layer.dweight.copy()
    layer.zero_grad()
    layer.dweight.fill(0)
    layer.loss(x, TARGETS, 1.0, max_norm=0.5)
    ratio = layer.dweight / whole
    assert ratio.max() == pytest.approx(ratio.min())
    assert 0 < ratio.max() < 1


def test_parameters(layer, rng):
    expected = {"weight": (C, V), "bias": (V,)}
    if layer.tied:
        del expected["weight"]
    if layer.bias is None:
        del expected["bias"]
    assert {name: value.shape for name, value in layer.parameters().items()} == expected
    assert OutputProjection(400, 100, rng).weight.std() == pytest.approx(0.05, rel=0.03)


def test_contract(layer, x, accumulates, replicates):
    if layer.tied:
        layer.dweight.fill(0)
    accumulates(layer, x)
    if not layer.tied:  # a model ties each replica anew
        replicates(layer, x)


def test_memory_is_reused(layer, x, reuses_memory):
    reuses_memory(layer, x)


def test_decode_is_forward(layer, x, decodes):
    decodes(layer, x)


def test_describe(layer):
    assert layer.describe() == f"OutputProjection(4 -> 7{', tied' if layer.tied else ''})"
