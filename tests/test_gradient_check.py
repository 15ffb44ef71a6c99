"""Tests of the gradient checker: right layers pass, every wrong one is caught."""

import math
from itertools import pairwise

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

from .models import Scale

PASSES = ["two passes at once", "with a cache"]


class RunningMean(Layer):
    """A layer that mixes the rows of a text: each is the mean of those so far."""

    dim = 3

    def forward(self, x, ctx):
        out = np.empty_like(x)
        for rows, seen in ctx.history(self, "x", x):
            means = np.cumsum(seen, axis=0) / np.arange(1, len(seen) + 1)[:, None]
            out[rows] = means[len(seen) - (rows.stop - rows.start) :]
        ctx.save(self, ctx.offsets)
        return out

    def backward(self, dout, ctx):
        (offsets,) = ctx.saved(self)
        dx = np.empty_like(dout)
        for a, b in pairwise(offsets):
            share = dout[a:b] / np.arange(1, b - a + 1)[:, None]
            dx[a:b] = np.cumsum(share[::-1], axis=0)[::-1]
        return dx


def wrong_names(report):
    """Return what is out of tolerance."""
    return {name for name, error in report.errors.items() if not error <= 1}


def test_right_layers_pass(backend):
    report = gradcheck(Scale(4))
    assert report
    assert report.passed
    assert list(report.errors) == ["x", "weight", *PASSES]
    assert gradcheck(RunningMean(np.float64))
    assert gradcheck(LayerNorm(5, dtype=np.float64))


@pytest.mark.parametrize("lengths", [(8,), (1, 1, 1), (2, 0, 3), (0, 4, 0), (1,)])
def test_right_layers_pass_for_texts_of_any_length(backend, rng, lengths):
    assert gradcheck(Scale(4), lengths=lengths)
    assert gradcheck(RunningMean(np.float64), lengths=lengths)
    assert gradcheck(SelfAttention(4, 2, rng, dtype=np.float64), lengths=lengths)


def test_the_layers_of_the_package_pass_without_an_input(backend, rng, small):
    assert gradcheck(FeedForward(4, 5, rng, "gelu", np.float64))
    assert gradcheck(SelfAttention(4, 2, rng, dtype=np.float64))
    assert gradcheck(TransformerBlock(small(dtype="float64"), rng))


class WrongSign(Scale):
    def backward(self, dout, ctx):
        return -super().backward(dout, ctx)


class WrongFactor(Scale):
    def backward(self, dout, ctx):
        return super().backward(dout, ctx) * (1 + 1e-5)


class NoParameterGradient(Scale):
    def backward(self, dout, ctx):
        return dout * self.weight


class MeanForSum(Scale):
    def backward(self, dout, ctx):
        (x,) = ctx.saved(self)
        ctx.gradients.add(self.weight, (dout * x).mean(axis=0))
        return dout * self.weight


class OneNumberWrong(Scale):
    def backward(self, dout, ctx):
        dx = super().backward(dout, ctx)
        dx[5, 2] *= 1.001
        return dx


class NotANumber(Scale):
    def backward(self, dout, ctx):
        ctx.gradients.add(self.weight, np.full(self.dim, np.nan))
        return dout * self.weight


class NotANumberInTheInput(Scale):
    def backward(self, dout, ctx):
        return super().backward(dout, ctx) * np.inf


class ForgetsTheTexts(RunningMean):
    def backward(self, dout, ctx):
        ctx.saved(self)
        ctx.save(self, np.array([0, len(dout)]))
        return super().backward(dout, ctx)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        (WrongSign(4), {"x"}),
        (WrongFactor(4), {"x"}),
        (NoParameterGradient(4), {"weight"}),
        (MeanForSum(4), {"weight"}),
        (OneNumberWrong(4), {"x"}),
        (NotANumber(4), {"weight", "two passes at once"}),
        (NotANumberInTheInput(4), {"x", "two passes at once"}),
        (ForgetsTheTexts(np.float64), {"x"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Layer) else "",
)
def test_wrong_layers_are_caught(wrong, names):
    report = gradcheck(wrong)
    assert not report
    assert wrong_names(report) == names
    assert str(report).count("WRONG") == len(names)


class Gelu(Layer):
    """GELU with a constant of one's own in the backward."""

    dim = 5

    def __init__(self, cubic):
        super().__init__(np.float64)
        self.cubic = cubic

    def forward(self, x, ctx):
        ctx.save(self, x)
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def backward(self, dout, ctx):
        (x,), root = ctx.saved(self), math.sqrt(2 / math.pi)
        t = np.tanh(root * (x + self.cubic * x**3))
        slope = root * (1 + 3 * self.cubic * x**2)
        return dout * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * slope)


def test_a_digit_that_is_missing_is_caught():
    assert gradcheck(Gelu(0.044715))
    assert not gradcheck(Gelu(0.04472))


def test_a_gradient_that_is_not_added_to_is_caught():
    class Overwriting(Scale):
        def backward(self, dout, ctx):
            (x,) = ctx.saved(self)
            ctx.gradients.of(self.weight)[...] = (dout * x).sum(axis=0)
            return dout * self.weight

    report = gradcheck(Overwriting(3))
    assert report.errors["x"] <= 1 < report.errors["weight"]


def test_one_wrong_number_among_many_is_caught():
    class NearlyRight(Scale):
        def backward(self, dout, ctx):
            dx = super().backward(dout, ctx)
            dx[0, 0] *= 1 + 5e-6  # five times what is allowed; the mean over all would pass
            return dx

    report = gradcheck(NearlyRight(8))
    assert not report
    assert 2 < report.errors["x"] < 6
    assert report.errors["weight"] <= 1


# What is kept of a pass


class KeepsItsInput(Scale):
    """A layer that keeps its input on itself, in an attribute that its constructor made."""

    def __init__(self, dim):
        super().__init__(dim)
        self.x = None

    def forward(self, x, ctx):
        self.x = x
        return x * self.weight

    def backward(self, dout, ctx):
        ctx.gradients.add(self.weight, (dout * self.x).sum(axis=0))
        return dout * self.weight


class KeepsItsMask(Layer):
    """The same without parameters: a ReLU."""

    dim = 5
    mask = None

    def forward(self, x, ctx):
        self.mask = x > 0
        return x * self.mask

    def backward(self, dout, ctx):
        return dout * self.mask


class KeepsAList(Scale):
    """The same with a list, which is never another."""

    def __init__(self, dim):
        super().__init__(dim)
        self.inputs = []

    def forward(self, x, ctx):
        self.inputs.append(x)
        return x * self.weight

    def backward(self, dout, ctx):
        ctx.gradients.add(self.weight, (dout * self.inputs.pop()).sum(axis=0))
        return dout * self.weight


@pytest.mark.parametrize("layer", [KeepsItsInput(4), KeepsItsMask(np.float64), KeepsAList(4)])
def test_what_a_layer_keeps_of_a_pass_on_itself_is_caught(layer):
    assert wrong_names(gradcheck(layer)) == {"two passes at once"}


def test_what_a_constructor_did_not_make_cannot_be_kept():
    class Late(Scale):
        def forward(self, x, ctx):
            self.x = x
            return x * self.weight

    with pytest.raises(ConfigError, match=r"Late\.x cannot be set"):
        gradcheck(Late(4))


# What a layer sees of the rows before


class SeesTheBatchAlone(RunningMean):
    """Rows see those before in the batch, but not those in the cache."""

    def forward(self, x, ctx):
        out = np.empty_like(x)
        for a, b in pairwise(ctx.offsets):
            out[a:b] = np.cumsum(x[a:b], axis=0) / np.arange(1, b - a + 1)[:, None]
        ctx.save(self, ctx.offsets)
        return out


class CountsFromZero(Scale):
    """Rows depend on their position, but not on that in the cache."""

    def forward(self, x, ctx):
        places = np.concatenate([np.arange(n) for n in np.diff(ctx.offsets)])
        ctx.save(self, x * (1 + places[:, None]), 1 + places[:, None])
        return x * (1 + places[:, None]) * self.weight

    def backward(self, dout, ctx):
        x, factor = ctx.saved(self)
        ctx.gradients.add(self.weight, (dout * x).sum(axis=0))
        return dout * factor * self.weight


class CountsOn(CountsFromZero):
    """The same with the positions of the pass."""

    def forward(self, x, ctx):
        factor = 1 + ctx.positions[:, None]
        ctx.save(self, x * factor, factor)
        return x * factor * self.weight


class MixesUpTexts(RunningMean):
    """Right for a single text in the cache alone: it always looks into the first slot."""

    def forward(self, x, ctx):
        if ctx.cache is not None:
            ctx.slots = np.zeros_like(ctx.slots)
        return super().forward(x, ctx)


def test_a_layer_that_does_not_see_the_cache_is_caught():
    assert wrong_names(gradcheck(SeesTheBatchAlone(np.float64))) == {"with a cache"}
    assert wrong_names(gradcheck(CountsFromZero(4))) == {"with a cache"}
    assert wrong_names(gradcheck(MixesUpTexts(np.float64))) == {"with a cache"}
    assert gradcheck(CountsOn(4))
    for right in (SeesTheBatchAlone, MixesUpTexts):  # where it does not matter
        assert gradcheck(right(np.float64), lengths=(1,))


# What is asked for


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
    assert list(report.errors) == ["tokens", "places", *PASSES]


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


@pytest.mark.parametrize("seed", [-1, 1.5, None, "1"])
def test_a_seed_must_be_a_whole_number(seed):
    with pytest.raises(ConfigError, match="seed must be a whole number from 0 to"):
        gradcheck(Scale(4), seed=seed)


def test_the_seed_decides_the_input():
    class Kink(Scale):
        """Wrong for some inputs alone."""

        def backward(self, dout, ctx):
            dx = super().backward(dout, ctx)
            return dx * (1.01 if dout[0, 0] > 0 else 1)

    found = [gradcheck(Kink(4), seed=seed).errors["x"] for seed in (0, 0, 1, 2, 3, 4, 5)]
    assert found[0] == found[1]
    assert min(found) <= 1 < max(found)


def test_without_a_size_x_must_be_given():
    class Nameless(Layer):
        pass

    with pytest.raises(ConfigError, match="dim"):
        gradcheck(Nameless(np.float64))


class AddsToWhatWasThere(Scale):
    """Adds to a gradient that it has claimed, without being told to."""

    def backward(self, dout, ctx):
        (x,) = ctx.saved(self)
        gradient, _ = ctx.gradients.claim(self.weight)
        gradient += (dout * x).sum(axis=0)
        return dout * self.weight


class AddsToEmptyMemory(Scale):
    """Takes memory for filled with zeros."""

    def backward(self, dout, ctx):
        dx = ctx.empty(*dout.shape)
        dx += super().backward(dout, ctx)
        return dx


def test_what_relies_on_zeros_is_caught():
    assert "weight" in wrong_names(gradcheck(AddsToWhatWasThere(4)))
    assert "x" in wrong_names(gradcheck(AddsToEmptyMemory(4)))
