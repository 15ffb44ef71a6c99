"""Tests of what travels with one pass through the layers."""

from itertools import pairwise

import numpy as np
import pytest

from rustgpt.errors import ConfigError
from rustgpt.gradient_check import gradcheck
from rustgpt.layers.cache import Cache
from rustgpt.layers.context import Context
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.layer import Layer
from rustgpt.layers.memory import Workspace
from rustgpt.layers.self_attention import SelfAttention
from rustgpt.layers.transformer import TransformerBlock
from rustgpt.reference.arrays import Shard

from ..models import Scale


def offsets_of(*lengths):
    return np.cumsum([0, *lengths], dtype=np.int32)


def slots(*numbers):
    return np.array(numbers, np.int32)


class DecayingSum(Scale):
    """Each row is its weighted sum with those before in its text; the last weighs most."""

    def forward(self, x, ctx):
        out = ctx.empty(*x.shape)
        for rows, seen in ctx.history(self, "x", x):
            n, first = len(seen), len(seen) - (rows.stop - rows.start)
            out[rows] = self.decay(n)[first:] @ seen * self.weight
        ctx.save(self, x)
        return out

    def decay(self, n):
        return np.tril(0.5 ** np.subtract.outer(np.arange(n), np.arange(n)))

    def backward(self, dout, ctx):
        (x,) = ctx.saved(self)
        dx = ctx.empty(*dout.shape)
        for a, b in pairwise(ctx.offsets):
            decay = self.decay(b - a)
            ctx.gradients.add(self.weight, (dout[a:b] * (decay @ x[a:b])).sum(axis=0))
            dx[a:b] = decay.T @ (dout[a:b] * self.weight)
        return dx


# Positions


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((3,), [0, 1, 2]),
        ((1,), [0]),
        ((0,), []),
        ((), []),
        ((3, 0, 1, 2), [0, 1, 2, 0, 0, 1]),
        ((0, 2), [0, 1]),
    ],
)
def test_without_a_cache_each_text_begins_at_position_zero(lengths, expected):
    ctx = Context(offsets_of(*lengths))
    assert ctx.positions.tolist() == expected
    assert ctx.positions.dtype == np.int32
    assert ctx.n_texts == len(lengths)


@pytest.mark.parametrize(
    ("lengths", "chosen", "expected"),
    [
        ((3,), None, [5, 6, 7]),
        ((1,), None, [5]),
        ((1,), slots(3), [2]),
        ((2,), slots(1), [0, 1]),
        ((0,), slots(3), []),
        ((1, 2), None, [5, 0, 1]),
        ((2, 0, 3), slots(3, 0, 2), [2, 3, 8, 9, 10]),
        ((1, 1), slots(2, 0), [8, 5]),
    ],
)
def test_with_a_cache_each_text_goes_on(lengths, chosen, expected):
    cache = Cache(20, slots=4)
    cache.lengths[:] = (5, 0, 8, 2)
    ctx = Context(offsets_of(*lengths), cache=cache, slots=chosen)
    starts, numbers = ctx.starts.tolist(), ctx.slots.tolist()
    assert numbers == ([*range(len(lengths))] if chosen is None else chosen.tolist())
    assert starts == [(5, 0, 8, 2)[slot] for slot in numbers]
    cache.lengths += 1  # the pass knows what was there when it began
    assert ctx.starts.tolist() == starts
    assert ctx.positions.tolist() == expected
    assert ctx.positions.dtype == ctx.slots.dtype == ctx.starts.dtype == np.int32


@pytest.mark.parametrize("n", [1, 4])
def test_positions_of_a_cache_of_one_slot(n):
    cache = Cache(20)
    cache.lengths[:] = 7
    ctx = Context(offsets_of(n), cache=cache)
    cache.lengths += n
    assert ctx.positions.tolist() == [*range(7, 7 + n)]


def test_the_rows_of_a_thread_are_those_of_its_shard():
    edges = np.array([0, 3, 8], np.int32)
    x = np.arange(8)
    assert Context(offsets_of(3, 5)).rows == slice(None)
    shards = [Shard(i, edges, False, None) for i in range(2)]
    found = [x[Context(offsets_of(3, 5), shard=shard).rows].tolist() for shard in shards]
    assert found == [[0, 1, 2], [3, 4, 5, 6, 7]]


# What is saved


def test_what_was_saved_last_comes_back_first():
    one, two = Scale(), Scale()
    ctx = Context(offsets_of(1), gradients=Gradients([one, two]))
    assert ctx.training
    ctx.save(one, "a", 1)
    ctx.save(two)
    ctx.save(one, "b")
    assert ctx.saved(one) == ("b",)
    assert ctx.saved(two) == ()
    assert ctx.saved(one) == ("a", 1)


def test_another_layer_gets_nothing_of_what_was_saved():
    one, two = Scale(), DecayingSum()
    ctx = Context(offsets_of(1), gradients=Gradients([one, two]))
    with pytest.raises(ConfigError, match=r"Scale\.backward wants .*nobody saved last"):
        ctx.saved(one)
    ctx.save(one, "a")
    with pytest.raises(ConfigError, match=r"DecayingSum\.backward wants .*but Scale saved last"):
        ctx.saved(two)
    with pytest.raises(ConfigError, match="Scale saved last"):
        ctx.saved(Scale())  # not the same, although of one class
    assert ctx.saved(one) == ("a",)
    with pytest.raises(ConfigError, match="nobody saved last"):
        ctx.saved(one)


def test_without_gradients_nothing_is_saved():
    layer = Scale()
    ctx = Context(offsets_of(1))
    assert not ctx.training
    ctx.save(layer, "a")
    with pytest.raises(ConfigError, match="nobody saved last"):
        ctx.saved(layer)
    with pytest.raises(ConfigError, match="no way back"):
        _ = ctx.gradients


def test_a_layer_that_saves_in_the_wrong_order_is_told(context):
    class Around(Layer):
        def __init__(self):
            super().__init__(np.float64)
            self.inner = Scale()

        def forward(self, x, ctx):
            ctx.save(self, x)
            return self.inner.forward(x, ctx)

        def backward(self, dout, ctx):
            (x,) = ctx.saved(self)  # but the inner layer saved later
            return self.inner.backward(dout * x, ctx)

    layer, x = Around(), np.ones((2, 3))
    ctx = context(layer, 2, gradients=Gradients([layer]))
    layer.forward(x, ctx)
    with pytest.raises(ConfigError, match=r"Around\.backward wants .*but Scale saved last"):
        layer.backward(x, ctx)


# Memory


class Probe(Layer):
    """Takes memory both ways, and checks that what it was given and took is left alone."""

    def __init__(self, number, taken):
        super().__init__(np.float64)
        self.number, self.taken = number, taken

    def take(self, ctx, way, value):
        """Take four arrays, all different, and write a value to them."""
        arrays = [ctx.empty(4, 3), ctx.empty(5), ctx.temporary(4, 3), ctx.temporary(2)]
        for i, array in enumerate(arrays):
            assert not any(np.shares_memory(array, other) for other in arrays[:i])
            array.fill(value + i / 10)
        self.taken[way, self.number] = arrays
        return arrays

    def forward(self, x, ctx):
        given = x.copy()
        out, kept, *temporary = self.take(ctx, "forward", self.number)
        assert not np.shares_memory(out, x)
        np.testing.assert_array_equal(x, given)
        assert (temporary[0] == self.number + 0.2).all()
        ctx.save(self, x, given, kept)
        return out

    def backward(self, dout, ctx):
        x, given, kept = ctx.saved(self)
        before = dout.copy()
        dx, *others = self.take(ctx, "backward", -self.number)
        for array in (dx, *others):
            assert not any(np.shares_memory(array, held) for held in (x, kept, dout))
        np.testing.assert_array_equal(dout, before)
        np.testing.assert_array_equal(x, given)
        assert (kept == self.number + 0.1).all()
        return dx


def probes():
    """Return five layers, and what they will take."""
    taken = {}
    return [Probe(i, taken) for i in range(1, 6)], taken


def overlap(arrays, others):
    return any(np.shares_memory(one, other) for one in arrays for other in others)


def test_memory_of_a_training_pass_holds_until_its_layer_has_gone_back():
    layers, taken = probes()
    ctx = Context(offsets_of(4), np.float64, gradients=Gradients(layers))
    out = ctx.forward(layers, np.zeros((4, 3)))
    assert (out == 5).all()
    for i in range(1, 6):
        empty = taken["forward", i][:2]
        assert [array[0].max() for array in empty] == [i, i + 0.1]
        assert not any(overlap(empty, taken["forward", j][:2]) for j in range(1, i))
    assert (ctx.backward(layers, np.full((4, 3), 9.0)) == -1).all()
    backward = [taken["backward", i][:2] for i in range(5, 0, -1)]
    for above, below in pairwise(backward):
        assert not overlap(above, below)
    for above, below in zip(backward, backward[2:], strict=False):
        assert np.shares_memory(above[0], below[0])  # so no more is needed for more layers
    for empty in backward:
        assert not any(overlap(empty, taken["forward", i][:2]) for i in range(1, 6))


def test_memory_without_a_way_back_holds_until_the_layer_above_has_returned():
    layers, taken = probes()
    ctx = Context(offsets_of(4), np.float64)
    assert (ctx.forward(layers[:3], np.zeros((4, 3))) == 3).all()
    assert (ctx.forward(layers[3:], taken["forward", 3][0]) == 5).all()  # it goes on
    empty = [taken["forward", i][:2] for i in range(1, 6)]
    for below, above in pairwise(empty):
        assert not overlap(below, above)
    for below, above in zip(empty, empty[2:], strict=False):
        assert np.shares_memory(below[0], above[0])


@pytest.mark.parametrize("training", [True, False])
def test_temporary_memory_is_the_next_layers_too(training):
    layers, taken = probes()
    gradients = Gradients(layers) if training else None
    ctx = Context(offsets_of(4), np.float64, gradients=gradients)
    ctx.forward(layers, np.zeros((4, 3)))
    if training:
        ctx.backward(layers, np.zeros((4, 3)))
    temporary = [arrays[2:] for arrays in taken.values()]
    empty = [arrays[:2] for arrays in taken.values()]
    assert len(temporary) == (10 if training else 5)
    for arrays in temporary[1:]:
        assert np.shares_memory(arrays[0], temporary[0][0])
        assert np.shares_memory(arrays[1], temporary[0][1])
    assert not any(overlap(one, other) for one in temporary for other in empty)


def test_the_next_pass_takes_the_memory_of_the_last():
    layers, taken = probes()
    workspace, found = Workspace(np.float64), []
    for _ in range(2):
        ctx = Context(offsets_of(4), gradients=Gradients(layers), workspace=workspace)
        assert ctx.dtype == np.float64
        ctx.backward(layers, ctx.forward(layers, np.zeros((4, 3))))
        found.append({place: [id(array) for array in arrays] for place, arrays in taken.items()})
    assert found[0] == found[1]
    other, taken = probes()
    Context(offsets_of(4), np.float64).forward(other, np.zeros((4, 3)))
    assert id(taken["forward", 1][0]) != found[0]["forward", 1][0]


def test_threads_of_a_batch_share_all_but_what_is_temporary():
    one = Workspace(np.float64)
    found = []
    for workspace in (one, Workspace(np.float64, shared=one)):
        layers, taken = probes()
        ctx = Context(offsets_of(4), gradients=Gradients(layers), workspace=workspace)
        ctx.backward(layers, ctx.forward(layers, np.zeros((4, 3))))
        found.append(taken)
    for place, arrays in found[0].items():
        others = found[1][place]
        shared = [np.shares_memory(a, b) for a, b in zip(arrays, others, strict=True)]
        assert shared == [True, True, False, False]


# The cache


def test_history_without_a_cache_is_each_text():
    x = np.arange(12.0).reshape(6, 2)
    found = [*Context(offsets_of(3, 0, 3)).history(Scale(), "x", x)]
    assert [rows for rows, _ in found] == [slice(0, 3), slice(3, 3), slice(3, 6)]
    assert [seen.tolist() for _, seen in found] == [x[:3].tolist(), [], x[3:].tolist()]


def test_history_with_a_cache_is_what_came_before_too():
    layer, cache = Scale(), Cache(5, slots=3)
    x = np.arange(16.0).reshape(8, 2)

    def go_on(x, lengths, *numbers):
        ctx = Context(offsets_of(*lengths), np.float64, cache=cache, slots=slots(*numbers))
        found = [(rows, seen.tolist()) for rows, seen in ctx.history(layer, "x", x)]
        other = [seen.tolist() for _, seen in ctx.history(layer, "y", -x)]
        assert other == [(-np.array(seen)).tolist() for _, seen in found]
        cache.lengths[slots(*numbers)] += lengths
        return found

    assert go_on(x[:3], (2, 1), 2, 0) == [
        (slice(0, 2), x[:2].tolist()), (slice(2, 3), x[2:3].tolist())
    ]  # fmt: skip
    assert go_on(x[3:6], (1, 0, 2), 0, 1, 2) == [
        (slice(0, 1), x[[2, 3]].tolist()),
        (slice(1, 1), []),
        (slice(1, 3), x[[0, 1, 4, 5]].tolist()),
    ]
    assert go_on(x[6:], (1, 1), 2, 1) == [
        (slice(0, 1), x[[0, 1, 4, 5, 6]].tolist()), (slice(1, 2), x[7:].tolist())
    ]  # fmt: skip


def test_what_is_cached_is_asked_for_in_vain_without_a_cache(context):
    layer = Scale()
    with pytest.raises(ConfigError, match="no cache: give its Context a `cache`"):
        context(layer, 1).cached(layer, "x", 3)


def test_layers_do_not_find_what_others_have_in_the_cache(context):
    one, two, cache = Scale(), Scale(), Cache(5, slots=2)
    ctx = context(one, 1, 1, cache=cache)
    found = [ctx.cached(layer, "x", 3) for layer in (one, two, one, two, one)]
    for i, array in enumerate(found):
        assert array.shape == (2, 5, 3)
        assert not any(np.shares_memory(array, other) for other in found[:i])
    again = context(one, 1, 1, cache=cache)
    assert again.cached(one, "x", 3) is found[0]
    assert again.cached(one, "x", 3) is found[2]
    assert again.cached(two, "x", 3) is found[1]


# A layer that comes twice


class Twice(Layer):
    """The same layer, two times."""

    def __init__(self, inner):
        super().__init__(np.float64)
        self.dim = inner.dim
        self.inner = inner

    def forward(self, x, ctx):
        return self.inner.forward(self.inner.forward(x, ctx), ctx)

    def backward(self, dout, ctx):
        return self.inner.backward(self.inner.backward(dout, ctx), ctx)


@pytest.mark.parametrize("kind", ["scale", "sum", "attention", "block"])
def test_a_layer_can_come_twice_in_one_pass(backend, rng, small, decodes, kind):
    made = {
        "scale": Scale,
        "sum": DecayingSum,
        "attention": lambda: SelfAttention(6, 2, rng, dtype=np.float64),
        "block": lambda: TransformerBlock(small(dtype="float64"), rng),
    }
    layer = Twice(made[kind]())
    report = gradcheck(layer)
    assert report, report
    assert set(report.errors) >= {f"inner.{name}" for name in layer.inner.parameters()}
    decodes(layer, rng.standard_normal((8, layer.dim)))


@pytest.mark.parametrize("kind", ["sum", "block"])
def test_a_list_of_layers_can_have_one_twice(backend, rng, small, kind, close):
    layer = DecayingSum() if kind == "sum" else TransformerBlock(small(dtype="float64"), rng)
    x = rng.standard_normal((8, layer.dim))
    whole = Context(offsets_of(8), np.float64).forward([layer, layer], x).copy()
    cache, found = Cache(8), []
    for n in (3, 1, 4):
        first = cache.lengths[0]
        ctx = Context(offsets_of(n), np.float64, cache=cache)
        found.append(ctx.forward([layer, layer], x[first : first + n]).copy())
        cache.lengths += n
    close(np.vstack(found), whole, 10)


# The observer


def test_the_observer_is_told_of_every_layer_in_order(recorder):
    layers = [Scale(), DecayingSum(), Scale()]
    ctx = Context(offsets_of(2), np.float64, gradients=Gradients(layers), observer=recorder)
    out = ctx.forward(layers, np.ones((2, 3)))
    assert [layer for layer, _ in recorder.outputs] == layers
    assert recorder.outputs[-1][1] is out
    np.testing.assert_array_equal(recorder.outputs[0][1], [layers[0].weight] * 2)
    assert not recorder.gradients
    dx = ctx.backward(layers, np.ones((2, 3)))
    assert [layer for layer, _ in recorder.gradients] == layers[::-1]
    assert recorder.gradients[-1][1] is dx
    np.testing.assert_array_equal(recorder.gradients[0][1], [layers[2].weight] * 2)
    assert len(recorder.outputs) == 3


class Chain(Layer):
    """out = x + b(a(x)), its parts run as a chain."""

    def __init__(self):
        super().__init__(np.float64)
        self.a, self.b = Scale(), Scale()

    def forward(self, x, ctx):
        return x + ctx.forward([self.a, self.b], x)

    def backward(self, dout, ctx):
        return dout + ctx.backward([self.a, self.b], dout)


@pytest.mark.parametrize("training", [True, False])
def test_a_chain_within_a_layer_leaves_the_layers_input_alone(rng, training):
    layers = [Scale(), Scale(), Chain()]
    x, workspace = rng.standard_normal((3, 3)), Workspace(np.float64)
    gradients = Gradients(layers) if training else None
    expected = x * np.prod([layer.weight for layer in layers[:2]], axis=0)
    expected = expected + expected * layers[2].a.weight * layers[2].b.weight
    for _ in range(3):  # the memory of the pass before is used again
        if gradients:
            gradients.begin()
        ctx = Context(offsets_of(3), np.float64, gradients=gradients, workspace=workspace)
        np.testing.assert_allclose(ctx.forward(layers, x), expected, rtol=1e-12)
        if gradients:
            factor = expected / x
            np.testing.assert_allclose(ctx.backward(layers, np.ones_like(x)), factor, rtol=1e-12)


def test_a_pass_with_a_cache_has_no_way_back():
    with pytest.raises(ConfigError, match="no way back"):
        Context(offsets_of(1), gradients=Gradients([Scale()]), cache=Cache(3))
