"""Tests of layers in one buffer: their copies, and what cannot take the parameters away unseen."""

import copy
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from rustgpt.config import TrainConfig
from rustgpt.errors import ConfigError
from rustgpt.layers.cache import Cache
from rustgpt.layers.context import Context
from rustgpt.layers.gpt import build_layers
from rustgpt.layers.transformer import TransformerBlock
from rustgpt.llm import LLM
from rustgpt.text.tokenizer import WordTokenizer
from rustgpt.trainer import Trainer

from .models import differentiate

TEXTS = ["The sun rises in the east </s>", "Water is wet </s>", "Bees carry pollen </s>"]
VARIANTS = {
    "default": {},
    "GPT-2": {"norm": "pre", "activation": "gelu", "tie_embeddings": True, "output_bias": False},
}
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "in a dict": lambda model: copy.deepcopy({"a": model})["a"],
}


@pytest.fixture(params=VARIANTS)
def model(request, small):
    config = small(seed=2, **VARIANTS[request.param])
    model = LLM(config, WordTokenizer.train(TEXTS))
    Trainer(model, TrainConfig(threads=1)).fit(TEXTS, 2, 1e-2, "before")
    return model


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_a_whole_model(model, name, tmp_path):
    twin = COPIES[name](model)
    before = model.parameters.copy()
    np.testing.assert_array_equal(twin.parameters, before)
    assert twin.config == model.config
    assert twin.generate("The sun") == model.generate("The sun")
    trained = Trainer(twin, TrainConfig(threads=1)).fit(TEXTS, 20, 1e-2, "after")
    assert trained[-1].loss < trained[0].loss - 0.3
    assert (twin.parameters != before).mean() > 0.5
    twin.save(tmp_path)
    np.testing.assert_array_equal(LLM.load(tmp_path).parameters, twin.parameters)
    # And neither knows of the other.
    np.testing.assert_array_equal(model.parameters, before)
    Trainer(model, TrainConfig(threads=1)).fit(TEXTS, 20, 1e-2, "after")
    np.testing.assert_array_equal(model.parameters, twin.parameters)  # the same bits


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_has_neither_activations_nor_working_memory(model, name):
    texts, T = 200, 12
    ids = np.arange(texts * T, dtype=np.int32) % model.tokenizer.vocab_size
    differentiate(model, ids, ids, np.arange(texts + 1, dtype=np.int32) * T)
    model.loss(ids, ids, np.arange(texts + 1, dtype=np.int32) * T)
    twin = COPIES[name](model)
    numbers = len(pickle.dumps(twin)) / model.parameters.itemsize
    # Its parameters and its words; the activations of the texts would be several times as many.
    assert model.n_parameters < numbers < model.n_parameters + 6000
    assert not np.shares_memory(twin.parameters, model.parameters)


def train_elsewhere(model, results):
    losses = [epoch.loss for epoch in Trainer(model, TrainConfig(threads=1)).pretrain(TEXTS)]
    results.put((losses[0], losses[-1], model.parameters.tobytes()))


def test_a_model_in_a_spawned_process_learns(model, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # where the process finds this file
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=train_elsewhere, args=(model, results))
    child.start()
    first, last, parameters = results.get(timeout=120)
    child.join()
    assert last < first - 0.05
    assert Trainer(model, TrainConfig(threads=1)).pretrain(TEXTS)[-1].loss == last
    assert model.parameters.tobytes() == parameters


def test_a_block_by_itself_can_be_copied(small, rng):
    block = TransformerBlock(small(), np.random.default_rng(0))
    x = rng.standard_normal((5, 6)).astype(np.float32)

    def output(of):
        return of.forward(x, Context(np.array([0, 5], np.int32))).copy()

    expected = output(block)
    for copied in (copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))):
        twin = copied(block)
        np.testing.assert_array_equal(output(twin), expected)
        twin.attention.qkv_weight[0] += 1
        assert (output(twin) != expected).any()  # the whole block's kernel sees it
        np.testing.assert_array_equal(output(block), expected)


class Scaled(TransformerBlock):
    """A block of a user's own, with a parameter and a constant."""

    def __init__(self, config, rng):
        super().__init__(config, rng)
        self.parameter("scale", np.full(config.embedding_dim, 2.0))
        self.mask = np.linspace(0, 1, config.embedding_dim, dtype=np.float32)
        self.note = None
        self.model = None

    def forward(self, x, ctx):
        h = super().forward(x, ctx)
        ctx.save(self, h)
        return h * self.scale * self.mask

    def backward(self, dout, ctx):
        (h,) = ctx.saved(self)
        ctx.gradients.add(self.scale, (dout * h * self.mask).sum(axis=0))
        return super().backward(dout * self.scale * self.mask, ctx)


def with_own_block(small):
    config, tokenizer = small(), WordTokenizer.train(TEXTS)
    layers = build_layers(config, tokenizer.vocab_size)
    layers[1] = Scaled(config, np.random.default_rng(0))
    return LLM(config, tokenizer, layers)


@pytest.mark.parametrize("name", COPIES)
def test_layers_of_ones_own_are_copied_with_all_that_is_theirs(small, name):
    model = with_own_block(small)
    Trainer(model, TrainConfig(threads=1)).fit(TEXTS, 2, 1e-2, "before")
    model.layers[1].note = np.array([7])  # set later
    twin = COPIES[name](model)
    np.testing.assert_array_equal(twin.logits([1, 2]), model.logits([1, 2]))
    assert twin.layers[1].note.tolist() == [7]
    for one in (model, twin):
        Trainer(one, TrainConfig(threads=1)).fit(TEXTS, 3, 1e-2, "after")
    np.testing.assert_array_equal(twin.parameters, model.parameters)


@pytest.mark.parametrize("name", COPIES)
def test_a_layer_may_know_its_model(small, name):
    model = with_own_block(small)
    model.layers[1].model = model
    twin = COPIES[name](model)
    assert twin.layers[1].model is twin
    np.testing.assert_array_equal(twin.parameters, model.parameters)


def test_what_is_copied_together_belongs_together(model):
    twin, layer = copy.deepcopy((model, model.layers[1]))
    assert layer is twin.layers[1]


def test_a_copied_cache_goes_on(model):
    cache = Cache(12)
    for token in (1, 2, 3):
        model.decode([token], cache)
    twin, other = copy.deepcopy(cache), copy.deepcopy(model)
    expected = model.decode([4], cache)
    np.testing.assert_array_equal(model.decode([4], twin), expected)
    twin, other = copy.deepcopy((cache, model))
    np.testing.assert_array_equal(other.decode([5], twin), model.decode([5], cache))


def test_a_cache_of_another_model_is_refused(model, small):
    cache = Cache(12)
    LLM(small(n_layers=0), model.tokenizer).decode([1, 2], cache)
    with pytest.raises(ConfigError, match="belongs to another model"):
        model.decode([3], cache)


# Parameters stay where they are


def test_a_tied_table_cannot_be_untied(small):
    model = LLM(small(tie_embeddings=True), WordTokenizer.train(TEXTS))
    expected = model.layers[-1].weight * 2
    model.layers[-1].weight = expected
    assert model.layers[-1].weight is model.layers[0].tokens
    np.testing.assert_array_equal(model.layers[0].tokens, expected)
    with pytest.raises(ConfigError, match="weight must be float32 of shape"):
        model.layers[-1].weight = np.zeros(3)


def test_parameters_can_be_set(model):
    before, new = model.parameters, np.arange(model.n_parameters) / 1e6
    model.parameters = new
    assert model.parameters is before
    np.testing.assert_array_equal(before, new.astype(np.float32))
    model.parameters += 1
    assert model.parameters is before
    model.layers[1].norm1.weight = np.full(6, 3)
    assert model.named_parameters()["layers.1.norm1.weight"].tolist() == [3] * 6
    assert (model.parameters == 3).sum() >= 6


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((1, 5)), ["a"], None, 5.0])
def test_parameters_of_another_shape_are_refused(model, wrong):
    before = model.parameters.copy()
    for holder, name in ((model, "parameters"), (model.layers[1].norm1, "weight")):
        with pytest.raises(ConfigError, match=f"{name} must be float32 of shape"):
            setattr(holder, name, wrong)
    np.testing.assert_array_equal(model.parameters, before)


def test_layers_of_another_model_are_refused(model):
    with pytest.raises(ConfigError, match="layer 0 is part of another model"):
        LLM(model.config, model.tokenizer, model.layers)
    twin = LLM(model.config, model.tokenizer, copy.deepcopy(model.layers))
    np.testing.assert_array_equal(twin.parameters, model.parameters)
    layers = build_layers(model.config, model.tokenizer.vocab_size)
    LLM(model.config, model.tokenizer, layers)
    LLM(model.config, model.tokenizer, layers)  # the first is gone


def test_a_layer_that_was_put_in_later_is_not_saved_in_silence(model, tmp_path):
    model.layers[1].norm1 = copy.deepcopy(model.layers[1].norm1)
    with pytest.raises(ConfigError, match=r"layers\.1\.norm1\.weight is not among"):
        model.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
