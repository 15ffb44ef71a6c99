"""Tests of the output projection, and of the loss that it computes block by block."""

import math
import sys

import numpy as np
import pytest

from rustgpt.layers import output_projection
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.layer import Layer
from rustgpt.layers.memory import Workspace
from rustgpt.layers.output_projection import OutputProjection

V, C = 7, 4
TARGETS = np.array([0, 6, -1, 3, 3, 1, -1, 2], np.int32)


class Table(Layer):
    """What an output projection is tied to."""

    def __init__(self, rng):
        super().__init__(np.float64)
        self.parameter("tokens", rng.standard_normal((V, C)))


class Tied(Table):
    """A table with the output projection that is tied to it."""

    def __init__(self, rng, bias):
        super().__init__(rng)
        self.output = OutputProjection(C, V, rng, bias, tied=True, dtype=np.float64)
        self.output.tie(self.tokens)

    def forward(self, x, ctx):
        return self.output.forward(x, ctx)

    def backward(self, dout, ctx):
        return self.output.backward(dout, ctx)


@pytest.fixture
def table(backend, rng):
    """Whose parameter the tied layer uses."""
    return Table(rng)


@pytest.fixture(params=["own", "no bias", "tied", "tied, no bias"])
def layer(request, rng, scrambled, table):
    tied, bias = "tied" in request.param, "no bias" not in request.param
    layer = scrambled(OutputProjection(C, V, rng, bias, tied, np.float64))
    if tied:
        layer.tie(table.tokens)
    return layer


@pytest.fixture
def small_blocks(monkeypatch):
    """small_blocks(n): let the loss be computed over n rows at a time."""

    def make(rows):
        monkeypatch.setattr(output_projection, "ROWS_AT_LEAST", rows)
        monkeypatch.setattr(output_projection, "LOGITS_AT_ONCE", 1)

    return make


@pytest.fixture
def x(rng):
    return rng.standard_normal((8, C))


@pytest.fixture
def losses(context):
    """losses(layer, x): a copy of each row's cross-entropy."""
    return lambda layer, x: layer.losses(x, TARGETS, context(layer, 8)).copy()


@pytest.fixture
def differentiate(context, table):
    """differentiate(layer, x, scale, ...): the loss, and the gradients by name."""

    def run(layer, x, scale, max_norm=np.inf, before=()):
        gradients = Gradients([table, layer])
        gradients.flat.fill(np.nan)
        gradients.begin()
        for parameter in before:  # what was written in this step
            gradients.add(parameter, np.ones_like(parameter))
        ctx = context(layer, 8, gradients=gradients)
        loss, dx = layer.loss(x, TARGETS, scale, ctx, max_norm)
        gradients.finish()
        parameters = {"weight": layer.weight, "bias": layer.bias}
        found = {k: gradients.of(v).copy() for k, v in parameters.items() if v is not None}
        return loss, {"x": dx.copy(), **found}

    return run


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_right(backend, rng, scrambled, x, right_gradients, bias):
    layer = scrambled(OutputProjection(C, V, rng, bias, dtype=np.float64))
    right_gradients(layer, x, ["x", "weight", *["bias"] * bias])


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_a_tied_table_are_right(backend, rng, scrambled, x, right_gradients, bias):
    right_gradients(scrambled(Tied(rng, bias)), x, ["x", "tokens", *["output.bias"] * bias])


@pytest.mark.parametrize("rows", [64, 3, 1])
def test_gradients_of_the_loss_are_right(
    layer, x, same_gradient, losses, differentiate, small_blocks, rows
):
    small_blocks(rows)

    def objective():
        return 0.3 * losses(layer, x).sum()

    loss, found = differentiate(layer, x, 0.3)
    assert loss == pytest.approx(losses(layer, x).sum())
    same_gradient(found["x"], objective, x)
    same_gradient(found["weight"], objective, layer.weight)
    assert ("bias" in found) == (layer.bias is not None)
    if layer.bias is not None:
        same_gradient(found["bias"], objective, layer.bias)


@pytest.mark.parametrize("layer", ["own", "tied"], indirect=True)
@pytest.mark.parametrize("before", [("weight",), ("bias",), ("weight", "bias")])
def test_the_loss_adds_to_what_the_step_has_written(layer, x, differentiate, close, before):
    _, alone = differentiate(layer, x, 0.3)
    _, later = differentiate(layer, x, 0.3, before=[getattr(layer, name) for name in before])
    assert list(later) == ["x", "weight", "bias"]
    for name, value in later.items():
        close(value, alone[name] + (name in before), 5)


def test_loss_is_the_cross_entropy_of_the_logits(layer, x, context, losses):
    logits = layer.forward(x, context(layer, 8))
    for row, target, found in zip(logits, TARGETS, losses(layer, x), strict=True):
        total = math.log(sum(math.exp(logit) for logit in row))
        assert found == pytest.approx(total - row[target] if target >= 0 else 0)


def test_blocks_give_what_one_piece_gives(layer, x, losses, differentiate, small_blocks, close):
    whole, (loss, gradients) = losses(layer, x), differentiate(layer, x, 0.3)
    small_blocks(3)
    found, in_blocks = differentiate(layer, x, 0.3)
    assert found == pytest.approx(loss, rel=1e-12)
    assert in_blocks.keys() == gradients.keys()
    for name, value in in_blocks.items():
        close(value, gradients[name], 5)
    close(losses(layer, x), whole, 5)


def test_rows_without_a_target_are_left_out_and_change_nothing(
    layer, x, differentiate, close, monkeypatch
):
    loss, gradients = differentiate(layer, x, 0.3)
    monkeypatch.setattr(output_projection, "SHARE_TO_GATHER", 0)
    of_all, found = differentiate(layer, x, 0.3)
    assert loss == pytest.approx(of_all, rel=1e-12)
    for name, value in found.items():
        close(value, gradients[name], 5)
    assert not gradients["x"][TARGETS < 0].any()


def test_rows_without_a_target_have_no_gradient_whatever_was_in_memory(layer, table, x, context):
    workspace, gradients = Workspace("float64"), Gradients([table, layer])
    for targets in (np.abs(TARGETS), TARGETS):
        gradients.begin()
        ctx = context(layer, 8, gradients=gradients, workspace=workspace)
        _, dx = layer.loss(x, targets, 1.0, ctx)
        assert dx.any(axis=1).tolist() == (targets >= 0).tolist()


def test_without_any_target_there_is_no_gradient(layer, x, differentiate, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "TARGETS", np.full(8, -1, np.int32))
    loss, gradients = differentiate(layer, x, 0.3)
    assert loss == 0
    assert not any(value.any() for value in gradients.values())


@pytest.mark.parametrize("training", [True, False])
def test_logits_of_a_large_batch_are_never_held_at_once(backend, rng, context, training):
    rows, vocabulary = output_projection.ROWS_AT_LEAST, 20_000
    layer = OutputProjection(2, vocabulary, rng)
    x, targets = np.ones((3 * rows, 2), np.float32), np.zeros(3 * rows, np.int32)
    workspace = Workspace()
    gradients = Gradients([layer]) if training else None
    ctx = context(layer, 3 * rows, gradients=gradients, workspace=workspace)
    if training:
        layer.loss(x, targets, 1.0, ctx)
    else:
        layer.losses(x, targets, ctx)
    stores = (workspace.activations, workspace.temporary, *workspace.alternating)
    largest = max(flat.size for store in stores for flat in store._flat.values())
    at_once = max(rows, output_projection.LOGITS_AT_ONCE // vocabulary)
    assert largest == at_once * vocabulary < x.shape[0] * vocabulary


def test_the_gradient_of_the_logits_can_be_clipped(layer, x, differentiate):
    whole, clipped = (
        differentiate(layer, x, 1.0, max_norm)[1]["weight"] for max_norm in (np.inf, 0.5)
    )
    ratio = clipped / whole
    assert ratio.max() == pytest.approx(ratio.min())
    assert 0 < ratio.max() < 1


def test_parameters(layer, table, rng):
    expected = {"weight": (C, V), "bias": (V,)}
    if layer.tied:
        del expected["weight"]
        assert layer.weight is table.tokens
    if layer.bias is None:
        del expected["bias"]
    assert {name: value.shape for name, value in layer.parameters().items()} == expected
    assert OutputProjection(400, 100, rng).weight.std() == pytest.approx(0.05, rel=0.03)


def test_contract(layer, x, contract, table):
    contract(layer, x, *[table] * layer.tied)


def test_describe(layer):
    assert layer.describe() == f"OutputProjection(4 -> 7{', tied' if layer.tied else ''})"
