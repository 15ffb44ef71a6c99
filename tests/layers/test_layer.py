"""Tests of what every layer is made of: parameters, inner layers, copies."""

import copy
import pickle

import numpy as np
import pytest

from rustgpt.errors import ConfigError
from rustgpt.layers.context import Context
from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.feed_forward import FeedForward
from rustgpt.layers.layer import Layer, divides_rows, normal
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.layers.self_attention import SelfAttention
from rustgpt.llm import LLM, build_layers


def pickled(layer):
    """Return a copy that went through bytes."""
    return pickle.loads(pickle.dumps(layer))


COPIES = [copy.copy, copy.deepcopy, pickled]


class Inner(Layer):
    mark = 0

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


class Late(Outer):
    """A layer whose constructor goes on after that of its base."""

    def __init__(self):
        super().__init__()
        self.after = 1


class Twice(Layer):
    """The same layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = self.second = Inner()


# Parameters


def test_a_parameter_is_an_attribute(dtype):
    layer = Inner(dtype)
    assert layer.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert layer.weight.dtype == layer.dtype == dtype
    assert layer.parameters()["weight"] is layer.weight


def test_names_of_inner_layers_are_joined_in_order():
    layer = Outer()
    assert list(layer.parameters()) == ["bias", "first.weight", "second.weight"]
    assert list(layer.parameters("layers.3")) == [
        "layers.3.bias", "layers.3.first.weight", "layers.3.second.weight"
    ]  # fmt: skip
    assert list(layer.parameters(seen={id(layer.first)})) == ["bias", "second.weight"]
    assert layer.n_parameters == 2 + 6 + 6


def test_walk_yields_each_layer_once_with_its_path():
    layer, twice = Outer(), Twice()
    found = [("", layer), ("first", layer.first), ("second", layer.second)]
    assert [*layer.walk()] == found
    assert [path for path, _ in layer.walk("layers.3")] == [
        "layers.3", "layers.3.first", "layers.3.second"
    ]  # fmt: skip
    assert [*twice.walk()] == [("", twice), ("first", twice.first)]
    seen = {id(layer.first)}
    assert [path for path, _ in layer.walk("", seen)] == ["", "second"]
    assert [*layer.walk("", seen)] == []


def test_a_layer_under_two_names_has_its_parameters_once():
    layer = Twice()
    assert list(layer.parameters()) == ["first.weight"]
    assert layer.n_parameters == 6


@pytest.mark.parametrize("kind", [list, tuple])
def test_layers_in_a_list_are_refused(kind):
    class Hidden(Layer):
        def __init__(self):
            super().__init__()
            self.parts = kind([Inner(), Inner()])

    with pytest.raises(ConfigError, match=r"Hidden\.parts"):
        Hidden().parameters()


def test_what_is_given_for_a_parameter_is_copied_into_it(dtype):
    layer = Inner(dtype)
    weight, given = layer.weight, np.full((2, 3), 8)
    layer.weight = given
    assert layer.weight is weight
    assert (weight == 8).all()
    given[0, 0] = 9
    layer.weight += 1
    assert layer.weight is weight
    assert (weight == 9).all()


@pytest.mark.parametrize("wrong", [np.zeros((3, 2)), np.zeros(6), 1.0, None, np.full((2, 3), "x")])
def test_what_does_not_fit_a_parameter_is_refused(wrong):
    layer = Inner()
    with pytest.raises(ConfigError, match=r"Inner\.weight must be float32 of shape \(2, 3\)"):
        layer.weight = wrong
    assert layer.weight.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_built_layer_takes_no_new_attributes():
    for layer in (Late(), *(copied(Late()) for copied in COPIES)):
        layer.after, layer.note, layer.first.mark = 2, "other", 3
        assert (layer.after, layer.note, layer.first.mark, layer.second.mark) == (2, "other", 3, 0)
        for owner, name in ((layer, "x"), (layer, "third"), (layer.first, "x")):
            with pytest.raises(ConfigError, match=rf"{type(owner).__name__}\.{name} .*ctx\.save"):
                setattr(owner, name, Inner())
            assert not hasattr(owner, name)
        assert layer.n_parameters == 14


def test_forward_and_backward_are_left_to_the_layer():
    ctx = Context(np.array([0, 1], np.int32))
    with pytest.raises(NotImplementedError):
        Inner().forward(np.ones((1, 2)), ctx)
    with pytest.raises(NotImplementedError):
        Inner().backward(np.ones((1, 2)), ctx)


def test_describe_is_the_name():
    assert Outer().describe() == "Outer"


def test_initial_values_are_the_same_for_every_floating_type():
    make = [normal(np.random.default_rng(5), 0.3, (200, 100), dtype) for dtype in ("f4", "f8")]
    assert [values.dtype for values in make] == [np.float32, np.float64]
    np.testing.assert_array_equal(*make)
    assert make[1].mean() == pytest.approx(0, abs=0.01)
    assert make[1].std() == pytest.approx(0.3, rel=0.02)


def test_without_a_source_initial_values_are_zero():
    assert not normal(None, 0.3, (4, 5), np.float64).any()


# In a model


def test_bind_moves_parameters_into_a_flat_array(dtype):
    layer = Outer(dtype)
    layer.first.weight[1, 2] = 50
    flat = np.full(20, -1, dtype)
    assert layer.bind(flat, "layers.3") == 14
    assert flat.tolist() == [7, 7, 0, 1, 2, 3, 4, 50, 0, 1, 2, 3, 4, 5, *[-1] * 6]
    flat[:] = np.arange(20)
    assert layer.bias.tolist() == [0, 1]
    assert layer.first.weight.tolist() == [[2, 3, 4], [5, 6, 7]]
    assert layer.second.weight.tolist() == [[8, 9, 10], [11, 12, 13]]
    assert [inner.path for _, inner in layer.walk()] == [
        "layers.3", "layers.3.first", "layers.3.second"
    ]  # fmt: skip
    assert layer.flat.tolist() == [*range(14)]
    assert layer.second.flat.tolist() == [*range(8, 14)]
    assert np.shares_memory(layer.flat, flat)


def test_outside_of_a_model_a_layer_has_no_place():
    layer = Outer()
    assert [(inner.path, inner.flat) for _, inner in layer.walk()] == [("", None)] * 3


def test_a_layer_that_comes_twice_is_bound_once():
    one, two, flat, seen = Outer(), Twice(), np.zeros(30, np.float32), set()
    vars(one)["second"] = two.first
    taken = one.bind(flat, "layers.1", seen)
    assert taken == 14
    assert one.bind(flat[taken:], "layers.2", seen) == 0
    assert two.bind(flat[taken:], "layers.3", seen) == 0
    assert one.path == "layers.1"
    assert two.first.path == "layers.1.second"
    assert one.flat.size == 14
    assert two.flat is None  # its parameters are elsewhere
    assert not flat[taken:].any()


# Copies


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_has_parameters_of_its_own(backend, copied, rng, context):
    layer = LayerNorm(4)
    x = rng.standard_normal((3, 4)).astype(np.float32)
    expected = layer.forward(x, context(layer, 3))
    twin = copied(layer)
    twin.weight[0] = 2
    assert layer.weight[0] == 1
    found = twin.forward(x, context(twin, 3))
    np.testing.assert_array_equal(found[:, 1:], expected[:, 1:])
    np.testing.assert_array_equal(found[:, 0], 2 * expected[:, 0])


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_has_inner_layers_of_its_own(copied):
    layer, twice = Outer(), copied(Twice())
    twin = copied(layer)
    assert type(twin) is Outer
    assert twin.first is not layer.first
    twin.first.weight += 1
    assert layer.first.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert twin.parameters()["first.weight"] is twin.first.weight
    assert twice.first is twice.second


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_is_not_in_the_model_of_the_layer(copied, small, letters):
    config = small(norm="pre")
    model = LLM(config, letters)
    assert model.layers[2].path == "layers.2"
    for layer in model.layers:
        twin = copied(layer)
        assert twin.path == ""
        for name, value in twin.parameters().items():
            np.testing.assert_array_equal(value, layer.parameters()[name])
            assert not np.shares_memory(value, model.parameters)
    twins = [copied(layer) for layer in model.layers]
    other = LLM(config, letters, twins)
    np.testing.assert_array_equal(other.parameters, model.parameters)
    assert twins[2].path == "layers.2"
    with pytest.raises(ConfigError, match="another model"):
        LLM(config, letters, [*build_layers(config, 28)[:2], *model.layers[2:]])


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_a_tied_layer_leaves_the_table_to_its_model(copied, small, letters):
    config = small(tie_embeddings=True)
    model = LLM(config, letters)
    twin = copied(model.layers[-1])
    assert twin.tied
    assert not hasattr(twin, "weight")
    other = LLM(config, letters, [*build_layers(config, 28)[:-1], twin])
    assert twin.weight is other.layers[0].tokens


# Whether threads may divide the rows


def test_layers_that_divide_rows():
    rng = np.random.default_rng(1)
    assert divides_rows(LayerNorm(4))
    assert divides_rows(Embeddings(3, 3, 2, rng))
    assert divides_rows(OutputProjection(2, 3, rng))
    assert not divides_rows(FeedForward(2, 2, rng))
    assert not divides_rows(SelfAttention(2, 1, rng))
    assert not divides_rows(Inner())


def test_a_subclass_with_a_way_of_its_own_says_anew_whether_it_divides_rows():
    class Renamed(LayerNorm):
        def describe(self):
            return "Norm"

    class Forward(LayerNorm):
        def forward(self, x, ctx):
            return super().forward(x, ctx)

    class Backward(LayerNorm):
        def backward(self, dout, ctx):
            return super().backward(dout, ctx)

    class Below(Forward):
        pass

    class Said(Forward):
        divides_rows = True

    class SaidInTheSameClass(LayerNorm):
        divides_rows = True

        def forward(self, x, ctx):
            return super().forward(x, ctx)

    class Mixin:
        def forward(self, x, ctx):
            return super().forward(x, ctx)

    class Mixed(Mixin, LayerNorm):
        pass

    class No(LayerNorm):
        divides_rows = False

    expected = {
        Renamed: True, Forward: False, Backward: False, Below: False, Said: True,
        SaidInTheSameClass: True, Mixed: False, No: False,
    }  # fmt: skip
    assert {kind: divides_rows(kind(4)) for kind in expected} == expected
