"""Tests of the gradients of some layers' parameters."""

import numpy as np
import pytest

from rustgpt.errors import ConfigError
from rustgpt.layers.gpt import build_layers
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.layer import Layer
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.transformer import TransformerBlock
from rustgpt.llm import LLM


class Two(Layer):
    """A layer with two parameters."""

    def __init__(self):
        super().__init__(np.float64)
        self.parameter("weight", np.ones((2, 3)))
        self.parameter("bias", np.ones(2))


@pytest.fixture
def layers():
    return [Two(), Two()]


@pytest.fixture
def gradients(layers):
    """A step that has begun, with NaN where nothing was written yet."""
    gradients = Gradients(layers)
    gradients.flat.fill(np.nan)
    gradients.begin()
    return gradients


def test_they_lie_in_the_order_of_the_parameters(layers, gradients):
    assert gradients.flat.shape == (16,)
    assert gradients.flat.dtype == np.float64
    assert Gradients([LayerNorm(2)]).flat.dtype == np.float32
    for i, layer in enumerate(layers):
        gradients.add(layer.weight, np.full((2, 3), 10 * i))
        gradients.add(layer.bias, np.full(2, 10 * i + 1))
    assert gradients.flat.tolist() == [0] * 6 + [1] * 2 + [10] * 6 + [11] * 2


def test_what_comes_first_overwrites_and_what_comes_later_is_added(layers, gradients):
    one, two = layers
    for _ in range(2):  # a second step begins anew
        gradients.begin()
        gradients.add(one.bias, np.array([1.0, 2.0]))
        gradients.add(one.bias, np.array([10.0, 20.0]))
        gradients.of(one.bias)[:] += 100
        assert gradients.of(one.bias).tolist() == [111, 122]
        gradients.of(two.bias)[:] += 5
        gradients.add(two.bias, np.ones(2))
        assert gradients.of(two.bias).tolist() == [6, 6]


def test_claim_says_whether_to_add(layers, gradients):
    one, two = layers
    view, accumulate = gradients.claim(one.weight)
    assert view.shape == (2, 3)
    assert np.isnan(view).all()  # whoever claims it overwrites it
    assert not accumulate
    view.fill(3)
    again, accumulate = gradients.claim(one.weight)
    assert accumulate
    assert (again == 3).all()
    assert gradients.claim(two.weight)[1] is False
    gradients.add(one.bias, np.ones(2))
    assert gradients.claim(one.bias)[1]
    gradients.of(two.bias)
    assert gradients.claim(two.bias)[1]
    gradients.begin()
    assert not any(gradients.claim(v)[1] for v in (one.weight, one.bias, two.weight, two.bias))


def test_what_nobody_has_used_becomes_zero(layers, gradients):
    one, two = layers
    gradients.add(one.bias, np.array([1.0, 2.0]))
    gradients.finish()
    assert gradients.flat.tolist() == [0] * 6 + [1, 2] + [0] * 8
    gradients.add(two.weight, np.ones((2, 3)))  # after the end, there is something to add to
    gradients.add(two.weight, np.ones((2, 3)))
    assert (gradients.of(two.weight) == 2).all()
    gradients.begin()
    gradients.finish()
    assert not gradients.flat.any()


def test_a_parameter_that_two_layers_share_has_one_gradient(layers):
    class Sharing(Layer):
        def __init__(self, other):
            super().__init__(np.float64)
            self.inner = other

    both = Gradients([layers[0], Sharing(layers[0]), layers[1], layers[0]])
    assert both.flat.shape == (16,)
    both.begin()
    both.add(layers[0].bias, np.ones(2))
    both.finish()
    assert both.flat.tolist() == [0] * 6 + [1, 1] + [0] * 8


@pytest.mark.parametrize("what", ["another layer's", "a copy", "a view", "no parameter"])
def test_what_is_no_parameter_of_the_layers_is_refused(gradients, layers, what):
    wrong = {
        "another layer's": Two().weight,
        "a copy": layers[0].weight.copy(),
        "a view": layers[0].weight[...],
        "no parameter": np.ones((2, 3)),
    }[what]
    for ask in (gradients.claim, gradients.of, lambda v: gradients.add(v, np.ones((2, 3)))):
        with pytest.raises(ConfigError, match=r"shape \(2, 3\) is not a parameter of this model"):
            ask(wrong)
    gradients.finish()
    assert not gradients.flat.any()


# Whole models


@pytest.fixture
def differentiate(context):
    """differentiate(model, gradients, ids, ...): a pass, of which every other token counts."""

    def run(model, gradients, ids, **rest):
        targets = np.roll(ids, 1)
        targets[::2] = -1
        ctx = context(model.layers[0], 3, len(ids) - 3, gradients=gradients, **rest)
        return model.loss_and_gradients(ids, targets, 0.5, ctx)

    return run


def test_a_tied_tables_gradient_is_that_of_both_uses(
    backend, small, letters, rng, differentiate, same_gradient
):
    model = LLM(small(dtype="float64", tie_embeddings=True, n_layers=1), letters)
    model.parameters += 0.3 * rng.standard_normal(model.n_parameters)
    ids = np.array([4, 4, 2, 3, 4, 1, 2], np.int32)
    table, gradients = model.layers[0].tokens, Gradients(model.layers)
    assert gradients.flat.size == model.n_parameters
    gradients.flat.fill(np.nan)
    gradients.begin()
    differentiate(model, gradients, ids)
    gradients.finish()
    found = gradients.of(table).copy()
    assert found.any(axis=1).all()  # tokens that do not occur are scored too
    other = Gradients(model.layers)
    same_gradient(found[:6], lambda: 0.5 * differentiate(model, other, ids), table[:6])


@pytest.mark.parametrize("by_parts", [False, True])
def test_a_step_in_pieces_is_their_sum(
    backend, small, letters, rng, differentiate, close, by_parts
):
    model = LLM(small(dtype="float64", norm="pre"), letters)
    model.layers[1].by_parts = by_parts
    pieces = [rng.integers(0, 28, n, dtype=np.int32) for n in (9, 5, 12)]
    gradients = Gradients(model.layers)
    names = model.named_parameters()

    def step(*pieces):
        gradients.flat.fill(np.nan)
        gradients.begin()
        for ids in pieces:
            differentiate(model, gradients, ids)
        gradients.finish()
        return {name: gradients.of(value).copy() for name, value in names.items()}

    each = [step(ids) for ids in pieces]
    together = step(*pieces)
    assert len(together) == len(names) > 20
    for name, value in together.items():
        scale = max(np.abs(one[name]).max() for one in each)
        close(value, sum(one[name] for one in each), 10, scale)
    for name, value in step(pieces[2]).items():  # nothing of the step before is left
        np.testing.assert_array_equal(value, each[2][name])


def test_a_block_twice_in_a_model_has_the_gradient_of_both(
    backend, small, letters, rng, differentiate, same_gradient
):
    config = small(dtype="float64", n_layers=1)
    embeddings, block, output = build_layers(config, letters.vocab_size)
    model = LLM(config, letters, [embeddings, block, block, output])
    model.parameters += 0.3 * rng.standard_normal(model.n_parameters)
    ids = rng.integers(0, 28, 9, dtype=np.int32)
    gradients = Gradients(model.layers)
    gradients.begin()
    differentiate(model, gradients, ids)
    gradients.finish()
    other = Gradients(model.layers)

    def objective():
        return 0.5 * differentiate(model, other, ids)

    for name in ("norm1.bias", "attention.projection_weight"):
        value = block.parameters()[name]
        same_gradient(gradients.of(value), objective, value)


# The stretch that all of a block's parameters are


@pytest.fixture
def block(small, rng):
    return TransformerBlock(small(dtype="float64"), rng)


@pytest.fixture
def stretch(block):
    """The gradients of a block and a norm around it, NaN where nothing was written yet."""
    gradients = Gradients([LayerNorm(6, dtype=np.float64), block, LayerNorm(3, dtype=np.float64)])
    gradients.flat.fill(np.nan)
    gradients.begin()
    return gradients


def test_a_stretch_is_claimed_at_once(block, stretch):
    view, accumulate = stretch.claim(block.flat)
    assert not accumulate
    assert view.shape == block.flat.shape
    assert np.isnan(view).all()
    view[...] = np.arange(view.size)
    assert stretch.flat[12 : 12 + view.size].tolist() == [*range(view.size)]
    taken = 0
    for value in block.parameters().values():
        expected = np.arange(taken, taken + value.size).reshape(value.shape)
        np.testing.assert_array_equal(stretch.of(value), expected)
        taken += value.size
    again, accumulate = stretch.claim(block.flat)
    assert accumulate
    assert again is view
    stretch.finish()
    assert stretch.flat[:12].tolist() == [0] * 12
    assert stretch.flat[12 : 12 + view.size].tolist() == [*range(view.size)]
    assert stretch.flat[12 + view.size :].tolist() == [0] * 6


def test_a_stretch_claimed_after_one_of_its_parameters_is_added_to(block, stretch):
    stretch.add(block.norm1.bias, np.full(6, 4.0))
    view, accumulate = stretch.claim(block.flat)
    assert accumulate
    view += 1  # the others are zero
    for name, value in block.parameters().items():
        assert (stretch.of(value) == (5 if name == "norm1.bias" else 1)).all()
    assert np.isnan(stretch.flat[:12]).all()


def test_a_parameter_claimed_after_its_stretch_is_added_to(block, stretch):
    view, _ = stretch.claim(block.flat)
    view.fill(2)
    found, accumulate = stretch.claim(block.attention.qkv_weight)
    assert accumulate
    found += 1
    stretch.add(block.norm1.bias, np.ones(6))
    for name, value in block.parameters().items():
        added = name in ("attention.qkv_weight", "norm1.bias")
        assert (stretch.of(value) == 2 + added).all()


def test_a_stretch_of_which_all_was_written_is_left_as_it_is(block, stretch):
    for i, value in enumerate(block.parameters().values()):
        stretch.add(value, np.full(value.shape, i))
    view, accumulate = stretch.claim(block.flat)
    assert accumulate
    assert sorted({*view}) == [*range(len(block.parameters()))]


def test_what_is_no_stretch_is_claimed_one_by_one(block):
    # A part that lies elsewhere: the parameters do not follow each other.
    block.norm1 = LayerNorm(6, dtype=np.float64)
    gradients = Gradients([block])
    gradients.flat.fill(np.nan)
    gradients.begin()
    for i, value in enumerate(block.parameters().values()):
        gradients.add(value, np.full(value.shape, i))
    expected = [np.full(v.size, i) for i, v in enumerate(block.parameters().values())]
    np.testing.assert_array_equal(gradients.flat, np.concatenate(expected))


@pytest.mark.parametrize("order", ["whole first", "part first", "part between"])
def test_a_block_that_runs_both_ways_in_a_step(backend, block, rng, context, close, order):
    # With an observer it runs by parts, whose gradients are claimed one by one.
    ways = {
        "whole first": [False, True], "part first": [True, False],
        "part between": [False, True, False],
    }[order]  # fmt: skip
    x = rng.standard_normal((8, 6))
    gradients = Gradients([block])

    def step(*ways):
        gradients.flat.fill(np.nan)
        gradients.begin()
        for by_parts in ways:
            block.by_parts = by_parts
            ctx = context(block, 3, 5, gradients=gradients)
            ctx.backward([block], np.cos(ctx.forward([block], x)))
        gradients.finish()
        return {k: gradients.of(v).copy() for k, v in block.parameters().items()}

    once, found = step(False), step(*ways)
    for name, value in found.items():
        close(value, len(ways) * once[name], 20)


# Several threads


def test_of_several_threads_number_0_writes_the_zeros(block, layers):
    everything = [*layers, block]
    first = Gradients(everything)
    second = Gradients(everything, first.flat, 1)
    assert second.flat is first.flat
    one, two = layers
    for gradients in (second, first):
        first.flat.fill(np.nan)
        gradients.begin()
        gradients.add(block.norm2.bias, np.ones(6))
        gradients.claim(block.flat)
        gradients.of(one.weight)
        gradients.finish()
        zeros = [gradients.of(v) for v in (one.weight, one.bias, two.bias, block.norm1.weight)]
        for view in zeros:
            assert np.isnan(view).all() if gradients is second else not view.any()
        assert (gradients.of(block.norm2.bias) == 1).all()
        assert gradients.claim(block.norm2.weight)[1]  # both know what was claimed
        assert gradients.claim(two.weight)[1]


def test_several_threads_see_the_same_array(layers):
    first = Gradients(layers)
    second = Gradients(layers, first.flat, 1)
    for gradients in (first, second):
        gradients.begin()
    for parameter in (layers[0].bias, layers[1].weight):
        one, other = first.claim(parameter)[0], second.claim(parameter)[0]
        one.fill(7)
        assert (other == 7).all()
        assert one.ctypes.data == other.ctypes.data
