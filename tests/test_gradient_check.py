"""Tests of the gradient checker: right layers pass, every wrong one is caught."""

import itertools
import math

import numpy as np
import pytest

from rustgpt.errors import ConfigError
from rustgpt.gradient_check import GradientReport, gradcheck, numerical_gradient
from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.feed_forward import FeedForward
from rustgpt.layers.layer import Layer
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.self_attention import SelfAttention
from rustgpt.layers.transformer import TransformerBlock


class Scale(Layer):
    """A layer of a user's own: out = x * weight."""

    def __init__(self, dim, dtype=np.float64):
        super().__init__(dtype)
        self.dim = dim
        self.parameter("weight", np.linspace(0.5, 2.0, dim))

    def forward(self, x, offsets):
        self.x = x
        return x * self.weight

    def backward(self, dout):
        self.dweight += (dout * self.x).sum(axis=0)
        return dout * self.weight


class RunningMean(Layer):
    """A layer that mixes the rows of a text: each is the mean of those so far."""

    dim = 3

    def forward(self, x, offsets):
        self.offsets = offsets
        out = np.empty_like(x)
        for a, b in itertools.pairwise(offsets):
            out[a:b] = np.cumsum(x[a:b], axis=0) / np.arange(1, b - a + 1)[:, None]
        return out

    def backward(self, dout):
        dx = np.empty_like(dout)
        for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            share = dout[a:b] / np.arange(1, b - a + 1)[:, None]
            dx[a:b] = np.cumsum(share[::-1], axis=0)[::-1]
        return dx


def test_right_layers_pass(backend):
    report = gradcheck(Scale(4))
    assert report
    assert report.passed
    assert list(report.errors) == ["x", "weight"]
    assert gradcheck(RunningMean(np.float64))
    assert gradcheck(LayerNorm(5, dtype=np.float64))


def test_the_layers_of_the_package_pass_without_an_input(backend, rng, small):
    assert gradcheck(FeedForward(4, 5, rng, "gelu", np.float64))
    assert gradcheck(SelfAttention(4, 2, rng, dtype=np.float64))
    assert gradcheck(TransformerBlock(small(dtype="float64"), rng))


class WrongSign(Scale):
    def backward(self, dout):
        return -super().backward(dout)


class WrongFactor(Scale):
    def backward(self, dout):
        return super().backward(dout) * (1 + 1e-5)


class NoParameterGradient(Scale):
    def backward(self, dout):
        return dout * self.weight


class MeanForSum(Scale):
    def backward(self, dout):
        self.dweight += (dout * self.x).mean(axis=0)
        return dout * self.weight


class OneNumberWrong(Scale):
    def backward(self, dout):
        dx = super().backward(dout)
        dx[5, 2] *= 1.001
        return dx


class NotANumber(Scale):
    def backward(self, dout):
        self.dweight += np.nan
        return dout * self.weight


class ForgetsTheTexts(RunningMean):
    def backward(self, dout):
        self.offsets = np.array([0, len(dout)])
        return super().backward(dout)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        (WrongSign(4), {"x"}),
        (WrongFactor(4), {"x"}),
        (NoParameterGradient(4), {"weight"}),
        (MeanForSum(4), {"weight"}),
        (OneNumberWrong(4), {"x"}),
        (NotANumber(4), {"weight"}),
        (ForgetsTheTexts(np.float64), {"x"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Layer) else "",
)
def test_wrong_layers_are_caught(wrong, names):
    report = gradcheck(wrong)
    assert not report
    assert {name for name, error in report.errors.items() if not error <= 1} == names
    assert str(report).count("WRONG") == len(names)


class Gelu(Layer):
    """GELU with a constant of one's own in the backward."""

    dim = 5

    def __init__(self, cubic):
        super().__init__(np.float64)
        self.cubic = cubic

    def forward(self, x, offsets):
        self.x = x
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def backward(self, dout):
        x, root = self.x, math.sqrt(2 / math.pi)
        t = np.tanh(root * (x + self.cubic * x**3))
        slope = root * (1 + 3 * self.cubic * x**2)
        return dout * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * slope)


def test_a_digit_that_is_missing_is_caught():
    assert gradcheck(Gelu(0.044715))
    assert not gradcheck(Gelu(0.04472))


def test_a_gradient_that_is_not_added_to_is_caught():
    class Overwriting(Scale):
        def backward(self, dout):
            self.dweight[...] = (dout * self.x).sum(axis=0)
            return dout * self.weight

    report = gradcheck(Overwriting(3))
    assert report.errors["x"] <= 1 < report.errors["weight"]


def test_one_wrong_number_among_many_is_caught():
    class NearlyRight(Scale):
        def backward(self, dout):
            dx = super().backward(dout)
            dx[0, 0] *= 1 + 5e-6  # five times what is allowed; the mean over all would pass
            return dx

    report = gradcheck(NearlyRight(8))
    assert not report
    assert 2 < report.errors["x"] < 6
    assert report.errors["weight"] <= 1


def test_parameters_are_left_as_they_were():
    layer = Scale(4)
    before = layer.weight.copy()
    x = np.random.default_rng(1).standard_normal((8, 4))
    kept = x.copy()
    gradcheck(layer, x)
    np.testing.assert_array_equal(layer.weight, before)
    np.testing.assert_array_equal(x, kept)


def test_ids_have_no_gradient(backend, rng):
    layer = Embeddings(5, 6, 3, rng, np.float64)
    report = gradcheck(layer, np.array([4, 0, 1], np.int32), lengths=(2, 1))
    assert report
    assert list(report.errors) == ["tokens", "places"]


def test_the_report_is_a_line_for_each_gradient():
    lines = str(GradientReport({"x": 0.5, "weight": 3.0})).splitlines()
    assert len(lines) == 2
    assert "x" in lines[0]
    assert "ok" in lines[0]
    assert "WRONG" in lines[1]


def test_numerical_gradient_of_a_known_function():
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    gradient = numerical_gradient(lambda: float((x**3).sum()), x)
    np.testing.assert_allclose(gradient, [[3, 12], [0.75, 27]], rtol=1e-8)
    assert x.tolist() == [[1, -2], [0.5, 3]]


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (Scale(4, np.float32), None, "float64"),
        (Scale(4), np.ones((7, 4)), "8 rows, got 7"),
        (Gelu.__new__(Gelu), None, "dtype"),
    ],
)
def test_what_cannot_be_checked_is_an_error(layer, x, message):
    expected = AttributeError if message == "dtype" else ConfigError
    with pytest.raises(expected, match=message):
        gradcheck(layer, x)


def test_without_a_size_x_must_be_given():
    class Nameless(Layer):
        pass

    with pytest.raises(ConfigError, match="dim"):
        gradcheck(Nameless(np.float64))
