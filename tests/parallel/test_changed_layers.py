"""Tests of models with changed layers, and layers of one's own, in several threads."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest

from rustgpt.backend import ops
from rustgpt.config import TrainConfig
from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.gpt import build_layers
from rustgpt.layers.layer import Layer
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.layers.transformer import TransformerBlock
from rustgpt.llm import LLM
from rustgpt.parallel.data_parallel import DataParallel

pytestmark = pytest.mark.usefixtures("shared")


def differentiate(model, batch, threads, times=1):
    """Return the loss and the gradients of a batch, as they are after a number of times."""
    with DataParallel(model, TrainConfig(threads=threads, batch_size=len(batch))) as parallel:
        for gradients in parallel._gradients:
            gradients.flat.fill(np.nan)  # what was there before does not matter
        for _ in range(times):
            loss = parallel.differentiate(batch, 0.1)
        return loss, parallel.gradients.copy()


class Scaled(Embeddings):
    """A change to the embeddings, with a parameter."""

    def __init__(self, *given):
        super().__init__(*given)
        self.parameter("scale", np.full(self.tokens.shape[1], 1.5))

    def forward(self, x, ctx):
        out = super().forward(x, ctx)
        ctx.save(self, out)
        return out * self.scale

    def backward(self, dout, ctx):
        (out,) = ctx.saved(self)
        ctx.gradients.add(self.scale, (dout * out).sum(axis=0))
        return super().backward(dout * self.scale, ctx)


class Same(OutputProjection):
    """A change to the output projection, which computes its loss as the original does."""


class Penalised(OutputProjection):
    """A change to the loss: large vectors cost something."""

    def loss(self, x, targets, scale, ctx, max_norm=np.inf):
        loss, dx = super().loss(x, targets, scale, ctx, max_norm)
        dx += 2 * scale * x
        return loss + float((x * x).sum()), dx


class Twice(Layer):
    """A layer of one's own, with a parameter."""

    def __init__(self):
        super().__init__("float64")
        self.parameter("factor", np.full(1, 2.0))

    def forward(self, x, ctx):
        ctx.save(self, x)
        return self.factor * x

    def backward(self, dout, ctx):
        (x,) = ctx.saved(self)
        gradient = ctx.gradients.of(self.factor)
        gradient += (dout * x).sum()
        return self.factor * dout


class Unused(Layer):
    """A layer with a parameter that no pass uses."""

    def __init__(self):
        super().__init__("float64")
        self.parameter("idle", np.ones((3, 2)))

    def forward(self, x, ctx):
        return x

    def backward(self, dout, ctx):
        return dout


@pytest.fixture(params=[Scaled, Same, Penalised, Twice, Unused, "by parts"])
def changed(request, model_of, letters):
    """A model with one change."""
    config, V = model_of().config, letters.vocab_size
    layers, rng = build_layers(config, V), np.random.default_rng(0)
    if request.param is Scaled:
        layers[0] = Scaled(V, config.max_seq_len, config.embedding_dim, rng, "float64")
    elif request.param in (Same, Penalised):
        shape = (config.embedding_dim, V, rng, config.output_bias, config.tie_embeddings)
        layers[-1] = request.param(*shape, "float64")
    elif request.param == "by parts":
        for block in layers[1:3]:
            block.by_parts = True
    else:
        layers.insert(2, request.param())
    return LLM(config, letters, layers)


@pytest.mark.parametrize("threads", [2, 3, 9])
@pytest.mark.parametrize("texts", [6, 1])
def test_several_threads_find_the_gradients_of_one(
    backend, changed, batch, by_name, threads, texts
):
    expected_loss, expected = differentiate(changed, batch[:texts], 1)
    loss, found = differentiate(changed, batch[:texts], threads, times=2)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    wanted = by_name(changed, expected)
    for name, value in by_name(changed, found).items():
        largest = np.abs(wanted[name]).max()
        assert (largest > 0) == ("idle" not in name)
        assert np.abs(value - wanted[name]).max() <= 1e-9 * largest, name


def test_the_gradient_of_a_layer_of_ones_own_is_right(backend, model_of, letters, batch):
    """As a model says whose next layer has the factor in its parameters."""
    config = model_of(norm="pre", n_layers=0, tie_embeddings=False).config
    layers = build_layers(config, letters.vocab_size)
    layers.insert(1, Twice())
    model = LLM(config, letters, layers)

    def loss(factor):
        model.layers[1].factor = [factor]
        return differentiate(model, batch, 1)[0]

    numerical = (loss(2 + 1e-5) - loss(2 - 1e-5)) / 2e-5
    model.layers[1].factor = [2.0]
    _, found = differentiate(model, batch, 3)
    place = model.layers[0].n_parameters
    assert found[place] == pytest.approx(0.1 * numerical, rel=1e-6)
    assert abs(found[place]) > 1e-6


def test_blocks_of_different_sizes_do_not_write_over_each_other(
    model_of, batch, monkeypatch, switch_backend, same_by_name
):
    switch_backend("cython")
    config = model_of().config
    layers = build_layers(dataclasses.replace(config, n_layers=0), 28)
    rng = np.random.default_rng(0)
    layers[1:1] = [
        TransformerBlock(dataclasses.replace(config, hidden_dim=hidden_dim), rng)
        for hidden_dim in (7, 10, 40)
    ]
    model = LLM(config, model_of().tokenizer, layers)
    expected_loss, expected = differentiate(model, batch, 1)
    scratch, original = [], ops.block_forward

    def spy(x, offsets, parameters, spec, out, saved, memory, *rest, **more):
        scratch.append((threading.get_ident(), memory))
        return original(x, offsets, parameters, spec, out, saved, memory, *rest, **more)

    monkeypatch.setitem(vars(ops), "block_forward", spy)
    loss, found = differentiate(model, batch, 2)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    same_by_name(model, found, expected)
    assert len({ident for ident, _ in scratch}) == 2
    for (one, mine), (other, theirs) in itertools.product(scratch, scratch):
        assert one == other or not np.shares_memory(mine, theirs)
