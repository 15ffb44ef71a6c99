"""Tests of models with layers of one's own, with layers that share weights, and tied ones."""

import copy
from functools import partial

import numpy as np
import pytest

from rustgpt.config import TrainConfig
from rustgpt.errors import CheckpointError, ConfigError
from rustgpt.generation.engine import Engine
from rustgpt.generation.sampling import log_softmax
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.layers.cache import Cache
from rustgpt.layers.context import Context
from rustgpt.layers.gpt import build_layers
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.layer import Layer
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.memory import Workspace
from rustgpt.layers.transformer import TransformerBlock
from rustgpt.llm import LLM
from rustgpt.text.char_tokenizer import CharTokenizer
from rustgpt.text.tokenizer import WordTokenizer
from rustgpt.trainer import Trainer

from .models import IDS, OFFSETS, TARGETS, Scale, V, by_name, differentiate, make_model

TEXT = [1, 5, 0, 3, 2, 6, 4, 1, 1]
SENTENCES = ["The sun rises in the east </s>", "Water is wet </s>", "Bees carry pollen </s>"]


@pytest.fixture
def build(small, tokenizer_of):
    """build(variant, dtype, layers): a small model whose parameters all matter."""
    return partial(make_model, small, tokenizer_of(V))


def with_scale(config, size=V):
    """Return the layers of a model, a `Scale` between its blocks."""
    layers = build_layers(config, size)
    layers.insert(2, Scale(config.embedding_dim, config.dtype))
    return layers


def test_a_layer_of_your_own_is_part_of_the_model(backend, build, same_gradient):
    model = build(layers=with_scale)
    weight = model.named_parameters()["layers.2.weight"]
    assert weight is model.layers[2].weight
    assert weight.shape == (6,)
    _, gradients = differentiate(model)
    same_gradient(
        by_name(model, gradients)["layers.2.weight"],
        lambda: model.loss(IDS, TARGETS, OFFSETS),
        weight,
    )
    assert "Scale" in model.describe()
    one_by_one, cache = [], Cache(4)
    for token in IDS[:4]:
        one_by_one.append(model.decode([token], cache))
    np.testing.assert_allclose(one_by_one, model.logits(IDS[:4]), rtol=1e-9)


class Same(Layer):
    """A layer that does nothing, as dropout after a training."""

    def forward(self, x, ctx):
        return x

    def backward(self, dout, ctx):
        return dout


class View(Same):
    """A layer that does nothing, and says so with another array in the same place."""

    def forward(self, x, ctx):
        return x[:]

    def backward(self, dout, ctx):
        return dout[:]


@pytest.mark.parametrize("by_parts", [False, True])
@pytest.mark.parametrize("kind", [Same, View])
@pytest.mark.parametrize("variant", ["default", "GPT-2"])
def test_a_layer_may_return_what_it_was_given(backend, build, close, variant, kind, by_parts):
    """Nobody writes over it while the next layer reads it; twice, in memory that is there."""

    def run(layers=None):
        model = build(variant, layers=layers)
        model.parameters = plain.parameters
        for layer in model.layers:
            if isinstance(layer, TransformerBlock):
                layer.by_parts = by_parts
        gradients, workspace, cache = Gradients(model.layers), Workspace("float64"), Cache(12)
        for _ in range(2):
            logits, loss = model.logits(TEXT), model.loss(IDS, TARGETS, OFFSETS)
            cache.lengths[0] = 0
            decoded = [model.decode(TEXT[:4], cache), model.decode(TEXT[4:], cache)]
            gradients.begin()
            ctx = Context(OFFSETS, gradients=gradients, workspace=workspace)
            model.loss_and_gradients(IDS, TARGETS, 1.0, ctx)
            gradients.finish()
        return logits, np.array([loss]), np.array(decoded), gradients.flat

    plain = build(variant)
    expected = run()
    for place in range(1, len(plain.layers)):

        def layers(config, place=place):
            found = build_layers(config, V)
            return [*found[:place], kind("float64"), *found[place:]]

        for value, wanted in zip(run(layers), expected, strict=True):
            close(value, wanted, 10)


# Layers whose weights several places share


def block_twice(config, size=V):
    """The same block in two places, one of them after another block."""
    layers = build_layers(config, size)
    layers.insert(3, layers[1])
    return layers


def all_blocks_one(config, size=V):
    """The same block three times in a row."""
    layers = build_layers(config, size)
    layers[1:3] = [layers[1]] * 3
    return layers


def own_twice(config, size=V):
    """The same layer of one's own in two places."""
    layers = with_scale(config, size)
    layers.insert(1, layers[2])
    return layers


def attention_twice(config, size=V):
    """Two blocks that have one attention."""
    layers = build_layers(config, size)
    layers[2].attention = layers[1].attention
    return layers


def norm_twice(config, size=V):
    """A block whose norms are one, which is also a layer of the model."""
    layers = build_layers(config, size)
    layers[2].norm2 = layers[2].norm1
    layers.insert(1, layers[2].norm1)
    return layers


SHARED = {
    maker.__name__: maker
    for maker in (block_twice, all_blocks_one, own_twice, attention_twice, norm_twice)
}
# What is in the models beside the 114 + 49 numbers of embeddings and output projection.
NUMBERS = {
    "block_twice": 2 * 304, "all_blocks_one": 304, "own_twice": 2 * 304 + 6,
    "attention_twice": 2 * 304 - 144, "norm_twice": 2 * 304 - 12,
}  # fmt: skip


@pytest.fixture(params=SHARED)
def shared(request, build):
    """A model with a layer in several places."""
    return build(layers=SHARED[request.param])


@pytest.mark.parametrize("name", SHARED)
def test_shared_parameters_are_there_once(build, name):
    model = build(layers=SHARED[name])
    assert model.n_parameters == 114 + NUMBERS[name] + 49
    named = model.named_parameters()
    assert sum(value.size for value in named.values()) == model.n_parameters
    assert len({value.ctypes.data for value in named.values()}) == len(named)
    names = {
        "block_twice": "layers.3", "all_blocks_one": "layers.2", "own_twice": "layers.3.weight",
        "attention_twice": "layers.2.attention", "norm_twice": "layers.3.norm1",
    }  # fmt: skip
    assert not any(found.startswith(names[name]) for found in named)


@pytest.mark.slow
def test_the_gradient_of_shared_parameters_is_right(backend, shared, same_gradient):
    loss, gradients = differentiate(shared, scale=0.25)
    assert loss == pytest.approx(shared.loss(IDS, TARGETS, OFFSETS), rel=1e-12)
    same_gradient(
        gradients.flat, lambda: 0.25 * shared.loss(IDS, TARGETS, OFFSETS), shared.parameters
    )


def test_a_layer_in_two_places_is_two_equal_layers(backend, build, close):
    """With the same logits; its gradient is the sum of theirs."""
    model = build(layers=block_twice)
    two = build(n_layers=3)
    named = model.named_parameters()
    for name, value in two.named_parameters().items():
        value[...] = named[name.replace("layers.3", "layers.1")]
    np.testing.assert_array_equal(model.logits(TEXT), two.logits(TEXT))
    found, each = by_name(model, differentiate(model)[1]), by_name(two, differentiate(two)[1])
    for name, gradient in found.items():
        expected = each[name]
        if name.startswith("layers.1"):
            second = each[name.replace("layers.1", "layers.3")]
            assert second.any()
            expected = expected + second
        close(gradient, expected, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_shared_layers_train_in_any_number_of_threads(backend, small, name, monkeypatch):
    """Also if the threads have one buffer of gradients."""
    monkeypatch.setattr("rustgpt.parallel.data_parallel.TOKENS_AT_LEAST", 1)
    tokenizer, config = WordTokenizer.train(SENTENCES), small(dtype="float64")
    found = []
    for threads, shared_from in ((1, 2**30), (2, 2**30), (2, 0)):
        monkeypatch.setattr("rustgpt.parallel.data_parallel.SHARED_FROM", shared_from)
        model = LLM(config, tokenizer, SHARED[name](config, tokenizer.vocab_size))
        epochs = Trainer(model, TrainConfig(threads=threads)).fit(SENTENCES, 30, 1e-2, "test")
        assert epochs[-1].loss < 0.7 * epochs[0].loss
        found.append(model.parameters)
    for parameters in found[1:]:
        np.testing.assert_allclose(parameters, found[0], rtol=1e-7, atol=1e-9)


def test_shared_layers_decode_with_a_cache(backend, shared, close):
    expected, cache, seen = shared.logits(TEXT), Cache(12), 0
    for n in (3, 1, 1, 4):
        close(shared.decode(TEXT[seen : seen + n], cache), expected[seen + n - 1], 10)
        seen += n
    assert seen == len(TEXT)
    cache = Cache(12, slots=3)
    shared.decode_batch([TEXT[:2], [3, 3]], cache, [2, 0])
    found = shared.decode_batch([[6], TEXT[2:]], cache, [0, 2])
    close(found[0], shared.logits([3, 3, 6])[-1], 10)
    close(found[1], expected[-1], 10)


@pytest.mark.parametrize("name", SHARED)
def test_shared_layers_come_back_from_disk(small, tmp_path, name):
    config, tokenizer = small(), WordTokenizer.train(SENTENCES)
    model = LLM(config, tokenizer, SHARED[name](config, tokenizer.vocab_size))
    model.parameters += np.random.default_rng(1).standard_normal(model.n_parameters)
    model.save(tmp_path)
    again = LLM.load(tmp_path, layers=SHARED[name](config, tokenizer.vocab_size))
    np.testing.assert_array_equal(again.parameters, model.parameters)
    np.testing.assert_array_equal(again.logits([1, 2, 3]), model.logits([1, 2, 3]))
    assert again.generate("The sun", 20) == model.generate("The sun", 20)
    with pytest.raises(CheckpointError):  # as a model whose layers are apart
        LLM.load(tmp_path)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_shares_as_the_model_does(shared, copied):
    twin = copied(shared)
    assert twin.n_parameters == shared.n_parameters
    before = shared.logits(TEXT)
    np.testing.assert_array_equal(twin.logits(TEXT), before)
    parameters = shared.parameters.copy()
    twin.parameters = parameters + 0.1
    np.testing.assert_array_equal(shared.logits(TEXT), before)
    shared.parameters += 0.1  # what had parameters of its own would not see this
    np.testing.assert_array_equal(twin.logits(TEXT), shared.logits(TEXT))


# Tied embeddings


def test_tied_embeddings_are_one_table(backend, build):
    model = build("GPT-2")
    assert model.layers[-1].weight is model.layers[0].tokens
    assert "layers.4.weight" not in model.named_parameters()
    untied = build("GPT-2", tie_embeddings=False)
    assert untied.n_parameters == model.n_parameters + V * 6
    before = model.logits(TEXT)
    model.layers[0].tokens[6] = model.layers[0].tokens[3]  # 6 is said as often as 3
    after = model.logits([1, 5, 0, 3, 2])
    np.testing.assert_allclose(after[:, 6], after[:, 3], rtol=1e-12)
    assert (before[:5, 6] != before[:5, 3]).all()


@pytest.mark.parametrize("variant", ["GPT-2", "tied with bias"])
def test_the_gradient_of_a_tied_table_is_the_sum_of_both_uses(backend, build, close, variant):
    model, untied = build(variant), build(variant, tie_embeddings=False)
    named = model.named_parameters()
    output = len(model.layers) - 1
    named[f"layers.{output}.weight"] = named["layers.0.tokens"].T
    for name, value in untied.named_parameters().items():
        value[...] = named[name]
    np.testing.assert_allclose(model.logits(TEXT), untied.logits(TEXT), rtol=1e-9)
    found = by_name(model, differentiate(model)[1])
    each = by_name(untied, differentiate(untied)[1])
    weight = each.pop(f"layers.{output}.weight")
    each["layers.0.tokens"] = each["layers.0.tokens"] + weight.T
    assert found.keys() == each.keys()
    for name, gradient in found.items():
        close(gradient, each[name], 10)


def test_a_tied_model_comes_back_from_disk_tied(small, tmp_path):
    config = small(tie_embeddings=True, norm="pre")
    model = LLM(config, WordTokenizer.train(SENTENCES))
    Trainer(model, TrainConfig(threads=1)).fit(SENTENCES, 3, 1e-2, "test")
    model.save(tmp_path)
    again = LLM.load(tmp_path)
    assert again.layers[-1].weight is again.layers[0].tokens
    assert again.n_parameters == model.n_parameters
    np.testing.assert_array_equal(again.logits([1, 2, 3]), model.logits([1, 2, 3]))


# Layers that keep what belongs to a pass


class Remembering(LayerNorm):
    """A changed norm that keeps its input in itself."""

    def forward(self, x, ctx):
        self.seen = x
        return super().forward(x, ctx)


class RememberingBlock(TransformerBlock):
    """A changed block that keeps what came back."""

    def backward(self, dout, ctx):
        self.dout = dout
        return super().backward(dout, ctx)


def test_a_layer_that_keeps_its_input_is_refused(backend, build):
    def layers(config):
        found = build_layers(config, V)
        return [*found[:-1], Remembering(6, dtype="float64"), found[-1]]

    model, cache = build(layers=layers), Cache(12)
    for use in (
        lambda: model.logits(TEXT),
        lambda: model.loss(IDS, TARGETS, OFFSETS),
        lambda: model.decode(TEXT, cache),
        lambda: differentiate(model),
    ):
        with pytest.raises(ConfigError, match=r"Remembering\.seen cannot be set.*ctx\.save\(self"):
            use()
    assert cache.lengths.tolist() == [0]
    assert not hasattr(model.layers[-2], "seen")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_training_of_a_layer_that_keeps_a_gradient_ends_at_once(small, threads, monkeypatch):
    monkeypatch.setattr("rustgpt.parallel.data_parallel.TOKENS_AT_LEAST", 1)
    config, tokenizer = small(), WordTokenizer.train(SENTENCES)
    layers = build_layers(config, tokenizer.vocab_size)
    layers[1] = RememberingBlock(config, np.random.default_rng(0))
    model = LLM(config, tokenizer, layers)
    before = model.parameters.copy()
    model.logits([1, 2])  # which does not go back
    trainer = Trainer(model, TrainConfig(threads=threads))
    with pytest.raises(ConfigError, match=r"RememberingBlock\.dout cannot be set"):
        trainer.fit(SENTENCES, 1, 1e-2, "test")
    assert trainer.steps == 0
    np.testing.assert_array_equal(model.parameters, before)


# Texts of models with layers of one's own


class Shift(Scale):
    """A layer in which each token sees the one before it."""

    def forward(self, x, ctx):
        before = np.zeros_like(x)
        for rows, seen in ctx.history(self, "x", x):
            new = before[rows]
            new[1:] = seen[-len(new) : -1]
            new[:1] = seen[-len(new) - 1] if len(seen) > len(new) else 0
        return x + before * self.weight


def with_both(config, size):
    layers = with_scale(config, size)
    layers.insert(1, Shift(config.embedding_dim, config.dtype))
    return layers


@pytest.fixture
def odd(backend, small):
    """A model with both kinds of layers, whose every letter has its odds."""
    config, letters = small(seed=5), CharTokenizer("abcdefghijklmnopqrstuvwxyz ")
    model = LLM(config, letters, with_both(config, letters.vocab_size))
    model.parameters += np.random.default_rng(2).standard_normal(model.n_parameters)
    model.layers[-1].bias[:257] = -1e3  # the end, and bytes
    return model


def greedy(model, ids, n):
    """Continue a text by whole passes, without a cache."""
    made = list(ids)
    for _ in range(n):
        made.append(int(model.logits(made)[-1].argmax()))
    return made[len(ids) :]


def test_texts_with_layers_of_ones_own_are_those_of_whole_passes(odd):
    prompts = [odd.prompt_ids(text) for text in ("a", "the", "suns")]
    expected = [greedy(odd, ids, 7) for ids in prompts]
    assert [list(odd.stream_ids(ids, 7)) for ids in prompts] == expected
    engine = Engine(odd, 2)  # of three, one waits
    requests = [engine.add(ids, SamplingConfig(max_new_tokens=7)) for ids in prompts]
    engine.finish()
    assert [request.made for request in requests] == expected
    text = odd.generate("the", 7)
    assert text == odd.tokenizer.decode(expected[1], after=prompts[1])
    assert "".join(odd.stream("the", 7)) == text
    assert len(odd.generate("the", 40)) == 40  # beyond the context


def test_beams_with_layers_of_ones_own_are_as_likely_as_whole_passes_say(odd):
    ids = odd.prompt_ids("the")
    for sample in odd.samples("the", num_beams=3, n=3, max_new_tokens=6, logprobs=0):
        seen = list(ids)
        for token in sample.tokens:
            logprobs = log_softmax(odd.logits(seen)[-1])
            assert token.logprob == pytest.approx(logprobs[token.id], abs=1e-4)
            seen.append(token.id)
    likeliest = odd.samples("the", num_beams=3, max_new_tokens=6, logprobs=0)[0]
    total = sum(token.logprob for token in likeliest.tokens)
    alone = odd.samples("the", max_new_tokens=6, logprobs=0)[0]
    assert total >= sum(token.logprob for token in alone.tokens) - 1e-3


def test_a_chat_with_layers_of_ones_own_goes_on_in_its_cache(backend, small):
    dialogues = ["User: Red? Assistant: The sun </s> User: Green? Assistant: Grass </s>"]
    config = small(max_seq_len=40)
    tokenizer = WordTokenizer.train(dialogues)
    model = LLM(config, tokenizer, with_both(config, tokenizer.vocab_size))
    model.parameters += np.random.default_rng(3).standard_normal(model.n_parameters)
    chat, settings = model.chat(5), {"max_new_tokens": 5}
    for question in ("Red?", "Green?", "Red?"):
        before = chat.history
        answer = chat.send(question)
        fresh = model.chat(**settings)
        fresh._turns = list(zip(before[::2], before[1::2], strict=True))
        assert fresh.send(question) == answer
