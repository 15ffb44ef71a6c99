"""Tests of what every layer is made of: parameters, memory, caches."""

import copy
import pickle

import numpy as np
import pytest

from rustgpt.errors import ConfigError
from rustgpt.layers.layer import Cache, Layer, normal
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.memory import Buffers


class Inner(Layer):
    def __init__(self, dtype=np.float32):
        super().__init__(dtype)
        self.parameter("weight", np.arange(6.0).reshape(2, 3))


class Outer(Layer):
    def __init__(self, dtype=np.float32):
        super().__init__(dtype)
        self.parameter("bias", np.full(2, 7.0))
        self.first = Inner(dtype)
        self.note = "no layer"
        self.second = Inner(dtype)

    def forward(self, x, offsets):
        return x + len(offsets)


def test_a_parameter_and_its_gradient_are_attributes(dtype):
    layer = Inner(dtype)
    assert layer.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert layer.weight.dtype == layer.dweight.dtype == layer.dtype == dtype
    assert layer.dweight.shape == (2, 3)
    assert not layer.dweight.any()
    assert layer.parameters()["weight"] is layer.weight
    assert layer.gradients()["weight"] is layer.dweight


def test_names_of_inner_layers_are_joined_in_order():
    layer = Outer()
    assert list(layer.parameters()) == ["bias", "first.weight", "second.weight"]
    assert list(layer.gradients()) == list(layer.parameters())
    assert [name for name, _ in layer.children()] == ["first", "second"]
    assert layer.n_parameters == 2 + 6 + 6


@pytest.mark.parametrize("kind", [list, tuple])
def test_layers_in_a_list_are_refused(kind):
    class Hidden(Layer):
        def __init__(self):
            super().__init__()
            self.parts = kind([Inner(), Inner()])

    with pytest.raises(ConfigError, match=r"Hidden\.parts"):
        Hidden().parameters()


def test_zero_grad_reaches_inner_layers():
    layer = Outer()
    for gradient in layer.gradients().values():
        gradient.fill(3)
    layer.zero_grad()
    assert not layer.dbias.any()
    assert not layer.second.dweight.any()


def test_forward_and_backward_are_left_to_the_layer():
    with pytest.raises(NotImplementedError):
        Inner().forward(np.ones((1, 2)), np.array([0, 1]))
    with pytest.raises(NotImplementedError):
        Inner().backward(np.ones((1, 2)))


def test_decode_is_forward_of_one_text():
    assert Outer().decode(np.zeros((5, 2)), Cache(9)).tolist() == [[2, 2]] * 5


def test_describe_is_the_name():
    assert Outer().describe() == "Outer"


def test_bind_moves_parameters_and_gradients_into_flat_buffers(dtype):
    layer = Outer(dtype)
    layer.first.weight[1, 2] = 50
    parameters, gradients = np.full(20, -1, dtype), np.zeros(20, dtype)
    assert layer.bind(parameters, gradients, Buffers()) == 14
    assert parameters.tolist() == [7, 7, 0, 1, 2, 3, 4, 50, 0, 1, 2, 3, 4, 5, *[-1] * 6]
    parameters[:] = np.arange(20)
    gradients[:] = np.arange(20) * 10
    assert layer.bias.tolist() == [0, 1]
    assert layer.first.weight.tolist() == [[2, 3, 4], [5, 6, 7]]
    assert layer.second.dweight.tolist() == [[80, 90, 100], [110, 120, 130]]


def test_bind_without_parameters_moves_the_gradients_alone():
    layer = Outer()
    before, gradients = layer.parameters(), np.arange(14, dtype=np.float32)
    assert layer.bind(None, gradients, Buffers()) == 14
    assert all(value is before[name] for name, value in layer.parameters().items())
    assert layer.dbias.tolist() == [0, 1]
    assert layer.second.dweight.tolist() == [[8, 9, 10], [11, 12, 13]]


def test_bound_layers_share_scratch_under_names_of_their_own():
    layer, shared = Outer(), Buffers()
    layer.bind(np.zeros(14, np.float32), np.zeros(14, np.float32), shared)
    arrays = [part.scratch("dx", 4) for part in (layer, layer.first, layer.second)]
    assert not np.shares_memory(arrays[0], arrays[1])
    assert not np.shares_memory(arrays[1], arrays[2])
    other = Outer()
    other.bind(np.zeros(14, np.float32), np.zeros(14, np.float32), shared)
    assert np.shares_memory(other.first.scratch("dx", 4), arrays[1])
    assert not np.shares_memory(other.buffer("dx", 4), layer.buffer("dx", 4))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_layer_can_be_copied(copied, rng):
    layer, offsets = LayerNorm(4), np.array([0, 3], np.int32)
    x = rng.standard_normal((3, 4)).astype(np.float32)
    expected = layer.forward(x, offsets)
    twin = copied(layer)
    twin.weight[0] = 2
    assert layer.weight[0] == 1
    np.testing.assert_array_equal(twin.forward(x, offsets)[:, 1:], expected[:, 1:])


def test_a_replica_has_inner_replicas():
    layer = Outer()
    twin = layer.replica()
    assert twin.first is not layer.first
    assert twin.first.weight is layer.first.weight
    twin.first.dweight += 1
    assert not layer.first.dweight.any()
    assert twin.first.dweight is twin.gradients()["first.weight"]


def test_a_cache_keeps_rows_for_each_layer_and_name(dtype):
    cache, one, two = Cache(9), Inner(dtype), Inner(dtype)
    assert (cache.capacity, cache.length) == (9, 0)
    rows = cache.rows(one, "keys", 4)
    assert rows.shape == (9, 4)
    assert rows.dtype == dtype
    assert cache.rows(one, "keys", 4) is rows
    assert cache.rows(one, "values", 4) is not rows
    assert cache.rows(two, "keys", 4) is not rows


def test_initial_values_are_the_same_for_every_floating_type():
    make = [normal(np.random.default_rng(5), 0.3, (200, 100), dtype) for dtype in ("f4", "f8")]
    assert [values.dtype for values in make] == [np.float32, np.float64]
    np.testing.assert_array_equal(*make)
    assert make[1].mean() == pytest.approx(0, abs=0.01)
    assert make[1].std() == pytest.approx(0.3, rel=0.02)


def test_without_a_source_initial_values_are_zero():
    assert not normal(None, 0.3, (4, 5), np.float64).any()
