"""Tests of the model: its parameters, its gradients, its text."""

import itertools
import math

import numpy as np
import pytest

from rustgpt.config import ModelConfig
from rustgpt.errors import ConfigError, DataError
from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.layer import Cache, Layer
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.layers.transformer import TransformerBlock
from rustgpt.llm import LLM, build_layers

V = 7
VARIANTS = {
    "RustGPT": {"n_heads": 1, "attention_projection": False},
    "default": {},
    "GPT-2": {
        "norm": "pre", "activation": "gelu", "attention_bias": True,
        "output_bias": False, "tie_embeddings": True,
    },
    "tied with bias": {"tie_embeddings": True, "activation": "gelu"},
    "no blocks": {"n_layers": 0},
}  # fmt: skip
# Three texts of 4, 1 and 3 tokens; two tokens are not to be learned.
IDS = np.array([0, 6, 3, 3, 5, 1, 2, 0], np.int32)
TARGETS = np.array([6, 3, -1, 4, 0, 2, 0, -1], np.int32)
OFFSETS = np.array([0, 4, 4, 5, 8], np.int32)


class Scale(Layer):
    """A layer of a user's own."""

    def __init__(self, dim, dtype):
        super().__init__(dtype)
        self.parameter("weight", np.linspace(0.5, 2.0, dim))

    def forward(self, x, offsets):
        self.x = x
        return x * self.weight

    def backward(self, dout):
        self.dweight += (dout * self.x).sum(axis=0)
        return dout * self.weight


@pytest.fixture
def build(small, tokenizer_of, rng):
    """build(variant, dtype): a model whose parameters all matter."""

    def make(variant="default", dtype="float64", own=False, **changes):
        config = small(dtype=dtype, **VARIANTS[variant] | changes)
        layers = None
        if own:
            layers = build_layers(config, V)
            layers.insert(2, Scale(6, dtype))
        model = LLM(config, tokenizer_of(V), layers)
        model.parameters += 0.3 * np.random.default_rng(9).standard_normal(model.n_parameters)
        return model

    return make


def test_rustgpts_parameters_are_counted(tokenizer_of):
    config = ModelConfig(n_heads=1, attention_projection=False)
    model = LLM(config, tokenizer_of(533))
    assert model.n_parameters == 493_973
    assert "493,973" in model.describe()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_of_the_whole_model_is_right(backend, build, same_gradient, variant):
    model = build(variant)
    scale = 0.25
    found_loss = model.loss_and_gradients(IDS, TARGETS, OFFSETS, scale)
    assert found_loss == pytest.approx(model.loss(IDS, TARGETS, OFFSETS), rel=1e-12)
    same_gradient(
        model.gradients.copy(),
        lambda: scale * model.loss(IDS, TARGETS, OFFSETS),
        model.parameters,
    )


def test_a_layer_of_your_own_is_part_of_the_model(backend, build, same_gradient):
    model = build(own=True)
    assert model.named_parameters()["layers.2.weight"].shape == (6,)
    model.loss_and_gradients(IDS, TARGETS, OFFSETS, 1.0)
    same_gradient(
        model.named_gradients()["layers.2.weight"].copy(),
        lambda: model.loss(IDS, TARGETS, OFFSETS),
        model.named_parameters()["layers.2.weight"],
    )
    assert "Scale" in model.describe()
    one_by_one, cache = [], Cache(4)
    for token in IDS[:4]:
        one_by_one.append(model.decode([token], cache).copy())
    np.testing.assert_allclose(one_by_one, model.logits(IDS[:4]), rtol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_torchs(backend, build, variant):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    model = build(variant)
    config = model.config
    p = {
        name: torch.tensor(value.copy(), requires_grad=True)
        for name, value in model.named_parameters().items()
    }
    C, H, last = config.embedding_dim, config.n_heads, len(model.layers) - 1

    def norm(x, name):
        return functional.layer_norm(x, (C,), p[name + ".weight"], p[name + ".bias"], 1e-5)

    def attention(x, name):
        qkv = x @ p[name + ".qkv_weight"] + p.get(name + ".qkv_bias", 0)
        q, k, v = (part.reshape(len(x), H, C // H).transpose(0, 1) for part in qkv.split(C, 1))
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        heads = heads.transpose(0, 1).reshape(len(x), C)
        if not config.attention_projection:
            return heads
        return heads @ p[name + ".projection_weight"] + p.get(name + ".projection_bias", 0)

    def feed_forward(x, name):
        hidden = x @ p[name + ".weight1"] + p[name + ".bias1"]
        if config.activation == "relu":
            hidden = functional.relu(hidden)
        else:
            hidden = functional.gelu(hidden, approximate="tanh")
        return hidden @ p[name + ".weight2"] + p[name + ".bias2"]

    def logits(ids):
        x = p["layers.0.tokens"][ids] + p["layers.0.places"][: len(ids)]
        for i in range(1, 1 + config.n_layers):
            block = f"layers.{i}"
            if config.norm == "pre":
                x = x + attention(norm(x, block + ".norm1"), block + ".attention")
                x = x + feed_forward(norm(x, block + ".norm2"), block + ".feed_forward")
            else:
                x = norm(x + attention(x, block + ".attention"), block + ".norm1")
                x = norm(x + feed_forward(x, block + ".feed_forward"), block + ".norm2")
        if config.norm == "pre":
            x = norm(x, f"layers.{last - 1}")
        tied = config.tie_embeddings
        weight = p["layers.0.tokens"].T if tied else p[f"layers.{last}.weight"]
        return x @ weight + p.get(f"layers.{last}.bias", 0)

    loss = sum(
        functional.cross_entropy(
            logits(torch.tensor(IDS[a:b]).long()),
            torch.tensor(TARGETS[a:b]).long(),
            ignore_index=-1,
            reduction="sum",
        )
        for a, b in itertools.pairwise(OFFSETS)
        if b > a
    )
    (0.25 * loss).backward()
    found = model.loss_and_gradients(IDS, TARGETS, OFFSETS, 0.25)
    assert found == pytest.approx(loss.item(), rel=1e-10)
    for name, gradient in model.named_gradients().items():
        np.testing.assert_allclose(gradient, p[name].grad, rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_backends_agree(switch_backend, build, dtype, close, variant):
    found = {}
    for name in ("reference", "cython"):
        switch_backend(name)
        model = build(variant, dtype)
        loss = model.loss_and_gradients(IDS, TARGETS, OFFSETS, 0.25)
        found[name] = np.array([loss]), model.gradients, model.logits(IDS[:4]).copy()
    for mine, theirs in zip(found["cython"], found["reference"], strict=True):
        assert mine.dtype == theirs.dtype
        close(mine.astype(dtype), theirs, 10)


def test_gradients_are_added_to(backend, build, close):
    model = build("GPT-2")
    model.loss_and_gradients(IDS, TARGETS, OFFSETS, 0.5)
    once = model.gradients.copy()
    model.loss_and_gradients(IDS, TARGETS, OFFSETS, 0.5)
    close(model.gradients, 2 * once)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_packed_batch_is_its_texts_one_at_a_time(backend, build, close, variant):
    packed, single = build(variant), build(variant)
    loss = packed.loss_and_gradients(IDS, TARGETS, OFFSETS, 0.25)
    losses = [
        single.loss_and_gradients(IDS[a:b], TARGETS[a:b], np.array([0, b - a], np.int32), 0.25)
        for a, b in itertools.pairwise(OFFSETS)
        if b > a
    ]
    assert loss == pytest.approx(sum(losses), rel=1e-12)
    close(packed.gradients, single.gradients)


def test_an_untrained_model_knows_nothing(tokenizer_of):
    model = LLM(ModelConfig(), tokenizer_of(533))
    ids = np.arange(40, dtype=np.int32)
    loss = model.loss(ids, ids[::-1].copy(), np.array([0, 40], np.int32)) / 40
    assert loss == pytest.approx(math.log(533), rel=0.2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_token_sees_a_later_one(backend, build, dtype, variant):
    model, ids = build(variant, dtype), [1, 5, 0, 3, 2, 6, 4, 1]
    before = model.logits(ids).copy()
    for t in range(8):
        changed = [*ids[:t], (ids[t] + 1) % V, *ids[t + 1 :]]
        after = model.logits(changed)
        np.testing.assert_array_equal(after[:t], before[:t])
        assert (after[t] != before[t]).any()


@pytest.mark.parametrize("pieces", [(1,) * 9, (9,), (4, 1, 1, 3)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_gives_the_logits(backend, build, dtype, close, variant, pieces):
    model, ids = build(variant, dtype), [1, 5, 0, 3, 2, 6, 4, 1, 1]
    expected, cache = model.logits(ids).copy(), Cache(12)
    for n in pieces:
        found = model.decode(ids[cache.length : cache.length + n], cache)
        assert found.shape == (V,)
        close(found, expected[cache.length - 1], 10)
    assert cache.length == 9


def test_names_and_views_into_the_flat_buffers(build):
    model = build("GPT-2")
    names = list(model.named_parameters())
    assert names[:3] == ["layers.0.tokens", "layers.0.places", "layers.1.attention.qkv_weight"]
    assert names[-2:] == ["layers.3.weight", "layers.3.bias"]
    assert list(model.named_gradients()) == names
    assert sum(value.size for value in model.named_parameters().values()) == model.n_parameters
    model.parameters[:] = np.arange(model.n_parameters)
    model.gradients[:] = -model.parameters
    taken = 0
    for name, value in model.named_parameters().items():
        np.testing.assert_array_equal(value.ravel(), np.arange(taken, taken + value.size))
        np.testing.assert_array_equal(model.named_gradients()[name], -value)
        taken += value.size


def test_tied_embeddings_are_one_table(build):
    model = build("GPT-2")
    assert model.layers[-1].weight is model.layers[0].tokens
    twin = model.replica()
    assert twin.layers[-1].weight is model.layers[0].tokens
    assert twin.layers[-1].dweight is twin.layers[0].dtokens
    untied = build("GPT-2", tie_embeddings=False)
    assert untied.n_parameters == model.n_parameters + V * 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_replica_shares_the_parameters_alone(backend, build, variant):
    model = build(variant)
    twin = model.replica()
    assert twin.parameters is model.parameters
    loss = model.loss_and_gradients(IDS, TARGETS, OFFSETS, 1.0)
    assert not twin.gradients.any()
    assert twin.loss_and_gradients(IDS, TARGETS, OFFSETS, 1.0) == loss
    np.testing.assert_array_equal(twin.gradients, model.gradients)
    # Interleaved: the replica's forward comes between the model's forward and backward.
    expected = model.gradients.copy()
    model.gradients.fill(0)
    output = model.layers[-1]
    original = output.loss

    def disturbed(*args):
        result = original(*args)
        twin.loss_and_gradients(IDS[::-1].copy(), TARGETS[::-1].copy(), OFFSETS, 2.0)
        return result

    output.loss = disturbed
    model.loss_and_gradients(IDS, TARGETS, OFFSETS, 1.0)
    np.testing.assert_array_equal(model.gradients, expected)


def test_the_seed_decides_the_initial_parameters(small, tokenizer_of):
    def parameters(seed):
        return LLM(small(seed=seed), tokenizer_of(V)).parameters

    np.testing.assert_array_equal(parameters(1), parameters(1))
    assert (parameters(1) != parameters(2)).mean() > 0.5


def test_layers_must_begin_and_end_as_a_model(small, tokenizer_of, rng):
    config = small()
    layers = build_layers(config, V)
    for wrong in (layers[1:], layers[:-1], layers[::-1]):
        with pytest.raises(ConfigError, match="first layer must be Embeddings"):
            LLM(config, tokenizer_of(V), wrong)


def test_build_layers(small):
    kinds = [type(layer) for layer in build_layers(small(), V)]
    assert kinds == [Embeddings, TransformerBlock, TransformerBlock, OutputProjection]
    kinds = [type(layer) for layer in build_layers(small(norm="pre"), V)]
    assert kinds == [Embeddings, TransformerBlock, TransformerBlock, LayerNorm, OutputProjection]


@pytest.mark.parametrize("length", [0, 13])
def test_logits_need_a_text_that_fits(build, length):
    with pytest.raises(DataError, match=rf"1 to 12 tokens, got {length}"):
        build().logits([1] * length)
    assert build().logits([1] * 12).shape == (12, V)


def test_decoding_needs_tokens_that_fit(build):
    model, cache = build(), Cache(20)
    model.decode([1] * 9, cache)
    for wrong in ([], [1] * 4):
        with pytest.raises(DataError, match=rf"1 to 3 more tokens, got {len(wrong)}"):
            model.decode(wrong, cache)
    assert model.decode([1] * 3, cache).shape == (V,)
    small = Cache(2)
    with pytest.raises(DataError, match="1 to 2 more tokens, got 3"):
        model.decode([1] * 3, small)
    assert small.length == 0


def test_describe_gives_each_layer_a_line_with_its_count(build):
    lines = build().describe().splitlines()
    assert len(lines) == 1 + 2 * 5 + 1 + 1
    counts = [int(line.split()[-1].replace(",", "")) for line in lines]
    assert counts[0] == V * 6 + 12 * 6
    assert counts[1] == sum(counts[2:6])
    assert counts[-1] == counts[0] + counts[1] + counts[6] + counts[11]


# Text


@pytest.fixture
def speaker(letters, small):
    """A model that has learned nothing, but whose every letter has its odds."""
    model = LLM(small(seed=5), letters)
    model.parameters += np.random.default_rng(2).standard_normal(model.n_parameters)
    model.named_parameters()["layers.3.bias"][0] = -1e3  # never ends a text
    return model


def test_text_continues_past_the_context(backend, speaker):
    text = speaker.generate("the sun", max_new_tokens=40)
    assert len(text) == 40
    assert text == speaker.generate("the sun", max_new_tokens=40)
    ids = speaker.tokenizer.encode("the sun") + speaker.tokenizer.encode(text[:5])
    assert speaker.tokenizer.characters[speaker.logits(ids)[-1].argmax()] == text[5]


def test_the_seed_decides_the_text(speaker):
    texts = [speaker.generate("a", 30, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_an_end_mark_ends_the_text(speaker):
    speaker.named_parameters()["layers.3.bias"][0] = 1e3
    assert speaker.generate("abc") == ""


def test_an_empty_prompt_begins_a_text(speaker):
    assert list(speaker.stream([], 5)) == list(speaker.stream([speaker.tokenizer.end_id], 5))
    assert len(speaker.generate("", 5)) == 5


def test_both_backends_say_the_same(switch_backend, speaker):
    texts = []
    for name in ("reference", "cython"):
        switch_backend(name)
        texts.append(speaker.generate("hello", 30))
    assert texts[0] == texts[1]


def test_a_wrong_temperature_is_a_config_error(speaker):
    with pytest.raises(ConfigError, match="temperature"):
        speaker.generate("a", temperature=-1.0)
