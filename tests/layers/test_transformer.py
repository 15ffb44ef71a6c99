"""Tests of the transformer block."""

import copy
import pickle

import numpy as np
import pytest

from rustgpt.backend import has_bfloat16
from rustgpt.layers.cache import Cache
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.layer import divides_rows
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.memory import Workspace
from rustgpt.layers.rms_norm import RMSNorm
from rustgpt.layers.transformer import TransformerBlock

# Three heads of queries over one of keys and values, of two columns each.
LLAMA = {
    "norm": "pre", "norm_type": "rms_norm", "positions": "rotary", "activation": "swiglu",
    "feed_forward_bias": False, "n_heads": 3, "n_kv_heads": 1,
}  # fmt: skip
VARIANTS = {
    "post": {},
    "post, bare": {"attention_projection": False},
    "GPT-2": {"norm": "pre", "activation": "gelu", "attention_bias": True},
    "pre, bare": {"norm": "pre", "attention_projection": False},
    "Llama": LLAMA,
    "Llama's norm and activation": {
        "norm_type": "rms_norm",
        "activation": "swiglu",
        "attention_bias": True,
    },
}


@pytest.fixture
def build(backend, rng, scrambled, small):
    """build(**changes): a block of random numbers."""

    def make(**changes):
        return scrambled(TransformerBlock(small(**{"dtype": "float64"} | changes), rng))

    return make


@pytest.fixture(params=VARIANTS)
def layer(request, build):
    return build(**VARIANTS[request.param])


@pytest.fixture
def x(rng):
    return rng.standard_normal((8, 6))


@pytest.fixture
def run(context):
    """run(layer, x): the output, the input's gradient and the parameters', by name."""

    def make(layer, x, **rest):
        gradients = Gradients([layer])
        ctx = context(layer, 3, 0, 5, gradients=gradients, **rest)
        out = ctx.forward([layer], x).copy()
        dx = ctx.backward([layer], np.sin(out)).copy()
        named = {name: gradients.of(value) for name, value in layer.parameters().items()}
        return {"out": out, "dx": dx, **named}

    return make


class Twice:
    """A part of one's own: twice the norm."""

    def forward(self, x, ctx):
        out = super().forward(x, ctx)
        out *= 2
        return out

    def backward(self, dout, ctx):
        return super().backward(2 * dout, ctx)


class Doubled(Twice, LayerNorm):
    """Twice a layer norm."""


class DoubledRMS(Twice, RMSNorm):
    """Twice an RMS norm."""


class Renamed(TransformerBlock):
    """A block of one's own."""


def test_gradients_are_right(layer, x, right_gradients):
    right_gradients(layer, x, ["x", *layer.parameters()])


def test_parameters(rng, small):
    layer = TransformerBlock(small(attention_bias=True), rng)
    assert list(layer.parameters()) == [
        "attention.qkv_weight", "attention.qkv_bias",
        "attention.projection_weight", "attention.projection_bias",
        "norm1.weight", "norm1.bias",
        "feed_forward.weight1", "feed_forward.bias1", "feed_forward.weight2", "feed_forward.bias2",
        "norm2.weight", "norm2.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_specification_says_where_the_parameters_lie(build, variant):
    layer = build(**VARIANTS[variant])
    assert layer.spec.shapes == {name: v.shape for name, v in layer.parameters().items()}
    found = layer.spec.unpacked(layer.flat)
    for name, value in layer.parameters().items():
        np.testing.assert_array_equal(found[name], value)
        assert np.shares_memory(found[name], value)


def silence(layer):
    """Let both sub-layers give zero."""
    attention, feed_forward = layer.attention, layer.feed_forward
    for value in (*attention.parameters().values(), *feed_forward.parameters().values()):
        value.fill(0)
    for norm in (layer.norm1, layer.norm2):
        for name, value in norm.parameters().items():
            value.fill(name == "weight")


@pytest.mark.parametrize("epsilon", [None, 0.0])
def test_what_sub_layers_leave_alone_passes_by(layer, x, context, epsilon):
    silence(layer)
    if epsilon is not None:
        layer.norm1.epsilon = layer.norm2.epsilon = epsilon
    out = layer.forward(x, context(layer, 8))
    if layer.pre_norm:
        expected = x
    else:
        centred = x - x.mean(axis=1, keepdims=True) * isinstance(layer.norm1, LayerNorm)
        expected = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(out, expected, atol=1e-12 if epsilon == 0 else 1e-4)


def test_contract(layer, x, contract):
    contract(layer, x)


def test_contract_by_parts(layer, x, contract):
    layer.by_parts = True
    contract(layer, x)


def test_the_observer_is_told_of_part_by_part(layer, x, context, recorder):
    ctx = context(layer, 3, 5, gradients=Gradients([layer]), observer=recorder)
    ctx.backward([layer], np.ones_like(ctx.forward([layer], x)))
    attention, ff, norm1, norm2 = layer.attention, layer.feed_forward, layer.norm1, layer.norm2
    parts = [norm1, attention, norm2, ff] if layer.pre_norm else [attention, norm1, ff, norm2]
    assert [part for part, _ in recorder.outputs] == [*parts, layer]
    assert [part for part, _ in recorder.gradients] == [*reversed(parts), layer]
    assert all(array.shape == x.shape for _, array in recorder.outputs + recorder.gradients)


def test_a_cache_keeps_nothing_of_another_text(layer, x, context):
    whole = layer.forward(x, context(layer, 8))
    cache = Cache(8)
    layer.forward(x[:3], context(layer, 3, cache=cache))
    cache.lengths += 3
    layer.forward(np.full((1, 6), 9.0), context(layer, 1, cache=Cache(8)))
    found = layer.forward(x[3:5], context(layer, 2, cache=cache))
    np.testing.assert_allclose(found, whole[3:5], rtol=1e-9)


@pytest.mark.parametrize("by_parts", [True, False])
def test_a_text_goes_on_whichever_way_the_block_runs(layer, x, context, close, by_parts):
    whole = layer.forward(x, context(layer, 8))
    cache, found = Cache(8), []
    for rows in (slice(0, 3), slice(3, 5), slice(5, 8)):
        layer.by_parts = by_parts
        ctx = context(layer, rows.stop - rows.start, cache=cache)
        found.append(layer.forward(x[rows], ctx))
        cache.lengths += len(found[-1])
        by_parts = not by_parts
    close(np.vstack(found), whole, 20)


def test_without_a_way_back_a_block_takes_memory_for_its_output_alone(layer, x, context):
    assert layer.fused
    workspace = Workspace(np.float64)
    context(layer, 8, workspace=workspace).forward([layer], x)
    stores = (workspace.activations, *workspace.alternating)
    assert [flat.size for store in stores for flat in store._flat.values()] == [x.size]


# One kernel, or part by part


def by_hand(layer, x, context):
    """Return the output, from those of the parts."""

    def part(name, x):
        inner = getattr(layer, name)
        return inner.forward(x, context(inner, 3, 0, 5)).copy()

    if layer.pre_norm:
        h = x + part("attention", part("norm1", x))
        return h + part("feed_forward", part("norm2", h))
    h = part("norm1", x + part("attention", x))
    return part("norm2", h + part("feed_forward", h))


def test_a_block_is_what_its_parts_make_of_it(layer, x, context, run, close):
    assert layer.fused
    assert divides_rows(layer)
    close(run(layer, x)["out"], by_hand(layer, x, context), 10)


def test_by_parts_is_at_once(layer, x, run, close, recorder):
    whole = run(layer, x)
    observed = run(layer, x, observer=recorder)
    layer.by_parts = True
    assert not layer.fused
    parts = run(layer, x)
    assert len(whole) == 2 + len(layer.parameters())
    for name, value in whole.items():
        close(parts[name], value, 20)
        close(observed[name], value, 20)


def set_epsilon1(block):
    block.norm1.epsilon = 0.5


def set_epsilon2(block):
    block.norm2.epsilon = 2.0


def set_activation(block):
    block.feed_forward.activation = "relu" if block.pre_norm else "gelu"


def set_heads(block):
    block.attention.n_heads = 3


def set_order(block):
    block.pre_norm = not block.pre_norm


def replace_norm(block):
    block.norm1 = Doubled(6, dtype=np.float64)


CHANGES = [set_epsilon1, set_epsilon2, set_activation, set_heads, set_order, replace_norm]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("variant", ["post", "GPT-2"])
def test_a_changed_block_runs_by_parts(
    build, x, context, run, close, decodes, right_gradients, change, variant
):
    layer = build(**VARIANTS[variant])
    before = run(layer, x)["out"]
    change(layer)
    assert not layer.fused
    assert not divides_rows(layer)
    out = run(layer, x)["out"]
    close(out, by_hand(layer, x, context), 10)
    assert np.abs(out - before).max() > 1e-3
    right_gradients(layer, x, ["x", *layer.parameters()])
    decodes(layer, x)


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (set_activation, {"activation": "gelu"}),
        (set_heads, {"n_heads": 3}),
        (set_order, {"norm": "pre"}),
    ],
)
def test_a_changed_block_is_one_that_was_built_so(build, x, run, close, change, settings):
    changed, built = build(), build(**settings)
    for name, value in changed.parameters().items():
        built.parameters()[name][...] = value
    change(changed)
    assert built.fused > changed.fused
    expected = run(built, x)
    for name, value in run(changed, x).items():
        close(value, expected[name], 20)


def test_parameters_and_by_parts_are_no_changes(build):
    layer = build()
    layer.norm1.weight = np.ones(6)
    layer.attention.qkv_weight[...] = 1
    layer.by_parts = True
    assert not layer.fused
    layer.by_parts = False
    assert layer.fused
    assert divides_rows(layer)


def test_a_block_of_ones_own_runs_by_parts(backend, rng, small, scrambled, x, right_gradients):
    layer = scrambled(Renamed(small(dtype="float64"), rng))
    assert not layer.fused
    assert not divides_rows(layer)
    right_gradients(layer, x, ["x", *layer.parameters()])


def test_a_part_of_ones_own_is_run(layer, x, run, close):
    norms = {"norm1": layer.norm1, "norm2": layer.norm2}
    for name in norms:
        kind = Doubled if type(norms[name]) is LayerNorm else DoubledRMS
        norm = kind(6, dtype=np.float64)
        for part, value in norms[name].parameters().items():
            setattr(norm, part, value / 2)
        setattr(layer, name, norm)
    assert layer.parameters()["norm1.weight"] is layer.norm1.weight
    found = run(layer, x)
    layer.norm1, layer.norm2 = norms.values()
    expected = run(layer, x)
    for name, value in found.items():
        share = 2 if name.startswith("norm") else 1
        close(value, share * expected[name], 20)


@pytest.mark.parametrize("change", [None, set_epsilon1, replace_norm])
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["copy", "deepcopy", "pickle"],
)  # fmt: skip
def test_a_copy_runs_as_the_block_does(build, x, run, copied, change):
    layer = build()
    if change:
        change(layer)
    expected = run(layer, x)
    twin = copied(layer)
    for value in layer.parameters().values():
        value.fill(np.nan)
    assert twin.fused == divides_rows(twin) == (change is None)
    assert twin.spec.shapes == layer.spec.shapes
    found = run(twin, x)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], name)


def test_describe(layer):
    assert layer.describe() == f"TransformerBlock({'pre' if layer.pre_norm else 'post'}-norm)"


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_round_to_bfloat16_as_the_whole_does(build, rng, run, close, variant):
    if not has_bfloat16():
        pytest.skip("these kernels have no bfloat16")
    layer = build(dtype="float32", **VARIANTS[variant])
    x = rng.standard_normal((8, 6)).astype(np.float32)
    whole, exact = run(layer, x, bfloat16=True), run(layer, x)
    layer.by_parts = True
    parts = run(layer, x, bfloat16=True)
    for name, without in exact.items():
        close(parts[name], whole[name], 100)
        assert np.abs(whole[name] - without).max() > 1e-3 * np.abs(without).max()
