"""Tests of the transformer block."""

import numpy as np
import pytest

from rustgpt.backend import has_bfloat16
from rustgpt.gradient_check import gradcheck
from rustgpt.layers.layer import Cache
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.transformer import TransformerBlock

VARIANTS = {
    "post": {},
    "post, bare": {"attention_projection": False},
    "GPT-2": {"norm": "pre", "activation": "gelu", "attention_bias": True},
    "pre, bare": {"norm": "pre", "attention_projection": False},
}


@pytest.fixture(params=VARIANTS)
def layer(request, backend, rng, scrambled, small):
    return scrambled(TransformerBlock(small(dtype="float64", **VARIANTS[request.param]), rng))


@pytest.fixture
def x(rng):
    return rng.standard_normal((8, 6))


def test_gradients_are_right(layer, x):
    report = gradcheck(layer, x)
    assert report, report
    assert list(report.errors) == ["x", *layer.parameters()]


def test_parameters(backend, rng, small):
    layer = TransformerBlock(small(attention_bias=True), rng)
    assert list(layer.parameters()) == [
        "attention.qkv_weight", "attention.qkv_bias",
        "attention.projection_weight", "attention.projection_bias",
        "norm1.weight", "norm1.bias",
        "feed_forward.weight1", "feed_forward.bias1", "feed_forward.weight2", "feed_forward.bias2",
        "norm2.weight", "norm2.bias",
    ]  # fmt: skip


def silence(layer):
    """Let both sub-layers give zero."""
    attention, feed_forward = layer.attention, layer.feed_forward
    for value in (*attention.parameters().values(), *feed_forward.parameters().values()):
        value.fill(0)
    for norm in (layer.norm1, layer.norm2):
        norm.weight.fill(1)
        norm.bias.fill(0)
        norm.epsilon = 0.0


def test_what_sub_layers_leave_alone_passes_by(layer, x):
    silence(layer)
    out = layer.forward(x, np.array([0, 8], np.int32))
    if layer.pre_norm:
        expected = x
    else:
        expected = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    np.testing.assert_allclose(out, expected, atol=1e-12)


def test_its_input_is_left_alone(layer, x):
    kept = x.copy()
    out = layer.forward(x, np.array([0, 8], np.int32))
    dout = np.ones_like(out)
    layer.backward(dout)
    np.testing.assert_array_equal(x, kept)
    assert (dout == 1).all()


def test_contract(layer, x, accumulates, replicates):
    accumulates(layer, x)
    replicates(layer, x)


def test_memory_is_reused(layer, x, reuses_memory):
    reuses_memory(layer, x)


def test_decode_is_forward(layer, x, decodes):
    decodes(layer, x)


def test_decode_is_forward_with_norms_of_different_epsilon(layer, x, decodes):
    layer.norm1.epsilon, layer.norm2.epsilon = 0.5, 2.0
    decodes(layer, x)


def test_decode_runs_a_sub_layer_of_your_own(layer, x, decodes):
    class Doubled(LayerNorm):
        def forward(self, x, offsets):
            return 2 * super().forward(x, offsets)

    layer.norm1 = Doubled(6, dtype=np.float64)
    decodes(layer, x)


def test_decode_keeps_nothing_but_the_cache(layer, x):
    offsets = np.array([0, 8], np.int32)
    cache = Cache(8)
    layer.decode(x[:3].copy(), cache)
    cache.length += 3
    layer.decode(np.full((1, 6), 9.0), Cache(8))  # another text between
    found = layer.decode(x[3:5].copy(), cache).copy()
    np.testing.assert_allclose(found, layer.forward(x, offsets)[3:5], rtol=1e-9)


def test_by_parts_is_at_once(layer, x, close):
    offsets = np.array([0, 3, 8], np.int32)

    def run():
        layer.zero_grad()
        out = layer.forward(x, offsets).copy()
        dx = np.array(layer.backward(np.sin(out)))
        decoded = layer.decode(x.copy(), Cache(8)).copy()
        return out, dx, decoded, *(value.copy() for value in layer.gradients().values())

    expected = run()
    layer.by_parts = True
    for found, wanted in zip(run(), expected, strict=True):
        close(found, wanted, 10)


def test_describe(layer):
    assert layer.describe() == f"TransformerBlock({'pre' if layer.pre_norm else 'post'}-norm)"


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_round_to_bfloat16_as_the_whole_does(backend, rng, scrambled, small, close, variant):
    if not has_bfloat16():
        pytest.skip("these kernels have no bfloat16")
    layer = scrambled(TransformerBlock(small(**VARIANTS[variant]), rng))
    x, offsets = rng.standard_normal((8, 6)).astype(np.float32), np.array([0, 3, 8], np.int32)

    def run(use, by_parts):
        layer.by_parts = by_parts
        layer.use_bfloat16(use)
        layer.zero_grad()
        out = layer.forward(x, offsets).copy()
        return out, layer.backward(np.ones_like(x)).copy(), layer._gradients.copy()

    whole, parts, exact = run(True, False), run(True, True), run(False, True)
    for one, other, without in zip(whole, parts, exact, strict=True):
        close(one, other, 100)
        assert np.abs(one - without).max() > 1e-3 * np.abs(without).max()
