"""Tests of what a GPT's layers are, and how they are shown."""

import numpy as np
import pytest

from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.gpt import build_layers, describe, named_parameters
from rustgpt.layers.layer import Layer
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.layers.rms_norm import RMSNorm
from rustgpt.layers.rotary import Rotary
from rustgpt.layers.transformer import TransformerBlock

V = 7


def numbers(layers):
    """Return the parameters of all layers in one array."""
    values = [value.ravel() for layer in layers for value in layer.parameters().values()]
    return np.concatenate(values)


@pytest.mark.parametrize("n_layers", [0, 1, 3])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_layers_in_order(small, n_layers, norm):
    layers = build_layers(small(n_layers=n_layers, norm=norm), V)
    last = [LayerNorm] if norm == "pre" else []
    assert [type(layer) for layer in layers] == [
        Embeddings, *[TransformerBlock] * n_layers, *last, OutputProjection
    ]  # fmt: skip
    assert len({id(layer) for layer in layers}) == len(layers)


def test_the_sizes_are_those_of_the_configuration(small):
    layers = build_layers(small(output_bias=False), V)
    assert layers[0].tokens.shape == (V, 6)
    assert layers[0].places.shape == (12, 6)
    assert layers[1].feed_forward.weight1.shape == (6, 10)
    assert layers[1].attention.n_heads == 2
    assert layers[-1].weight.shape == (6, V)
    assert list(layers[-1].parameters()) == ["weight"]


LLAMA = {
    "norm": "pre", "norm_type": "rms_norm", "positions": "rotary", "activation": "swiglu",
    "n_heads": 3, "n_kv_heads": 1, "feed_forward_bias": False, "output_bias": False,
}  # fmt: skip


def test_a_llama_has_the_parameters_of_one(small):
    layers = build_layers(small(n_layers=1, **LLAMA), V)
    found = {name: value.shape for name, value in named_parameters(layers).items()}
    assert found == {
        "layers.0.tokens": (V, 6),
        "layers.1.attention.qkv_weight": (6, 6 + 2 * 2),
        "layers.1.attention.projection_weight": (6, 6),
        "layers.1.norm1.weight": (6,),
        "layers.1.feed_forward.weight1": (6, 20),
        "layers.1.feed_forward.weight2": (10, 6),
        "layers.1.norm2.weight": (6,),
        "layers.2.weight": (6,),
        "layers.3.weight": (6, V),
    }
    assert type(layers[2]) is RMSNorm


def test_epsilon_and_angles_are_those_of_the_configuration(small):
    config = small(**LLAMA, norm_epsilon=1e-3, rope_theta=50.0, rope_scaling="linear",
                   rope_factor=2.0)  # fmt: skip
    _, block, *_, norm, _ = build_layers(config, V)
    assert [block.norm1.epsilon, block.norm2.epsilon, norm.epsilon] == [1e-3] * 3
    assert [block.spec.epsilon1, block.spec.epsilon2] == [1e-3] * 2
    assert block.attention.rotary == Rotary(2, 12, 50.0, "linear", 2.0, original=12)


def test_a_tied_output_projection_has_no_weight_of_its_own(small):
    output = build_layers(small(tie_embeddings=True), V)[-1]
    assert output.tied
    assert list(output.parameters()) == ["bias"]


def test_every_layer_has_the_configured_type(small, dtype):
    for layer in build_layers(small(dtype=dtype, norm="pre"), V):
        assert [inner.dtype for _, inner in layer.walk()] == [dtype] * len([*layer.walk()])
        assert {value.dtype.name for value in layer.parameters().values()} == {dtype}


def test_the_seed_decides_the_initial_values(small):
    once, again, other = (numbers(build_layers(small(seed=seed), V)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert (once != other).mean() > 0.5
    _, first, second, _ = build_layers(small(), V)
    assert (first.attention.qkv_weight != second.attention.qkv_weight).all()


def test_without_initial_values_what_is_drawn_is_zero(small):
    layers = build_layers(small(norm="pre"), V, initialise=False)
    for layer in layers:
        for name, value in layer.parameters().items():
            norm_weight = name.endswith("weight") and ("norm" in name or type(layer) is LayerNorm)
            assert (value == norm_weight).all(), name
    drawn = build_layers(small(norm="pre"), V)
    for one, other in zip(layers, drawn, strict=True):
        assert {k: v.shape for k, v in one.parameters().items()} == {
            k: v.shape for k, v in other.parameters().items()
        }


def test_layers_are_described_with_their_sizes(small):
    layers = build_layers(small(n_layers=1), V)
    assert describe(layers).splitlines() == [
        "Embeddings(7 tokens + 12 positions -> 6)                     114",
        "TransformerBlock(post-norm)                                  304",
        "  SelfAttention(6, 2 heads, with output projection)          144",
        "  LayerNorm(6)                                                12",
        "  FeedForward(6 -> 10 -> 6, relu)                            136",
        "  LayerNorm(6)                                                12",
        "OutputProjection(6 -> 7)                                      49",
        "Parameters                                                   467",
    ]


def test_a_layer_that_comes_twice_is_counted_once():
    class Shift(Layer):
        def __init__(self):
            super().__init__()
            self.parameter("by", np.zeros(1_234))

    layer = Shift()
    assert [line.split() for line in describe([layer, layer]).splitlines()] == [
        ["Shift", "x", "2", "1,234"], ["Parameters", "1,234"]
    ]  # fmt: skip
