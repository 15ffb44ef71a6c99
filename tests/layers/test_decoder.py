"""Tests of how texts go on in a cache: in one kernel call, or layer after layer."""

import copy
import dataclasses

import numpy as np
import pytest

from rustgpt.backend import ops
from rustgpt.layers.cache import Cache
from rustgpt.layers.decoder import ROWS_AT_MOST, Decoder
from rustgpt.layers.gpt import build_layers
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.layers.transformer import TransformerBlock

from ..models import VARIANTS, V, make_model

TEXT = [1, 5, 0, 3, 2, 6, 4, 1, 1]


@pytest.fixture
def build(small, tokenizer_of):
    """build(variant, ...): a small model whose parameters all matter."""
    return lambda *args, **options: make_model(small, tokenizer_of(V), *args, **options)


@pytest.fixture
def calls(backend, monkeypatch):
    """The kernels that are called, by name, in order."""
    found = []

    def counted(name, kernel):
        def call(*args, **kwargs):
            found.append(name)
            return kernel(*args, **kwargs)

        return call

    for name in ("decoder_forward", "block_forward", "linear_forward", "attention_decode"):
        monkeypatch.setitem(vars(ops), name, counted(name, getattr(ops, name)))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_few_rows_are_one_call(calls, build, variant):
    model, cache = build(variant), Cache(12, slots=2)
    model.decode_batch([TEXT[:5], TEXT[:4]], cache)
    model.decode([3], cache)
    assert calls == ["decoder_forward"] * 2


def test_many_rows_go_layer_after_layer(calls, build, close):
    model, cache = build("GPT-2", max_seq_len=40), Cache(40, slots=3)
    long = (TEXT * 4)[: ROWS_AT_MOST + 1]
    found = model.decode(long, cache)
    assert "decoder_forward" not in calls
    close(found, model.logits(long)[-1], 10)
    close(model.decode([2], cache), model.logits([*long, 2])[-1], 10)
    assert calls.count("decoder_forward") == 1


CHANGES = {
    "by parts": lambda model: setattr(model.layers[2], "by_parts", True),
    "a norm's epsilon": lambda model: setattr(model.layers[1].norm2, "epsilon", 0.5),
    "another inner layer": lambda model: setattr(
        model.layers[1], "norm1", copy.deepcopy(model.layers[1].norm2)
    ),
    "one layer less": lambda model: model.layers.pop(1),
    "another order": lambda model: model.layers.insert(1, model.layers.pop(2)),
    "a layer twice": lambda model: model.layers.insert(1, model.layers[1]),
    "a last norm's epsilon": lambda model: setattr(model.layers[3], "epsilon", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_decodes_as_it_is(backend, build, close, change):
    model = build("GPT-2")
    model.decode(TEXT, Cache(12))
    CHANGES[change](model)
    expected, cache = model.logits(TEXT), Cache(12)
    close(model.decode(TEXT[:4], cache), expected[3], 10)
    close(model.decode(TEXT[4:], cache), expected[-1], 10)


def test_a_cache_serves_both_ways_in_turn(calls, build, close):
    model, cache = build("GPT-2"), Cache(12, slots=2)
    expected = model.logits(TEXT)
    calls.clear()
    for t, token in enumerate(TEXT):
        model.layers[1].by_parts = t % 4 in (0, 3)
        found = model.decode_batch([[token]], cache, [1])
        close(found[0], expected[t], 10)
    assert calls.count("decoder_forward") == 4


def test_a_cache_is_one_array_from_the_first_prompt_on(build):
    model, cache = build("GPT-2", max_seq_len=40), Cache(40)
    model.decode([1] * (ROWS_AT_MOST + 1), cache)
    before = {key: rows.ctypes.data for key, rows in cache._rows.items()}
    model.decode([1], cache)
    assert {key: rows.ctypes.data for key, rows in cache._rows.items()} == before


def test_copies_of_a_cache_go_on_in_both_ways(backend, build, close):
    model, cache = build(), Cache(12)
    model.decode(TEXT[:3], cache)
    twin = copy.deepcopy(cache)
    model.decode([0], cache)
    for block in model.layers[1:3]:
        block.by_parts = True
    close(model.decode(TEXT[3:5], twin), model.logits(TEXT[:5])[-1], 10)
    for block in model.layers[1:3]:
        block.by_parts = False
    close(model.decode(TEXT[5:], twin), model.logits(TEXT)[-1], 10)


class Own(LayerNorm):
    """A layer that nobody knows."""


class OwnBlock(TransformerBlock):
    """The same of a block."""


class OwnOutput(OutputProjection):
    """The same of an output projection."""


def test_layers_that_nobody_knows_run_by_themselves(calls, build, close):
    def norm(config):
        found = build_layers(config, V)
        return [*found[:-1], Own(6, dtype="float64"), found[-1]]

    def block(config):
        return [
            OwnBlock(config, None) if i == 1 else x for i, x in enumerate(build_layers(config, V))
        ]

    def output(config):
        return [*build_layers(config, V)[:-1], OwnOutput(6, V, None, dtype="float64")]

    for layers in (norm, block, output):
        model, cache = build(layers=layers), Cache(12)
        calls.clear()
        close(model.decode(TEXT, cache), model.logits(TEXT)[-1], 10)
        assert "decoder_forward" not in calls


def test_a_norm_at_the_end_is_known(calls, build, close):
    def layers(config):
        found = build_layers(config, V)
        return [*found[:-1], LayerNorm(6, 0.3, "float64"), found[-1]]

    model, cache = build(layers=layers), Cache(12)
    close(model.decode(TEXT, cache), model.logits(TEXT)[-1], 10)
    assert calls.count("decoder_forward") == 1


def test_parameters_elsewhere_are_not_decoded(build):
    model = build()
    assert Decoder(model.layers, model.parameters).fused
    assert not Decoder(model.layers, model.parameters.copy()).fused
    assert not Decoder(model.layers, model.parameters[:-1]).fused


# Rotary positions and shared heads of keys and values

LLAMA = {**VARIANTS["Llama"], "max_seq_len": 48}
LLAMA3 = {
    "rope_scaling": "llama3", "rope_factor": 4.0, "rope_theta": 30.0,
    "rope_original_max_seq_len": 24,
}  # fmt: skip
FORMS = {
    "one pair a head": {"embedding_dim": 6, "n_heads": 3, "n_kv_heads": 3},
    "one key head": {"embedding_dim": 18, "n_heads": 3, "n_kv_heads": 1},
    "as many key heads": {"embedding_dim": 20, "n_heads": 2, "n_kv_heads": 2},
    "two groups, tied": {
        "embedding_dim": 40, "n_heads": 4, "n_kv_heads": 2, "tie_embeddings": True,
    },
    "linear": {"embedding_dim": 24, "n_heads": 4, "rope_scaling": "linear", "rope_factor": 2.5},
    "llama3": {"embedding_dim": 24, "n_heads": 4, "n_kv_heads": 2} | LLAMA3,
    "norms after": {"embedding_dim": 12, "n_heads": 2, "norm": "post"},
}  # fmt: skip
LONG = (TEXT * 6)[:48]


@pytest.mark.parametrize("pieces", [(1,) * 48, (20, 1, 16, 11), (48,), (3, 17, 1, 27)])
@pytest.mark.parametrize("form", FORMS)
def test_llama_goes_on_to_the_end_of_its_context(calls, build, dtype, close, form, pieces):
    model, cache, seen = build(**LLAMA | FORMS[form], dtype=dtype), Cache(48), 0
    expected = model.logits(LONG)
    calls.clear()
    for n in pieces:
        found = model.decode(LONG[seen : seen + n], cache)
        seen += n
        close(found, expected[seen - 1], 20)
    assert calls.count("decoder_forward") == sum(n <= ROWS_AT_MOST for n in pieces)


@pytest.mark.parametrize("form", FORMS)
def test_llama_gives_the_same_bits_alone_and_among_others(build, form):
    model = build(**LLAMA | FORMS[form], dtype="float32")
    texts = [LONG[i:] + LONG[:i] for i in range(ROWS_AT_MOST)]
    alone = []
    for text in texts:
        cache = Cache(48)
        alone.append([model.decode([token], cache) for token in text[:24]])
    for B in (2, 5, 16):
        cache = Cache(48, B)
        for t in range(24):
            found = model.decode_batch([[text[t]] for text in texts[:B]], cache)
            np.testing.assert_array_equal(found, [rows[t] for rows in alone[:B]])
    for n in (2, 7, 16):  # rows of one text
        cache = Cache(48)
        for t in range(0, 24 - n + 1, n):
            found = model.decode(texts[0][t : t + n], cache)
            np.testing.assert_array_equal(found, alone[0][t + n - 1])


@pytest.mark.parametrize("form", ["one key head", "llama3"])
def test_llama_reads_no_beginning_twice(backend, build, close, form):
    """What is known of a text's beginning serves another that begins alike, in any slot."""
    model, cache = build(**LLAMA | FORMS[form]), Cache(48, slots=3)
    model.decode_batch([LONG[:30]], cache, [1])
    cache.copy(1, 2)
    cache.lengths[:] = 0, 11, 19
    found = model.decode_batch([[5, 5, 6], LONG[19:40]], cache, [1, 2])
    close(found[0], model.logits([*LONG[:11], 5, 5, 6])[-1], 20)
    close(found[1], model.logits(LONG[:40])[-1], 20)


def test_a_cache_has_the_columns_of_the_key_heads_alone(build):
    model, cache = build(**LLAMA | FORMS["two groups, tied"]), Cache(48, slots=2)
    model.decode([1], cache)
    (stack,) = cache._stacks.values()
    assert stack.shape == (2, 2, 48, 2 * 2 * 10)


def test_blocks_of_other_angles_run_by_themselves(calls, build, close):
    """The kernel has one table for all blocks."""

    def layers(config):
        found = build_layers(config, V)
        other = dataclasses.replace(config, rope_theta=50.0)
        return [*found[:2], TransformerBlock(other, None), *found[3:]]

    model, cache = build(**LLAMA | FORMS["one key head"], layers=layers), Cache(48)
    expected = model.logits(TEXT)
    calls.clear()
    close(model.decode(TEXT, cache), expected[-1], 20)
    assert "decoder_forward" not in calls
