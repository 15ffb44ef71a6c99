"""Tests of the model: its parameters, its loss and its gradients."""

import dataclasses
import itertools
import math
from functools import partial

import numpy as np
import pytest

from rustgpt.config import ModelConfig
from rustgpt.errors import ConfigError, DataError
from rustgpt.layers.context import Context
from rustgpt.layers.gpt import build_layers, describe
from rustgpt.layers.gradients import Gradients
from rustgpt.llm import LLM
from rustgpt.text.char_tokenizer import ByteTokenizer

from .models import IDS, OFFSETS, TARGETS, VARIANTS, V, by_name, differentiate, make_model

N_PARAMETERS = {
    "RustGPT": 699, "default": 771, "GPT-2": 782, "Llama": 666, "tied with bias": 729,
    "no blocks": 163,
}  # fmt: skip


@pytest.fixture
def build(small, tokenizer_of):
    """build(variant, dtype): a small model whose parameters all matter."""
    return partial(make_model, small, tokenizer_of(V))


# The parameters


def test_rustgpts_parameters_are_counted(tokenizer_of):
    config = ModelConfig(n_heads=1, attention_projection=False)
    model = LLM(config, tokenizer_of(533))
    assert model.n_parameters == 493_973
    assert "493,973" in model.describe()


def test_gpt2s_parameters_are_counted():
    """Without the memory that 12 blocks would take."""
    config = ModelConfig(
        embedding_dim=768, hidden_dim=3072, n_layers=1, n_heads=12, max_seq_len=1024,
        **VARIANTS["GPT-2"],
    )  # fmt: skip
    layers = build_layers(config, 50_257, initialise=False)
    embeddings, block, norm, output = (layer.n_parameters for layer in layers)
    assert embeddings + 12 * block + norm + output == 124_439_808


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_parameter_is_counted_once(build, variant):
    model, n_parameters = build(variant), N_PARAMETERS[variant]
    assert model.n_parameters == n_parameters
    assert model.parameters.shape == (n_parameters,)
    assert Gradients(model.layers).flat.shape == (n_parameters,)
    assert sum(value.size for value in model.named_parameters().values()) == n_parameters
    assert model.describe().splitlines()[-1].split() == ["Parameters", str(n_parameters)]


def test_names_and_views_into_the_flat_buffers(build):
    model = build("GPT-2")
    names = list(model.named_parameters())
    assert names[:3] == ["layers.0.tokens", "layers.0.places", "layers.1.attention.qkv_weight"]
    assert names[-2:] == ["layers.3.weight", "layers.3.bias"]
    gradients = Gradients(model.layers)
    model.parameters[:] = np.arange(model.n_parameters)
    gradients.flat[:] = -model.parameters
    taken = 0
    for name, value in model.named_parameters().items():
        np.testing.assert_array_equal(value.ravel(), np.arange(taken, taken + value.size))
        np.testing.assert_array_equal(gradients.claim(value)[0], -value, err_msg=name)
        taken += value.size
    assert taken == model.n_parameters


def test_the_seed_decides_the_initial_parameters(small, tokenizer_of):
    def parameters(seed):
        return LLM(small(seed=seed), tokenizer_of(V)).parameters

    np.testing.assert_array_equal(parameters(1), parameters(1))
    assert (parameters(1) != parameters(2)).mean() > 0.5


def test_layers_must_begin_and_end_as_a_model(small, tokenizer_of):
    config = small()
    layers = build_layers(config, V)
    for wrong in (layers[1:], layers[:-1], layers[::-1]):
        with pytest.raises(ConfigError, match="first layer must be Embeddings"):
            LLM(config, tokenizer_of(V), wrong)


def test_describe_gives_each_layer_a_line_with_its_count(build):
    lines = build(n_layers=3).describe().splitlines()
    assert len(lines) == 1 + 5 + 1 + 1
    assert lines[1].startswith("TransformerBlock(post-norm) x 3 ")
    counts = [int(line.split()[-1].replace(",", "")) for line in lines]
    assert counts[0] == V * 6 + 12 * 6
    assert counts[1] == sum(counts[2:6])
    assert counts[-1] == counts[0] + 3 * counts[1] + counts[6]


def test_describe_gives_layers_that_differ_one_after_the_other(build):
    model = build(n_layers=3)
    blocks = build_layers(model.config, V)
    blocks[2] = build_layers(dataclasses.replace(model.config, hidden_dim=4), V)[2]
    lines = describe(blocks).splitlines()
    assert len(lines) == 1 + 3 * 5 + 1 + 1
    assert [line.split(" ")[0] for line in lines[1::5][:3]] == ["TransformerBlock(post-norm)"] * 3


# The loss


def test_an_untrained_model_knows_nothing(tokenizer_of):
    model = LLM(ModelConfig(), tokenizer_of(533))
    ids = np.arange(40, dtype=np.int32)
    loss = model.loss(ids, ids[::-1].copy(), np.array([0, 40], np.int32)) / 40
    assert loss == pytest.approx(math.log(533), rel=0.2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_follows_from_the_logits(backend, build, variant):
    model, expected = build(variant), 0.0
    for first, stop in itertools.pairwise(OFFSETS):
        if stop > first:
            logits, targets = model.logits(IDS[first:stop]), TARGETS[first:stop]
            log_sums = np.log(np.exp(logits).sum(axis=1))
            for i in np.flatnonzero(targets >= 0):
                expected += log_sums[i] - logits[i, targets[i]]
    assert model.loss(IDS, TARGETS, OFFSETS) == pytest.approx(expected, rel=1e-12)


def test_a_text_longer_than_the_context_has_no_loss(backend, build):
    ids = np.zeros(13, np.int32)
    with pytest.raises(DataError, match="a text must have at most 12 tokens, got 13"):
        build().loss(ids, ids, np.array([0, 13], np.int32))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_token_sees_a_later_one(backend, build, dtype, variant):
    model, ids = build(variant, dtype), [1, 5, 0, 3, 2, 6, 4, 1]
    before = model.logits(ids)
    for t in range(8):
        changed = [*ids[:t], (ids[t] + 1) % V, *ids[t + 1 :]]
        after = model.logits(changed)
        np.testing.assert_array_equal(after[:t], before[:t])
        assert (after[t] != before[t]).any()


# The gradients


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_of_the_whole_model_is_right(backend, build, same_gradient, variant):
    model, scale = build(variant), 0.25
    found_loss, gradients = differentiate(model, scale=scale)
    assert found_loss == pytest.approx(model.loss(IDS, TARGETS, OFFSETS), rel=1e-12)
    same_gradient(
        gradients.flat, lambda: scale * model.loss(IDS, TARGETS, OFFSETS), model.parameters
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_torchs(backend, build, variant):
    torch = pytest.importorskip("torch")
    model = build(variant)
    p = {
        name: torch.tensor(value.copy(), requires_grad=True)
        for name, value in model.named_parameters().items()
    }
    loss = sum(
        torch.nn.functional.cross_entropy(
            torch_logits(torch, p, model.config, torch.tensor(IDS[a:b]).long()),
            torch.tensor(TARGETS[a:b]).long(),
            ignore_index=-1,
            reduction="sum",
        )
        for a, b in itertools.pairwise(OFFSETS)
        if b > a
    )
    (0.25 * loss).backward()
    found, gradients = differentiate(model, scale=0.25)
    assert found == pytest.approx(loss.item(), rel=1e-10)
    for name, gradient in by_name(model, gradients).items():
        np.testing.assert_allclose(gradient, p[name].grad, rtol=1e-8, atol=1e-10, err_msg=name)


def torch_logits(torch, p, config, ids):
    """Return the logits of a text, by PyTorch, from the parameters by name."""
    functional = torch.nn.functional
    T, C, H, K = len(ids), config.embedding_dim, config.n_heads, config.n_kv_heads
    D = C // H

    def norm(x, name):
        if config.norm_type == "rms_norm":
            return functional.rms_norm(x, (C,), p[name + ".weight"], 1e-5)
        return functional.layer_norm(x, (C,), p[name + ".weight"], p[name + ".bias"], 1e-5)

    def turn(x):  # (heads, T, D), each pair of a head as a complex number
        frequencies = config.rope_theta ** (-torch.arange(0, D, 2).double() / D)
        angles = torch.outer(torch.arange(T).double(), frequencies)
        pairs = torch.complex(x[..., : D // 2], x[..., D // 2 :])
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], -1)

    def attention(x, name):
        qkv = x @ p[name + ".qkv_weight"] + p.get(name + ".qkv_bias", 0)
        q, k, v = (
            part.reshape(T, -1, D).transpose(0, 1) for part in qkv.split([C, K * D, K * D], 1)
        )
        if config.positions == "rotary":
            q, k = turn(q), turn(k)
        heads = functional.scaled_dot_product_attention(
            q, k.repeat_interleave(H // K, 0), v.repeat_interleave(H // K, 0), is_causal=True
        )
        heads = heads.transpose(0, 1).reshape(T, C)
        if not config.attention_projection:
            return heads
        return heads @ p[name + ".projection_weight"] + p.get(name + ".projection_bias", 0)

    def feed_forward(x, name):
        hidden = x @ p[name + ".weight1"] + p.get(name + ".bias1", 0)
        if config.activation == "relu":
            hidden = functional.relu(hidden)
        elif config.activation == "swiglu":
            gate, up = hidden.chunk(2, 1)
            hidden = functional.silu(gate) * up
        else:
            hidden = functional.gelu(hidden, approximate="tanh")
        return hidden @ p[name + ".weight2"] + p.get(name + ".bias2", 0)

    x = p["layers.0.tokens"][ids]
    if config.positions == "learned":
        x = x + p["layers.0.places"][:T]
    last = config.n_layers + 1
    for i in range(1, last):
        block = f"layers.{i}"
        if config.norm == "pre":
            x = x + attention(norm(x, block + ".norm1"), block + ".attention")
            x = x + feed_forward(norm(x, block + ".norm2"), block + ".feed_forward")
        else:
            x = norm(x + attention(x, block + ".attention"), block + ".norm1")
            x = norm(x + feed_forward(x, block + ".feed_forward"), block + ".norm2")
    if config.norm == "pre":
        x, last = norm(x, f"layers.{last}"), last + 1
    tied = config.tie_embeddings
    weight = p["layers.0.tokens"].T if tied else p[f"layers.{last}.weight"]
    return x @ weight + p.get(f"layers.{last}.bias", 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_backends_agree(switch_backend, build, dtype, close, variant):
    found = {}
    for name in ("reference", "cython"):
        switch_backend(name)
        model = build(variant, dtype)
        loss, gradients = differentiate(model, scale=0.25)
        found[name] = np.array([loss]), gradients.flat, model.logits(IDS[:4])
    for mine, theirs in zip(found["cython"], found["reference"], strict=True):
        assert mine.dtype == theirs.dtype
        close(mine.astype(dtype), theirs, 10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_may_have_several_passes(backend, build, close, variant):
    """The first overwrites what was there, the second is added, and the next step begins anew."""
    model = build(variant)
    once = differentiate(model, scale=0.5)[1].flat
    gradients = Gradients(model.layers)
    gradients.flat.fill(np.nan)
    for passes in (2, 1):
        gradients.begin()
        for _ in range(passes):
            ctx = Context(OFFSETS, "float64", gradients=gradients)
            model.loss_and_gradients(IDS, TARGETS, 0.5, ctx)
        gradients.finish()
        close(gradients.flat, passes * once)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_packed_batch_is_its_texts_one_at_a_time(backend, build, close, variant):
    model, losses, gradients = build(variant), [], 0.0
    for a, b in itertools.pairwise(OFFSETS):
        if b > a:
            offsets = np.array([0, b - a], np.int32)
            loss, one = differentiate(model, IDS[a:b], TARGETS[a:b], offsets, 0.25)
            losses.append(loss)
            gradients = gradients + one.flat
    loss, packed = differentiate(model, scale=0.25)
    assert len(losses) == 3
    assert loss == pytest.approx(sum(losses), rel=1e-12)
    close(packed.flat, gradients)


@pytest.mark.parametrize("by_parts", [False, True])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_passes_at_once_do_not_know_of_each_other(backend, build, variant, order, by_parts):
    """Forward of both, then backward of both in any order."""
    model = build(variant)
    for block in model.layers[1 : 1 + model.config.n_layers]:
        block.by_parts = by_parts
    inputs = [
        (IDS, TARGETS, OFFSETS),
        (IDS[::-1][:5].copy(), TARGETS[::-1][:5].copy(), OFFSETS[:4]),
    ]
    expected = [differentiate(model, *one) for one in inputs]
    gradients = [Gradients(model.layers) for _ in inputs]
    ctxs, losses, dxs = [], [], []
    for (_, _, offsets), one in zip(inputs, gradients, strict=True):
        one.begin()
        ctxs.append(Context(offsets, "float64", gradients=one))
    xs = [
        ctx.forward(model.layers[:-1], ids)
        for ctx, (ids, _, _) in zip(ctxs, inputs, strict=True)
    ]  # fmt: skip
    for ctx, x, (_, targets, _) in zip(ctxs, xs, inputs, strict=True):
        loss, dx = model.layers[-1].loss(x, targets, 1.0, ctx)
        losses.append(loss)
        dxs.append(dx)
    for i in order:
        ctxs[i].backward(model.layers[:-1], dxs[i])
        gradients[i].finish()
        assert losses[i] == expected[i][0]
        np.testing.assert_array_equal(gradients[i].flat, expected[i][1].flat)


def test_tokens_that_the_vocabulary_lacks_are_refused(small):
    tokenizer = ByteTokenizer()
    V = tokenizer.vocab_size
    for changes in ({"bos_token_id": V}, {"end_token_ids": [3, V]}):
        with pytest.raises(ConfigError, match=rf"below {V}.*got {V}"):
            LLM(small(**changes), tokenizer)


def test_the_number_of_threads_is_checked(build):
    model = build("GPT-2")
    model.threads = 2
    assert model.threads == 2
    for wrong in (-1, 1.5, "two", None, 10**6):
        with pytest.raises(ConfigError, match="threads must be"):
            model.threads = wrong
    assert model.threads == 2
