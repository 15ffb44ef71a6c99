"""Tests of the self-attention layer."""

import numpy as np
import pytest

from rustgpt.layers.rotary import Rotary
from rustgpt.layers.self_attention import SelfAttention

OPTIONS = [(True, True), (True, False), (False, True), (False, False)]


ROTARY = Rotary(2, 8)


@pytest.fixture(params=[*OPTIONS, 3, 1], ids=[
    "projection, bias", "projection", "bias", "bare", "rotary", "rotary, one key head",
])  # fmt: skip
def layer(request, backend, rng, scrambled):
    if isinstance(request.param, int):
        return scrambled(SelfAttention(6, 3, rng, dtype=np.float64, n_kv_heads=request.param,
                                       rotary=ROTARY))  # fmt: skip
    projection, bias = request.param
    return scrambled(SelfAttention(6, 2, rng, projection, bias, np.float64))


@pytest.fixture
def x(rng):
    return rng.standard_normal((8, 6))


def test_gradients_are_right(layer, x, right_gradients):
    right_gradients(layer, x, ["x", *layer.parameters()])


def test_parameters(rng):
    shapes = {
        "qkv_weight": (6, 18), "qkv_bias": (18,),
        "projection_weight": (6, 6), "projection_bias": (6,),
    }  # fmt: skip
    for projection, bias in OPTIONS:
        layer = SelfAttention(6, 2, rng, projection, bias)
        expected = {
            name: shape
            for name, shape in shapes.items()
            if (projection or "projection" not in name) and (bias or "bias" not in name)
        }
        assert {name: value.shape for name, value in layer.parameters().items()} == expected
    large = SelfAttention(400, 2, rng)
    assert large.qkv_weight.std() == pytest.approx(0.05, rel=0.02)
    assert large.projection_weight.std() == pytest.approx(0.05, rel=0.02)


def test_fewer_key_heads_have_fewer_columns(rng):
    layer = SelfAttention(12, 6, rng, bias=True, n_kv_heads=2)
    assert layer.qkv_weight.shape == (12, 12 + 2 * 4)
    assert layer.qkv_bias.shape == (20,)


def test_heads_in_turn_share_their_keys(backend, rng, context):
    layer = SelfAttention(8, 4, rng, projection=False, dtype=np.float64, n_kv_heads=2)
    x = rng.standard_normal((5, 8))
    before = layer.forward(x, context(layer, 5))
    layer.qkv_weight[:, 8:10] += 1  # the first head of keys, of which two of queries make use
    after = layer.forward(x, context(layer, 5))
    np.testing.assert_array_equal(after[:, 4:], before[:, 4:])
    assert (after[1:, :4] != before[1:, :4]).all()


def test_rotary_positions_make_the_order_matter(backend, rng, context):
    x = rng.standard_normal((4, 6))
    for rotary in (None, ROTARY):
        layer = SelfAttention(6, 3, np.random.default_rng(1), False, False, np.float64, 3, rotary)
        last = layer.forward(x, context(layer, 4))[-1]
        swapped = layer.forward(x[[1, 0, 2, 3]], context(layer, 4))[-1]
        assert np.allclose(last, swapped, rtol=1e-9) == (rotary is None)


def test_texts_do_not_see_each_other(layer, x, context):
    together = layer.forward(x, context(layer, 3, 0, 5))
    first = layer.forward(x[:3], context(layer, 3))
    second = layer.forward(x[3:], context(layer, 5))
    np.testing.assert_allclose(together, np.vstack([first, second]), rtol=1e-12)


def test_no_row_sees_a_later_one(layer, x, context):
    before = layer.forward(x, context(layer, 8))
    x[5] += 1
    after = layer.forward(x, context(layer, 8))
    np.testing.assert_array_equal(after[:5], before[:5])
    assert (after[5:] != before[5:]).any(axis=1).all()


def test_a_text_of_one_row_sees_its_own_value_alone(backend, rng, context):
    layer = SelfAttention(4, 2, rng, projection=False, dtype=np.float64)
    x = rng.standard_normal((1, 4))
    out = layer.forward(x, context(layer, 1))
    np.testing.assert_allclose(out, x @ layer.qkv_weight[:, 8:], rtol=1e-12)


def test_heads_have_their_own_columns(backend, rng, context):
    layer = SelfAttention(6, 3, rng, projection=False, dtype=np.float64)
    x = rng.standard_normal((5, 6))
    before = layer.forward(x, context(layer, 5))
    layer.qkv_weight[:, 2:4] += 1  # the queries of the second head
    after = layer.forward(x, context(layer, 5))
    np.testing.assert_array_equal(after[:, [0, 1, 4, 5]], before[:, [0, 1, 4, 5]])
    assert (after[1:, 2:4] != before[1:, 2:4]).all()


def test_contract(layer, x, contract):
    contract(layer, x)


def test_describe(layer):
    ending = "with output projection" if layer.projection else "no output projection"
    heads = f"{layer.n_heads} heads"
    assert layer.describe().startswith(f"SelfAttention(6, {heads}")
    assert layer.describe().endswith(f"{ending})")
